"""Show one change: all its facts, what was there before, and what it wrote."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli import _journal_options
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
from redisfuse.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redisfuse.journal.journal import Journal
    from redisfuse.journal.models import Blob, Change, State

PREVIEW_BYTES = 2048  # bytes of a content shown between the facts
PREVIEW_ELEMENTS = 20  # elements of a collection, likewise
MAX_LATER_CHANGES = 1000  # later changes of the same key that are looked for
MAX_JSON_CONTENT_BYTES = 1 << 20  # bytes: larger contents are left out of --json


@click.command
@click.argument("id", type=_journal_options.CHANGE_ID)
@click.option("--prior", "which", flag_value="prior", help="Write the bytes that were there before to standard output.")
@click.option("--new", "which", flag_value="new", help="Write the bytes that it wrote, or was to write.")
@click.option("--logical", is_flag=True, help="Of a collection, its elements as JSON lines instead of its DUMP.")
@json_option
@_journal_options.journal_option
def command(id: int, which: str | None, logical: bool, as_json: bool, journal_file: Path | None) -> None:
    """Show one change: all its facts, what was there before, and what it wrote.

    `redisfuse show 42 --prior > file` exports what change 42 replaced. Of a collection that is its DUMP payload, with
    --logical its elements. On a terminal control characters are shown, not sent.
    """
    if logical and not which:
        raise UsageError("--logical goes with --prior or --new")
    with _journal_options.open_journal(journal_file) as journal:
        change = journal.get_change(id)
        if which:
            _write_content(change, getattr(change, which), which, logical)
        elif as_json:
            print_json(_change_details(journal, change))
        else:
            _print_change(journal, change)


# -- bytes -----------------------------------------------------------------------------------------------------------


def _write_content(change: Change, state: State, side: str, logical: bool) -> None:
    content = state.portable_copy if logical else state.content or state.portable_copy
    if content is None:
        when = "before" if side == "prior" else "after"
        what = "there was nothing" if state.kind == "absent" else "no such record of it was made"
        raise NotFoundError(f"change {change.id}: {what} {when} it")
    if is_terminal():
        for chunk in content.iter_chunks():
            click.echo("\n".join(escape_text(line) for line in chunk.split(b"\n")), nl=False)
        return
    for chunk in content.iter_chunks():
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


# -- JSON ------------------------------------------------------------------------------------------------------------


def _change_details(journal: Journal, change: Change) -> dict[str, Any]:
    return {
        **_journal_options.change_to_json(change),
        "prior": _state_to_json(change.prior),
        "new": _state_to_json(change.new),
        "reverted_by": journal.find_reverting_ids(change.id),
        "later": [later.id for later in journal.find_later_changes(change, MAX_LATER_CHANGES)],
        "with": _other_group_ids(journal, change),
    }


def _state_to_json(state: State) -> dict[str, Any]:
    found: dict[str, Any] = {
        "kind": state.kind,
        "type": bytes_to_json(state.type),
        "expires_at": format_utc(state.expires_at),
        "field_expires_at": format_utc(state.field_expires_at),
        "note": state.note,
    }
    if state.kind == "slice":
        found |= {"offset": state.offset, "total": state.total_size}
    if state.kind == "object":
        found |= {
            "version": state.dump_version,
            "dump": _content_to_json(state.content),
            "logical": _content_to_json(state.portable_copy),
        }
    elif state.content is not None:
        found |= {"content": _content_to_json(state.content)}
    return found


def _content_to_json(content: Blob | None) -> dict[str, Any] | None:
    if content is None:
        return None
    found: dict[str, Any] = {"size": content.size, "sha256": content.digest.hex()}
    if content.size <= MAX_JSON_CONTENT_BYTES:
        found["data"] = bytes_to_json(content.read())
    return found


# -- text ------------------------------------------------------------------------------------------------------------


def _print_change(journal: Journal, change: Change) -> None:
    printer = LinePrinter()
    session = journal.get_session(change.session_id).metadata
    facts = {
        "change": f"{change.id}, {change.outcome}",
        "error": escape_text((change.error or "").encode()),
        "time": f"{format_local_time(change.recorded_at)} ({format_utc(change.recorded_at)})",
        "operation": change.op,
        "path": _journal_options.format_path(change),
        "key": escape_text(change.key),
        "field": "" if change.field is None else escape_text(change.field) or "(empty)",
        "reverts": str(change.reverts or ""),
        "applies": str(change.applies or ""),
        "reverted by": ", ".join(map(str, journal.find_reverting_ids(change.id))),
        "later": _format_ids(later.id for later in journal.find_later_changes(change, MAX_LATER_CHANGES)),
        "together": _format_ids(_other_group_ids(journal, change)),
        "session": f"{change.session_id}: {escape_text((session.mountpoint or 'a command').encode())} by "
        f"{escape_text(session.user.encode())} on {escape_text(session.host.encode())}",
        "server": escape_text(change.server_name.encode()),
    }
    for name, value in facts.items():
        if value:
            printer.print(
                f"{name:<12} {value}", _journal_options.STATE_STYLES[change.outcome] if name == "change" else ""
            )
    for title, state, style in (("before", change.prior, "red"), ("after", change.new, "green")):
        printer.print()
        printer.print(f"{title:<12} {_journal_options.describe_state(state)}", "bold")
        for name, at in (("expires", state.expires_at), ("field expires", state.field_expires_at)):
            if at is not None:
                printer.print(f"{name:<12} {format_local_time(at)} ({format_utc(at)})")
        if state.note:
            printer.print(f"{'note':<12} {escape_text(state.note.encode())}")
        for line in _preview_lines(state):
            printer.print(f"    {line}", style)


def _other_group_ids(journal: Journal, change: Change) -> list[int]:
    """Ids of the other changes of the same operation."""
    return [other.id for other in journal.get_group(change.group_id) if other.id != change.id]


def _format_ids(ids: Iterable[int]) -> str:
    found = list(ids)
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    return ", ".join(map(str, found[:10])) + more


def _preview_lines(state: State) -> list[str]:
    """The beginning of a state's content."""
    if state.kind == "object":
        return _element_lines(state)
    if state.content is None:
        return []
    head = state.content.read_prefix(PREVIEW_BYTES)
    lines = [escape_text(line) for line in head.split(b"\n")]
    if lines and not lines[-1]:
        lines.pop()
    if state.content.size > len(head):
        lines.append(f"… and {state.content.size - len(head)} more bytes")
    return lines


def _element_lines(state: State) -> list[str]:
    from itertools import islice

    from redisfuse.journal import portable
    from redisfuse.journal.diff import format_element

    if state.portable_copy is None:
        return ["(its elements are not recorded one by one, only its DUMP)"]
    about, records = portable.decode_copy(state.portable_copy.iter_chunks())
    lines = [format_element(state.type, record) for record in islice(records, PREVIEW_ELEMENTS)]
    number = about.get("elements")
    if isinstance(number, int) and number > len(lines):
        lines.append(f"… and {number - len(lines)} more elements")
    return lines
