"""Remove old settled changes from the journal, and give the space back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from redisfuse.cli import _journal_options
from redisfuse.cli._output import format_bytes, format_count, json_option, print_json
from redisfuse.cli._terminal import print_out


@click.command
@click.option(
    "--older-than", type=_journal_options.TIMESTAMP, required=True, metavar="AGE", help="Such as 30d, 12h, or a time."
)
@click.option(
    "--keep-last",
    type=click.IntRange(0, _journal_options.MAX_SQLITE_INTEGER),
    default=0,
    metavar="N",
    help="Keep the newest N in any case.",
)
@click.option(
    "--refused", is_flag=True, help="Also edits that were refused or failed and never applied: their bytes go."
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would go; remove nothing.")
@json_option
@_journal_options.journal_option
def command(
    older_than: int, keep_last: int, refused: bool, dry_run: bool, as_json: bool, journal_file: Path | None
) -> None:
    """Remove old settled changes from the journal, and give the space back.

    What is removed can't be rolled back any more. A change whose outcome is open (pending, unknown) is never removed.
    """
    from redisfuse.journal.prune import prune_journal

    with _journal_options.open_journal(journal_file, write=True) as journal:
        done = prune_journal(
            journal, before_ms=older_than, keep_last=keep_last, include_refused=refused, dry_run=dry_run
        )
    if as_json:
        print_json({**asdict(done), "dry_run": dry_run})
        return
    what = f"{format_count(done.changes, 'change')}, {format_count(done.sessions, 'session')}, {format_count(done.contents, 'content')}"
    if dry_run:
        print_out(f"would remove {what}: about {format_bytes(done.freed)}")
    elif not (done.changes or done.sessions or done.contents):
        tidied = f"; the journal is {format_bytes(done.freed)} smaller, as its file was tidied up" if done.freed else ""
        print_out(f"nothing settled is so old{tidied}")
    else:
        print_out(f"removed {what}; the journal is {format_bytes(done.freed)} smaller")
