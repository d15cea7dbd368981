"""Write changes with their values, as JSON lines or as a patch."""

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
from redisfuse.cli._output import bytes_to_json, print_json
from redisfuse.cli._patch_output import PatchPrinter
from redisfuse.journal.content import Blob
from redisfuse.journal.filter_options import build_change_filter, leave_out_unwritten
from redisfuse.journal.models import State


@click.command
@change_words
@click.option("--patch", is_flag=True, help="Write a patch for git apply or patch, with binary values.")
@filter_options
@limit_option
@journal_option
def command(words: tuple[str, ...], patch: bool, limit: int | None, journal_file: Path | None, **filters: Any) -> None:
    """Write changes with their values, as JSON lines or as a patch.

    \b
    redisfuse export --session 7 > session.jsonl
    redisfuse export 42+ --patch | git -C checkout apply

    Each line has a change as `redisfuse log --keys --json` prints it, and the values before and after. A patch has the
    net effect on each file; collections are in it only as remarks. The oldest change is first. To copy keys, use
    `redisfuse dump`.
    """  # noqa: D301 - click reads the control character \b
    with open_journal(journal_file) as journal:
        change_filter = replace(build_change_filter(journal, words, limit=limit, **filters), oldest_first=True)
        check_selection(journal, change_filter)
        if patch:
            shown = leave_out_unwritten(change_filter)
            PatchPrinter(journal, full=True).print_changes(shown)
            return
        for change in journal.find_changes(change_filter):
            states = {"prior": _state_to_json(change.prior), "new": _state_to_json(change.new)}
            print_json({**change_to_json(change), **states})


def _state_to_json(state: State) -> dict[str, Any]:
    return {
        "kind": state.kind,
        "content": _read(state.content),
        "elements": _read(state.portable_copy),
        "offset": state.offset if state.kind == "slice" else None,
        "note": state.note,
    }


def _read(blob: Blob | None) -> str | dict[str, str] | None:
    return None if blob is None else bytes_to_json(blob.read())
