"""The rename of keys of any type, of fields, and between strings and fields."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from redisfuse.client.capabilities import ServerInfo
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import AccessError, ConflictError, ExistsError, InvalidArgumentError, NotFoundError
from redisfuse.journal.models import ABSENT, ChangeIntent, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions import command_builder
from redisfuse.transactions.expiry import FIELD_EXPIRY_LOST_NOTE, Expiry
from redisfuse.transactions.key_operations import GONE_MESSAGE
from redisfuse.transactions.mutation import Mutation
from redisfuse.transactions.operation import MutationRefusedError, Operation, WatchedState
from redisfuse.transactions.precondition import Precondition
from redisfuse.transactions.state_reader import CurrentState, ReadRequest
from redisfuse.transactions.write_command import WriteCommand


@dataclass(frozen=True, slots=True)
class RenamePair:
    """One key or field, and the name that it gets."""

    source: KeyRef
    destination: KeyRef
    subpath: bytes = b""  # its path below the directory that is renamed, with a slash before it


@dataclass(frozen=True)
class Rename(Operation):
    """Rename keys or fields as one operation.

    A directory's rename has many pairs. No target may occur twice. Absent sources are skipped. A destination's expiry
    stays if the destination is there; otherwise the source's expiry moves along or, if it has none, `removed_expiry`
    that of a destination which the program has just removed. Every destination must satisfy the precondition. `moved`
    are the states from which the last `plan` takes the sources, `written` those that it gives to the destinations.
    """

    pairs: tuple[RenamePair, ...]
    path: bytes
    new_path: bytes
    allow_replace: bool = True
    precondition: Precondition = field(default_factory=Precondition.unconditional)
    removed_expiry: Expiry | None = None
    moved: dict[KeyRef, State] = field(default_factory=dict, compare=False)
    written: dict[KeyRef, State] = field(default_factory=dict, compare=False)

    def reads(self) -> Sequence[ReadRequest]:
        """Return a read of every source and destination."""
        return [ReadRequest(target) for pair in self.pairs for target in (pair.source, pair.destination)]

    def plan(self, state: WatchedState) -> Sequence[Mutation]:
        """Rename the sources that are there.

        Raises NotFoundError (no source is there), ExistsError (`allow_replace` is false), AccessError (a string or
        field would replace a collection), InvalidArgumentError (a collection can't become a field), ConflictError (the
        destination's key is not a hash), MutationRefusedError (ConflictError: the precondition).
        """
        self.written.clear()
        present = [pair for pair in self.pairs if state[pair.source].state.kind != "absent"]
        if not present:
            raise NotFoundError(GONE_MESSAGE)
        if not self.allow_replace and any(state[pair.destination].state.kind != "absent" for pair in present):
            raise ExistsError("the new name exists already")
        return [mutation for pair in present for mutation in self._build_mutations(pair, state)]

    def _build_mutations(self, pair: RenamePair, state: WatchedState) -> list[Mutation]:
        """Return the mutation of a pair.

        In a cluster, a copy and a removal if its keys are of different slots.
        """
        source, destination = state[pair.source], state[pair.destination]
        _check_types(pair, source, destination)
        new = _build_destination_state(pair, source, destination, state.server_info)
        if self.removed_expiry is not None and _get_expiry(source.state) is None:
            new = self.removed_expiry.apply(new, destination, state.server_info, state.fetch_time_ms())
        intents = (
            self._build_intent(pair, pair.source, source.state, ABSENT),
            self._build_intent(pair, pair.destination, destination.state, new),
        )
        if not self.precondition.holds_for(destination.state, state.range_reader(pair.destination)):
            change = "is gone" if destination.state.kind == "absent" else "was changed by another client"
            error = ConflictError(f"the {_name(pair.destination)} {change} since the program read it")
            raise MutationRefusedError(error, intents[1:])
        self.moved[pair.source], self.written[pair.destination] = source.state, new
        if state.client.partition(pair.source.key) != state.client.partition(pair.destination.key):
            copy = command_builder.build_restore(pair.destination, destination, new, state.server_info)
            removal = command_builder.build_remove(pair.source, state.server_info)
            return [
                Mutation((intents[1],), tuple(copy), is_first_half=True),
                Mutation((intents[0],), tuple(removal)),
            ]
        return [Mutation(intents, tuple(_build_commands(pair, source, destination, new, state.server_info)))]

    def _build_intent(self, pair: RenamePair, target: KeyRef, prior: State, new: State) -> ChangeIntent:
        path, new_path = self.path + pair.subpath, self.new_path + pair.subpath
        return ChangeIntent(path, "rename", target.key, target.field, prior, new, new_path=new_path)


def _check_types(pair: RenamePair, source: CurrentState, destination: CurrentState) -> None:
    if not destination.is_type_compatible:
        key_type = destination.key_type.decode("ascii", "replace")
        raise ConflictError(f"the key holds a {key_type}: it has no fields")
    if source.state.kind == "object":
        if pair.destination.field is not None:
            source_type = source.state.type.decode("ascii", "replace")
            raise InvalidArgumentError(f"a {source_type} can't become a field of a hash")
    elif destination.state.kind == "object":
        destination_type = destination.state.type.decode("ascii", "replace")
        raise AccessError(f"the target is a {destination_type}, which a plain file does not replace; remove it first")


def _build_destination_state(
    pair: RenamePair, source: CurrentState, destination: CurrentState, server_info: ServerInfo
) -> State:
    """Return the destination's state after the rename.

    Its expiry is that of the replaced state, or else the source's.
    """
    state, replaced = source.state, destination.state
    expires_at = _get_expiry(replaced if replaced.kind != "absent" else state)
    if state.kind == "object":
        return replace(state, expires_at=expires_at)
    assert state.content is not None
    if pair.destination.field is None:
        return State.from_value(state.content, expires_at=expires_at)
    field_expires_at = expires_at if server_info.has_hash_field_ttl else None
    new = State.from_value(
        state.content, b"field", expires_at=destination.key_expires_at, field_expires_at=field_expires_at
    )
    if field_expires_at == expires_at:
        return new
    return replace(new, note=FIELD_EXPIRY_LOST_NOTE)


def _name(target: KeyRef) -> str:
    return "key" if target.field is None else "field"


def _get_expiry(state: State) -> int | None:
    return state.field_expires_at if state.type == b"field" else state.expires_at


def _build_commands(
    pair: RenamePair, source: CurrentState, destination: CurrentState, new_state: State, server_info: ServerInfo
) -> list[WriteCommand]:
    alters_expiry = new_state.expires_at != source.state.expires_at
    is_small_value = (
        source.state.kind == "value" and source.state.content is not None and source.state.content.size <= CHUNK_BYTES
    )
    # A small value whose expiry changes is written with its expiry in one command, and its source is removed.
    if pair.source.field is None and pair.destination.field is None and not (is_small_value and alters_expiry):
        commands = [command_builder.build_rename(pair.source.key, pair.destination.key)]
        if alters_expiry:
            commands += command_builder.build_expire(pair.destination, new_state.expires_at, server_info)
        return commands
    return [
        *command_builder.build_restore(pair.destination, destination, new_state, server_info),
        *command_builder.build_remove(pair.source, server_info),
    ]
