"""Remove old settled changes from the journal and free their space."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from redisfuse.cli._journal_options import journal_option, open_journal
from redisfuse.cli._output import format_bytes, format_count, json_option, print_json
from redisfuse.cli._params import ROW_COUNT, TIMESTAMP
from redisfuse.cli._terminal import print_out


@click.command
@click.option(
    "--older-than",
    type=TIMESTAMP,
    required=True,
    metavar="AGE",
    help="Remove changes that are older: an age such as 30d or 12h, or a time.",
)
@click.option(
    "--keep-last",
    type=ROW_COUNT,
    default=0,
    metavar="N",
    help="Keep the newest N changes in any case.",
)
@click.option("--refused", is_flag=True, help="Remove edits, too, that were refused or failed and were never applied.")
@click.option("-n", "--dry-run", is_flag=True, help="Print what would be removed; remove nothing.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask for confirmation.")
@json_option
@journal_option
def command(
    older_than: int,
    keep_last: int,
    refused: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    journal_file: Path | None,
) -> None:
    """Remove old settled changes from the journal and free their space.

    \b
    redisfuse prune --older-than 30d --keep-last 1000

    A removed change can't be rolled back any more, so on a terminal the command asks first. Pending changes and changes
    with an unknown outcome are never removed.
    """  # noqa: D301 - click reads the control character \b
    from redisfuse.journal.prune import prune_journal

    with open_journal(journal_file, write=True) as journal:
        prune = partial(prune_journal, journal, before_ms=older_than, keep_last=keep_last, include_refused=refused)
        if not (dry_run or yes or as_json) and sys.stdin.isatty():
            planned = prune(dry_run=True)
            question = f"Remove {format_count(planned.changes, 'change')}, which can't be rolled back any more?"
            if planned.changes and not click.confirm(question):
                print_out("nothing was removed")
                return
        result = prune(dry_run=dry_run)
    if as_json:
        print_json({**asdict(result), "dry_run": dry_run})
        return
    counts = ((result.changes, "change"), (result.sessions, "session"), (result.contents, "content"))
    removed = ", ".join(format_count(number, noun) for number, noun in counts)
    freed = format_bytes(result.freed)
    if dry_run:
        print_out(f"would remove {removed}: about {freed}")
    elif any(number for number, _noun in counts):
        print_out(f"removed {removed}; the journal is {freed} smaller")
    else:
        compacted = f"; compacting the file freed {freed}" if result.freed else ""
        print_out(f"no settled change is that old{compacted}")
