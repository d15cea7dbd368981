"""What is looked at when a program saves on a real mount: Redis, who watches the key, the journal, and the folder."""

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

TTL = 3_600_000  # ms
NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Place:
    """What is saved: a key, or a field of a hash."""

    key: bytes
    field: bytes | None
    path: Path


@dataclass(frozen=True)
class Saved:
    """A save that was one change, which is to be taken back."""

    place: Place
    id: int
    program: str


@dataclass(frozen=True)
class Bench:
    """A mount, its server, and what was saved through it so far."""

    server: RedisServer
    mount: MountedServer
    client: redis.Redis
    saved: list[Saved] = field(default_factory=list)

    def place(self, kind: str) -> Place:
        """A key or field with OLD in it and a time to live, in a folder of its own, once the mount shows it."""
        folder = f"d{next(NUMBERS)}"
        if kind == "key":
            key, hash_field, path = f"{folder}:page.html", None, self.mount.path / folder / "page.html"
            self.client.set(key, OLD, px=TTL)
        else:
            key, hash_field, path = f"{folder}:user", b"bio", self.mount.path / folder / "user.bio"
            self.client.hset(key, mapping={"bio": OLD, "name": "Ada"})
            self.client.pexpire(key, TTL)
        wait_until(path.exists)
        return Place(key.encode(), hash_field, path)

    def content(self, place: Place) -> bytes | None:
        """What Redis holds there."""
        if place.field is not None:
            found = self.client.hget(place.key.decode(), place.field.decode())
        else:
            found = self.client.get(place.key)
        assert found is None or isinstance(found, bytes)
        return found


@contextmanager
def bench_on(binding: str, folder: Path) -> Iterator[Bench]:
    """A bench for the body of `with`; at its end nothing may be left that waits for the end of the mount."""
    with (
        RedisServer(tcp=True) as server,
        mount_server(folder, server.tcp_url(), "--binding", binding, write=True) as mount,
    ):
        client = server.client()
        yield Bench(server, mount, client)
        keys, rows = sorted(client.keys()), len(journal_rows(mount))
        mount.stop()
        assert sorted(client.keys()) == keys
        assert len(journal_rows(mount)) == rows, mount.read_log()
        assert "Traceback" not in mount.read_log()


def check_save(bench: Bench, program: Program, kind: str, folder: Path) -> None:
    """Save once, and look at it from all sides."""
    here = bench.place(kind)
    name = here.path.name
    if program.consumes:
        bench.client.set(f"{here.path.parent.name}:{name}.other", NEW)
        wait_until(here.path.with_name(name + ".other").exists)
    keys = [key for key in sorted(bench.client.keys()) if not key.endswith(b".other")]
    before = last_change_id(bench.mount)
    with monitor_writes(bench.server) as commands, watch_presence(bench.server, here.key, here.field) as presence:
        program.save(here.path, folder)
        wait_until(lambda: bench.content(here) == NEW)

    assert not presence.missing, f"missing in {presence.missing} of {presence.checks} looks"
    to_it = [words for words in commands if words[1] == here.key.decode()]
    assert [words[0] for words in to_it] == ["SET" if here.field is None else "HSET"], commands
    assert len(commands) == 1 + program.consumes, commands
    assert TTL - 60_000 < bench.client.pttl(here.key) <= TTL
    rows = journal_rows(bench.mount, before)
    assert len(rows) == 1 + program.consumes, rows
    [change] = [row for row in rows if row["key"] == here.key.decode()]
    assert change["state"] in ("applied", "pending")  # that it was applied is noted a little later
    assert program.consumes or change["path"] == str(here.path.relative_to(bench.mount.path))
    assert sorted(bench.client.keys()) == keys
    left = {each for each in os.listdir(here.path.parent) if each not in (name, "user.name")}
    assert left == {leaf.format(name) for leaf in program.leaves}
    assert here.path.read_bytes() == NEW
    bench.saved.append(Saved(here, change["id"], program.name))


def check_rollback(bench: Bench) -> None:
    """Take back all that was saved, and look at it."""
    mount = bench.mount
    ids = {saved.id for saved in bench.saved}
    wait_until(lambda: all(row["state"] == "applied" for row in journal_rows(mount) if row["id"] in ids))
    words = [str(id) for id in sorted(ids)]
    done = run_redisfuse(mount.path.parent, "rollback", *words, "--yes", "--journal-file", str(mount.journal))
    assert done.returncode == 0, done.stderr
    for saved in bench.saved:
        assert bench.content(saved.place) == OLD, saved.program
        assert TTL - 300_000 < bench.client.pttl(saved.place.key) <= TTL, saved.program
        wait_until(lambda path=saved.place.path: path.read_bytes() == OLD)
    assert not bench.client.keys("*~*")
