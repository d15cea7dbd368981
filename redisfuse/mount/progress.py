"""The progress bar of the first scan, in the foreground on a terminal."""

from __future__ import annotations

import threading
import time

from redisfuse.keyspace.monitor import KeyspaceMonitor

BAR_DELAY_SECONDS = 0.5
"""A scan that ends before shows no bar."""

REFRESH_INTERVAL_SECONDS = 0.1


def show_progress(keyspace: KeyspaceMonitor) -> None:
    """Draw a bar on standard error, in a new thread, until the first scan ends."""
    threading.Thread(target=_draw_bar, args=(keyspace,), name="redisfuse-progress", daemon=True).start()


def _draw_bar(keyspace: KeyspaceMonitor) -> None:
    time.sleep(BAR_DELAY_SECONDS)
    if keyspace.is_ready:
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading the names of keys"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scan", total=None)
        while not keyspace.is_ready and keyspace.is_scanning:
            done, total = keyspace.scan_progress
            bar.update(task, completed=done, total=max(total, done) or None)
            time.sleep(REFRESH_INTERVAL_SECONDS)
