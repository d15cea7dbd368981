"""The keys that change most, as `redisfuse top --changes` shows them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from redisfuse.cli._output import LinePrinter, bytes_to_json, is_terminal, print_json
from redisfuse.paths.grammar import KeyRef
from redisfuse.text import for_terminal

if TYPE_CHECKING:
    from redisfuse.cli._where import Where
    from redisfuse.survey.changes import ChangeCounter

DEFAULT_SECONDS = 10.0
"""Without a terminal, changes are counted for this long."""

_REFRESH_SECONDS = 1.0


class ChangeCountsOutput:
    """Shows the counts of a ChangeCounter: live on a terminal, else once at the end."""

    def __init__(self, where: Where, counter: ChangeCounter, *, limit: int, as_json: bool) -> None:
        self._where = where
        self._counter = counter
        self._limit = limit
        self._as_json = as_json

    def run(self, seconds: float | None) -> None:
        """Show the changes for some seconds, or until Ctrl-C. Raises UnavailableError."""
        if not is_terminal() or self._as_json:
            self._wait(DEFAULT_SECONDS if seconds is None else seconds)
            self._print()
            return
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            with Live(console=Console(), auto_refresh=False, transient=True, redirect_stdout=False) as live:
                while deadline is None or time.monotonic() < deadline:
                    time.sleep(_REFRESH_SECONDS if deadline is None else min(_REFRESH_SECONDS, seconds or 0))
                    live.update(Text("\n".join(self._format_lines()), no_wrap=True), refresh=True)
        except KeyboardInterrupt:
            pass  # the end of watching; the last counts are printed
        self._print()

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (remaining := deadline - time.monotonic()) > 0:
            time.sleep(min(_REFRESH_SECONDS, remaining))
            self._counter.snapshot(0)  # raises an error at once

    def _print(self) -> None:
        if not self._as_json:
            printer = LinePrinter()
            for line in self._format_lines():
                printer.print(line)
            return
        elapsed, total, keys = self._counter.snapshot(self._limit)
        print_json({"seconds": round(elapsed, 1), "changes": total})
        for key, count in keys:
            row: dict[str, Any] = {"path": bytes_to_json(self._path(key)), "key": bytes_to_json(key)}
            print_json({**row, "changes": count})

    def _format_lines(self) -> list[str]:
        elapsed, total, keys = self._counter.snapshot(self._limit)
        lines = [f"{total:,} changes in {elapsed:.0f} s, {total / max(elapsed, 0.1):,.1f} a second"]
        for key, count in keys:
            lines.append(f"{count:>9,}  {count / max(elapsed, 0.1):>9,.1f}/s  {for_terminal(self._path(key))}")
        return lines

    def _path(self, key: bytes) -> bytes:
        """Return the plain path of a key, without the mark of a file beside a folder."""
        return self._where.display_path(self._where.codec.key_path(key), KeyRef(key))
