"""Does a target hold a state that the journal knows? The question of conflict checks, rollbacks and recovery."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from redisfuse.journal.models import Blob, ChangeIntent, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.state_reader import CurrentState, ReadRequest

ResolvedOutcome = Literal["applied", "failed", "unknown"]


def build_read_request(target: KeyRef, *states: State) -> ReadRequest:
    """What must be read to compare the target with these states."""
    slices = [state for state in states if state.kind == "slice"]
    if slices:
        length = max(state.content.size if state.content else 0 for state in slices)
        return ReadRequest(target, expected_size=length, byte_range=(slices[0].offset, length))
    kinds = {state.kind for state in states}
    if "object" in kinds or "value" not in kinds:
        return ReadRequest(target)
    return ReadRequest(target, expected_size=max(state.content.size for state in states if state.content is not None))


def holds_state(
    current: CurrentState, state: State, *, compare_expiry: bool = False, now_ms: int | None = None
) -> bool:
    """Whether `found` is `state`: kind, type and content; with `expiry`, the expiries too.

    With `now` (the server's time, ms), a state whose expiry has passed is held by a target that is gone.
    """
    there = current.state
    if not current.is_type_compatible:  # the field is absent, but from a key that is no hash: no ground to write on
        return False
    if now_ms is not None and there.kind == "absent" and _has_expired(state, now_ms):
        return True
    if state.kind == "absent" or there.kind == "absent":
        return state.kind == there.kind
    if state.type != there.type:
        return False
    if compare_expiry and not is_same_expiry(current, state):
        return False
    if state.kind == "object":
        return there.kind == "object" and _is_same_object(state, there)
    assert state.content is not None
    if state.kind == "slice":
        return there.kind == "slice" and _is_same_slice(state, there)
    return there.kind == "value" and there.content == state.content


def is_same_state(left: State, right: State) -> bool:
    """Whether two recorded states are of the same form and say the same, their expiries apart."""
    if (left.kind, left.type, left.offset, left.total_size) != (right.kind, right.type, right.offset, right.total_size):
        return False
    return _is_same_object(left, right) if left.kind == "object" else left.content == right.content


def may_be_same_state(recorded: State, state: State) -> bool:
    """Whether what was recorded as `seen` may have been `state`, as far as both tell: slices tell only a part."""
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
    """Whether the expiries are the state's, as exactly as this server tells them."""
    there = current.state
    pairs = ((there.expires_at, state.expires_at), (there.field_expires_at, state.field_expires_at))
    return all(_is_within_tolerance(one, other, current.expiry_tolerance_ms) for one, other in pairs)


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
    at = 0
    for chunk in content.iter_chunks():
        sha.update(chunk[max(offset - at, 0) : max(offset + size - at, 0)])
        at += len(chunk)
        if at >= offset + size:
            break
    return sha.digest()


def find_last_reached_state(states: Sequence[State], current: CurrentState, now_ms: int) -> int | None:
    """Which of the states that a target went through, or should have, it holds: the last that fits; None: none of them.

    `now` is the server's clock, ms.
    """
    expiry = any(one.kind == other.kind and one.content == other.content for one, other in pairwise(states))
    for number in reversed(range(len(states))):
        if holds_state(current, states[number], compare_expiry=expiry, now_ms=now_ms):
            return number
    return None


def infer_outcome(intent: ChangeIntent, current: CurrentState, now_ms: int) -> ResolvedOutcome:
    """What became of a change whose answer never came: the new state there, the prior one, or something else."""
    number = find_last_reached_state((intent.prior, intent.new), current, now_ms)
    return "unknown" if number is None else "applied" if number else "failed"
