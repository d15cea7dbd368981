"""What it takes to give a key or field another name: string ↔ string, string ↔ field, field ↔ field, whole keys."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import Facts
from redisfuse.errors import AccessError, ConflictError, InvalidError
from redisfuse.journal.models import ABSENT, Intent, State
from redisfuse.paths.grammar import Target
from redisfuse.transactions import command_builder
from redisfuse.transactions.multi_exec import Command
from redisfuse.transactions.mutation import Step
from redisfuse.transactions.state_reader import Found


@dataclass(frozen=True, slots=True)
class Move:
    """From one name to another."""

    source: Target
    target: Target


def move_step(
    move: Move, found: Mapping[Target, Found], facts: Facts, *, path: bytes, new_path: bytes, op: str = "rename"
) -> Step:
    """The step that moves what is at the source over whatever is at the target.

    Raises AccessError (a string or field would replace a collection), InvalidError (a collection can't become a field),
    ConflictError (the target's key is no hash).
    """
    source, target = found[move.source], found[move.target]
    if not target.usable:
        held = target.key_type.decode("ascii", "replace")
        raise ConflictError(f"the key holds a {held}: it has no fields")
    if source.state.kind == "object":
        if move.target.field is not None:
            raise InvalidError(f"a {source.state.type.decode('ascii', 'replace')} can't become a field of a hash")
    elif target.state.kind == "object":
        held = target.state.type.decode("ascii", "replace")
        raise AccessError(f"the target is a {held}, which a plain file does not replace; remove it first")
    new = _moved(move, source, target, facts)
    intents = (
        Intent(path, op, move.source.key, move.source.field, source.state, ABSENT, new_path=new_path),
        Intent(path, op, move.target.key, move.target.field, target.state, new, new_path=new_path),
    )
    return Step(intents, tuple(_commands(move, source, target, new, facts)))


def _moved(move: Move, source: Found, target: Found, facts: Facts) -> State:
    """The state at the target afterwards: with the expiry of what it replaces, or else its own."""
    state, replaced = source.state, target.state
    own = _own_expiry(replaced if replaced.kind != "absent" else state)
    if state.kind == "object":
        return replace(state, expires_at=own)
    assert state.content is not None
    if move.target.field is None:
        return State.of_value(state.content, expires_at=own)
    kept = own if facts.has_hash_field_ttl else None
    moved = State.of_value(state.content, b"field", expires_at=target.key_expires_at, field_expires_at=kept)
    return moved if kept == own else replace(moved, note="its expiry was not kept: this server's fields have none")


def _own_expiry(state: State) -> int | None:
    return state.field_expires_at if state.type == b"field" else state.expires_at


def _commands(move: Move, source: Found, target: Found, new: State, facts: Facts) -> list[Command]:
    small = source.state.content is not None and source.state.content.size <= CHUNK_BYTES
    in_one = source.state.kind == "value" and small and new.expires_at != source.state.expires_at
    if move.source.field is None and move.target.field is None and not in_one:
        commands = [command_builder.rename(move.source.key, move.target.key)]
        if new.expires_at != source.state.expires_at:
            commands += command_builder.expire(move.target, new.expires_at, facts)
        return commands
    return [*command_builder.restore(move.target, target, new, facts), *command_builder.remove(move.source, facts)]
