"""Compares what a target holds with recorded states.

Pure. Rollbacks and recovery rely on it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

from redisfuse.journal.content import Blob
from redisfuse.journal.models import ChangeIntent, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.state_reader import CurrentState, ReadRequest

ResolvedOutcome = Literal["applied", "failed", "unknown"]


def build_read_request(target: KeyRef, *states: State) -> ReadRequest:
    """Return the read that suffices to compare the target with these states."""
    slices = [state for state in states if state.kind == "slice"]
    if slices:
        size = max(state.content.size if state.content else 0 for state in slices)
        return ReadRequest(target, expected_size=size, byte_range=(slices[0].offset, size))
    kinds = {state.kind for state in states}
    if "object" in kinds or "value" not in kinds:
        return ReadRequest(target)
    return ReadRequest(target, expected_size=max(state.content.size for state in states if state.content is not None))


def holds_state(
    current: CurrentState, state: State, *, compare_expiry: bool = False, now_ms: int | None = None
) -> bool:
    """Whether the target holds `state`.

    That is its kind, type and content; with `compare_expiry`, the expiries too. With `now_ms` (the server's clock), an
    absent target holds every state whose expiry has passed.
    """
    actual = current.state
    if not current.is_type_compatible:  # the field is absent, but its key is not a hash, so it can't be written
        return False
    if now_ms is not None and actual.kind == "absent" and _has_expired(state, now_ms):
        return True
    if state.kind == "absent" or actual.kind == "absent":
        return state.kind == actual.kind
    if state.type != actual.type:
        return False
    if compare_expiry and not is_same_expiry(current, state):
        return False
    if state.kind == "object":
        return actual.kind == "object" and _is_same_object(state, actual)
    assert state.content is not None
    if state.kind == "slice":
        return actual.kind == "slice" and _is_same_slice(state, actual)
    return actual.kind == "value" and actual.content == state.content


def is_same_state(left: State, right: State) -> bool:
    """Whether two recorded states are the same.

    Expiries are not compared.
    """
    if (left.kind, left.type, left.offset, left.total_size) != (right.kind, right.type, right.offset, right.total_size):
        return False
    return _is_same_object(left, right) if left.kind == "object" else left.content == right.content


def may_be_same_state(recorded: State, state: State) -> bool:
    """Whether `recorded` may have been `state`, as far as both are known.

    Of a slice only a part is known.
    """
    if "slice" not in (recorded.kind, state.kind):
        return is_same_state(recorded, state)
    if recorded.kind not in ("value", "slice") or state.kind not in ("value", "slice") or recorded.size != state.size:
        return False
    if recorded.kind == state.kind and recorded.offset != state.offset:
        return True
    part, whole = (state, recorded) if state.kind == "slice" else (recorded, state)
    assert part.content is not None
    assert whole.content is not None
    start = part.offset - whole.offset
    return _hash_byte_range(whole.content, start, part.content.size) == part.content.digest


def is_same_expiry(current: CurrentState, state: State) -> bool:
    """Whether the target's expiries are the state's, as precisely as is known."""
    actual = current.state
    pairs = ((actual.expires_at, state.expires_at), (actual.field_expires_at, state.field_expires_at))
    return all(_is_within_tolerance(left, right, current.expiry_tolerance_ms) for left, right in pairs)


def _is_within_tolerance(left: int | None, right: int | None, tolerance_ms: int) -> bool:
    if left is None or right is None:
        return left is right
    return abs(left - right) <= tolerance_ms


def _has_expired(state: State, now_ms: int) -> bool:
    return any(at is not None and at <= now_ms for at in (state.expires_at, state.field_expires_at))


def _is_same_object(expected: State, actual: State) -> bool:
    if expected.portable_copy is not None and actual.portable_copy is not None:
        return expected.portable_copy == actual.portable_copy
    return expected.content is not None and expected.content == actual.content


def _is_same_slice(expected: State, actual: State) -> bool:
    assert expected.content is not None
    assert actual.content is not None
    if (
        expected.total_size != actual.total_size
        or expected.offset != actual.offset
        or actual.content.size < expected.content.size
    ):
        return False
    if expected.content.size == actual.content.size:
        return expected.content == actual.content
    return _hash_byte_range(actual.content, 0, expected.content.size) == expected.content.digest


def _hash_byte_range(content: Blob, offset: int, size: int) -> bytes:
    sha = hashlib.sha256()
    position = 0
    for chunk in content.iter_chunks():
        sha.update(chunk[max(offset - position, 0) : max(offset + size - position, 0)])
        position += len(chunk)
        if position >= offset + size:
            break
    return sha.digest()


def find_last_reached_state(states: Sequence[State], current: CurrentState, now_ms: int) -> int | None:
    """Return the index of the last of the states that the target holds.

    The states are successive. Returns None if the target holds none of them. Expiries are compared if two successive
    states differ in nothing else. `now_ms` is the server's clock.
    """
    compare_expiry = any(left.kind == right.kind and left.content == right.content for left, right in pairwise(states))
    for index in reversed(range(len(states))):
        if holds_state(current, states[index], compare_expiry=compare_expiry, now_ms=now_ms):
            return index
    return None


def infer_outcome(intent: ChangeIntent, current: CurrentState, now_ms: int) -> ResolvedOutcome:
    """Return the outcome of a change whose reply was lost.

    The target holds its new state (applied), its prior state (failed) or neither (unknown).
    """
    index = find_last_reached_state((intent.prior, intent.new), current, now_ms)
    return "unknown" if index is None else "applied" if index else "failed"


def are_unchanged(before: Mapping[KeyRef, CurrentState], current: Mapping[KeyRef, CurrentState]) -> bool:
    """Whether each target of `current` holds its state of `before`, expiry included."""
    return all(
        before[target].key_type == now.key_type and holds_state(now, before[target].state, compare_expiry=True)
        for target, now in current.items()
    )
