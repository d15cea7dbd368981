"""Results on standard output while a progress bar may be on the same terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redisfuse.cli._interrupts import removed_bar
from redisfuse.cli._output import format_count
from redisfuse.cli._terminal import print_err
from redisfuse.survey.scan import SurveyProgress, UnreadableKeys

BAR_DELAY_SECONDS = 0.5
"""A survey that ends before shows no bar."""


class ResultWriter(SurveyProgress):
    """Writes lines to standard output, above a bar that is on the same terminal."""

    def __init__(self, title: str) -> None:
        self.on_terminal = sys.stdout.isatty()
        self._title = title
        self._total: int | None = None
        self._visited = 0
        self._starts_at = time.monotonic() + BAR_DELAY_SECONDS
        self._has_bar = sys.stderr.isatty()
        self._progress: Any = None
        self._task: Any = None

    # -- lines --------------------------------------------------------------------------------------------------------

    def write(self, line: bytes) -> None:
        """Write a line, whose end is part of it, to a pipe or file."""
        sys.stdout.buffer.write(line)

    def print(self, line: str) -> None:
        """Print a line on the terminal; its only controls are those of colours."""
        if self._progress is None:
            sys.stdout.write(f"{line}\n")
        else:
            from rich.text import Text

            self._progress.console.print(Text.from_ansi(line), soft_wrap=True)

    # -- progress -----------------------------------------------------------------------------------------------------

    def set_total(self, total: int) -> None:
        """Add a node's number of keys."""
        self._total = (self._total or 0) + total

    def advance(self, key_count: int) -> None:
        """Count keys as visited, and draw the bar if the survey has taken a while."""
        self._visited += key_count
        if self._progress is None and self._has_bar and time.monotonic() > self._starts_at:
            self._start_bar()
        if self._progress is not None:
            self._progress.update(self._task, completed=min(self._visited, self._total or self._visited))

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=not self.on_terminal)
        self._progress = Progress(
            *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._task = self._progress.add_task(self._title, total=self._total)
        self._progress.start()

    def restart(self, title: str) -> None:
        """Begin a second pass over the keys."""
        self._title, self._visited, self._total = title, 0, None
        if self._progress is not None:
            self._progress.update(self._task, description=title, completed=0)

    def stop_bar(self) -> bool:
        """Remove the bar; return whether there was one."""
        progress, self._progress = self._progress, None
        if progress is not None:
            progress.stop()
        return progress is not None


@contextmanager
def result_writer(title: str) -> Iterator[ResultWriter]:
    """Yield a writer; its bar is removed at the end."""
    writer = ResultWriter(title)
    with removed_bar(writer.stop_bar):
        yield writer


def report_unreadable(unreadable: UnreadableKeys) -> None:
    """Print how many keys the ACL denied, if any."""
    if unreadable.count:
        print_err(f"{format_count(unreadable.count, 'key')} could not be read: {unreadable.reason}")
