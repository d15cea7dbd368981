"""Standard output through a pager on a terminal, as git has it."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator

import click

from redisfuse.cli import _output

DEFAULT_PAGER = "less"
LESS_OPTIONS = "FRX"  # end at once if all fits on the screen, keep colours, leave the text on the screen

pager_option = click.option(
    "--pager/--no-pager",
    default=True,
    help="Page the output on a terminal, with $PAGER or less -FRX (the default).",
)


@contextlib.contextmanager
def paged_output(enabled: bool) -> Iterator[None]:
    """Send standard output to a pager while the body runs, if it is a terminal.

    The output remains that for a terminal. The user may end the pager early: then the body ends quietly.
    """
    command = _find_pager() if enabled and _output.is_terminal() and os.environ.get("TERM") != "dumb" else None
    if command is None:
        yield
        return
    sys.stdout.flush()
    terminal = os.dup(sys.stdout.fileno())
    environment = {**os.environ, "LESS": os.environ.get("LESS", LESS_OPTIONS)}
    pager = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    assert pager.stdin is not None
    os.dup2(pager.stdin.fileno(), sys.stdout.fileno())
    pager.stdin.close()
    try:
        with _output.terminal_output():
            yield
            sys.stdout.flush()
    except BrokenPipeError:  # the user has read enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.stdout.flush()
    finally:
        os.dup2(terminal, sys.stdout.fileno())
        os.close(terminal)
        _wait(pager)


def _find_pager() -> list[str] | None:
    """Return the command of the pager; None: there is none."""
    command = shlex.split(os.environ.get("PAGER", DEFAULT_PAGER))
    if not command or command == ["cat"] or shutil.which(command[0]) is None:
        return None
    return command


def _wait(pager: subprocess.Popen[bytes]) -> None:
    """Wait until the user ends the pager, which handles Ctrl-C itself."""
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            pager.wait()
            return
