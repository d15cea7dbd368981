"""One save of a real program is one change (issue 6): in Redis, for who watches the key, and in the journal."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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
from tests.editors.saving import TTL, Bench, bench_on, check_rollback, check_save
from tests.support.changes import journal_rows, last_change_id, monitor_writes, watch_presence
from tests.support.mounts import wait_until


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench_on("mfusepy", tmp_path_factory.mktemp("saving")) as bench:
        yield bench


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
    before = last_change_id(bench.mount)
    with monitor_writes(bench.server) as commands, watch_presence(bench.server, here.key, here.field) as presence:
        for program in programs * 2:
            program.save(here.path, tmp_path)
            wait_until(lambda: bench.content(here) == NEW)
            if here.field is None:
                bench.client.set(here.key, OLD, keepttl=True)
            else:
                bench.client.hset(here.key.decode(), here.field.decode(), OLD)
            wait_until(lambda: here.path.read_bytes() == OLD)
    assert not presence.missing
    assert TTL - 300_000 < bench.client.pttl(here.key) <= TTL
    ours = [words for words in commands if "new" in words]
    assert len(ours) == 2 * len(programs)
    assert len(journal_rows(bench.mount, before)) == 2 * len(programs)
    for leaf in {leaf for program in programs for leaf in program.leaves}:
        here.path.with_name(leaf.format(here.path.name)).unlink()


def test_two_saves_of_one_session(bench: Bench) -> None:
    """Two :w of one vim, and two C-x C-s of one emacs, are two changes each."""
    for program in (vim_twice, emacs_twice):
        here = bench.place("key")
        before = last_change_id(bench.mount)
        with monitor_writes(bench.server, here.key) as commands, watch_presence(bench.server, here.key) as presence:
            program(here.path)
            wait_until(lambda place=here: bench.content(place) == b"newer text\n")
        assert not presence.missing
        assert [words[0] for words in commands] == ["SET", "SET"]
        assert [row["op"] for row in journal_rows(bench.mount, before)] == ["write", "write"]
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
            wait_until(lambda other=other: other.read_bytes() == b"Grace")
            assert other.stat().st_mtime_ns > times["user.name"]
        folder.joinpath(path.name + "~").unlink()


def test_each_save_can_be_taken_back(bench: Bench) -> None:
    """Every one of these changes is applied, and `redisfuse rollback ID` brings the old content back, with its TTL."""
    check_rollback(bench)
