"""Operations on the content of a string or field: save whole, patch a byte range."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import ConflictError
from redisfuse.journal.content import Blob
from redisfuse.journal.final_newline import find_added_newline
from redisfuse.journal.models import ChangeIntent, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions import command_builder
from redisfuse.transactions.expiry import Expiry
from redisfuse.transactions.mutation import Mutation
from redisfuse.transactions.operation import MutationRefusedError, Operation, WatchedState
from redisfuse.transactions.precondition import Precondition
from redisfuse.transactions.spool import open_spool_file
from redisfuse.transactions.state_reader import ReadRequest

MAX_GROUP_COMMIT_BYTES = 64 * 1024  # bytes of a value that may share a transaction with others


@dataclass(slots=True)
class SavedContent:
    """The content that a save writes."""

    content: Blob


@dataclass(frozen=True)
class SaveWhole(Operation):
    """Replace the whole content of a string or field, or create it.

    The expiry of an existing value stays. `expiry` is that of a created one. `supersedes`: the held change of the same
    content. `reverts_part`: the changes of which this one takes back some places, first and last (None: there is only
    one). `drop_added_newline`: if the program added a newline at the end of a value that had none, save it without.
    `saved` is the content of the last `plan`.
    """

    target: KeyRef
    content: Blob
    precondition: Precondition
    path: bytes
    op: str = "write"
    expiry: Expiry | None = None
    supersedes: int | None = None
    drop_added_newline: bool = False
    reverts_part: tuple[int, int | None] | None = None
    saved: SavedContent = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "saved", SavedContent(self.content))

    @property
    def may_share_transaction(self) -> bool:
        """Whether both the new content and the expected one are small."""
        if self.expiry is not None:
            return False  # its plan takes a round trip
        expected_size = self.precondition.expected_size
        return (
            self.content.size <= MAX_GROUP_COMMIT_BYTES
            and expected_size is not None
            and expected_size <= MAX_GROUP_COMMIT_BYTES
        )

    def reads(self) -> Sequence[ReadRequest]:
        """Return a read of the content that is replaced.

        A large content of the wrong size is not read.
        """
        precondition = self.precondition
        return [
            ReadRequest(
                self.target,
                precondition.expected_size,
                read_objects=False,
                required_size=precondition.required_size,
            )
        ]

    def plan(self, state: WatchedState) -> Sequence[Mutation]:
        """Write the content. Raises MutationRefusedError (ConflictError)."""
        current = state[self.target]
        content = self.saved.content = self._choose_content(current.state)
        new = State.from_value(
            content,
            b"string" if self.target.field is None else b"field",
            expires_at=current.key_expires_at,
            field_expires_at=current.state.field_expires_at,
        )
        if self.expiry is not None:
            new = self.expiry.apply(new, current, state.server_info, state.fetch_time_ms())
        intent = ChangeIntent(
            self.path, self.op, self.target.key, self.target.field, current.state, new, process=state.process
        )
        if self.reverts_part is not None:
            first_id, last_id = self.reverts_part
            intent = replace(intent, reverts_part=first_id, reverts_through=last_id)
        _check_precondition(self.precondition, state, self.target, intent)
        if self.expiry is None:
            commands = command_builder.build_write(self.target, current, content, state.server_info)
        else:
            commands = command_builder.build_restore(self.target, current, new, state.server_info)
        if self.supersedes is not None:
            intent = replace(intent, supersedes=self.supersedes)
        return [Mutation((intent,), tuple(commands))]

    def _choose_content(self, prior: State) -> Blob:
        """Return the content to save: without an added newline if it is dropped."""
        if not self.drop_added_newline or prior.kind != "value" or self.content.size > CHUNK_BYTES:
            return self.content
        assert prior.content is not None
        line_end = find_added_newline(prior.content, self.content)
        return Blob.from_bytes(self.content.read().removesuffix(line_end)) if line_end else self.content


@dataclass(frozen=True)
class PatchRange(Operation):
    """Write bytes at an offset of a string, at its end or beyond (append).

    Only they are sent and journaled.

    `op` is what the journal calls it; None: append or write, depending on the offset.
    """

    target: KeyRef
    offset: int
    content: Blob
    precondition: Precondition
    path: bytes
    op: str | None = None

    @property
    def may_share_transaction(self) -> bool:
        """Whether the content is small."""
        return self.content.size <= MAX_GROUP_COMMIT_BYTES

    def reads(self) -> Sequence[ReadRequest]:
        """Return a read of the byte range that is replaced."""
        size = self.content.size
        return [ReadRequest(self.target, size, byte_range=(self.offset, size), read_objects=False)]

    def plan(self, state: WatchedState) -> Sequence[Mutation]:
        """Write the byte range. Raises MutationRefusedError (ConflictError)."""
        current = state[self.target]
        prior = current.state
        if prior.kind == "absent":
            new = State.from_value(_pad_with_zeros(self.content, self.offset))
        else:
            total_size = max(prior.total_size, self.offset + self.content.size)
            new = State.from_slice(self.content, self.offset, total_size, expires_at=current.key_expires_at)
        op = self.op or ("append" if self.offset == prior.total_size else "write")
        intent = ChangeIntent(self.path, op, self.target.key, None, prior, new)
        _check_precondition(self.precondition, state, self.target, intent)
        commands = command_builder.build_patch(self.target.key, self.offset, self.content, current)
        return [Mutation((intent,), tuple(commands))]


def _check_precondition(precondition: Precondition, state: WatchedState, target: KeyRef, intent: ChangeIntent) -> None:
    """Raise MutationRefusedError if the target is not what the file was opened on.

    The type is checked even where the precondition is not enforced.
    """
    current = state[target]
    name = "the field" if intent.field is not None else "the key"
    if not current.is_type_compatible or current.state.kind == "object":
        key_type = current.key_type.decode("ascii", "replace")
        raise MutationRefusedError(
            ConflictError(f"the key now holds a {key_type}, which this write would destroy"), [intent]
        )
    if precondition.holds_for(current.state, state.range_reader(target)):
        return
    if current.state.kind == "absent":
        reason = f"{name} is gone since the file was opened (deleted, expired or evicted)"
    elif precondition.kind == "absent":
        reason = f"{name} was created by another client in the meantime"
    else:
        reason = f"{name} was changed by another client since the file was opened"
    raise MutationRefusedError(ConflictError(reason), [intent])


def _pad_with_zeros(content: Blob, offset: int) -> Blob:
    """Return the content after `offset` NULs, as SETRANGE creates it from nothing."""
    if not offset:
        return content
    gap = (bytes(min(CHUNK_BYTES, offset - start)) for start in range(0, offset, CHUNK_BYTES))
    return Blob.from_chunks(chain(gap, content.iter_chunks()), open_spool_file())
