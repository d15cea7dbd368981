"""`redisfuse status --watch`: the state of mounts, again and again."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator

import click

from redisfuse.cli._mount_status import Facts, MountReport
from redisfuse.cli._output import format_bytes
from redisfuse.cli._status_output import format_status
from redisfuse.cli._terminal import print_out

_QUIT_KEYS = frozenset(b"qQ\x03\x04\x1b")
"""q, Ctrl-C, Ctrl-D and Escape."""


def watch_lines(reports: Iterator[MountReport], interval: float) -> None:
    """Print one JSON object per line for each mount and interval, without end."""
    for report in reports:
        for facts in report.responding:
            click.echo(json.dumps(facts))
        sys.stdout.flush()
        time.sleep(interval)


def watch_screen(reports: Iterator[MountReport], interval: float) -> None:
    """Show the state until `q` or Ctrl-C, on the whole terminal; then print it."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    lines: list[str] = []
    earlier: dict[str, tuple[float, Facts]] = {}
    try:
        with (
            _KeyReader() as keys,
            Live(console=Console(), screen=True, auto_refresh=False, redirect_stdout=False) as live,
        ):
            for report in reports:
                lines = _format_report(report, earlier)
                footer = f"every {interval:g} s; q ends"
                live.update(Text("\n".join([*lines, "", footer]), no_wrap=True, overflow="ellipsis"), refresh=True)
                if keys.wait_quit(interval):
                    break
    except KeyboardInterrupt:
        pass  # the end of watching
    for line in lines:
        print_out(line)


def _format_report(report: MountReport, earlier: dict[str, tuple[float, Facts]]) -> list[str]:
    """Return the lines of a report, with what was sent since the one before."""
    lines: list[str] = []
    now = time.monotonic()
    for facts in report.responding:
        lines += format_status(facts)
        mountpoint = facts["mountpoint"]
        then, before = earlier.get(mountpoint, (now, facts))
        if now > then and before["pid"] == facts["pid"]:
            lines.append(f"  {'now':<13}{_format_rates(before, facts, now - then)}")
        earlier[mountpoint] = now, facts
    return [*lines, *report.notes, *report.errors]


def _format_rates(before: Facts, after: Facts, seconds: float) -> str:
    commands, round_trips, received = (
        (after[name] - before[name]) / seconds for name in ("commands", "round_trips", "bytes_received")
    )
    return f"{commands:,.0f} commands/s in {round_trips:,.0f} round trips/s, {format_bytes(int(received))}/s received"


class _KeyReader:
    """The keys that are pressed, one by one and without an echo."""

    def __enter__(self) -> _KeyReader:
        self._stack = contextlib.ExitStack()
        self._descriptor = sys.stdin.fileno() if sys.stdin.isatty() else None
        if self._descriptor is not None:
            self._stack.enter_context(_unbuffered(self._descriptor))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait_quit(self, seconds: float) -> bool:
        """Wait for some seconds; return whether a key that ends the view was pressed."""
        deadline = time.monotonic() + seconds
        while (remaining := deadline - time.monotonic()) > 0:
            if self._descriptor is None:
                time.sleep(remaining)
            elif select.select([self._descriptor], [], [], remaining)[0]:
                pressed = os.read(self._descriptor, 64)
                if not pressed or not _QUIT_KEYS.isdisjoint(pressed[:1]):
                    return True
        return False


@contextlib.contextmanager
def _unbuffered(descriptor: int) -> Iterator[None]:
    settings = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, settings)
