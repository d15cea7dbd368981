"""Does a target hold a state that the journal knows? The question of conflict checks, rollbacks and recovery."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from redisfuse.journal.models import Content, Intent, State
from redisfuse.paths.grammar import Target
from redisfuse.transactions.state_reader import Found, Look

Verdict = Literal["applied", "failed", "unknown"]


def look_for(target: Target, *states: State) -> Look:
    """What must be read to compare the target with these states."""
    slices = [state for state in states if state.kind == "slice"]
    if slices:
        length = max(state.content.size if state.content else 0 for state in slices)
        return Look(target, expected=length, part=(slices[0].offset, length))
    kinds = {state.kind for state in states}
    if "object" in kinds or "value" not in kinds:
        return Look(target)
    return Look(target, expected=max(state.content.size for state in states if state.content is not None))


def holds(found: Found, state: State, *, expiry: bool = False, now: int | None = None) -> bool:
    """Whether `found` is `state`: kind, type and content; with `expiry`, the expiries too.

    With `now` (the server's time, ms), a state whose expiry has passed is held by a target that is gone.
    """
    there = found.state
    if not found.usable:  # the field is absent, but from a key that is no hash: no ground to write on
        return False
    if now is not None and there.kind == "absent" and _passed(state, now):
        return True
    if state.kind == "absent" or there.kind == "absent":
        return state.kind == there.kind
    if state.type != there.type:
        return False
    if expiry and not same_expiry(found, state):
        return False
    if state.kind == "object":
        return there.kind == "object" and _same_object(state, there)
    assert state.content is not None
    if state.kind == "slice":
        return there.kind == "slice" and _same_slice(state, there)
    return there.kind == "value" and there.content == state.content


def same_state(one: State, other: State) -> bool:
    """Whether two recorded states are of the same form and say the same, their expiries apart."""
    if (one.kind, one.type, one.offset, one.total) != (other.kind, other.type, other.offset, other.total):
        return False
    return _same_object(one, other) if one.kind == "object" else one.content == other.content


def agrees(seen: State, state: State) -> bool:
    """Whether what was recorded as `seen` may have been `state`, as far as both tell: slices tell only a part."""
    if "slice" not in (seen.kind, state.kind):
        return same_state(seen, state)
    if seen.kind not in ("value", "slice") or state.kind not in ("value", "slice") or seen.size != state.size:
        return False
    if seen.kind == state.kind and seen.offset != state.offset:
        return True
    part, whole = (state, seen) if state.kind == "slice" else (seen, state)
    assert part.content is not None
    assert whole.content is not None
    start = part.offset - whole.offset
    return _digest_of_part(whole.content, start, part.content.size) == part.content.digest


def same_expiry(found: Found, state: State) -> bool:
    """Whether the expiries are the state's, as exactly as this server tells them."""
    there = found.state
    pairs = ((there.expires_at, state.expires_at), (there.field_expires_at, state.field_expires_at))
    return all(_near(one, other, found.clock_error) for one, other in pairs)


def _near(one: int | None, other: int | None, error: int) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= error


def _passed(state: State, now: int) -> bool:
    return any(at is not None and at <= now for at in (state.expires_at, state.field_expires_at))


def _same_object(state: State, there: State) -> bool:
    if state.logical is not None and there.logical is not None:
        return state.logical == there.logical
    return state.content is not None and state.content == there.content


def _same_slice(state: State, there: State) -> bool:
    assert state.content is not None
    assert there.content is not None
    if state.total != there.total or state.offset != there.offset or there.content.size < state.content.size:
        return False
    if state.content.size == there.content.size:
        return state.content == there.content
    return _digest_of_part(there.content, 0, state.content.size) == state.content.digest


def _digest_of_part(content: Content, start: int, size: int) -> bytes:
    sha = hashlib.sha256()
    at = 0
    for chunk in content.chunks():
        sha.update(chunk[max(start - at, 0) : max(start + size - at, 0)])
        at += len(chunk)
        if at >= start + size:
            break
    return sha.digest()


def reached(states: Sequence[State], found: Found, now: int) -> int | None:
    """Which of the states that a target went through, or should have, it holds: the last that fits; None: none of them.

    `now` is the server's clock, ms.
    """
    expiry = any(one.kind == other.kind and one.content == other.content for one, other in pairwise(states))
    for number in reversed(range(len(states))):
        if holds(found, states[number], expiry=expiry, now=now):
            return number
    return None


def verdict(intent: Intent, found: Found, now: int) -> Verdict:
    """What became of a change whose answer never came: the new state there, the prior one, or something else."""
    number = reached((intent.prior, intent.new), found, now)
    return "unknown" if number is None else "applied" if number else "failed"
