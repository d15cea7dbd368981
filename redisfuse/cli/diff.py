"""Show the difference that changes made, as a patch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from redisfuse.cli._changes import change_to_json
from redisfuse.cli._journal_options import (
    change_words,
    check_selection,
    filter_options,
    journal_option,
    limit_option,
    open_journal,
)
from redisfuse.cli._options import SectionCommand
from redisfuse.cli._output import json_option, print_json
from redisfuse.cli._pager import paged_output, pager_option
from redisfuse.cli._patch_output import PatchPrinter, PatchStyle, full_option
from redisfuse.cli._where import where_options
from redisfuse.errors import UsageError
from redisfuse.journal.filter_options import build_change_filter, leave_out_unwritten

_FILTERS = ("session", "by", "key", "path", "since", "until", "state", "op")


@click.command(cls=SectionCommand)
@change_words
@click.option("--live", is_flag=True, help="Compare the keys of two servers, folders or archives instead of changes.")
@click.option("--stat", "style", flag_value="stat", help="Print only how many lines each file gained and lost.")
@click.option("--word", "style", flag_value="word", help="Mark the words that differ, instead of the lines.")
@full_option
@filter_options
@limit_option
@json_option
@pager_option
@journal_option
@where_options
@click.pass_context
def command(
    context: click.Context,
    /,
    words: tuple[str, ...],
    live: bool,
    style: PatchStyle | None,
    full: bool,
    limit: int | None,
    as_json: bool,
    pager: bool,
    journal_file: Path | None,
    **options: Any,
) -> int:
    """Show the difference that changes made, as a patch.

    \b
    redisfuse diff 42                          one change
    redisfuse diff 42+ --stat                  the files of an operation
    redisfuse diff --session 7 > all.patch     git apply all.patch; patch -p1 < all.patch
    redisfuse diff --live ~/redis redis://host/0    two servers, as they are now
    redisfuse diff --live users.jsonl.gz ~/redis/user

    Changes of one file that follow each other are shown as one. Text is compared by line, a collection by element.
    Binary and long values are only named, unless --full is given. In a pipe the bytes are exactly those of the values;
    on a terminal they are escaped. With --json, each change is one object.

    --live A B compares keys, by the rest of their names: of servers, of folders of mounts, or of archives of `redisfuse
    dump`. It prints those that are gone, added, changed, or have another expiry. The exit status is 0 if there is none,
    1 if there are some, 2 if the comparison failed.
    """  # noqa: D301 - click reads the control character \b
    filters = {name: options[name] for name in _FILTERS}
    if live:
        if any(filters.values()) or style or full or limit is not None:
            raise UsageError(
                "--live compares keys as they are now; the options that select or show changes don't apply"
            )
        from redisfuse.cli._live_diff import compare_live  # imports the client, which the journal's part does not need

        return compare_live(context, words, as_json=as_json)
    for name in options.keys() - set(_FILTERS):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(f"--{name.replace('_', '-')} is an option of --live: changes are read from the journal")
    with open_journal(journal_file) as journal, paged_output(pager and not as_json):
        change_filter = replace(build_change_filter(journal, words, limit=limit, **filters), oldest_first=True)
        check_selection(journal, change_filter)
        if not as_json:
            shown = leave_out_unwritten(change_filter)
            PatchPrinter(journal, style or "patch", full=full).print_changes(shown)
            return 0
        from redisfuse.journal.diff import diff_change

        for change in journal.find_changes(change_filter):
            lines = [{"mark": line.marker, "text": line.text} for line in diff_change(change)]
            print_json({**change_to_json(change), "difference": lines})
    return 0
