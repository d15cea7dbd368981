"""Look after the journal itself: where it is, and whether it is sound."""

from __future__ import annotations

import os
from pathlib import Path

import click

from redisfuse.cli import _journal_options
from redisfuse.cli._output import escape_text, format_count, json_option, print_json
from redisfuse.cli._terminal import print_out


@click.group
def command() -> None:
    """Look after the journal itself: where it is, and whether it is sound."""


@command.command(context_settings=_journal_options.SUBCOMMAND_SETTINGS)
@_journal_options.journal_option
def path(journal_file: Path | None) -> None:
    """Print where the journal is, or would be."""
    from redisfuse.journal.files import default_path

    print_out(os.fspath(journal_file or default_path()))


@command.command(context_settings=_journal_options.SUBCOMMAND_SETTINGS)
@json_option
@_journal_options.journal_option
def check(as_json: bool, journal_file: Path | None) -> int:
    """Check schema, contents and states; a line for each thing that is wrong. Exit status 1 if there is any."""
    from redisfuse.journal.check import find_problems as problems_of

    with _journal_options.open_journal(journal_file) as journal:
        number = 0
        for problem in problems_of(journal):
            number += 1
            if as_json:
                print_json({"problem": problem})
            else:
                print_out(escape_text(problem.encode()))
        if number:
            return 1
        if not as_json:
            ((changes,),) = journal.query("SELECT count(*) FROM changes")
            ((contents,),) = journal.query("SELECT count(*) FROM blobs")
            print_out(f"{journal.path}: sound; {format_count(changes, 'change')}, {format_count(contents, 'content')}")
    return 0
