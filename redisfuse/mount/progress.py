"""The first scan's progress bar, in the foreground on a terminal."""

from __future__ import annotations

import threading
import time

from redisfuse.keyspace.monitor import Keyspace

QUIET = 0.5  # seconds: a scan that is done by then shows no bar
PERIOD = 0.1  # seconds between two looks


def show_progress(keyspace: Keyspace) -> None:
    """Draw a bar on standard error, from a thread of its own, until the first scan is done."""
    threading.Thread(target=_draw, args=(keyspace,), name="redisfuse-progress", daemon=True).start()


def _draw(keyspace: Keyspace) -> None:
    time.sleep(QUIET)
    if keyspace.ready:
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading the names of keys"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scan", total=None)
        while not keyspace.ready and keyspace.scanning:
            done, total = keyspace.progress
            bar.update(task, completed=done, total=max(total, done) or None)
            time.sleep(PERIOD)
