"""SIGKILL at every system call of one change: those to the journal, the server and the kernel.

At each of them the data is either the old or the new, never a mixture. If it changed, the journal has the old state.
The next write mount, at the mount point of the killed one, gives every row the correct outcome.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from redisfuse.journal.change_filter import ChangeFilter
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change, State
from tests.support.mounts import (
    MOUNT_TIMEOUT_SECONDS,
    MountedServer,
    clean_up_mount,
    flush_and_wait,
    start_mount,
    wait_until,
)
from tests.support.redis_server import RedisServer
from tests.support.strace import kill_at_syscall

CALLS = ("pwrite64", "fdatasync", "sendto", "recvfrom", "writev")
MAX_CALLS = 80  # calls of one kind in one change; more mean that the test does not end
HALVES = pytest.mark.parametrize("first", [1, pytest.param(2, marks=pytest.mark.long("the other half of the calls"))])
BIG = os.urandom(3 * 1024 * 1024)

Data = dict[bytes, bytes]


@dataclass(frozen=True)
class Operation:
    """A change by a program, with the data before and after."""

    before: Data
    after: Data
    act: Callable[[Path], object]


def _append(path: Path) -> None:
    with (path / "k").open("ab", buffering=0) as file:
        file.write(b"more")


OPERATIONS = {
    "save": Operation({b"k": b"old"}, {b"k": b"new"}, lambda path: (path / "k").write_bytes(b"new")),
    "remove": Operation({b"k": b"old"}, {}, lambda path: (path / "k").unlink()),
    "rename": Operation(
        {b"k": b"old", b"j": b"replaced"}, {b"j": b"old"}, lambda path: os.rename(path / "k", path / "j")
    ),
    "append": Operation({b"k": BIG}, {b"k": BIG + b"more"}, _append),
}


def read_data(client: redis.Redis) -> Data:
    return {key: client.get(key) for key in client.keys()}  # type: ignore[misc]  # noqa: SIM118 - no mapping


def read_rows(path: Path, after: int) -> list[Change]:
    """Return the journal's rows after an id, oldest first, as they are on the disk."""
    with Journal.open(path, writable=False) as journal:
        return [change for change in journal.find_changes(ChangeFilter(oldest_first=True)) if change.id > after]


def can_restore(state: State, value: bytes | None) -> bool:
    """Return whether a journaled state is sufficient to restore a value."""
    if value is None:
        return state.kind == "absent"
    if state.content is None:
        return False
    content = b"".join(state.content.iter_chunks())
    if state.kind == "slice":
        return state.total_size == len(value) and content == value[state.offset : state.offset + len(content)]
    return content == value


class Crash:
    """One killed mount, with checks of its data and rows, before and after the next mount."""

    def __init__(self, operation: Operation, journal: Path, client: redis.Redis) -> None:
        self._operation = operation
        self._journal = journal
        self._last = max((row.id for row in read_rows(journal, 0)), default=0) if journal.exists() else 0
        self._client = client
        self._data: Data = {}

    def check_killed(self, *, acknowledged: bool) -> None:
        """Check the data in Redis, and the journal as it is on the disk, after the mount was killed."""
        operation = self._operation
        self._data = data = read_data(self._client)
        assert data in (operation.before, operation.after)
        if acknowledged:
            assert data == operation.after
        if data != operation.before:
            rows = {row.key: row for row in read_rows(self._journal, self._last)}
            for key in operation.before | operation.after:
                if operation.before.get(key) != data.get(key):
                    assert can_restore(rows[key].prior, operation.before.get(key)), key
                    assert rows[key].outcome in ("pending", "applied")

    def check_recovered(self) -> None:
        """Check after the next write mount that each row has the right outcome, and the data is unchanged."""
        assert read_data(self._client) == self._data
        outcome = "applied" if self._data == self._operation.after else "failed"
        assert {row.outcome for row in read_rows(self._journal, self._last)} <= {outcome}


@pytest.mark.timeout(300)
@HALVES
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_every_call(name: str, first: int, server: RedisServer, tmp_path: Path) -> None:
    """A mount killed at any system call leaves the change done or not done, and the next mount finds out which."""
    operation = OPERATIONS[name]
    client = server.client()
    journal = tmp_path / "state" / "redisfuse" / "journal.db"
    crash: Crash | None = None
    kills = 0

    def mount_again() -> MountedServer:
        mount = start_mount(tmp_path, server.tcp_url(), write=True)
        if crash is not None:
            crash.check_recovered()
        return mount

    for call in CALLS:
        for number in range(first, MAX_CALLS, 2):
            mount = mount_again()
            try:
                flush_and_wait(server, mount)
                client.mset(operation.before)
                wait_until(lambda: mount.status()["keys"] == len(operation.before))  # noqa: B023
                crash = Crash(operation, journal, client)
                with kill_at_syscall(mount.process.pid, tmp_path / "strace.log", call, number):
                    acknowledged = _succeeds(operation.act, mount.path)
                    survived = acknowledged and mount.process.poll() is None
                    mount.process.kill()  # if acknowledged: before the row is recorded as applied
                    mount.process.wait(MOUNT_TIMEOUT_SECONDS)
                crash.check_killed(acknowledged=acknowledged)
            finally:
                mount.process.kill()
            if survived:
                break
            kills += 1
        else:
            pytest.fail(f"more than {MAX_CALLS} calls of {call}")
    clean_up_mount(mount_again())
    assert kills > 10


def _succeeds(act: Callable[[Path], object], path: Path) -> bool:
    try:
        act(path)
    except OSError:
        return False
    return True


@pytest.mark.timeout(300)
@pytest.mark.expected_log("held by a mount that died")
@HALVES
@pytest.mark.parametrize("finish", ["close", "rename"])
def test_a_held_file_is_written_after_every_call(finish: str, first: int, server: RedisServer, tmp_path: Path) -> None:
    """After the next mount, a held file whose close was acknowledged is in Redis.

    It has the name that its program knows: that of the key over which it was renamed, if that was acknowledged, too.
    """
    client = server.client()
    journal = tmp_path / "state" / "redisfuse" / "journal.db"
    kills = 0
    for call in CALLS:
        for number in range(first, MAX_CALLS, 2):
            mount = start_mount(tmp_path, server.tcp_url(), write=True)
            before = max((row.id for row in read_rows(journal, 0)), default=0)
            try:
                flush_and_wait(server, mount)
                client.set("k", "old")
                wait_until(lambda: mount.status()["keys"] == 1)  # noqa: B023
                temporary = mount.path / "tmpab12cd34"
                with kill_at_syscall(mount.process.pid, tmp_path / "strace.log", call, number):
                    is_closed = _succeeds(_create_held, temporary)
                    is_renamed = is_closed and finish == "rename" and _succeeds(_rename_to_k, temporary)
                    survived = is_closed and is_renamed == (finish == "rename") and mount.process.poll() is None
                    mount.process.kill()
                    mount.process.wait(MOUNT_TIMEOUT_SECONDS)
            finally:
                mount.process.kill()
            mount = start_mount(tmp_path, server.tcp_url(), write=True)
            mount.process.kill()
            data = read_data(client)
            if is_renamed:
                assert data == {b"k": b"precious"}
            elif is_closed and finish == "close":
                assert data == {b"k": b"old", b"tmpab12cd34": b"precious"}
            else:
                _check_unacknowledged(data, read_rows(journal, before), is_closed=is_closed)
            if survived:
                break
            kills += 1
        else:
            pytest.fail(f"more than {MAX_CALLS} calls of {call}")
    clean_up_mount(start_mount(tmp_path, server.tcp_url(), write=True))
    assert kills > 5


def _create_held(path: Path) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        os.write(descriptor, b"precious")
    finally:
        os.close(descriptor)


def _rename_to_k(path: Path) -> None:
    os.rename(path, path.with_name("k"))


def _check_unacknowledged(data: Data, rows: list[Change], *, is_closed: bool) -> None:
    """Check what the death during a call left: all of it or nothing, and what was acknowledged before in any case."""
    renamed, written = {b"k": b"precious"}, {b"k": b"old", b"tmpab12cd34": b"precious"}
    assert data in (renamed, written, {b"k": b"old"})
    if is_closed and data == {b"k": b"old"}:  # the change that was to write it has its bytes
        assert any(row.outcome == "failed" and can_restore(row.new, b"precious") for row in rows)
