"""The expiry that a created value gets."""

from __future__ import annotations

from dataclasses import dataclass, replace

from redisfuse.client.capabilities import ServerInfo
from redisfuse.journal.models import State
from redisfuse.transactions.state_reader import CurrentState

FIELD_EXPIRY_LOST_NOTE = "its expiry was not kept: this server's fields have none"


@dataclass(frozen=True, slots=True)
class Expiry:
    """When a value expires: absolute Unix times in ms; None: never.

    It is that of the value that a new one replaces (removed by the same program a moment ago, or moved away and back),
    or one that a program has set before the value is in Redis.
    """

    value_ms: int | None  # of the key or, for a field, of the field itself
    hash_ms: int | None = None  # of the hash, if a field is its first
    is_explicit: bool = False  # set by a program: it also replaces the expiry of a value that is overwritten

    @classmethod
    def from_state(cls, state: State) -> Expiry | None:
        """Return the expiry of a recorded state; None if it has none."""
        is_field = state.type == b"field"
        expiry = cls(state.field_expires_at, state.expires_at) if is_field else cls(state.expires_at)
        return None if expiry == cls(None) else expiry

    def apply(self, new: State, current: CurrentState, server_info: ServerInfo, now_ms: int) -> State:
        """Return the state of a new string or field with this expiry.

        A time that has passed is left out. An existing value keeps its expiry, unless this one is explicit. `now_ms` is
        the server's clock.
        """
        if current.state.kind != "absent" and not self.is_explicit:
            return new
        value_ms = drop_if_passed(self.value_ms, now_ms)
        if new.type != b"field":
            return replace(new, expires_at=value_ms)
        if current.key_type != b"hash":
            new = replace(new, expires_at=drop_if_passed(self.hash_ms, now_ms))
        if value_ms is None or server_info.has_hash_field_ttl:
            return replace(new, field_expires_at=value_ms)
        return replace(new, note=FIELD_EXPIRY_LOST_NOTE)


def drop_if_passed(expires_at: int | None, now_ms: int) -> int | None:
    """Return an absolute time in ms, or None once it has passed."""
    return expires_at if expires_at is not None and expires_at > now_ms else None
