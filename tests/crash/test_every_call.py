"""SIGKILL at every system call of one change: the journal's, the server's and the kernel's.

At every moment the data is either as before or as intended, never a part of it. If it changed, the journal has the
state before. The next write mount settles every row correctly, on the mount point that the dead one left.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from redisfuse.journal.change_rows import ChangeFilter
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change, State
from tests.support.mount_forkserver import MountForkserver
from tests.support.mounts import MOUNT_TIMEOUT_SECONDS, MountedServer, clean_up_mount, flush_and_wait, wait_until
from tests.support.redis_server import RedisServer
from tests.support.strace import kill_at_syscall

CALLS = ("pwrite64", "fdatasync", "sendto", "recvfrom", "writev")
MOST = 80  # calls of one kind in one change: more means that the test never ends
BIG = os.urandom(3 * 1024 * 1024)

Data = dict[bytes, bytes]


@dataclass(frozen=True)
class Operation:
    """A change, as a program makes it."""

    before: Data
    after: Data
    act: Callable[[Path], object]


def _append(path: Path) -> None:
    with (path / "k").open("ab", buffering=0) as file:
        file.write(b"more")


OPERATIONS = {
    "save": Operation({b"k": b"old"}, {b"k": b"new"}, lambda path: (path / "k").write_bytes(b"new")),
    "remove": Operation({b"k": b"old"}, {}, lambda path: (path / "k").unlink()),
    "rename": Operation({b"k": b"old", b"j": b"there"}, {b"j": b"old"}, lambda path: os.rename(path / "k", path / "j")),
    "append": Operation({b"k": BIG}, {b"k": BIG + b"more"}, _append),
}


def data_of(client: redis.Redis) -> Data:
    return {key: client.get(key) for key in client.keys()}  # type: ignore[misc]  # noqa: SIM118 - no mapping


def rows(path: Path, after: int) -> list[Change]:
    """The journal's rows after an id, oldest first; read as they are on the disk, with their contents."""
    with Journal.open(path, writable=False) as journal:
        return [change for change in journal.find_changes(ChangeFilter(oldest_first=True)) if change.id > after]


def has(state: State, value: bytes | None) -> bool:
    """Whether a journaled state is enough to bring this value back."""
    if value is None:
        return state.kind == "absent"
    if state.content is None:
        return False
    found = b"".join(state.content.iter_chunks())
    if state.kind == "slice":
        return state.total_size == len(value) and found == value[state.offset : state.offset + len(found)]
    return found == value


class Crash:
    """One death and what it left; judged when the next mount is there."""

    def __init__(self, operation: Operation, journal: Path, client: redis.Redis) -> None:
        self._operation = operation
        self._journal = journal
        self._last = max((row.id for row in rows(journal, 0)), default=0) if journal.exists() else 0
        self._client = client
        self._found: Data = {}

    def happened(self, *, acknowledged: bool) -> None:
        """The mount is dead: what is in Redis, and in the journal as it is on the disk."""
        operation = self._operation
        self._found = found = data_of(self._client)
        assert found in (operation.before, operation.after)
        if acknowledged:
            assert found == operation.after
        if found != operation.before:
            kept = {row.key: row for row in rows(self._journal, self._last)}
            for key in operation.before | operation.after:
                if operation.before.get(key) != found.get(key):
                    assert has(kept[key].prior, operation.before.get(key)), key
                    assert kept[key].outcome in ("pending", "applied")

    def settled(self) -> None:
        """The next write mount has been made: every row says what was found, and nothing else was changed."""
        assert data_of(self._client) == self._found
        done = "applied" if self._found == self._operation.after else "failed"
        assert {row.outcome for row in rows(self._journal, self._last)} <= {done}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_every_call(name: str, nursery: MountForkserver, server: RedisServer, tmp_path: Path) -> None:
    """A mount killed at any of its system calls leaves one change or none, and the next mount knows which."""
    operation = OPERATIONS[name]
    client = server.client()
    journal = tmp_path / "state" / "redisfuse" / "journal.db"
    crash: Crash | None = None
    deaths = 0

    def mount_again() -> MountedServer:
        mount = nursery.start_mount(tmp_path, server.tcp_url())
        if crash is not None:
            crash.settled()
        return mount

    for call in CALLS:
        for number in range(1, MOST):
            mount = mount_again()
            try:
                flush_and_wait(server, mount)
                client.mset(operation.before)
                wait_until(lambda: mount.status()["keys"] == len(operation.before))  # noqa: B023
                crash = Crash(operation, journal, client)
                with kill_at_syscall(mount.process.pid, tmp_path / "strace.log", call, number):
                    acknowledged = _survives(operation.act, mount.path)
                    survived = acknowledged and mount.process.poll() is None
                    mount.process.kill()  # if acknowledged: before the row could be noted as applied
                    mount.process.wait(MOUNT_TIMEOUT_SECONDS)
                crash.happened(acknowledged=acknowledged)
            finally:
                mount.process.kill()
            if survived:
                break
            deaths += 1
        else:
            pytest.fail(f"no end of {call}")
    clean_up_mount(mount_again())
    assert deaths > 20


def _survives(act: Callable[[Path], object], path: Path) -> bool:
    try:
        act(path)
    except OSError:
        return False
    return True
