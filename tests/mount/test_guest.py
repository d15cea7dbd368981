"""The load of a mount on the server: no slow command, bounded connections and rate, and bounded memory."""

import contextlib
import os
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.support.mount_logs import SILENT
from tests.support.mounts import mount_server, wait_until
from tests.support.redis_server import RedisServer

MIB = 1024 * 1024
MILLION = 1_000_000

pytestmark = pytest.mark.timeout(300)


@pytest.mark.timing("SLOWLOG counts the time during which another process has the server's core")
@pytest.mark.parametrize(
    ("elements", "mebibytes"), [(300_000, 150), pytest.param(MILLION, 500, marks=pytest.mark.long("reads 600 MB"))]
)
def test_no_command_takes_long(tmp_path: Path, elements: int, mebibytes: int) -> None:
    """`find` and `grep -r` leave the SLOWLOG for 10 ms empty, although they read large collections and strings."""
    with RedisServer(tcp=True) as server:
        client = server.client()
        for start in range(0, elements, 100_000):
            numbers = range(start, start + 100_000)
            client.rpush("c:list", *numbers)
            client.sadd("c:set", *numbers)
            client.zadd("c:zset", {str(number): number for number in numbers})
            client.hset("c:hash", mapping={str(number): number for number in numbers})
        for _ in range(mebibytes):
            client.append("c:text", bytes(MIB))
        client.config_set("slowlog-log-slower-than", 10_000)
        assert server.process is not None
        with contextlib.suppress(PermissionError):  # concurrent tests must not take its core
            os.setpriority(os.PRIO_PROCESS, server.process.pid, -15)
        with mount_server(tmp_path, server.tcp_url()) as mount:
            client.slowlog_reset()
            subprocess.run(["find", mount.path, "-size", "+1k", "-ls"], check=True, timeout=60, capture_output=True)
            subprocess.run(["grep", "-rc", str(elements - 1), mount.path], check=True, timeout=120, capture_output=True)
            assert client.slowlog_get() == []


@pytest.mark.parametrize(
    ("count", "max_growth"),
    [(150_000, 150 * MIB), pytest.param(MILLION, 200 * MIB, marks=pytest.mark.long("takes more than a minute"))],
)
def test_a_directory_of_many_keys(tmp_path: Path, count: int, max_growth: int) -> None:
    """The first name is returned early, all names are listed, and memory is bounded."""
    with RedisServer(tcp=True, arguments=["--enable-debug-command", "local"]) as server:
        client = server.client()
        client.execute_command("DEBUG", "POPULATE", count, "big", 10)
        with mount_server(tmp_path, server.tcp_url()) as mount:
            process = psutil.Process(mount.process.pid)
            before = process.memory_info().rss
            began = time.monotonic()
            with os.scandir(mount.path / "big") as entries:
                next(entries)
                first = time.monotonic() - began
            listing = subprocess.run(
                f"ls -f {mount.path}/big | wc -l", shell=True, check=True, capture_output=True, timeout=200
            )
            whole = time.monotonic() - began
            assert int(listing.stdout) == count + 2
            assert first < whole / 10
            # The mount caches metadata (--cache-memory, 64 MiB) and remembers the names that the kernel caches.
            assert process.memory_info().rss < before + max_growth


def test_the_number_of_connections_is_limited(tmp_path: Path) -> None:
    """With 16 concurrent readers the mount opens at most --connections connections, all of them named."""
    with RedisServer(tcp=True) as server:
        client = server.client()
        client.mset({f"k{number}": "x" * 100 for number in range(200)})
        with mount_server(tmp_path, server.tcp_url(), "--connections", "3", "--cache-memory", "1") as mount:
            most = 0
            done = threading.Event()

            def read() -> None:
                while not done.is_set():
                    for number in range(200):
                        (mount.path / f"k{number}").read_bytes()

            threads = [threading.Thread(target=read) for _ in range(16)]
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                names = [connection["name"] for connection in client.client_list()]
                most = max(most, names.count("redisfuse"))
                time.sleep(0.02)
            done.set()
            for thread in threads:
                thread.join(20)
            assert 2 <= most <= 3


def test_the_rate_is_limited(tmp_path: Path) -> None:
    """With --rate 200, `ls -l` of 300 keys sends at most about 200 commands a second."""
    with RedisServer(tcp=True) as server:
        server.client().mset({f"k{number}": "x" for number in range(300)})
        with mount_server(tmp_path, server.tcp_url(), "--rate", "200") as mount:
            before = mount.status()["commands"]
            began = time.monotonic()
            subprocess.run(["ls", "-l", mount.path], check=True, capture_output=True, timeout=60)
            took = time.monotonic() - began
            sent = mount.status()["commands"] - before
            assert sent >= 500
            assert sent / took < 300


def test_a_prefix_limits_the_tree(tmp_path: Path) -> None:
    """With --prefix the mount shows only the keys that begin with it, and their changes."""
    with RedisServer(tcp=True) as server:
        client = server.client()
        client.mset({"app:a": "1", "app:b": "2", "other:c": "3", "ap": "4"})
        with mount_server(tmp_path, server.tcp_url(), "--prefix", "app:") as mount:
            assert os.listdir(mount.path) == ["app"]
            assert sorted(os.listdir(mount.path / "app")) == ["a", "b"]
            client.set("app:n", "5")
            client.set("other:n", "5")
            wait_until(lambda: sorted(os.listdir(mount.path / "app")) == ["a", "b", "n"])
            assert os.listdir(mount.path) == ["app"]


def test_a_prefix_limits_writes(tmp_path: Path) -> None:
    """A path outside of --prefix can't be opened, created, or be the target of a rename."""
    with RedisServer(tcp=True) as server:
        client = server.client()
        client.mset({"app:a": "1", "other:c": "3"})
        with mount_server(tmp_path, server.tcp_url(), "--prefix", "app:", write=True) as mount:
            assert not (mount.path / "other" / "c").exists()
            for name in ("outside", "app"):
                with pytest.raises(OSError, match=r"denied|directory"):
                    (mount.path / name).write_text("x")
            with pytest.raises(PermissionError):
                (mount.path / "other").mkdir()
            with pytest.raises(PermissionError):
                os.rename(mount.path / "app" / "a", mount.path / "outside")
            (mount.path / "app" / "new").write_text("2")
            assert sorted(client.keys()) == [b"app:a", b"app:new", b"other:c"]


def test_an_index_too_large_for_memory_goes_to_disk(tmp_path: Path) -> None:
    """Beyond --index-memory the key names move to a private file, and reads continue to work."""
    with RedisServer(tcp=True, arguments=["--enable-debug-command", "local"]) as server:
        client = server.client()
        client.execute_command("DEBUG", "POPULATE", 100_000, "many:key", 10)
        with mount_server(tmp_path, server.tcp_url(), "--index-memory", "1MiB") as mount:
            wait_until(lambda: mount.status()["index_on_disk"])
            assert len(os.listdir(mount.path / "many" / "key")) == 100_000
            client.set("many:new", "1")
            wait_until(lambda: (mount.path / "many" / "new").exists())


@pytest.mark.possible_log("tracking the server's changes was interrupted: .* did not reply in time", SILENT)
def test_a_blocked_request_does_not_block_others(tmp_path: Path) -> None:
    """A request that waits for a stopped server does not block a read of cached content."""
    with RedisServer(tcp=True) as server:
        client = server.client()
        client.mset({"cached": "1", "uncached": "2"})
        with mount_server(tmp_path, server.tcp_url(), "--timeout", "3") as mount:
            mount.wait_coherent()
            assert (mount.path / "cached").read_text() == "1"
            server.pause()
            try:
                hanging = threading.Thread(target=lambda: os.access(mount.path / "uncached", os.F_OK))
                hanging.start()
                began = time.monotonic()
                assert (mount.path / "cached").read_text() == "1"
                assert time.monotonic() - began < 1
                hanging.join(10)
            finally:
                server.resume()
