"""One save of a real program is one change: in Redis, for clients that watch the key, and in the journal."""

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
from tests.editors.saving import TTL_MS, SavingBench, check_rollback, check_save, run_bench
from tests.support.changes import journal_rows, last_change_id, monitor_writes, watch_presence
from tests.support.mounts import wait_until


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SavingBench]:
    with run_bench("mfusepy", tmp_path_factory.mktemp("saving")) as bench:
        yield bench


@pytest.mark.parametrize("kind", ["key", "field"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_one_save_is_one_change(program: Program, kind: str, bench: SavingBench, tmp_path: Path) -> None:
    """A save is one command and one row of the journal and leaves no junk; the key is never absent, its TTL stays."""
    check_save(bench, program, kind, tmp_path)


@pytest.mark.parametrize("kind", ["key", "field"])
def test_repeated_saves(kind: str, bench: SavingBench, tmp_path: Path) -> None:
    """Later saves behave as the first, with the same temporary names and after changes by another client."""
    target = bench.create_target(kind)
    programs = [program for program in PROGRAMS if program.quick and not program.consumes]
    before = last_change_id(bench.mount)
    with monitor_writes(bench.server) as commands, watch_presence(bench.server, target.key, target.field) as presence:
        for program in programs * 2:
            program.save(target.path, tmp_path)
            wait_until(lambda: bench.read_value(target) == NEW)
            if target.field is None:
                bench.client.set(target.key, OLD, keepttl=True)
            else:
                bench.client.hset(target.key.decode(), target.field.decode(), OLD)
            wait_until(lambda: target.path.read_bytes() == OLD)
    assert not presence.missing
    assert TTL_MS - 300_000 < bench.client.pttl(target.key) <= TTL_MS
    mount_writes = [words for words in commands if "new" in words]
    assert len(mount_writes) == 2 * len(programs)
    assert len(journal_rows(bench.mount, before)) == 2 * len(programs)
    for leaf in {leaf for program in programs for leaf in program.leaves}:
        target.path.with_name(leaf.format(target.path.name)).unlink()


def test_two_saves_of_one_session(bench: SavingBench) -> None:
    """Two :w of one vim, and two C-x C-s of one emacs, are two changes each."""
    for program in (vim_twice, emacs_twice):
        target = bench.create_target("key")
        before = last_change_id(bench.mount)
        with monitor_writes(bench.server, target.key) as commands, watch_presence(bench.server, target.key) as presence:
            program(target.path)
            wait_until(lambda target=target: bench.read_value(target) == b"newer text\n")
        assert not presence.missing
        assert [words[0] for words in commands] == ["SET", "SET"]
        assert [row["op"] for row in journal_rows(bench.mount, before)] == ["write", "write"]
        assert TTL_MS - 60_000 < bench.client.pttl(target.key) <= TTL_MS


def test_mtime_of_a_save(bench: SavingBench) -> None:
    """The mtime after a save does not change later, and saving one field does not change that of another."""
    for kind in ("key", "field"):
        path = bench.create_target(kind).path
        directory = path.parent
        time.sleep(0.5)  # until the mount has processed the announcements of the creation
        times = {name: (directory / name).stat().st_mtime_ns for name in os.listdir(directory)}
        for save in (in_place, vs_code, python_replace, jetbrains, slow_backup):
            time.sleep(0.02)
            save(path, directory)
            mtime_ns = path.stat().st_mtime_ns
            assert mtime_ns > times[path.name]
            for _ in range(5):
                time.sleep(0.02)
                assert path.stat().st_mtime_ns == mtime_ns, save
                os.listdir(directory)
            times[path.name] = mtime_ns
        for name, before in times.items():
            assert (directory / name).stat().st_mtime_ns == before
        descriptor = os.open(path, os.O_RDWR)
        assert os.fstat(descriptor).st_mtime_ns == path.stat().st_mtime_ns == times[path.name]
        os.close(descriptor)
        if kind == "field":
            bench.client.hset(f"{directory.name}:user", "name", "Grace")
            other = directory / "user.name"
            wait_until(lambda other=other: other.read_bytes() == b"Grace")
            assert other.stat().st_mtime_ns > times["user.name"]
        directory.joinpath(path.name + "~").unlink()


def test_each_save_can_be_reverted(bench: SavingBench) -> None:
    """Each of these changes is applied, and `redisfuse rollback ID` restores the old content and its TTL."""
    check_rollback(bench)
