"""What it takes to take one change back, given what its key or field holds now. Decides; sends nothing."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import Server
from redisfuse.errors import ConflictError
from redisfuse.journal.models import ABSENT, Change, Content, State
from redisfuse.paths.grammar import Target
from redisfuse.transactions import command_builder
from redisfuse.transactions.matching import holds, same_expiry
from redisfuse.transactions.multi_exec import Command
from redisfuse.transactions.state_reader import Found


@dataclass(frozen=True, slots=True)
class Reversal:
    """How one change is taken back: `wanted` is what its target will hold; a `conflict` says why it must not."""

    change: Change
    found: Found
    wanted: State
    conflict: str | None = None
    note: str | None = None  # for the user
    nothing: bool = False  # it holds that already: nothing is to be written


def reverse(change: Change, found: Found, now: int, *, force: bool = False) -> Reversal:
    """Decide. `now`: the server's clock in ms; with `force` what was changed meanwhile is overwritten if it can be."""
    expected, prior = change.new, change.prior
    altered = _altered_expiry(change)
    if not holds(found, expected, expiry=altered, now=now):
        if holds(found, prior, expiry=altered):
            return Reversal(change, found, prior, note="it holds that already", nothing=True)
        why = _conflict(change, found, force=force)
        if why is not None:
            return Reversal(change, found, prior, conflict=why)
        return _exactly(change, found, now)
    if prior.kind == "absent" or expected.kind == "absent" or altered:
        return _exactly(change, found, now)
    if found.state.kind == "absent":
        return Reversal(change, found, ABSENT, note=f"it expired at {_clock(expected)}: it stays removed", nothing=True)
    # A change that left the expiry alone leaves it alone when it is taken back: somebody may have prolonged it since.
    kept = replace(prior, expires_at=found.state.expires_at, field_expires_at=found.state.field_expires_at)
    note = None if same_expiry(found, expected) else "its expiry was changed since, and stays"
    return Reversal(change, found, kept, note=note)


def _exactly(change: Change, found: Found, now: int) -> Reversal:
    """Back to the prior state with its absolute expiry; if that has passed, the key would be gone by now."""
    prior = change.prior
    passed = _passed(prior, found, now)
    wanted = ABSENT if passed else prior
    if wanted.type == b"field" and found.key_type == b"hash":
        wanted = replace(wanted, expires_at=found.key_expires_at)
    note = f"its expiry has passed ({_clock(prior)}): it is removed" if passed else prior.note
    nothing = wanted.kind == "absent" and found.state.kind == "absent" and found.usable
    return Reversal(change, found, wanted, note=note, nothing=nothing)


def _altered_expiry(change: Change) -> bool:
    prior, new = change.prior, change.new
    if prior.kind == "absent" or new.kind == "absent":
        return False
    if prior.type == b"field":
        return prior.field_expires_at != new.field_expires_at
    return prior.expires_at != new.expires_at


def _passed(state: State, found: Found, now: int) -> bool:
    if state.type == b"field":
        own = state.field_expires_at is not None and state.field_expires_at <= now
        gone = found.key_type == b"none" and state.expires_at is not None and state.expires_at <= now
        return own or gone
    return state.expires_at is not None and state.expires_at <= now


def _clock(state: State) -> str:
    at = min(at for at in (state.expires_at, state.field_expires_at) if at is not None)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at / 1000))


def _conflict(change: Change, found: Found, *, force: bool) -> str | None:
    """Why this is not what the change left; None if it may be overwritten all the same."""
    if not found.usable:
        return f"its key is a {_name(found.key_type)} now, which has no fields"
    if change.prior.kind == "slice" or change.new.kind == "slice":
        if force and found.state.kind == "slice" and found.state.total == change.new.total:
            return None
        what = "only a part of this value was recorded, and its length is another now"
        if found.state.kind == "slice" and found.state.total == change.new.total:
            what = "that part of the value was changed since"
        return what if found.state.kind == "slice" else f"it is {_description(found)} now"
    if force:
        return None
    if found.state.kind == "absent":
        return "it is gone"
    if change.new.kind == "absent":
        return f"there is {_description(found)} of that name again"
    if found.state.type != change.new.type:
        return f"it is {_description(found)} now"
    if holds(found, change.new):
        return "its expiry was changed since"
    return "its value was changed since"


def _description(found: Found) -> str:
    return "gone" if found.state.kind == "absent" else f"a {_name(found.state.type)}"


def _name(type: bytes) -> str:
    return type.decode("ascii", "backslashreplace")


# -- commands ----------------------------------------------------------------------------------------------------------


def commands_for(reversal: Reversal, server: Server, *, portable: bool = False) -> tuple[Command, ...]:
    """The write commands of a reversal that has no conflict and something to write."""
    target = Target(reversal.change.key, reversal.change.field)
    if reversal.wanted.kind == "slice":
        return tuple(_restore_slice(target.key, reversal.found, reversal.wanted, server))
    return tuple(command_builder.restore(target, reversal.found, reversal.wanted, server.facts, portable=portable))


def _restore_slice(key: bytes, found: Found, wanted: State, server: Server) -> list[Command]:
    assert wanted.content is not None
    length = found.state.total
    if max(length, wanted.offset + wanted.content.size) == wanted.total:
        return command_builder.patch(key, wanted.offset, wanted.content, found) if wanted.content.size else []
    # Redis can't cut a string off: it is written anew, read and sent in pieces; if it changes, the transaction fails.
    whole = Content(wanted.total, b"", lambda: _spliced(server, key, wanted))
    return command_builder.rewrite(key, whole, found)


def _spliced(server: Server, key: bytes, wanted: State) -> Iterator[bytes]:
    """The string as it is, up to the slice; the slice; and what follows it, up to the wanted length."""
    assert wanted.content is not None
    end = wanted.offset + wanted.content.size
    yield from _pieces(server, key, 0, min(wanted.offset, wanted.total))
    yield from wanted.content.chunks()
    yield from _pieces(server, key, end, wanted.total)


def _pieces(server: Server, key: bytes, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        piece = server.ask("GETRANGE", key, start, min(start + CHUNK_BYTES, end) - 1)
        if not piece:
            raise ConflictError("the key became shorter while it was being rewritten")
        yield piece
        start += len(piece)
