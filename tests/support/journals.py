"""Sessions and changes of a journal, without a server or a mount.

Tests run scripts as processes that import all names of this module: it imports nothing that takes long.
"""

from __future__ import annotations

from typing import Any

from redisfuse.journal.journal import Journal
from redisfuse.journal.models import ABSENT, Change, ChangeIntent, ServerIdentity, SessionMetadata, State

SERVER = ServerIdentity(
    host="127.0.0.1", port=7000, db=2, username="ann", redacted_url="redis://ann:***@127.0.0.1:7000/2"
)
INFO = SessionMetadata(SERVER, "abc123", "7.0.15", "redis", "/mnt/r", options={"write": True})


def intent(key: bytes = b"a:b", new: bytes = b"new", prior: State = ABSENT, **more: Any) -> ChangeIntent:
    facts: dict[str, Any] = {"path": key.replace(b":", b"/"), "op": "write", "field": None, "prior": prior}
    return ChangeIntent(key=key, **{**facts, "new": State.from_value(new), **more})


def add(journal: Journal, session: int, *intents: ChangeIntent, state: Any = "applied") -> list[int]:
    ids = journal.record_intents(session, intents)
    journal.record_outcome(ids, state)
    return ids


def facts_of(change: Change) -> tuple[Any, ...]:
    return (change.path, change.op, change.key, change.field, change.prior, change.new, change.reverts, change.applies)
