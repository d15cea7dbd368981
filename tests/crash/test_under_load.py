"""SIGKILL at random moments under load: every acknowledged save is in Redis and in the journal.

REDISFUSE_TEST_KILL_ROUNDS=300 kills more often.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest

from redisfuse.journal.change_filter import ChangeFilter
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change
from tests.support.mount_logs import ENDED
from tests.support.mounts import (
    MOUNT_TIMEOUT_SECONDS,
    clean_up_mount,
    mount_server,
    run_redisfuse,
    start_mount,
    wait_until,
)
from tests.support.redis_server import RedisServer

WRITERS = 4
ROUNDS = int(os.environ.get("REDISFUSE_TEST_KILL_ROUNDS", "5"))
MAX_WRITING_SECONDS = 0.6  # until the mount is killed


class Writer(threading.Thread):
    """A thread that saves 1, 2, 3… to one file, by close or by fsync, until an error.

    `acknowledged` is the last number that was saved successfully.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._folder = os.open(path.parent, os.O_RDONLY)  # the mounted directory, whatever is at the path later
        self._name = path.name
        self.acknowledged = 0
        self.begun = 0

    def run(self) -> None:
        try:
            while True:
                self.begun += 1
                self._save(b"%d" % self.begun, sync=self.begun % 3 == 0)
                self.acknowledged = self.begun
        except OSError:
            os.close(self._folder)

    def _save(self, data: bytes, *, sync: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        descriptor = os.open(self._name, flags, 0o644, dir_fd=self._folder)
        try:
            os.write(descriptor, data)
            if sync:
                os.fsync(descriptor)
                self.acknowledged = self.begun
        except OSError:
            _close_quietly(descriptor)
            raise
        os.close(descriptor)


def _close_quietly(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)


def changes(path: Path) -> list[Change]:
    with Journal.open(path, writable=False) as journal:
        return list(journal.find_changes(ChangeFilter(oldest_first=True)))


@pytest.mark.timeout(120 + 20 * ROUNDS)
def test_killed_under_load(own_redis: RedisServer, tmp_path: Path) -> None:
    """After a SIGKILL, each key of four writers has the last acknowledged value, or the one after it.

    The journal has each value of a key in order, with the value before it. The rows of applied values are `applied`.
    """
    client = own_redis.client()
    journal = tmp_path / "state" / "redisfuse" / "journal.db"
    generator = random.Random(ROUNDS)
    total = 0
    for round_ in range(ROUNDS):
        binding = ("fusepy", "mfusepy")[round_ % 2]
        mount = start_mount(tmp_path, own_redis.tcp_url(), "--binding", binding, write=True)
        try:
            writers = [Writer(mount.path / f"r{round_}w{number}") for number in range(WRITERS)]
            (mount.path / f"d{round_}").mkdir()
            for writer in writers:
                writer.start()
            time.sleep(generator.uniform(0.05, MAX_WRITING_SECONDS))
            mount.process.kill()
            mount.process.wait(MOUNT_TIMEOUT_SECONDS)
            for writer in writers:
                writer.join(MOUNT_TIMEOUT_SECONDS)
                assert not writer.is_alive()
        finally:
            mount.process.kill()
        for number, writer in enumerate(writers):
            value = int(client.get(f"r{round_}w{number}") or 0)
            assert writer.acknowledged <= value <= writer.begun
            total += writer.acknowledged
        if round_ == 0:  # recovery by the command; later by the next mount
            done = run_redisfuse(tmp_path, "recover")
            assert done.returncode == 0, done.stderr
    print(f"{ROUNDS} rounds, {total} acknowledged saves")
    assert total > WRITERS * ROUNDS, "too few saves"
    mount = start_mount(tmp_path, own_redis.tcp_url(), write=True)
    try:
        for round_ in range(ROUNDS):
            assert (mount.path / f"d{round_}").is_dir()
    finally:
        clean_up_mount(mount)
    rows = changes(journal)
    assert {row.outcome for row in rows} <= {"applied", "failed"}
    for round_ in range(ROUNDS):
        for number in range(WRITERS):
            key = b"r%dw%d" % (round_, number)
            check_history([row for row in rows if row.key == key], client.get(key))


def check_history(rows: list[Change], value: bytes | None) -> None:
    """Check that each applied row begins with the state after the one before it, up to the current value."""
    before: bytes | None = None
    for row in rows:
        prior = None if row.prior.content is None else row.prior.content.digest
        if row.outcome == "applied":
            assert row.new.content is not None
            assert prior == before
            before = row.new.content.digest
    if value is None:
        assert before is None
    else:
        assert before == sha256(value).digest()


@pytest.mark.possible_log(ENDED)
def test_terminated_under_load(own_redis: RedisServer, tmp_path: Path) -> None:
    """After a SIGTERM each acknowledged save is in Redis, no value is partial, and no row is pending."""
    client = own_redis.client()
    mount = start_mount(tmp_path, own_redis.tcp_url(), write=True)
    try:
        writers = [Writer(mount.path / f"w{number}") for number in range(WRITERS)]
        for writer in writers:
            writer.start()
        time.sleep(0.3)
        mount.process.send_signal(signal.SIGTERM)
        assert mount.process.wait(MOUNT_TIMEOUT_SECONDS) == 0
        for writer in writers:
            writer.join(MOUNT_TIMEOUT_SECONDS)
    finally:
        mount.process.kill()
    for number, writer in enumerate(writers):
        assert writer.acknowledged <= int(client.get(f"w{number}") or 0) <= writer.begun
    # The edits of files that were open for writing are refused: journaled, and not saved partially.
    states = {row.outcome for row in changes(tmp_path / "state" / "redisfuse" / "journal.db")}
    assert states <= {"applied", "refused"}


def test_a_killed_mount_is_a_zombie(own_redis: RedisServer, tmp_path: Path) -> None:
    """The pending change of a killed mount is recovered at once, although the process is a zombie.

    It is one if its parent does not wait for it, as in a container without an init.
    """
    with mount_server(tmp_path, own_redis.tcp_url(), write=True, as_program=True) as mount:
        (mount.path / "k").write_bytes(b"new")
        os.kill(mount.process.pid, signal.SIGKILL)
        stat = Path(f"/proc/{mount.process.pid}/stat")
        wait_until(lambda: stat.read_bytes().rpartition(b")")[2].split()[0] == b"Z")
        assert [row.outcome for row in changes(mount.journal)] == ["pending"]
        done = run_redisfuse(tmp_path, "recover")
        assert done.returncode == 0, done.stderr
        assert [row.outcome for row in changes(mount.journal)] == ["applied"]
