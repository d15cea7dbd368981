"""Saves through libfuse 2, which makes other calls: the programs that run fast, and vim and nano."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.editors.programs import PROGRAMS, Program
from tests.editors.saving import SavingBench, check_rollback, check_save, run_bench

FAST_PROGRAMS = [
    program for program in PROGRAMS if program.quick or program.name in ("vim", "vim-typed", "neovim", "nano-B")
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SavingBench]:
    with run_bench("fusepy", tmp_path_factory.mktemp("saving2")) as bench:
        yield bench


@pytest.mark.parametrize("kind", ["key", "field"])
@pytest.mark.parametrize("program", FAST_PROGRAMS, ids=lambda program: program.name)
def test_one_save_is_one_change(program: Program, kind: str, bench: SavingBench, tmp_path: Path) -> None:
    """A save is one command and one row of the journal and leaves no junk; the key is never absent, its TTL stays."""
    check_save(bench, program, kind, tmp_path)


def test_each_save_can_be_reverted(bench: SavingBench) -> None:
    """Each of these changes is applied, and `redisfuse rollback ID` restores the old content and its TTL."""
    check_rollback(bench)
