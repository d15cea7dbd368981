"""Show which change wrote each line of a text value."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import click

from redisfuse.cli._journal_options import journal_option, open_journal
from redisfuse.cli._output import (
    LinePrinter,
    bytes_to_json,
    escape_text,
    format_local_time,
    format_utc,
    is_terminal,
    json_option,
    print_json,
)
from redisfuse.cli._pager import paged_output, pager_option
from redisfuse.cli._params import CHANGED_PATH
from redisfuse.errors import NotFoundError
from redisfuse.journal.filter_options import build_change_filter, find_mounted_path

AUTHOR_WIDTH = 16


@click.command
@click.argument("path", type=CHANGED_PATH)
@json_option
@pager_option
@journal_option
def command(path: bytes, as_json: bool, pager: bool, journal_file: Path | None) -> None:
    """Show which change wrote each line of a text value.

    \b
    redisfuse blame template/welcome.html

    Each line has the id of the change, its time, the user and the process, and the text. The value is the one that the
    newest journaled change left. A line without an id is older than the journal, or another program wrote it. Renames
    are followed. In a pipe, tabs separate the fields, and times are in UTC.
    """  # noqa: D301 - click reads the control character \b
    from redisfuse.journal.blame import blame_lines

    with open_journal(journal_file) as journal, paged_output(pager and not as_json):
        change_filter = build_change_filter(journal, [os.fsdecode(path)])
        if not change_filter.key_spans:
            raise NotFoundError(f"the journal has no value at {os.fsdecode(path)}, only paths below it")
        newest = next(journal.find_changes(replace(change_filter, outcomes=("applied", "unknown"), limit=1)), None)
        if newest is None:
            raise NotFoundError(f"no change of {os.fsdecode(path)} was ever applied")
        if newest.new.kind == "absent":
            raise NotFoundError(
                f"change {newest.id} removed {os.fsdecode(path)}, so it has no lines; "
                f"`redisfuse show {newest.id} --prior` prints what it had"
            )
        spans = journal.find_key_history(find_mounted_path(journal, path), newest.server_name)
        shown = replace(
            change_filter,
            key_spans=spans,
            server_name=newest.server_name,
            outcomes=("applied", "unknown"),
            oldest_first=True,
        )
        changes = journal.find_changes(shown)
        users: dict[int, str] = {}
        printer = LinePrinter()
        for number, line in enumerate(blame_lines(changes), 1):
            change = line.change
            if change is not None and change.session_id not in users:
                users[change.session_id] = journal.get_session(change.session_id).metadata.user
            user = "" if change is None else users[change.session_id]
            if as_json:
                print_json(
                    {
                        "line": number,
                        "change": None if change is None else change.id,
                        "at": None if change is None else format_utc(change.recorded_at),
                        "user": user or None,
                        "command": None if change is None else change.command,
                        "pid": None if change is None else change.pid,
                        "text": bytes_to_json(line.text.removesuffix(b"\n")),
                    }
                )
                continue
            text = escape_text(line.text.removesuffix(b"\n"))
            id = "" if change is None else str(change.id)
            command_name = "" if change is None or change.command is None else change.command
            author = escape_text(f"{user} {command_name}".strip().encode())
            if is_terminal():
                time = "" if change is None else format_local_time(change.recorded_at)
                printer.print(f"{id:>6}  {time:<19}  {author[:AUTHOR_WIDTH]:<{AUTHOR_WIDTH}}  {text}")
            else:
                time = "" if change is None else format_utc(change.recorded_at) or ""
                click.echo("\t".join((id, time, author, text)))
