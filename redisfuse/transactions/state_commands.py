"""Builds the commands that give a target any recorded state, slices included."""

from collections.abc import Iterator

from redisfuse.client.client import RedisClient
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import ConflictError
from redisfuse.journal.content import Blob
from redisfuse.journal.models import State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions import command_builder
from redisfuse.transactions.state_reader import CurrentState
from redisfuse.transactions.write_command import WriteCommand


def build_state_commands(
    target: KeyRef, current: CurrentState, desired_state: State, client: RedisClient, *, portable: bool = False
) -> tuple[WriteCommand, ...]:
    """Return the commands that give the target the desired state.

    `portable`: rebuild objects from their elements instead of their DUMP. Raises NotSupportedError.
    """
    if desired_state.kind == "slice":
        return tuple(_build_slice_restore(target.key, current, desired_state, client))
    return tuple(command_builder.build_restore(target, current, desired_state, client.server_info, portable=portable))


def _build_slice_restore(
    key: bytes, current: CurrentState, desired_state: State, client: RedisClient
) -> list[WriteCommand]:
    content = desired_state.content
    assert content is not None
    if max(current.state.total_size, desired_state.offset + content.size) == desired_state.total_size:
        return command_builder.build_patch(key, desired_state.offset, content, current) if content.size else []
    # Redis can't truncate a string, so it is rewritten, read and sent in chunks; if it changes, the transaction fails.
    whole = Blob(desired_state.total_size, b"", lambda: _iter_spliced(client, key, desired_state))
    return command_builder.build_rewrite(key, whole, current)


def _iter_spliced(client: RedisClient, key: bytes, desired_state: State) -> Iterator[bytes]:
    """Yield the current string with the slice in its place, cut to the desired size."""
    assert desired_state.content is not None
    end_offset = desired_state.offset + desired_state.content.size
    yield from _iter_byte_range(client, key, 0, min(desired_state.offset, desired_state.total_size))
    yield from desired_state.content.iter_chunks()
    yield from _iter_byte_range(client, key, end_offset, desired_state.total_size)


def _iter_byte_range(client: RedisClient, key: bytes, start_offset: int, end_offset: int) -> Iterator[bytes]:
    while start_offset < end_offset:
        chunk = client.execute("GETRANGE", key, start_offset, min(start_offset + CHUNK_BYTES, end_offset) - 1)
        if not chunk:
            raise ConflictError("the key became shorter while it was being rewritten")
        yield chunk
        start_offset += len(chunk)
