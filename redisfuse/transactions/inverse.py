"""The inverse of one recorded change, given what its target holds now.

Pure: decides, and sends nothing.
"""

import time
from dataclasses import dataclass, replace

from redisfuse.journal.models import ABSENT, Change, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.matching import holds_state, is_same_expiry
from redisfuse.transactions.state_reader import CurrentState


@dataclass(frozen=True, slots=True)
class Inverse:
    """How one change is reverted.

    Its target gets `desired_state`, unless a `conflict_reason` forbids it.
    """

    change: Change
    current: CurrentState
    desired_state: State
    conflict_reason: str | None = None
    note: str | None = None  # for the user
    is_noop: bool = False  # the target holds that already: nothing is written

    @property
    def target(self) -> KeyRef:
        """The key or field of the change."""
        return KeyRef(self.change.key, self.change.field)


def invert(change: Change, current: CurrentState, now_ms: int, *, force: bool = False) -> Inverse:
    """Return the inverse of a change.

    `now_ms` is the server's clock. With `force`, a target that was changed since is overwritten where that is possible.
    """
    expected, prior = change.new, change.prior
    alters_expiry = _alters_expiry(change)
    if not holds_state(current, expected, compare_expiry=alters_expiry, now_ms=now_ms):
        if holds_state(current, prior, compare_expiry=alters_expiry):
            return Inverse(change, current, prior, note="it holds that already", is_noop=True)
        reason = _describe_conflict(change, current, force=force)
        if reason is not None:
            return Inverse(change, current, prior, conflict_reason=reason)
        return _restore_prior_exactly(change, current, now_ms)
    if prior.kind == "absent" or expected.kind == "absent" or alters_expiry:
        return _restore_prior_exactly(change, current, now_ms)
    if current.state.kind == "absent":
        return Inverse(
            change, current, ABSENT, note=f"it expired at {_format_expiry(expected)}: it stays removed", is_noop=True
        )
    # A change that left the expiry alone is reverted without touching it: it may have been extended since.
    restored = replace(prior, expires_at=current.state.expires_at, field_expires_at=current.state.field_expires_at)
    note = None if is_same_expiry(current, expected) else "its expiry was changed since, and stays"
    return Inverse(change, current, restored, note=note)


def _restore_prior_exactly(change: Change, current: CurrentState, now_ms: int) -> Inverse:
    """Restore the prior state with its absolute expiry.

    If that has passed, the key would be gone by now, so it is removed.
    """
    prior = change.prior
    has_expired = _has_expired(prior, current, now_ms)
    desired_state = ABSENT if has_expired else prior
    if desired_state.type == b"field" and current.key_type == b"hash":
        desired_state = replace(desired_state, expires_at=current.key_expires_at)
    note = f"its expiry has passed ({_format_expiry(prior)}): it is removed" if has_expired else prior.note
    is_noop = desired_state.kind == "absent" and current.state.kind == "absent" and current.is_type_compatible
    return Inverse(change, current, desired_state, note=note, is_noop=is_noop)


def _alters_expiry(change: Change) -> bool:
    prior, new = change.prior, change.new
    if prior.kind == "absent" or new.kind == "absent":
        return False
    if prior.type == b"field":
        return prior.field_expires_at != new.field_expires_at
    return prior.expires_at != new.expires_at


def _has_expired(state: State, current: CurrentState, now_ms: int) -> bool:
    key_has_expired = state.expires_at is not None and state.expires_at <= now_ms
    if state.type == b"field":
        field_has_expired = state.field_expires_at is not None and state.field_expires_at <= now_ms
        return field_has_expired or (current.key_type == b"none" and key_has_expired)
    return key_has_expired


def _format_expiry(state: State) -> str:
    at = min(at for at in (state.expires_at, state.field_expires_at) if at is not None)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at / 1000))


def _describe_conflict(change: Change, current: CurrentState, *, force: bool) -> str | None:
    """Describe why the target can't be reverted; None if it may be overwritten."""
    if not current.is_type_compatible:
        return f"its key is a {_decode_type(current.key_type)} now, which has no fields"
    if change.prior.kind == "slice" or change.new.kind == "slice":
        return _describe_slice_conflict(change, current, force=force)
    if force:
        return None
    if current.state.kind == "absent":
        return "it is gone"
    if change.new.kind == "absent":
        return f"there is {_describe_current(current)} of that name again"
    if current.state.type != change.new.type:
        return f"it is {_describe_current(current)} now"
    if holds_state(current, change.new):
        return "its expiry was changed since"
    return "its value was changed since"


def _describe_slice_conflict(change: Change, current: CurrentState, *, force: bool) -> str | None:
    if current.state.kind != "slice":
        return f"it is {_describe_current(current)} now"
    if current.state.total_size != change.new.total_size:
        return "only a part of this value was recorded, and its length has changed since"
    return None if force else "that part of the value was changed since"


def _describe_current(current: CurrentState) -> str:
    return "gone" if current.state.kind == "absent" else f"a {_decode_type(current.state.type)}"


def _decode_type(type_name: bytes) -> str:
    return type_name.decode("ascii", "backslashreplace")
