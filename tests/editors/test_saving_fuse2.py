"""Saving through libfuse 2, which calls differently: the programs that are quick to run, and vim and nano."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.editors.programs import PROGRAMS, Program
from tests.editors.saving import Bench, bench_on, check_rollback, check_save

HERE = [program for program in PROGRAMS if program.quick or program.name in ("vim", "vim-typed", "neovim", "nano-B")]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench_on("fusepy", tmp_path_factory.mktemp("saving2")) as bench:
        yield bench


@pytest.mark.parametrize("kind", ["key", "field"])
@pytest.mark.parametrize("program", HERE, ids=lambda program: program.name)
def test_one_save_is_one_change(program: Program, kind: str, bench: Bench, tmp_path: Path) -> None:
    """One write command, never absent, its TTL kept, one row in the journal, and no junk anywhere."""
    check_save(bench, program, kind, tmp_path)


def test_each_save_can_be_taken_back(bench: Bench) -> None:
    """Every one of these changes is applied, and `redisfuse rollback ID` brings the old content back, with its TTL."""
    check_rollback(bench)
