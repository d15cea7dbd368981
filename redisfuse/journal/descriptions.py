"""Changes and states as printable text. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from redisfuse.text import escape_text, format_count

if TYPE_CHECKING:
    from redisfuse.journal.models import Change, State
    from redisfuse.journal.operations import OperationSummary

MAX_PREVIEW_BYTES = 200  # bytes of a value in `format_state`


def format_change(change: Change) -> str:
    """Return a change as one printable line."""
    return f"{change.id}  {change.op}  {format_path(change)}  ({format_key(change)})"


def format_path(change: Change) -> str:
    """Return the changed path as printable text; for a rename both paths."""
    path = escape_text(change.path)
    return path if change.new_path is None else f"{path} → {escape_text(change.new_path)}"


def format_process(command: str | None, pid: int | None) -> str:
    """Return a process as `rm[4711]`; empty if it is unknown."""
    return "" if pid is None else f"{escape_text((command or '').encode())}[{pid}]"


def format_key(change: Change) -> str:
    """Return the key, or the key and its field, as printable text."""
    key = escape_text(change.key)
    return key if change.field is None else f"{key} field {escape_text(change.field)}"


def describe_state(state: State) -> str:
    """Return a short printable description of a state."""
    if state.kind == "absent":
        return "nothing"
    if state.kind == "directory":
        return "an empty directory"
    if state.kind == "slice":
        size = state.content.size if state.content else 0
        return f"{escape_text(state.type)}: {size} bytes at {state.offset} of {state.total_size}"
    if state.kind == "object":
        vendor = f" by {escape_text(state.dump_version.encode())}" if state.dump_version else ""
        dump = f"DUMP of {state.content.size} bytes{vendor}" if state.content else "no DUMP"
        return f"{escape_text(state.type)}, {dump}"
    return f"{escape_text(state.type)} of {state.size} bytes"


def format_state(state: State) -> str:
    """Return a state and the beginning of its content as one printable line."""
    text = describe_state(state)
    content = state.portable_copy if state.kind == "object" else state.content
    if content is None or not content.size:
        return text
    head = content.read_prefix(MAX_PREVIEW_BYTES)
    return f"{text}: {escape_text(head)}{'…' if content.size > len(head) else ''}"


# -- rows of a list --------------------------------------------------------------------------------------------------


def format_operation_path(operation: OperationSummary) -> str:
    """Return the path of an operation as printable text; for a rename both paths.

    A slash is at the end of a directory.
    """
    slash = "/" if operation.is_directory else ""
    path = escape_text(operation.path) + slash
    if operation.new_path is not None and operation.ops == ("rename",):
        return f"{path} → {escape_text(operation.new_path)}{slash}"
    return path


def list_operation_notes(operation: OperationSummary) -> list[str]:
    """Return what a row reports of an operation beside its path."""
    count, reverted = operation.change_count, operation.reverted_count
    is_named = operation.key_count <= (2 if operation.ops == ("rename",) else 1)
    notes = [] if is_named else [f"{operation.key_count:,} keys"]
    if operation.key_count == 1 and count > 1:
        notes.append(format_count(count, "change"))
    notes += [outcome for outcome in operation.outcomes if outcome != "applied"]
    if reverted:
        notes.append("rolled back" if reverted == count else f"{reverted:,} rolled back")
    if partly := operation.partly_reverted_count:
        notes.append("partly rolled back" if count == 1 else f"{partly:,} partly rolled back")
    return [*notes, *_describe_origin(operation)]


def list_change_notes(change: Change, *, is_reverted: bool, is_partly_reverted: bool = False) -> list[str]:
    """Return what a row reports of a change beside its path."""
    notes: list[str] = [] if change.outcome == "applied" else [change.outcome]
    notes += ["rolled back"] if is_reverted else ["partly rolled back"] if is_partly_reverted else []
    return [*notes, *_describe_origin(change)]


def summarize_ops(ops: Sequence[str]) -> str:
    """Return the ops of an operation in at most eight characters.

    Directories that were made or removed along with keys, and expiries, are not what an operation is about.
    """
    main_ops = [op for op in ops if op not in ("mkdir", "rmdir", "expire")] or list(ops)
    return main_ops[0] if len(main_ops) == 1 else f"{main_ops[0][:7]}…"


def _describe_origin(change: Change | OperationSummary) -> list[str]:
    if change.reverts:
        return [f"reverts {change.reverts}"]
    if change.reverts_part:
        return [f"reverts a part of {change.reverts_part}"]
    return [f"applies {change.applies}"] if change.applies else []
