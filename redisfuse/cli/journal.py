"""Show the journal's path, or check its integrity."""

from __future__ import annotations

import os
from pathlib import Path

import click

from redisfuse.cli._journal_options import journal_option, open_journal
from redisfuse.cli._options import SUBCOMMAND_SETTINGS
from redisfuse.cli._output import escape_text, format_count, json_option, print_json
from redisfuse.cli._terminal import print_out


@click.group
def command() -> None:
    """Show the journal's path, or check its integrity.

    \b
    redisfuse journal path
    redisfuse journal check
    """  # noqa: D301 - click reads the control character \b


@command.command(context_settings=SUBCOMMAND_SETTINGS)
@journal_option
def path(journal_file: Path | None) -> None:
    """Print the path of the journal, whether it exists or not.

    \b
    redisfuse journal path
    """  # noqa: D301 - click reads the control character \b
    from redisfuse.journal.files import default_path

    print_out(os.fspath(journal_file or default_path()))


@command.command(context_settings=SUBCOMMAND_SETTINGS)
@json_option
@journal_option
def check(as_json: bool, journal_file: Path | None) -> int:
    """Check schema, contents and states; print each problem.

    The exit status is 1 if there is a problem.

    \b
    redisfuse journal check
    """  # noqa: D301 - click reads the control character \b
    from redisfuse.journal.check import find_problems

    with open_journal(journal_file) as journal:
        problem_count = 0
        for problem in find_problems(journal):
            problem_count += 1
            if as_json:
                print_json({"problem": problem})
            else:
                print_out(escape_text(problem.encode()))
        if problem_count:
            return 1
        if not as_json:
            ((changes,),) = journal.query("SELECT count(*) FROM changes")
            ((contents,),) = journal.query("SELECT count(*) FROM blobs")
            print_out(f"{journal.path}: sound; {format_count(changes, 'change')}, {format_count(contents, 'content')}")
    return 0
