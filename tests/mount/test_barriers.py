"""The three barriers of a read-only mount: each alone, with the two others removed, and all together.

Every attempt to write is EROFS, no write command reaches the server (MONITOR), and the data is unchanged.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.errors import ForbiddenCommandError, ReadOnlyError
from tests.support import mount_logs
from tests.support.bindings import BINDINGS
from tests.support.errno_of import errno_name, save_file
from tests.support.forkserver import ROOT
from tests.support.mount_logs import KEPT
from tests.support.mounts import MOUNT_TIMEOUT_SECONDS, is_mounted, mount_server
from tests.support.redis_server import RedisServer

Data = dict[bytes, tuple[bytes, int]]


@pytest.fixture
def client(own_redis: RedisServer) -> redis.Redis:
    client = own_redis.client()
    client.mset({"k": "value", "dir:a": "1", "dir:b": "2"})
    client.set("ttl", "x", px=3_600_000)
    client.hset("h", mapping={"f": "1"})
    client.rpush("list", "a", "b")
    return client


def read_data(client: redis.Redis) -> Data:
    """Return the DUMP payload of every key, and when it expires (Unix time in ms)."""
    return {key: (client.dump(key), client.pexpiretime(key)) for key in client.scan_iter()}


def mutations(path: Path) -> dict[str, Callable[[], str]]:
    """Return all ways to change data, by name; each returns the name of the errno."""
    return {
        "overwrite": lambda: save_file(path / "k", b"new"),
        "append": lambda: errno_name(_append, path / "k"),
        "field": lambda: save_file(path / "h.f", b"new"),
        "create": lambda: save_file(path / "new", b"new"),
        "truncate": lambda: errno_name(os.truncate, path / "k", 1),
        "unlink": lambda: errno_name(os.unlink, path / "dir" / "a"),
        "unlink list": lambda: errno_name(os.unlink, path / "list"),
        "rename": lambda: errno_name(os.rename, path / "k", path / "moved"),
        "rename over": lambda: errno_name(os.rename, path / "k", path / "ttl"),
        "rename directory": lambda: errno_name(os.rename, path / "dir", path / "moved"),
        "expire": lambda: errno_name(os.setxattr, path / "k", "user.redis.ttl", b"1000"),
        "persist": lambda: errno_name(os.removexattr, path / "ttl", "user.redis.ttl"),
    }


def tree_changes(path: Path) -> dict[str, Callable[[], str]]:
    """Return all ways to change the tree but no data, by name."""
    return {
        "mkdir": lambda: errno_name(os.mkdir, path / "new"),
        "rmdir": lambda: errno_name(os.rmdir, path / "dir"),
        "mknod": lambda: errno_name(os.mknod, path / "node"),
        "symlink": lambda: errno_name(os.symlink, "k", path / "link"),
        "link": lambda: errno_name(os.link, path / "k", path / "hard"),
    }


def _append(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, b"more")
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def monitor_commands(server: RedisServer) -> Iterator[list[str]]:
    """Yield a list of the commands that reach the server, in capitals, from MONITOR.

    It has the first word, and the first two words, of each command.
    """
    names: list[str] = []
    done = threading.Event()
    with server.client().monitor() as monitor:

        def listen() -> None:
            for event in monitor.listen():
                words = event["command"].upper().split()
                if words[0] == "ECHO":
                    done.set()
                    return
                names.extend((words[0], " ".join(words[:2])))

        threading.Thread(target=listen, daemon=True).start()
        yield names
        server.client().execute_command("ECHO", "end")
        assert done.wait(20)


def write_commands(client: redis.Redis) -> set[str]:
    """Return the names of the server's write commands, of one word or two, from ACL CAT."""
    return {name.upper().replace("|", " ") for name in client.acl_cat("write")}


@contextlib.contextmanager
def barrier_mount(folder: Path, barrier: str, binding: str, url: str) -> Iterator[Path]:
    """Run a mount that has only one of the barriers, and yield its mount point."""
    path = folder / "mnt"
    path.mkdir()
    (folder / "state").mkdir(mode=0o700)
    mount_logs.watch(folder / "log")
    words = [sys.executable, "-m", "tests.support.barrier_mount", barrier, binding, url, str(path)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*words, str(folder / "state" / "journal.db")], cwd=ROOT, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + MOUNT_TIMEOUT_SECONDS
        while not is_mounted(path):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield path
    finally:
        process.terminate()
        try:
            process.wait(MOUNT_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(MOUNT_TIMEOUT_SECONDS)
        if is_mounted(path):
            subprocess.run(["fusermount", "-uz", str(path)], check=False, timeout=MOUNT_TIMEOUT_SECONDS)


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize(
    "barrier",
    ["kernel", "changer", pytest.param("connection", marks=pytest.mark.expected_log(f"was not sent.*{KEPT}"))],
)
def test_one_barrier_is_enough(
    own_redis: RedisServer, client: redis.Redis, tmp_path: Path, barrier: str, binding: str
) -> None:
    """With two of the barriers removed, the third alone refuses every change with EROFS."""
    before = read_data(client)
    with barrier_mount(tmp_path, barrier, binding, own_redis.tcp_url()) as path:
        options = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(path) in line)
        assert options.split()[5].startswith("ro") == (barrier == "kernel")
        assert sorted(os.listdir(path)) == ["dir", "h.f", "k", "list", "ttl"]
        with monitor_commands(own_redis) as names:
            errors = {name: act() for name, act in mutations(path).items()}
            if barrier != "connection":
                errors |= {name: act() for name, act in tree_changes(path).items()}
            assert (path / "k").read_bytes() == b"value"
    if barrier == "changer":  # no mount supports links: that check comes before the one for writing
        assert {errors.pop("symlink"), errors.pop("link")} == {"EPERM"}
    assert set(errors.values()) == {"EROFS"}, errors
    assert not write_commands(client) & set(names), names
    assert read_data(client) == before


@pytest.mark.parametrize("binding", BINDINGS)
def test_all_barriers(own_redis: RedisServer, client: redis.Redis, tmp_path: Path, binding: str) -> None:
    """An ordinary read-only mount refuses every change with EROFS; its files are 0400."""
    before = read_data(client)
    with (
        mount_server(tmp_path, own_redis.tcp_url(), "--binding", binding) as mount,
        monitor_commands(own_redis) as names,
    ):
        errors = {name: act() for name, act in (mutations(mount.path) | tree_changes(mount.path)).items()}
        assert set(errors.values()) == {"EROFS"}, errors
        assert os.stat(mount.path / "k").st_mode & 0o777 == 0o400
        assert os.stat(mount.path / "dir").st_mode & 0o777 == 0o500
    assert not write_commands(client) & set(names), names
    assert read_data(client) == before


def test_the_connection_refuses_every_write(own_redis: RedisServer, client: redis.Redis) -> None:
    """The connections of a read-only RedisClient refuse each write command before they send it.

    The write commands are those of the server's ACL category. A read-only client has no write channel.
    """
    before = read_data(client)
    reader = RedisClient(Address.parse(own_redis.url()))
    try:
        reader.connect()
        with monitor_commands(own_redis) as names:
            for name in sorted(write_commands(client)):
                for words in ((*name.split(), "k"), (*name.lower().split(), "k"), (*name.split(), "k", "1", "2")):
                    with pytest.raises(ForbiddenCommandError):
                        reader.execute(*words)
                    with pytest.raises(ForbiddenCommandError):
                        reader.execute_many([("GETRANGE", "k", 0, 1), words])
                    with reader.dedicated_channel() as channel, pytest.raises(ForbiddenCommandError):
                        channel.send([("MULTI",), words, ("EXEC",)])
            with pytest.raises(ReadOnlyError), reader.write_channel():
                pass
            assert reader.execute("GETRANGE", "k", 0, -1) == b"value"
    finally:
        reader.close()
    assert not write_commands(client) & set(names), names
    assert read_data(client) == before
