"""`redisfuse top` with a mount and without: folders, queues, and the keys that change most."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.support.mounts import (
    MountedServer,
    isolated_environment,
    mount_server,
    redisfuse_command,
    run_redisfuse,
    wait_until,
)
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory, server: RedisServer) -> Iterator[MountedServer]:
    """Mount some folders and queues."""
    client = server.client()
    for number in range(20):
        client.set(f"cache:page:{number}", "x" * 1000, ex=600)
        client.set(f"user:{number}", "x" * 10)
    client.rpush("user", *range(50))
    client.xadd("events", {"a": "b"})
    with mount_server(tmp_path_factory.mktemp("top"), server.tcp_url()) as mount:
        yield mount


def top(folder: Path, *words: object) -> list[list[str]]:
    """Return the cells of the lines that `redisfuse top` prints in a pipe."""
    done = run_redisfuse(folder, "top", *map(str, words))
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_folders_and_keys(tmp_path: Path, mounted: MountedServer) -> None:
    """Folders are sorted by their sums, the biggest keys have the paths of the mount."""
    path = mounted.path
    rows = top(tmp_path, path, "--by", "bytes", "--limit", "2", "--depth", "2")
    assert rows[0][:3] == ["20200", "1.0000", "42"]
    assert [row[-1] for row in rows[1:4]] == [f"{path}/cache/", f"{path}/cache/page/", f"{path}/user/"]
    assert rows[1][3:-1] == ["0", "20", "0", "0", "0", "0"]
    assert rows[4] == [""]
    assert all(row[-1].startswith(f"{path}/cache/page/") for row in rows[5:])
    biggest = top(tmp_path, path, "--by", "elements", "--limit", "1")[-1]
    assert biggest == ["50", "list", "50", "-1", f"{path}/user%"]
    assert os.path.isfile(biggest[-1])


def test_no_expiries(tmp_path: Path, server: RedisServer, mounted: MountedServer) -> None:
    """With --no-expiries there are no columns for them, and no PTTL is sent for each key."""
    server.client().config_resetstat()
    rows = top(tmp_path, mounted.path, "--by", "keys", "--no-expiries")
    assert rows[0] == ["42", "1.0000", "total"]
    assert "cmdstat_pttl" not in server.client().info("commandstats")
    total = json.loads(top(tmp_path, mounted.path, "--json", "--no-expiries", "--limit", "1")[0][0])
    assert sorted(total) == ["keys", "memory", "total"]


def test_a_folder_of_a_mount(tmp_path: Path, mounted: MountedServer) -> None:
    """The total is that of the folder, and its folders are below it."""
    rows = top(tmp_path, mounted.path / "cache", "--by", "keys")
    assert [row[-1] for row in rows] == ["total", f"{mounted.path}/cache/page/"]


@pytest.mark.usefixtures("mounted")
def test_json(tmp_path: Path, server: RedisServer) -> None:
    """--json has the total, folders with prefixes, and keys."""
    done = run_redisfuse(tmp_path, "top", server.tcp_url(), "--json", "--limit", "1", "--sample", "1000")
    total, folder, key = map(json.loads, done.stdout.splitlines())
    assert (total["total"], total["keys"], total["error"], total["sampled_keys"]) == (True, 42, 0, 42)
    assert (folder["folder"], folder["prefix"], folder["depth"]) == ("cache/", "cache:", 1)
    assert folder["expires"]["1h"] == 20
    assert key["key"] in ("events", "cache:page:0") or key["key"].startswith("cache")
    assert key["memory"] > 0
    assert "of 42" in run_redisfuse(tmp_path, "top", server.tcp_url(), "--sample", "9").stderr


def test_queues(tmp_path: Path, mounted: MountedServer) -> None:
    """--queues lists lists and streams, the longest first."""
    rows = top(tmp_path, mounted.path, "--queues")
    assert rows[0] == ["list", "50", "", "", "", "", "", f"{mounted.path}/user%"]
    assert (rows[1][:2], rows[1][3:]) == (["stream", "1"], ["0", "0", "0", "", f"{mounted.path}/events"])
    assert 0 <= int(rows[1][2]) < 600
    done = run_redisfuse(tmp_path, "top", str(mounted.path), "--queues", "--json", "--limit", "1")
    row = json.loads(done.stdout)
    assert (row["key"], row["length"], row["oldest_s"], row["lag"]) == ("user", 50, None, None)


def test_changes(tmp_path: Path, server: RedisServer, mounted: MountedServer) -> None:
    """--changes counts the changes within --seconds, of the keys below WHERE."""
    ended = threading.Event()

    def change() -> None:
        client = server.client()
        wait_until(lambda: client.info("clients")["tracking_clients"] == 2)  # the mount's is the other
        for number in range(20):
            client.set("cache:page:7", str(number) * 1000, ex=600)
            client.incr("elsewhere")
        client.delete("elsewhere")
        ended.set()

    thread = threading.Thread(target=change)
    thread.start()
    done = run_redisfuse(tmp_path, "top", str(mounted.path / "cache"), "--changes", "--json", "--seconds", "4")
    thread.join(20)
    assert ended.is_set()
    total, key = map(json.loads, done.stdout.splitlines())
    assert total["changes"] == 20
    assert key == {"path": f"{mounted.path}/cache/page/7", "key": "cache:page:7", "changes": 20}


def test_a_terminal(tmp_path: Path, server: RedisServer, mounted: MountedServer) -> None:
    """On a terminal there are titles and sizes for people; --changes is live until Ctrl-C."""
    words = redisfuse_command("top", str(mounted.path))
    child = pexpect.spawn(words[0], words[1:], env=isolated_environment(tmp_path), dimensions=(50, 200), timeout=60)
    shown = child.read().decode()
    child.close()
    assert child.exitstatus == 0
    assert "MEMORY" in shown
    assert "KiB" in shown
    assert "NEVER" in shown
    words = redisfuse_command("top", server.tcp_url(), "--changes")
    child = pexpect.spawn(words[0], words[1:], env=isolated_environment(tmp_path), dimensions=(50, 200), timeout=60)
    child.expect(r"\d changes in \d+ s")
    server.client().set("user:1", "x" * 10)
    child.expect("user/1")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_usage_errors(tmp_path: Path, mounted: MountedServer) -> None:
    """Views that exclude each other, and a WHERE of one key, are errors."""
    for words, message in [
        (("--queues", "--changes"), "separate views"),
        (("--queues", "--sample", "5"), "can't be combined with --queues"),
        (("--queues", "--by", "memory"), "--by is for sizes; it can't be combined with --queues"),
        (("--changes", "--depth", "1"), "--depth is for sizes"),
        (("--queues", "--no-expiries"), "--expiries is for sizes"),
        (("--seconds", "5"), "--seconds is for --changes"),
    ]:
        done = run_redisfuse(tmp_path, "top", str(mounted.path), *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
    done = run_redisfuse(tmp_path, "top", str(mounted.path / "events"))
    assert "WHERE is one key" in done.stderr


def test_a_server_without_messages(tmp_path: Path, own_redis: RedisServer) -> None:
    """Where the user may not track changes, --changes fails with the reason."""
    own_redis.client().execute_command("ACL", "SETUSER", "reader", "on", ">p", "~*", "+@read", "+info", "+hello")
    url = own_redis.tcp_url().replace("redis://", "redis://reader:p@")
    done = run_redisfuse(tmp_path, "top", url, "--changes", "--seconds", "5")
    assert done.returncode == 1
    assert "can't track changes" in done.stderr
