"""The conditions that a user writes, as a filter of changes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from redisfuse.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from redisfuse.journal.change_filter import ChangeFilter, KeySpan
    from redisfuse.journal.journal import Journal

CHANGE_OPS = (
    "create",
    "write",
    "append",
    "truncate",
    "remove",
    "rename",
    "expire",
    "mkdir",
    "rmdir",
    "rollback",
    "apply",
)
CHANGE_STATES = ("pending", "applied", "failed", "unknown", "refused", "held")


def build_change_filter(
    journal: Journal,
    words: Sequence[str] = (),
    *,
    session: int | None = None,
    by: str | None = None,
    key: bytes | None = None,
    path: bytes | None = None,
    since: int | None = None,
    until: int | None = None,
    state: tuple[Any, ...] = (),
    op: tuple[str, ...] = (),
    limit: int | None = None,
) -> ChangeFilter:
    """Return the filter for the values of `change_words` and `filter_options`.

    Raises UsageError, and NotFoundError for a path or key without changes.
    """
    from redisfuse.journal.change_filter import ChangeFilter, is_id_word, parse_id_words

    names = [word for word in words if not is_id_word(word)]
    try:
        id_ranges, operation_ids = parse_id_words(word for word in words if is_id_word(word))
    except ValueError as error:
        raise UsageError(f"{error}; write 42, 42-60, 42.. or, for a whole operation, 42+") from error
    if len(names) > 1 or (names and path is not None):
        raise UsageError("give one path; --path DIRECTORY selects all paths below it")
    path = None if path is None else find_mounted_path(journal, path)
    key_spans: tuple[KeySpan, ...] = ()
    if names:
        name = find_mounted_path(journal, os.fsencode(names[0]))
        key_spans = journal.find_key_history(name)
        if not key_spans:
            path = name  # a directory
            if not any(journal.find_changes(ChangeFilter(path=path, limit=1))):
                raise NotFoundError(f"the journal has no change of {names[0]}; `redisfuse log` lists the changes")
    return ChangeFilter(
        session_id=session,
        user=by,
        id_ranges=id_ranges,
        operation_ids=operation_ids,
        key_glob=key,
        key_spans=key_spans,
        path=path,
        since=since,
        until=until,
        outcomes=state,
        ops=op,
        limit=limit,
    )


def find_mounted_path(journal: Journal, path: bytes) -> bytes:
    """Return a path as one below a mount point of the journal.

    A path in such a mount, absolute or relative to the current directory, is shortened by the mount point. Any other
    path is unchanged.
    """
    absolute = os.path.abspath(path)
    mountpoints = journal.query("SELECT DISTINCT mountpoint FROM sessions WHERE mountpoint IS NOT NULL")
    for mountpoint in sorted((os.fsencode(text) for (text,) in mountpoints), key=len, reverse=True):
        if absolute.startswith(mountpoint.rstrip(b"/") + b"/"):
            return absolute[len(mountpoint.rstrip(b"/")) + 1 :]
    return path


def leave_out_unwritten(change_filter: ChangeFilter) -> ChangeFilter:
    """Return a filter without changes that are not in Redis.

    One that names states or single changes is returned unchanged.
    """
    is_named = change_filter.has_ids and not change_filter.operation_ids
    if change_filter.outcomes or (is_named and all(ids.first == ids.last for ids in change_filter.id_ranges)):
        return change_filter
    return replace(change_filter, outcomes=("applied", "pending", "unknown"))
