"""Remove old settled changes from the journal, and give the space back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from redisfuse.cli import _journal_options
from redisfuse.cli._output import amount, count, json_option, print_json
from redisfuse.cli._terminal import say


@click.command
@click.option(
    "--older-than", type=_journal_options.MOMENT, required=True, metavar="AGE", help="Such as 30d, 12h, or a time."
)
@click.option(
    "--keep-last",
    type=click.IntRange(0, _journal_options.MOST),
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
    from redisfuse.journal.prune import prune

    with _journal_options.open_journal(journal_file, write=True) as journal:
        done = prune(journal, before=older_than, keep_last=keep_last, refused=refused, dry_run=dry_run)
    if as_json:
        print_json({**asdict(done), "dry_run": dry_run})
        return
    what = f"{count(done.changes, 'change')}, {count(done.sessions, 'session')}, {count(done.contents, 'content')}"
    if dry_run:
        say(f"would remove {what}: about {amount(done.freed)}")
    elif not (done.changes or done.sessions or done.contents):
        tidied = f"; the journal is {amount(done.freed)} smaller, as its file was tidied up" if done.freed else ""
        say(f"nothing settled is so old{tidied}")
    else:
        say(f"removed {what}; the journal is {amount(done.freed)} smaller")
