"""One save of a real program is one change (issue 6): in Redis, for who watches the key, and in the journal."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from tests.editors.programs import (
    NEW,
    OLD,
    PROGRAMS,
    Program,
    emacs_twice,
    in_place,
    jetbrains,
    python_replace,
    slow_backup,
    vim_twice,
    vs_code,
)
from tests.support.changes import history, last_id, monitored, watched
from tests.support.mounts import Mount, eventually, mounted, run
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
    mount: Mount
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
        eventually(path.exists)
        return Place(key.encode(), hash_field, path)

    def content(self, place: Place) -> bytes | None:
        """What Redis holds there."""
        if place.field is not None:
            found = self.client.hget(place.key.decode(), place.field.decode())
        else:
            found = self.client.get(place.key)
        assert found is None or isinstance(found, bytes)
        return found


@pytest.fixture(scope="module", params=["fusepy", "mfusepy"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("saving")
    with (
        RedisServer(tcp=True) as server,
        mounted(folder, server.tcp_url(), "--binding", request.param, write=True) as mount,
    ):
        client = server.client()
        yield Bench(server, mount, client)
        keys, rows = sorted(client.keys()), len(history(mount))
        mount.stop()
        assert sorted(client.keys()) == keys, "something was left for the end of the mount"
        assert len(history(mount)) == rows, mount.said()
        assert "Traceback" not in mount.said()


def check_save(bench: Bench, program: Program, kind: str, folder: Path) -> None:
    """Save once, and look at it from all sides."""
    here = bench.place(kind)
    name = here.path.name
    if program.consumes:
        bench.client.set(f"{here.path.parent.name}:{name}.other", NEW)
        eventually(here.path.with_name(name + ".other").exists)
    keys = [key for key in sorted(bench.client.keys()) if not key.endswith(b".other")]
    before = last_id(bench.mount)
    with monitored(bench.server) as commands, watched(bench.server, here.key, here.field) as presence:
        program.save(here.path, folder)
        eventually(lambda: bench.content(here) == NEW)

    assert not presence.missing, f"missing in {presence.missing} of {presence.looks} looks"
    to_it = [words for words in commands if words[1] == here.key.decode()]
    assert [words[0] for words in to_it] == ["SET" if here.field is None else "HSET"], commands
    assert len(commands) == 1 + program.consumes, commands
    assert TTL - 60_000 < bench.client.pttl(here.key) <= TTL
    rows = history(bench.mount, before)
    assert len(rows) == 1 + program.consumes, rows
    [change] = [row for row in rows if row["key"] == here.key.decode()]
    assert change["state"] in ("applied", "pending")  # that it was applied is noted a little later
    assert program.consumes or change["path"] == str(here.path.relative_to(bench.mount.path))
    assert sorted(bench.client.keys()) == keys
    left = {each for each in os.listdir(here.path.parent) if each not in (name, "user.name")}
    assert left == {leaf.format(name) for leaf in program.leaves}
    assert here.path.read_bytes() == NEW
    bench.saved.append(Saved(here, change["id"], program.name))


@pytest.mark.parametrize("kind", ["key", "field"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_one_save_is_one_change(program: Program, kind: str, bench: Bench, tmp_path: Path) -> None:
    """One write command, never absent, its TTL kept, one row in the journal, and no junk anywhere."""
    check_save(bench, program, kind, tmp_path)


@pytest.mark.parametrize("kind", ["key", "field"])
def test_again_and_again(kind: str, bench: Bench, tmp_path: Path) -> None:
    """The tenth save is as good as the first, also with the same temporary names, or after somebody else's change."""
    here = bench.place(kind)
    programs = [program for program in PROGRAMS if program.quick and not program.consumes]
    before = last_id(bench.mount)
    with monitored(bench.server) as commands, watched(bench.server, here.key, here.field) as presence:
        for program in programs * 2:
            program.save(here.path, tmp_path)
            eventually(lambda: bench.content(here) == NEW)
            if here.field is None:
                bench.client.set(here.key, OLD, keepttl=True)
            else:
                bench.client.hset(here.key.decode(), here.field.decode(), OLD)
            eventually(lambda: here.path.read_bytes() == OLD)
    assert not presence.missing
    assert TTL - 300_000 < bench.client.pttl(here.key) <= TTL
    ours = [words for words in commands if "new" in words]
    assert len(ours) == 2 * len(programs)
    assert len(history(bench.mount, before)) == 2 * len(programs)
    for leaf in {leaf for program in programs for leaf in program.leaves}:
        here.path.with_name(leaf.format(here.path.name)).unlink()


def test_two_saves_of_one_session(bench: Bench) -> None:
    """Two :w of one vim, and two C-x C-s of one emacs, are two changes each."""
    for program in (vim_twice, emacs_twice):
        here = bench.place("key")
        before = last_id(bench.mount)
        with monitored(bench.server, here.key) as commands, watched(bench.server, here.key) as presence:
            program(here.path)
            eventually(lambda place=here: bench.content(place) == b"newer text\n")
        assert not presence.missing
        assert [words[0] for words in commands] == ["SET", "SET"]
        assert [row["op"] for row in history(bench.mount, before)] == ["write", "write"]
        assert TTL - 60_000 < bench.client.pttl(here.key) <= TTL


def test_the_time_of_a_save_stays(bench: Bench) -> None:
    """What a program finds as a file's time after its save is what it finds later; of other fields it stays, too."""
    for kind in ("key", "field"):
        path = bench.place(kind).path
        folder = path.parent
        time.sleep(0.5)  # until all is told of how the place was made
        times = {name: (folder / name).stat().st_mtime_ns for name in os.listdir(folder)}
        for save in (in_place, vs_code, python_replace, jetbrains, slow_backup):
            time.sleep(0.02)
            save(path, folder)
            found = path.stat().st_mtime_ns
            assert found > times[path.name]
            for _ in range(5):
                time.sleep(0.02)
                assert path.stat().st_mtime_ns == found, save
                os.listdir(folder)
            times[path.name] = found
        for name, before in times.items():
            assert (folder / name).stat().st_mtime_ns == before
        descriptor = os.open(path, os.O_RDWR)
        assert os.fstat(descriptor).st_mtime_ns == path.stat().st_mtime_ns == times[path.name]
        os.close(descriptor)
        if kind == "field":
            bench.client.hset(f"{folder.name}:user", "name", "Grace")
            other = folder / "user.name"
            eventually(lambda other=other: other.read_bytes() == b"Grace")
            assert other.stat().st_mtime_ns > times["user.name"]
        folder.joinpath(path.name + "~").unlink()


def test_each_save_can_be_taken_back(bench: Bench) -> None:
    """Every one of these changes is applied, and `redisfuse rollback ID` brings the old content back, with its TTL."""
    mount = bench.mount
    ids = {saved.id for saved in bench.saved}
    eventually(lambda: all(row["state"] == "applied" for row in history(mount) if row["id"] in ids))
    words = [str(id) for id in sorted(ids)]
    done = run(mount.path.parent, "rollback", *words, "--yes", "--journal-file", str(mount.journal))
    assert done.returncode == 0, done.stderr
    for saved in bench.saved:
        assert bench.content(saved.place) == OLD, saved.program
        assert TTL - 300_000 < bench.client.pttl(saved.place.key) <= TTL, saved.program
        eventually(lambda path=saved.place.path: path.read_bytes() == OLD)
    assert not bench.client.keys("*~*")
