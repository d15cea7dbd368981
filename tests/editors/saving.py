"""Checks of a program's save on a real mount: in Redis, by other clients, in the journal, and in the directory."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis

from tests.editors.programs import NEW, OLD, Program
from tests.support.changes import journal_rows, last_change_id, monitor_writes, watch_presence
from tests.support.mounts import MountedServer, mount_server, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer

TTL_MS = 3_600_000
DIRECTORY_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class SavedTarget:
    """A key or a field of a hash, with its path."""

    key: bytes
    field: bytes | None
    path: Path


@dataclass(frozen=True)
class SavedChange:
    """A save that is one change, which a rollback must revert."""

    target: SavedTarget
    id: int
    program: str


@dataclass(frozen=True)
class SavingBench:
    """A mount, its server, and the changes that were saved through it."""

    server: RedisServer
    mount: MountedServer
    client: redis.Redis
    saved: list[SavedChange] = field(default_factory=list)

    def create_target(self, kind: str) -> SavedTarget:
        """Create a key or field with OLD and a TTL, in its own directory, and wait until the mount shows it."""
        directory = f"d{next(DIRECTORY_NUMBERS)}"
        if kind == "key":
            key, hash_field, path = f"{directory}:page.html", None, self.mount.path / directory / "page.html"
            self.client.set(key, OLD, px=TTL_MS)
        else:
            key, hash_field, path = f"{directory}:user", b"bio", self.mount.path / directory / "user.bio"
            self.client.hset(key, mapping={"bio": OLD, "name": "Ada"})
            self.client.pexpire(key, TTL_MS)
        wait_until(path.exists)
        return SavedTarget(key.encode(), hash_field, path)

    def read_value(self, target: SavedTarget) -> bytes | None:
        """Return the value in Redis."""
        if target.field is not None:
            value = self.client.hget(target.key.decode(), target.field.decode())
        else:
            value = self.client.get(target.key)
        assert value is None or isinstance(value, bytes)
        return value


@contextmanager
def run_bench(binding: str, directory: Path) -> Iterator[SavingBench]:
    """Yield a bench; check at the end that no change was delayed until the end of the mount."""
    with (
        RedisServer(tcp=True) as server,
        mount_server(directory, server.tcp_url(), "--binding", binding, write=True) as mount,
    ):
        client = server.client()
        yield SavingBench(server, mount, client)
        keys, rows = sorted(client.keys()), len(journal_rows(mount))
        mount.stop()
        assert sorted(client.keys()) == keys
        assert len(journal_rows(mount)) == rows, mount.read_log()


def check_save(bench: SavingBench, program: Program, kind: str, outside: Path) -> None:
    """Save once and check Redis, the journal and the directory."""
    target = bench.create_target(kind)
    name = target.path.name
    if program.consumes:
        bench.client.set(f"{target.path.parent.name}:{name}.other", NEW)
        wait_until(target.path.with_name(name + ".other").exists)
    keys = [key for key in sorted(bench.client.keys()) if not key.endswith(b".other")]
    before = last_change_id(bench.mount)
    with monitor_writes(bench.server) as commands, watch_presence(bench.server, target.key, target.field) as presence:
        program.save(target.path, outside)
        wait_until(lambda: bench.read_value(target) == NEW)

    assert not presence.missing, f"missing in {presence.missing} of {presence.checks} checks"
    own_commands = [words for words in commands if words[1] == target.key.decode()]
    assert [words[0] for words in own_commands] == ["SET" if target.field is None else "HSET"], commands
    assert len(commands) == 1 + program.consumes, commands
    assert TTL_MS - 60_000 < bench.client.pttl(target.key) <= TTL_MS
    rows = journal_rows(bench.mount, before)
    assert len(rows) == 1 + program.consumes, rows
    [change] = [row for row in rows if row["key"] == target.key.decode()]
    assert change["state"] in ("applied", "pending")  # the journal records a little later that it was applied
    assert program.consumes or change["path"] == str(target.path.relative_to(bench.mount.path))
    assert sorted(bench.client.keys()) == keys
    remaining = {other for other in os.listdir(target.path.parent) if other not in (name, "user.name")}
    assert remaining == {leaf.format(name) for leaf in program.leaves}
    assert target.path.read_bytes() == NEW
    bench.saved.append(SavedChange(target, change["id"], program.name))


def check_rollback(bench: SavingBench) -> None:
    """Revert all saved changes with `redisfuse rollback`, and check the values."""
    mount = bench.mount
    ids = {saved.id for saved in bench.saved}
    wait_until(lambda: all(row["state"] == "applied" for row in journal_rows(mount) if row["id"] in ids))
    words = [str(id) for id in sorted(ids)]
    process = run_redisfuse(mount.path.parent, "rollback", *words, "--yes", "--journal-file", str(mount.journal))
    assert process.returncode == 0, process.stderr
    for saved in bench.saved:
        assert bench.read_value(saved.target) == OLD, saved.program
        assert TTL_MS - 300_000 < bench.client.pttl(saved.target.key) <= TTL_MS, saved.program
        wait_until(lambda path=saved.target.path: path.read_bytes() == OLD)
    assert not bench.client.keys("*~*")
