"""The history of one key or field, through its renames."""

from __future__ import annotations

from dataclasses import replace

from redisfuse.journal.change_filter import ChangeFilter, KeySpan
from redisfuse.journal.change_rows import fetch_change
from redisfuse.journal.change_search import find_ids
from redisfuse.journal.models import Change
from redisfuse.journal.reader import JournalReader
from redisfuse.journal.reversals import ReversalIndex

MAX_FOLLOWED_RENAMES = 100  # older names of a key are not searched for


def find_key_history(reader: JournalReader, name: bytes, server_name: str | None = None) -> tuple[KeySpan, ...]:
    """Return the spans of ids during which a key had each of its names.

    The newest is first.

    `name`: a path below the mount point, or else a key. Empty if no change has it; so it is for a directory.
    """
    change = _find_newest(reader, name, server_name)
    return () if change is None else follow_renames(reader, change.key, change.field, server_name)


def follow_renames(
    reader: JournalReader, key: bytes, field: bytes | None, server_name: str | None = None
) -> tuple[KeySpan, ...]:
    """Return the spans of ids during which a key had this name and each older one.

    The newest is first.
    """
    spans = [KeySpan(key, field)]
    while len(spans) <= MAX_FOLLOWED_RENAMES:
        rename = _find_rename(reader, spans[-1], server_name)
        if rename is None:
            break
        arrival, departure = rename
        spans[-1] = replace(spans[-1], first=min(arrival.id, departure.id))
        spans.append(KeySpan(departure.key, departure.field, last=max(arrival.id, departure.id)))
    return tuple(spans)


def _find_newest(reader: JournalReader, name: bytes, server_name: str | None) -> Change | None:
    """Return the newest change of a path, or else of a key.

    None for the path of a directory.
    """
    path = name.strip(b"/")
    below = (path + b"/", path + b"0")  # 0 follows /
    if reader.query("SELECT 1 FROM changes WHERE path >= ? AND path < ? LIMIT 1", below):
        return None
    server = "" if server_name is None else " AND +session IN (SELECT id FROM sessions WHERE server = ?)"
    values = () if server_name is None else (server_name,)
    is_file = f"prior_kind <> 'directory' AND new_kind <> 'directory'{server} ORDER BY id DESC LIMIT 1"
    found: list[int] = []
    for condition in (
        "path = ? AND (new_path IS NULL OR new_kind = 'absent')",
        "new_path = ? AND new_path IS NOT NULL AND new_kind <> 'absent'",
    ):
        found += [
            id for (id,) in reader.query(f"SELECT id FROM changes WHERE {condition} AND {is_file}", (path, *values))
        ]
    if not found:
        rows = reader.query(f'SELECT id FROM changes WHERE "key" = ? AND {is_file}', (name, *values))
        found = [id for (id,) in rows]
    return fetch_change(reader, max(found)) if found else None


def _find_rename(reader: JournalReader, span: KeySpan, server_name: str | None) -> tuple[Change, Change] | None:
    """Return the changes by which a key got its name.

    They are those of the new name and of the old one. None if it always had that name.
    """
    renames = ChangeFilter(key_spans=(span,), ops=("rename",), server_name=server_name)
    reversals = ReversalIndex(reader)
    for id in find_ids(reader, renames):
        arrival = fetch_change(reader, id)
        if arrival is None or arrival.new.kind == "absent" or arrival.key != span.key or arrival.field != span.field:
            continue
        if arrival.outcome not in ("applied", "unknown") or reversals.find_reverted([id]):
            continue
        # The two changes of a rename were recorded one after the other, the old name first.
        departure = fetch_change(reader, id - 1)
        if (
            departure is not None
            and departure.group_id == arrival.group_id
            and departure.op == "rename"
            and departure.new.kind == "absent"
        ):
            return arrival, departure
    return None
