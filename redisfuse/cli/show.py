"""Show one change with its old and new content."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli._changes import STATE_STYLES, change_to_json
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
from redisfuse.cli._params import CHANGE_ID
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import NotFoundError, UsageError
from redisfuse.journal.descriptions import describe_state, format_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redisfuse.journal.content import Blob
    from redisfuse.journal.journal import Journal
    from redisfuse.journal.models import Change, State

PREVIEW_BYTES = 2048  # bytes of a content in the preview
PREVIEW_ELEMENTS = 20  # elements of a collection in the preview
MAX_LISTED_IDS = 10
MAX_LATER_CHANGES = 1000  # later changes of the same key to look up
MAX_JSON_CONTENT_BYTES = CHUNK_BYTES  # larger contents are omitted from --json


@click.command
@click.argument("id", type=CHANGE_ID)
@click.option("--prior", "which", flag_value="prior", help="Write the old content to standard output.")
@click.option("--new", "which", flag_value="new", help="Write the new content, whether it was written to Redis or not.")
@click.option("--logical", is_flag=True, help="Write a collection's elements as JSON lines instead of its DUMP.")
@json_option
@journal_option
def command(id: int, which: str | None, logical: bool, as_json: bool, journal_file: Path | None) -> None:
    """Show one change with its old and new content.

    `redisfuse show 42 --prior > file` exports the content that change 42 replaced. For a collection that is its DUMP
    payload, or with --logical its elements. On a terminal, control characters are escaped.

    \b
    redisfuse show 42
    redisfuse show 42 --prior > value
    """  # noqa: D301 - click reads the control character \b
    if logical and not which:
        raise UsageError("--logical requires --prior or --new")
    with open_journal(journal_file) as journal:
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
        reason = "there was nothing" if state.kind == "absent" else "no such content was recorded"
        raise NotFoundError(f"change {change.id}: {reason} {when} it")
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
        **change_to_json(change),
        "prior": _state_to_json(change.prior),
        "new": _state_to_json(change.new),
        "reverted_by": journal.find_reverting_ids(change.id),
        "partly_reverted_by": _find_partly_reverting_ids(journal, change),
        "later": [later.id for later in journal.find_later_changes(change, MAX_LATER_CHANGES)],
        "with": _other_group_ids(journal, change),
        "slots": _count_slots(journal, change),
    }


def _state_to_json(state: State) -> dict[str, Any]:
    row: dict[str, Any] = {
        "kind": state.kind,
        "type": bytes_to_json(state.type),
        "expires_at": format_utc(state.expires_at),
        "field_expires_at": format_utc(state.field_expires_at),
        "note": state.note,
    }
    if state.kind == "slice":
        row |= {"offset": state.offset, "total": state.total_size}
    if state.kind == "object":
        row |= {
            "version": state.dump_version,
            "dump": _content_to_json(state.content),
            "logical": _content_to_json(state.portable_copy),
        }
    elif state.content is not None:
        row |= {"content": _content_to_json(state.content)}
    return row


def _content_to_json(content: Blob | None) -> dict[str, Any] | None:
    if content is None:
        return None
    row: dict[str, Any] = {"size": content.size, "sha256": content.digest.hex()}
    if content.size <= MAX_JSON_CONTENT_BYTES:
        row["data"] = bytes_to_json(content.read())
    return row


# -- text ------------------------------------------------------------------------------------------------------------


def _print_change(journal: Journal, change: Change) -> None:
    from redisfuse.journal.final_newline import ADDED_NEWLINE_MESSAGE, has_added_newline

    printer = LinePrinter()
    session = journal.get_session(change.session_id).metadata
    facts = {
        "change": f"{change.id}, {change.outcome}",
        "error": escape_text((change.error or "").encode()),
        "time": f"{format_local_time(change.recorded_at)} ({format_utc(change.recorded_at)})",
        "operation": change.op,
        "path": format_path(change),
        "key": escape_text(change.key),
        "field": "" if change.field is None else escape_text(change.field) or "(empty)",
        "reverts": str(change.reverts or ""),
        "reverts part": str(change.reverts_part or ""),
        "applies": str(change.applies or ""),
        "reverted by": ", ".join(map(str, journal.find_reverting_ids(change.id))),
        "in part by": ", ".join(map(str, _find_partly_reverting_ids(journal, change))),
        "later": _format_ids(later.id for later in journal.find_later_changes(change, MAX_LATER_CHANGES)),
        "together": _format_ids(_other_group_ids(journal, change)),
        "slots": _describe_slots(_count_slots(journal, change)),
        "session": f"{change.session_id}: {escape_text((session.mountpoint or 'a command').encode())} by "
        f"{escape_text(session.user.encode())} on {escape_text(session.host.encode())}",
        "server": escape_text(change.server_name.encode()),
    }
    for name, value in facts.items():
        if value:
            printer.print(f"{name:<12} {value}", STATE_STYLES[change.outcome] if name == "change" else "")
    for title, state, style in (("before", change.prior, "red"), ("after", change.new, "green")):
        printer.print()
        printer.print(f"{title:<12} {describe_state(state)}", "bold")
        for name, at in (("expires", state.expires_at), ("field expires", state.field_expires_at)):
            if at is not None:
                printer.print(f"{name:<12} {format_local_time(at)} ({format_utc(at)})")
        if state.note:
            printer.print(f"{'note':<12} {escape_text(state.note.encode())}")
        if state is change.new and has_added_newline(change.prior, state):
            printer.print(f"{'note':<12} {ADDED_NEWLINE_MESSAGE}", "yellow")
        for line in _preview_lines(state):
            printer.print(f"    {line}", style)


def _find_partly_reverting_ids(journal: Journal, change: Change) -> list[int]:
    """Return the ids of the changes that took back a part of one, newest first."""
    return journal.create_reversal_index().find_partly_reverting_ids([change.id]).get(change.id, [])


def _other_group_ids(journal: Journal, change: Change) -> list[int]:
    """Return the ids of the other changes of the same operation."""
    return [other.id for other in journal.get_group(change.group_id) if other.id != change.id]


def _count_slots(journal: Journal, change: Change) -> int | None:
    """Return the number of a cluster's slots that the operation is about.

    None if the server is not a cluster.
    """
    from redisfuse.client.slot_map import key_slot

    if journal.get_session(change.session_id).metadata.server.scheme != "cluster":
        return None
    return len({key_slot(other.key) for other in journal.get_group(change.group_id)})


def _describe_slots(count: int | None) -> str:
    if count is None or count < 2:
        return ""
    return f"the operation has keys of {count} slots: one transaction for each, so it is not atomic as a whole"


def _format_ids(ids: Iterable[int]) -> str:
    listed = list(ids)
    more = f" and {len(listed) - MAX_LISTED_IDS} more" if len(listed) > MAX_LISTED_IDS else ""
    return ", ".join(map(str, listed[:MAX_LISTED_IDS])) + more


def _preview_lines(state: State) -> list[str]:
    """Return the beginning of a state's content as lines."""
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
        return ["(only the DUMP is recorded, not the elements)"]
    header, records = portable.decode_copy(state.portable_copy.iter_chunks())
    lines = [format_element(state.type, record) for record in islice(records, PREVIEW_ELEMENTS)]
    total = header.get("elements")
    if isinstance(total, int) and total > len(lines):
        lines.append(f"… and {total - len(lines)} more elements")
    return lines
