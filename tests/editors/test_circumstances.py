"""Saves in special circumstances: a slow server, a file with the marker in its name, a new file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.editors.programs import NEW, OLD, PROGRAMS, vim_new
from tests.support.changes import journal_rows, last_change_id, monitor_writes, watch_presence
from tests.support.mounts import MountedServer, flush_and_wait, mount_server, wait_until
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer

TTL_MS = 3_600_000
BY_NAME = {program.name: program for program in PROGRAMS}
DELAY_SECONDS = 0.15  # of each command


@pytest.fixture(scope="module")
def mount(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedServer]:
    with mount_server(tmp_path_factory.mktemp("circumstances"), server.tcp_url(), write=True) as mount:
        yield mount


@pytest.mark.parametrize("name", ["perl-i", "while-it-is-read", "vim-backupcopy=no", "gio-save", "jetbrains"])
def test_a_slow_server(name: str, server: RedisServer, tmp_path: Path) -> None:
    """With a slow server the key is never missing, and keeps its TTL."""
    client = server.client()
    client.set("slow.txt", OLD, px=TTL_MS)
    with Proxy(server.socket_path) as proxy, mount_server(tmp_path, proxy.url(), write=True) as mount:
        path = mount.path / "slow.txt"
        assert path.exists()
        for command in ("TYPE", "WATCH", "EXEC", "STRLEN", "HSTRLEN"):
            proxy.inject("delay", command, seconds=DELAY_SECONDS, times=1_000)
        with monitor_writes(server, b"slow.txt") as commands, watch_presence(server, b"slow.txt") as presence:
            BY_NAME[name].save(path, tmp_path)
            wait_until(lambda: client.get("slow.txt") == NEW)
        proxy.clear()
        assert not presence.missing
        assert [words[0] for words in commands] == ["SET"]
        assert client.pttl("slow.txt") > 0
        assert len(journal_rows(mount)) == 1


@pytest.mark.parametrize(
    "name", ["vim", "emacs-batch", "nano-B", "sed-i", "perl-i", "jetbrains", "gio-save-backup", "python-replace"]
)
def test_a_marked_name(name: str, server: RedisServer, mount: MountedServer, tmp_path: Path) -> None:
    """A key beside a directory of its name is edited as NAME%; neither it nor its backup creates another key."""
    flush_and_wait(server, mount)
    client = server.client()
    client.set("user", OLD, px=TTL_MS)
    client.set("user:1", "x")
    path = mount.path / "user%"
    wait_until(lambda: path.exists() and path.read_bytes() == OLD)
    before = last_change_id(mount)
    with monitor_writes(server) as commands, watch_presence(server, b"user") as presence:
        BY_NAME[name].save(path, tmp_path)
        wait_until(lambda: client.get("user") == NEW)
    assert not presence.missing
    assert [words[:2] for words in commands] == [["SET", "user"]]
    assert client.pttl("user") > 0
    assert len(journal_rows(mount, before)) == 1
    assert sorted(client.keys()) == [b"user", b"user:1"]
    for leaf in BY_NAME[name].leaves:
        (mount.path / leaf.format("user%")).unlink()


CREATORS = {
    "vim": vim_new("vim"),
    "neovim": vim_new("nvim"),
    **{name: BY_NAME[name].save for name in ("cp", "rsync", "gio-save", "python-replace", "kate", "dd")},
}


@pytest.mark.parametrize("name", CREATORS)
def test_a_new_file(name: str, server: RedisServer, mount: MountedServer, tmp_path: Path) -> None:
    """A new file is created by one command, as one change; its temporary files do not reach Redis."""
    flush_and_wait(server, mount)
    client = server.client()
    client.set("dir:other", "x")
    path = mount.path / "dir" / "new"
    wait_until((mount.path / "dir" / "other").exists)
    wait_until(lambda: not path.exists())
    before = last_change_id(mount)
    with monitor_writes(server) as commands:
        CREATORS[name](path, tmp_path)
        wait_until(lambda: client.get("dir:new") == NEW)
    assert [words[:2] for words in commands] == [["SET", "dir:new"]]
    assert [row["op"] for row in journal_rows(mount, before)] == ["create"]
    assert sorted(client.keys()) == [b"dir:new", b"dir:other"]
    assert set(os.listdir(path.parent)) == {"new", "other"}


BACKUP_BY_RENAME = "writebackup nobackup backupcopy=no backupskip="  # by default vim skips /tmp
REPLACE = {
    "sed": ["sed", "-i.bak", "s/one/ONE/", "note"],
    "perl": ["perl", "-pi.bak", "-e", "s/one/ONE/", "note"],
    "vim": ["vim", "-u", "NONE", "-es", f"+set {BACKUP_BY_RENAME}", "+%s/one/ONE/", "+wq", "note"],
}


@pytest.mark.parametrize("name", REPLACE)
def test_a_backup_by_rename_and_the_expiry(name: str, server: RedisServer, mount: MountedServer) -> None:
    """A program that renames the file to a backup, which may be a key, and creates it again keeps its expiry.

    With a backup `note~` already, vim renames `note` to `notz~`: that one is no key.
    """
    flush_and_wait(server, mount)
    client = server.client()
    client.set("note", "one\n", px=TTL_MS)
    path = mount.path / "note"
    wait_until(lambda: path.exists() and path.read_bytes() == b"one\n")
    (mount.path / "note~").write_bytes(b"an older backup\n")
    subprocess.run(REPLACE[name], cwd=mount.path, check=True, stdin=subprocess.DEVNULL, timeout=60)
    assert client.get("note") == b"ONE\n"
    assert client.pttl("note") > 0
    assert client.keys() == [b"note"] if name == "vim" else client.get("note.bak") == b"one\n"
    (mount.path / "note~").unlink()
