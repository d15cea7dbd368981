"""Junk that is in Redis already: listings omit it, paths open it, `redisfuse junk` finds, removes and restores it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pexpect
import pytest
import redis

from redisfuse.client.limits import Limits
from tests.support.changes import monitor_writes
from tests.support.mounts import isolated_environment, mount_server, redisfuse_command, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer

JUNK = {
    ".DS_Store": b"x" * 6148,
    "app:.DS_Store": b"x" * 6148,
    "app:cfg:.main.swp": b"b0VIM",
    ".Trash-1000:info:x": b"trashed",
    "app:main___jb_tmp___": b"{}",
    "desktop.ini": b"[.ShellClassInfo]",
}
DATA = {"app:main": b"1", "app:main~": b"2", "app:x.tmp": b"3", "app:4913": b"4", "k.lock": b"5", "._app": b"6"}
TTL_MS = 3_600_000


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    """Return a server with junk of several kinds, and data with names that resemble junk."""
    client = redis_server.client()
    client.mset({**JUNK, **DATA})
    client.pexpire(".DS_Store", TTL_MS)
    client.rpush("lists:Thumbs.db", "a", "b")
    client.hset("user", mapping={"bio": "old", "bio___jb_old___": "older"})
    client.hset(".page", mapping={"html.swp": "b0VIM"})
    return redis_server


def dump_all(client: redis.Redis) -> dict[bytes, object]:
    """Return a DUMP of each key of a server."""
    return {key: client.dump(key) for key in sorted(client.keys())}


def list_files(path: Path) -> set[str]:
    """Return the paths of all files of a mount."""
    return {
        os.path.relpath(os.path.join(directory, name), path) for directory, _, names in os.walk(path) for name in names
    }


DATA_FILES = {"app/main", "app/main~", "app/x.tmp", "app/4913", "k.lock", "._app", "user.bio"}


@pytest.mark.expected_log("5 names are not listed, because they match junk patterns")
@pytest.mark.parametrize("write", [False, True])
def test_listings_omit_it(server: RedisServer, tmp_path: Path, write: bool) -> None:
    """Listings omit it and the log reports that once; an exact path opens it; --show-junk lists it."""
    with mount_server(tmp_path, server.tcp_url(), write=write) as mount:
        assert list_files(mount.path) == DATA_FILES
        assert (mount.path / ".DS_Store").read_bytes() == JUNK[".DS_Store"]
        assert (mount.path / "app" / "cfg" / ".main.swp").read_bytes() == b"b0VIM"
        assert (mount.path / ".Trash-1000" / "info" / "x").read_bytes() == b"trashed"
        assert (mount.path / "user.bio___jb_old___").read_bytes() == b"older"
        assert list_files(mount.path) == DATA_FILES
        lines = [line for line in mount.read_log().splitlines() if "junk" in line]
        assert len(lines) == 1, lines
        assert "names are not listed" in lines[0]
        assert "--show-junk" in lines[0]
        assert "redisfuse junk scan" in lines[0]
    with mount_server(tmp_path, server.tcp_url(), "--show-junk", write=write) as mount:
        everything = {name.replace(":", "/") for name in JUNK} - {"desktop.ini"}
        more = {"desktop.ini", "lists/Thumbs.db", "user.bio___jb_old___", ".page.html.swp"}
        assert list_files(mount.path) == DATA_FILES | everything | more


def test_a_key_is_data(server: RedisServer, tmp_path: Path) -> None:
    """A key with a junk name, opened by its path, is written and removed as any key, not as junk."""
    client = server.client()
    with mount_server(tmp_path, server.tcp_url(), write=True) as mount:
        (mount.path / ".DS_Store").write_bytes(b"new")
        assert client.get(".DS_Store") == b"new"
        assert client.pttl(".DS_Store") > 0
        (mount.path / "desktop.ini").unlink()
        assert not client.exists("desktop.ini")


def test_scan(server: RedisServer, tmp_path: Path) -> None:
    """`junk scan` finds only the junk, with sizes and rules; it writes nothing; --fields finds fields too."""
    with monitor_writes(server) as commands:
        process = run_redisfuse(tmp_path, "junk", "scan", server.tcp_url(), "--json")
    assert process.returncode == 0, process.stderr
    assert commands == []
    rows = {row["path"]: row for row in map(json.loads, process.stdout.splitlines())}
    paths = {".DS_Store", "app/.DS_Store", "app/cfg/.main.swp", ".Trash-1000/info/x", "app/main___jb_tmp___"}
    assert rows.keys() == paths | {"desktop.ini", "lists/Thumbs.db"}
    store = rows["app/.DS_Store"]
    assert (store["key"], store["field"], store["type"], store["length"]) == ("app:.DS_Store", None, "string", 6148)
    assert (store["pattern"], store["program"], store["class"]) == (".DS_Store", "macOS: Finder", "safe")
    assert rows[".Trash-1000/info/x"]["pattern"] == ".Trash-*"
    assert (rows["lists/Thumbs.db"]["type"], rows["lists/Thumbs.db"]["length"]) == ("list", 2)
    process = run_redisfuse(tmp_path, "junk", "scan", server.tcp_url(), "--fields")
    lines = [line.split("\t") for line in process.stdout.splitlines()]
    assert {line[0] for line in lines} == rows.keys() | {"user.bio___jb_old___", ".page.html.swp"}
    assert [line[1:3] for line in lines if line[0] == "user.bio___jb_old___"] == [["field", "5"]]
    process = run_redisfuse(
        tmp_path, "junk", "scan", server.tcp_url(), "--prefix", "app:", "--keep", "*.swp", "--junk", "*.tmp"
    )
    assert {line.split("\t")[0] for line in process.stdout.splitlines()} == {
        "app/.DS_Store",
        "app/main___jb_tmp___",
        "app/x.tmp",
    }


def test_many_keys_are_scanned_in_batches(redis_server: RedisServer, tmp_path: Path) -> None:
    """Junk among many keys is found without slow commands."""
    client = redis_server.client()
    client.mset({f"k:{number}": b"" for number in range(20_000)} | {f"d:{n}:.DS_Store": b"x" for n in range(1_500)})
    process = run_redisfuse(tmp_path, "junk", "scan", redis_server.tcp_url())
    assert len(process.stdout.splitlines()) == 1_500
    calls = {name: command["calls"] for name, command in client.info("commandstats").items()}
    assert calls["cmdstat_scan"] >= 21_500 // Limits().scan_count
    assert "cmdstat_keys" not in calls
    process = run_redisfuse(tmp_path, "junk", "clean", redis_server.tcp_url(), "--yes")
    assert "1,500 keys removed" in process.stdout, process
    assert client.dbsize() == 20_000


def test_clean_asks_for_confirmation(server: RedisServer, tmp_path: Path) -> None:
    """Without --yes it prompts on a terminal and fails without one; --dry-run only lists."""
    client = server.client()
    before = dump_all(client)
    process = run_redisfuse(tmp_path, "junk", "clean", server.tcp_url())
    assert process.returncode == 2
    assert "7 keys" in process.stderr
    assert "--yes" in process.stderr
    process = run_redisfuse(tmp_path, "junk", "clean", server.tcp_url(), "--dry-run")
    assert process.returncode == 0
    assert len(process.stdout.splitlines()) == 7
    assert not (tmp_path / "state" / "redisfuse" / "journal.db").exists()
    words = redisfuse_command("junk", "clean", server.tcp_url())
    child = pexpect.spawn(
        words[0], words[1:], env={**isolated_environment(tmp_path), "TERM": "xterm"}, timeout=30, encoding="utf-8"
    )
    child.expect(r"Remove 7 keys, 12\.0 KiB\?")
    shown = child.before or ""
    assert ".DS_Store (macOS: Finder): 2 keys" in shown
    assert "app/cfg/.main.swp" in shown
    child.sendline("n")
    child.expect("nothing was changed")
    child.expect(pexpect.EOF)
    assert dump_all(client) == before


def test_clean_and_rollback(server: RedisServer, tmp_path: Path) -> None:
    """`junk clean` removes all junk and nothing else, journaled; a rollback of its session restores it."""
    client = server.client()
    before = dump_all(client)
    process = run_redisfuse(tmp_path, "junk", "clean", server.tcp_url(), "--yes", "--fields")
    assert process.returncode == 0, process.stderr
    assert sorted(client.keys()) == sorted([*map(str.encode, DATA), b"user"])
    assert client.hgetall("user") == {b"bio": b"old"}
    rows = [json.loads(line) for line in run_redisfuse(tmp_path, "log", "--keys", "--json").stdout.splitlines()]
    assert {(row["op"], row["state"]) for row in rows} == {("remove", "applied")}
    assert len(rows) == 9
    assert len({row["group"] for row in rows}) == 9
    assert "app/.DS_Store" in {row["path"] for row in rows}
    session = str(rows[0]["session"])
    assert f"redisfuse rollback --session {session}" in process.stdout
    one = next(row["id"] for row in rows if row["path"] == "desktop.ini")
    assert run_redisfuse(tmp_path, "rollback", str(one), "--yes").returncode == 0
    assert client.get("desktop.ini") == JUNK["desktop.ini"]
    assert client.dbsize() == 8
    process = run_redisfuse(tmp_path, "rollback", "--session", session, "--yes")
    assert process.returncode == 0, process.stderr
    assert dump_all(client) == before
    assert 0 < client.pttl(".DS_Store") <= TTL_MS
    process = run_redisfuse(tmp_path, "junk", "clean", server.tcp_url(), "--yes", "--prefix", "nothing:")
    assert (process.returncode, process.stdout) == (0, "")


def test_a_running_mount_follows_clean(server: RedisServer, tmp_path: Path) -> None:
    """A mount that lists junk omits removed junk within 5 seconds."""
    with mount_server(tmp_path, server.tcp_url(), "--show-junk") as mount:
        assert (mount.path / ".DS_Store").exists()
        assert run_redisfuse(tmp_path, "junk", "clean", server.tcp_url(), "--yes", "--fields").returncode == 0
        wait_until(lambda: list_files(mount.path) == DATA_FILES, 5)


def test_usage(tmp_path: Path) -> None:
    """A missing or unreachable server is reported in one line."""
    process = run_redisfuse(tmp_path, "junk", "scan")
    assert process.returncode == 2
    assert "no server given" in process.stderr
    process = run_redisfuse(tmp_path, "junk", "scan", "redis://127.0.0.1:1/0")
    assert process.returncode == 1
    assert len(process.stderr.splitlines()) == 1
