"""Show one change: all its facts, what was there before, and what it wrote."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli import _journal_options
from redisfuse.cli._output import Printer, escape_text, is_terminal, json_option, local_time, moment, plain, print_json
from redisfuse.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redisfuse.journal.journal import Journal
    from redisfuse.journal.models import Change, Content, State

PREVIEW = 2048  # bytes of a content shown between the facts
ELEMENTS = 20  # elements of a collection, likewise
NAMED = 1000  # later changes of the same key that are looked for
IN_JSON = 1 << 20  # bytes: larger contents are left out of --json


@click.command
@click.argument("id", type=_journal_options.CHANGE)
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
        change = journal.change(id)
        if which:
            _write(change, getattr(change, which), which, logical)
        elif as_json:
            print_json(_document(journal, change))
        else:
            _print(journal, change)


# -- bytes -----------------------------------------------------------------------------------------------------------


def _write(change: Change, state: State, which: str, logical: bool) -> None:
    content = state.logical if logical else state.content or state.logical
    if content is None:
        when = "before" if which == "prior" else "after"
        what = "there was nothing" if state.kind == "absent" else "no such record of it was made"
        raise NotFoundError(f"change {change.id}: {what} {when} it")
    if is_terminal():
        for chunk in content.chunks():
            click.echo("\n".join(escape_text(line) for line in chunk.split(b"\n")), nl=False)
        return
    for chunk in content.chunks():
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


# -- JSON ------------------------------------------------------------------------------------------------------------


def _document(journal: Journal, change: Change) -> dict[str, Any]:
    return {
        **_journal_options.row_of(change),
        "prior": _state(change.prior),
        "new": _state(change.new),
        "reverted_by": journal.reverted_by(change.id),
        "later": [later.id for later in journal.later_changes(change, NAMED)],
        "with": _others(journal, change),
    }


def _state(state: State) -> dict[str, Any]:
    found: dict[str, Any] = {
        "kind": state.kind,
        "type": plain(state.type),
        "expires_at": moment(state.expires_at),
        "field_expires_at": moment(state.field_expires_at),
        "note": state.note,
    }
    if state.kind == "slice":
        found |= {"offset": state.offset, "total": state.total}
    if state.kind == "object":
        found |= {"version": state.version, "dump": _content(state.content), "logical": _content(state.logical)}
    elif state.content is not None:
        found |= {"content": _content(state.content)}
    return found


def _content(content: Content | None) -> dict[str, Any] | None:
    if content is None:
        return None
    found: dict[str, Any] = {"size": content.size, "sha256": content.digest.hex()}
    if content.size <= IN_JSON:
        found["data"] = plain(content.read())
    return found


# -- text ------------------------------------------------------------------------------------------------------------


def _print(journal: Journal, change: Change) -> None:
    printer = Printer()
    session = journal.session(change.session).info
    facts = {
        "change": f"{change.id}, {change.state}",
        "error": escape_text((change.error or "").encode()),
        "time": f"{local_time(change.at)} ({moment(change.at)})",
        "operation": change.op,
        "path": _journal_options.where(change),
        "key": escape_text(change.key),
        "field": "" if change.field is None else escape_text(change.field) or "(empty)",
        "reverts": str(change.reverts or ""),
        "applies": str(change.applies or ""),
        "reverted by": ", ".join(map(str, journal.reverted_by(change.id))),
        "later": _ids(later.id for later in journal.later_changes(change, NAMED)),
        "together": _ids(_others(journal, change)),
        "session": f"{change.session}: {escape_text((session.mountpoint or 'a command').encode())} by "
        f"{escape_text(session.user.encode())} on {escape_text(session.host.encode())}",
        "server": escape_text(change.server.encode()),
    }
    for name, value in facts.items():
        if value:
            printer.line(f"{name:<12} {value}", _journal_options.STYLES[change.state] if name == "change" else "")
    for title, state, style in (("before", change.prior, "red"), ("after", change.new, "green")):
        printer.line()
        printer.line(f"{title:<12} {_journal_options.described(state)}", "bold")
        for name, at in (("expires", state.expires_at), ("field expires", state.field_expires_at)):
            if at is not None:
                printer.line(f"{name:<12} {local_time(at)} ({moment(at)})")
        if state.note:
            printer.line(f"{'note':<12} {escape_text(state.note.encode())}")
        for line in _preview(state):
            printer.line(f"    {line}", style)


def _others(journal: Journal, change: Change) -> list[int]:
    """Ids of the other changes of the same operation."""
    return [other.id for other in journal.group(change.group) if other.id != change.id]


def _ids(ids: Iterable[int]) -> str:
    found = list(ids)
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    return ", ".join(map(str, found[:10])) + more


def _preview(state: State) -> list[str]:
    """The beginning of a state's content."""
    if state.kind == "object":
        return _elements(state)
    if state.content is None:
        return []
    head = state.content.head(PREVIEW)
    lines = [escape_text(line) for line in head.split(b"\n")]
    if lines and not lines[-1]:
        lines.pop()
    if state.content.size > len(head):
        lines.append(f"… and {state.content.size - len(head)} more bytes")
    return lines


def _elements(state: State) -> list[str]:
    from itertools import islice

    from redisfuse.journal import portable
    from redisfuse.journal.diff import element_text

    if state.logical is None:
        return ["(its elements are not recorded one by one, only its DUMP)"]
    about, records = portable.decode(state.logical.chunks())
    lines = [element_text(state.type, record) for record in islice(records, ELEMENTS)]
    number = about.get("elements")
    if isinstance(number, int) and number > len(lines):
        lines.append(f"… and {number - len(lines)} more elements")
    return lines
