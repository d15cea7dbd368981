"""Builds the commands that bring a target from its current state to another.

Pure: sends nothing. Most transactions have one command. In those with several, commands that create data precede those
that remove data.
"""

from redisfuse.client.capabilities import ServerInfo
from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import NotSupportedError
from redisfuse.journal.content import Blob
from redisfuse.journal.models import State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.portable_copy import Rebuild, can_rebuild
from redisfuse.transactions.state_reader import CurrentState
from redisfuse.transactions.write_command import WriteCommand

MAX_INLINE_DUMP_BYTES = 16 * CHUNK_BYTES  # bytes of a DUMP payload that is not streamed


def build_write(target: KeyRef, current: CurrentState, content: Blob, server_info: ServerInfo) -> list[WriteCommand]:
    """Return the commands that write a string or field whole; its expiry stays."""
    if target.field is not None:
        return _build_field_write(target.key, target.field, content, current.state.field_expires_at, server_info)
    if content.size <= CHUNK_BYTES and server_info.version_at_least((6, 0)):
        return [WriteCommand(("SET", target.key, content.read(), "KEEPTTL"))]
    # A streamed value must be the last argument, so KEEPTTL can't follow; the same transaction sets the expiry again.
    return build_rewrite(target.key, content, current)


def _build_field_write(
    key: bytes, field: bytes, content: Blob, expires_at: int | None, server_info: ServerInfo
) -> list[WriteCommand]:
    if expires_at is None:
        return [WriteCommand(("HSET", key, field), content)]
    if server_info.has_hsetex:
        return [WriteCommand(("HSETEX", key, "KEEPTTL", "FIELDS", 1, field), content)]
    return [WriteCommand(("HSET", key, field), content), *build_expire(KeyRef(key, field), expires_at, server_info)]


def build_remove(target: KeyRef, server_info: ServerInfo) -> list[WriteCommand]:
    """Return the commands that remove a key or field."""
    if target.field is not None:
        return [WriteCommand.from_args("HDEL", target.key, target.field)]
    return [WriteCommand.from_args("UNLINK" if server_info.version_at_least((4, 0)) else "DEL", target.key)]


def build_rename(key: bytes, new_key: bytes) -> WriteCommand:
    """Return the command that renames a key; its expiry moves along."""
    return WriteCommand.from_args("RENAME", key, new_key)


def build_expire(target: KeyRef, expires_at_ms: int | None, server_info: ServerInfo) -> list[WriteCommand]:
    """Return the commands that set or clear the expiry of an existing key or field.

    `expires_at_ms` is absolute; None clears it. Raises NotSupportedError for a field if the server's fields have no
    expiry.
    """
    key, field = target.key, target.field
    if field is None:
        return [
            WriteCommand.from_args("PERSIST", key)
            if expires_at_ms is None
            else WriteCommand.from_args("PEXPIREAT", key, expires_at_ms)
        ]
    if not server_info.has_hash_field_ttl:
        raise NotSupportedError(f"{server_info.label} has no expiry for hash fields (Redis 7.4 and later do)")
    if expires_at_ms is None:
        return [WriteCommand.from_args("HPERSIST", key, "FIELDS", 1, field)]
    return [WriteCommand.from_args("HPEXPIREAT", key, expires_at_ms, "FIELDS", 1, field)]


def build_patch(key: bytes, offset: int, content: Blob, current: CurrentState) -> list[WriteCommand]:
    """Return the command that patches or appends to a string; its expiry stays."""
    if offset == current.state.total_size:
        return [WriteCommand(("APPEND", key), content)]
    return [WriteCommand(("SETRANGE", key, offset), content)]


def build_rewrite(key: bytes, content: Blob, current: CurrentState) -> list[WriteCommand]:
    """Return the commands that write a string whole; its expiry stays.

    A large string is streamed.
    """
    return [WriteCommand(("SET", key), content), *_build_key_expire(key, current.state.expires_at)]


def build_restore(
    target: KeyRef, current: CurrentState, desired_state: State, server_info: ServerInfo, *, portable: bool = False
) -> list[WriteCommand]:
    """Return the commands that give the target a state with its absolute expiry.

    The state is absent, a value or an object. An object is restored with RESTORE or, with `portable` or if it was not
    DUMPed, rebuilt from its portable copy. Raises NotSupportedError if the state has neither.
    """
    if desired_state.kind == "absent":
        return build_remove(target, server_info) if current.state.kind != "absent" else []
    if desired_state.kind == "object":
        return _build_object_restore(target.key, current, desired_state, server_info, portable=portable)
    assert desired_state.content is not None
    if target.field is not None:
        return _build_field_restore(target.key, target.field, current, desired_state, server_info)
    if desired_state.expires_at == current.state.expires_at and current.key_type in (b"string", b"none"):
        return build_write(target, current, desired_state.content, server_info)
    if desired_state.expires_at is None:
        return [WriteCommand(("SET", target.key), desired_state.content)]
    if desired_state.content.size <= CHUNK_BYTES and server_info.version_at_least((6, 2)):
        return [WriteCommand(("SET", target.key, desired_state.content.read(), "PXAT", desired_state.expires_at))]
    return [
        WriteCommand(("SET", target.key), desired_state.content),
        *_build_key_expire(target.key, desired_state.expires_at),
    ]


def _build_field_restore(
    key: bytes, field: bytes, current: CurrentState, desired_state: State, server_info: ServerInfo
) -> list[WriteCommand]:
    assert desired_state.content is not None
    commands: list[WriteCommand] = []
    if current.key_type not in (b"hash", b"none"):
        commands += build_remove(KeyRef(key), server_info)
    expires_at = desired_state.field_expires_at if server_info.has_hash_field_ttl else None
    if expires_at == current.state.field_expires_at:
        commands += _build_field_write(key, field, desired_state.content, expires_at, server_info)
    else:
        commands.append(WriteCommand(("HSET", key, field), desired_state.content))  # HSET clears the field's expiry
        if expires_at is not None:
            commands += build_expire(KeyRef(key, field), expires_at, server_info)
    if current.key_type != b"hash":  # the hash is created: restore its expiry, too
        commands += _build_key_expire(key, desired_state.expires_at)
    return commands


def _build_object_restore(
    key: bytes, current: CurrentState, desired_state: State, server_info: ServerInfo, *, portable: bool
) -> list[WriteCommand]:
    removal = [WriteCommand.from_args("UNLINK", key)] if current.key_type != b"none" else []
    if desired_state.content is not None and not portable:
        if desired_state.content.size <= MAX_INLINE_DUMP_BYTES:
            replace_option = ("REPLACE",) if removal else ()
            expiry_option = ("ABSTTL",) if desired_state.expires_at is not None else ()
            payload = desired_state.content.read()
            args = ("RESTORE", key, desired_state.expires_at or 0, payload, *replace_option, *expiry_option)
            return [WriteCommand(args)]
        return [
            *removal,
            WriteCommand(("RESTORE", key, 0), desired_state.content),
            *_build_key_expire(key, desired_state.expires_at),
        ]
    if desired_state.portable_copy is None or not can_rebuild(desired_state.type):
        key_type = desired_state.type.decode("ascii", "replace")
        raise NotSupportedError(f"the journal has no copy of this {key_type} that could be restored")
    rebuild = WriteCommand(("rebuild", key), series=Rebuild(key, desired_state.portable_copy, server_info))
    return [*removal, rebuild, *_build_key_expire(key, desired_state.expires_at)]


def _build_key_expire(key: bytes, expires_at_ms: int | None) -> list[WriteCommand]:
    return [] if expires_at_ms is None else [WriteCommand.from_args("PEXPIREAT", key, expires_at_ms)]
