"""What it takes to take one change back, given what its key or field holds now. Decides; sends nothing."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import RedisClient
from redisfuse.errors import ConflictError
from redisfuse.journal.models import ABSENT, Blob, Change, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions import command_builder
from redisfuse.transactions.matching import holds_state, is_same_expiry
from redisfuse.transactions.multi_exec import WriteCommand
from redisfuse.transactions.state_reader import CurrentState


@dataclass(frozen=True, slots=True)
class Inverse:
    """How one change is taken back: `desired_state` is what its target will hold; a `conflict_reason` says why it must not."""

    change: Change
    current: CurrentState
    desired_state: State
    conflict_reason: str | None = None
    note: str | None = None  # for the user
    is_noop: bool = False  # it holds that already: nothing is to be written


def invert(change: Change, current: CurrentState, now_ms: int, *, force: bool = False) -> Inverse:
    """Decide. `now`: the server's clock in ms; with `force` what was changed meanwhile is overwritten if it can be."""
    expected, prior = change.new, change.prior
    altered = _alters_expiry(change)
    if not holds_state(current, expected, compare_expiry=altered, now_ms=now_ms):
        if holds_state(current, prior, compare_expiry=altered):
            return Inverse(change, current, prior, note="it holds that already", is_noop=True)
        why = _describe_conflict(change, current, force=force)
        if why is not None:
            return Inverse(change, current, prior, conflict_reason=why)
        return _restore_prior_exactly(change, current, now_ms)
    if prior.kind == "absent" or expected.kind == "absent" or altered:
        return _restore_prior_exactly(change, current, now_ms)
    if current.state.kind == "absent":
        return Inverse(
            change, current, ABSENT, note=f"it expired at {_format_expiry(expected)}: it stays removed", is_noop=True
        )
    # A change that left the expiry alone leaves it alone when it is taken back: somebody may have prolonged it since.
    kept = replace(prior, expires_at=current.state.expires_at, field_expires_at=current.state.field_expires_at)
    note = None if is_same_expiry(current, expected) else "its expiry was changed since, and stays"
    return Inverse(change, current, kept, note=note)


def _restore_prior_exactly(change: Change, current: CurrentState, now_ms: int) -> Inverse:
    """Back to the prior state with its absolute expiry; if that has passed, the key would be gone by now."""
    prior = change.prior
    passed = _has_expired(prior, current, now_ms)
    wanted = ABSENT if passed else prior
    if wanted.type == b"field" and current.key_type == b"hash":
        wanted = replace(wanted, expires_at=current.key_expires_at)
    note = f"its expiry has passed ({_format_expiry(prior)}): it is removed" if passed else prior.note
    nothing = wanted.kind == "absent" and current.state.kind == "absent" and current.is_type_compatible
    return Inverse(change, current, wanted, note=note, is_noop=nothing)


def _alters_expiry(change: Change) -> bool:
    prior, new = change.prior, change.new
    if prior.kind == "absent" or new.kind == "absent":
        return False
    if prior.type == b"field":
        return prior.field_expires_at != new.field_expires_at
    return prior.expires_at != new.expires_at


def _has_expired(state: State, current: CurrentState, now_ms: int) -> bool:
    if state.type == b"field":
        own = state.field_expires_at is not None and state.field_expires_at <= now_ms
        gone = current.key_type == b"none" and state.expires_at is not None and state.expires_at <= now_ms
        return own or gone
    return state.expires_at is not None and state.expires_at <= now_ms


def _format_expiry(state: State) -> str:
    at = min(at for at in (state.expires_at, state.field_expires_at) if at is not None)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at / 1000))


def _describe_conflict(change: Change, current: CurrentState, *, force: bool) -> str | None:
    """Why this is not what the change left; None if it may be overwritten all the same."""
    if not current.is_type_compatible:
        return f"its key is a {_decode_type(current.key_type)} now, which has no fields"
    if change.prior.kind == "slice" or change.new.kind == "slice":
        if force and current.state.kind == "slice" and current.state.total_size == change.new.total_size:
            return None
        what = "only a part of this value was recorded, and its length is another now"
        if current.state.kind == "slice" and current.state.total_size == change.new.total_size:
            what = "that part of the value was changed since"
        return what if current.state.kind == "slice" else f"it is {_describe_current(current)} now"
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


def _describe_current(current: CurrentState) -> str:
    return "gone" if current.state.kind == "absent" else f"a {_decode_type(current.state.type)}"


def _decode_type(type_name: bytes) -> str:
    return type_name.decode("ascii", "backslashreplace")


# -- commands ----------------------------------------------------------------------------------------------------------


def build_inverse_commands(
    inverse: Inverse, client: RedisClient, *, portable: bool = False
) -> tuple[WriteCommand, ...]:
    """The write commands of a reversal that has no conflict and something to write."""
    target = KeyRef(inverse.change.key, inverse.change.field)
    if inverse.desired_state.kind == "slice":
        return tuple(_build_slice_restore(target.key, inverse.current, inverse.desired_state, client))
    return tuple(
        command_builder.build_restore(
            target, inverse.current, inverse.desired_state, client.server_info, portable=portable
        )
    )


def _build_slice_restore(
    key: bytes, current: CurrentState, desired_state: State, client: RedisClient
) -> list[WriteCommand]:
    assert desired_state.content is not None
    length = current.state.total_size
    if max(length, desired_state.offset + desired_state.content.size) == desired_state.total_size:
        return (
            command_builder.build_patch(key, desired_state.offset, desired_state.content, current)
            if desired_state.content.size
            else []
        )
    # Redis can't cut a string off: it is written anew, read and sent in pieces; if it changes, the transaction fails.
    whole = Blob(desired_state.total_size, b"", lambda: _iter_spliced(client, key, desired_state))
    return command_builder.build_rewrite(key, whole, current)


def _iter_spliced(client: RedisClient, key: bytes, desired_state: State) -> Iterator[bytes]:
    """The string as it is, up to the slice; the slice; and what follows it, up to the wanted length."""
    assert desired_state.content is not None
    end = desired_state.offset + desired_state.content.size
    yield from _iter_byte_range(client, key, 0, min(desired_state.offset, desired_state.total_size))
    yield from desired_state.content.iter_chunks()
    yield from _iter_byte_range(client, key, end, desired_state.total_size)


def _iter_byte_range(client: RedisClient, key: bytes, start_offset: int, end_offset: int) -> Iterator[bytes]:
    while start_offset < end_offset:
        piece = client.execute("GETRANGE", key, start_offset, min(start_offset + CHUNK_BYTES, end_offset) - 1)
        if not piece:
            raise ConflictError("the key became shorter while it was being rewritten")
        yield piece
        start_offset += len(piece)
