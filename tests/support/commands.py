"""Runs commands in this process, which takes a hundredth of the time of a new one."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from redisfuse.cli.main import group
from tests.support.mounts import isolated_environment


def run_in_process(folder: Path, *words: str) -> Result:
    """Run a `redisfuse` command that starts no process; an error of redisfuse is raised.

    Its journal and configuration are those of `run_redisfuse` with the same folder.
    """
    result = CliRunner().invoke(group, words, env=isolated_environment(folder))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def read_lines(folder: Path, *words: str) -> list[str]:
    """Return the lines that a command prints, which succeeds, sorted."""
    result = run_in_process(folder, *words)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return sorted(result.stdout.splitlines())
