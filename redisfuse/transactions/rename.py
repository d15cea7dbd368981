"""What it takes to give a key or field another name: string ↔ string, string ↔ field, field ↔ field, whole keys."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import ServerInfo
from redisfuse.errors import AccessError, ConflictError, InvalidArgumentError
from redisfuse.journal.models import ABSENT, ChangeIntent, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions import command_builder
from redisfuse.transactions.multi_exec import WriteCommand
from redisfuse.transactions.mutation import Mutation
from redisfuse.transactions.state_reader import CurrentState


@dataclass(frozen=True, slots=True)
class RenamePair:
    """From one name to another."""

    source: KeyRef
    destination: KeyRef


def build_rename_mutation(
    pair: RenamePair,
    states: Mapping[KeyRef, CurrentState],
    server_info: ServerInfo,
    *,
    path: bytes,
    new_path: bytes,
    op: str = "rename",
) -> Mutation:
    """The step that moves what is at the source over whatever is at the target.

    Raises AccessError (a string or field would replace a collection), InvalidError (a collection can't become a field),
    ConflictError (the target's key is no hash).
    """
    source, target = states[pair.source], states[pair.destination]
    if not target.is_type_compatible:
        held = target.key_type.decode("ascii", "replace")
        raise ConflictError(f"the key holds a {held}: it has no fields")
    if source.state.kind == "object":
        if pair.destination.field is not None:
            raise InvalidArgumentError(
                f"a {source.state.type.decode('ascii', 'replace')} can't become a field of a hash"
            )
    elif target.state.kind == "object":
        held = target.state.type.decode("ascii", "replace")
        raise AccessError(f"the target is a {held}, which a plain file does not replace; remove it first")
    new = _build_destination_state(pair, source, target, server_info)
    intents = (
        ChangeIntent(path, op, pair.source.key, pair.source.field, source.state, ABSENT, new_path=new_path),
        ChangeIntent(path, op, pair.destination.key, pair.destination.field, target.state, new, new_path=new_path),
    )
    return Mutation(intents, tuple(_build_commands(pair, source, target, new, server_info)))


def _build_destination_state(
    pair: RenamePair, source: CurrentState, destination: CurrentState, server_info: ServerInfo
) -> State:
    """The state at the target afterwards: with the expiry of what it replaces, or else its own."""
    state, replaced = source.state, destination.state
    own = _get_expiry(replaced if replaced.kind != "absent" else state)
    if state.kind == "object":
        return replace(state, expires_at=own)
    assert state.content is not None
    if pair.destination.field is None:
        return State.from_value(state.content, expires_at=own)
    kept = own if server_info.has_hash_field_ttl else None
    moved = State.from_value(state.content, b"field", expires_at=destination.key_expires_at, field_expires_at=kept)
    return moved if kept == own else replace(moved, note="its expiry was not kept: this server's fields have none")


def _get_expiry(state: State) -> int | None:
    return state.field_expires_at if state.type == b"field" else state.expires_at


def _build_commands(
    pair: RenamePair, source: CurrentState, destination: CurrentState, new_state: State, server_info: ServerInfo
) -> list[WriteCommand]:
    small = source.state.content is not None and source.state.content.size <= CHUNK_BYTES
    in_one = source.state.kind == "value" and small and new_state.expires_at != source.state.expires_at
    if pair.source.field is None and pair.destination.field is None and not in_one:
        commands = [command_builder.build_rename(pair.source.key, pair.destination.key)]
        if new_state.expires_at != source.state.expires_at:
            commands += command_builder.build_expire(pair.destination, new_state.expires_at, server_info)
        return commands
    return [
        *command_builder.build_restore(pair.destination, destination, new_state, server_info),
        *command_builder.build_remove(pair.source, server_info),
    ]
