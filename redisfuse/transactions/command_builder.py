"""The write commands that bring a target from what it holds to another state. Pure: nothing is sent here.

A transaction of one command is the rule. Where it takes several, what makes data comes before what removes any.
"""

from redisfuse.batching import CHUNK_BYTES
from redisfuse.client.client import Facts
from redisfuse.errors import NotSupportedError
from redisfuse.journal.models import Content, State
from redisfuse.paths.grammar import Target
from redisfuse.transactions.multi_exec import Command
from redisfuse.transactions.portable_copy import can_rebuild, rebuild
from redisfuse.transactions.state_reader import Found

WHOLE = 16 * CHUNK_BYTES  # bytes of a DUMP payload that are sent as one argument among others


def write(target: Target, found: Found, content: Content, facts: Facts) -> list[Command]:
    """Give a string or field these bytes; its time to live stays."""
    if target.field is not None:
        return _write_field(target.key, target.field, content, found.state.field_expires_at, facts)
    if content.size <= CHUNK_BYTES and facts.at_least((6, 0)):
        return [Command(("SET", target.key, content.read(), "KEEPTTL"))]
    # A large value must be its command's last word, so KEEPTTL has no place; the same transaction puts it back.
    return rewrite(target.key, content, found)


def _write_field(key: bytes, field: bytes, content: Content, expires_at: int | None, facts: Facts) -> list[Command]:
    if expires_at is None:
        return [Command(("HSET", key, field), content)]
    if facts.has_hsetex:
        return [Command(("HSETEX", key, "KEEPTTL", "FIELDS", 1, field), content)]
    return [Command(("HSET", key, field), content), *expire(Target(key, field), expires_at, facts)]


def remove(target: Target, facts: Facts) -> list[Command]:
    """Take the key or field away."""
    if target.field is not None:
        return [Command.of("HDEL", target.key, target.field)]
    return [Command.of("UNLINK" if facts.at_least((4, 0)) else "DEL", target.key)]


def rename(key: bytes, new_key: bytes) -> Command:
    """Give a key another name; its time to live goes with it."""
    return Command.of("RENAME", key, new_key)


def expire(target: Target, at_ms: int | None, facts: Facts) -> list[Command]:
    """Set the absolute expiry in ms of a key or field that is there, or (None) take it away.

    Raises NotSupportedError for a field on a server whose fields have none.
    """
    key, field = target.key, target.field
    if field is None:
        return [Command.of("PERSIST", key) if at_ms is None else Command.of("PEXPIREAT", key, at_ms)]
    if not facts.has_hash_field_ttl:
        raise NotSupportedError(f"{facts.label} has no expiry for hash fields (Redis 7.4 and later have)")
    if at_ms is None:
        return [Command.of("HPERSIST", key, "FIELDS", 1, field)]
    return [Command.of("HPEXPIREAT", key, at_ms, "FIELDS", 1, field)]


def patch(key: bytes, offset: int, content: Content, found: Found) -> list[Command]:
    """Put bytes at an offset of a string (which may be its end); its time to live stays."""
    if offset == found.state.total:
        return [Command(("APPEND", key), content)]
    return [Command(("SETRANGE", key, offset), content)]


def rewrite(key: bytes, content: Content, found: Found) -> list[Command]:
    """Give a string other bytes that come in pieces; its time to live stays."""
    return [Command(("SET", key), content), *_expire_key(key, found.state.expires_at)]


def restore(target: Target, found: Found, wanted: State, facts: Facts, *, portable: bool = False) -> list[Command]:
    """Make the target what `wanted` (absent, a value or an object) says, its absolute expiry included.

    An object comes back by RESTORE, or (`portable`, or if it was never DUMPed) from its portable copy. Raises
    NotSupportedError if neither was kept.
    """
    if wanted.kind == "absent":
        return remove(target, facts) if found.state.kind != "absent" else []
    if wanted.kind == "object":
        return _restore_object(target.key, found, wanted, facts, portable=portable)
    assert wanted.content is not None
    if target.field is not None:
        return _restore_field(target.key, target.field, found, wanted, facts)
    if wanted.expires_at == found.state.expires_at and found.key_type in (b"string", b"none"):
        return write(target, found, wanted.content, facts)
    if wanted.expires_at is None:
        return [Command(("SET", target.key), wanted.content)]
    if wanted.content.size <= CHUNK_BYTES and facts.at_least((6, 2)):
        return [Command(("SET", target.key, wanted.content.read(), "PXAT", wanted.expires_at))]
    return [Command(("SET", target.key), wanted.content), *_expire_key(target.key, wanted.expires_at)]


def _restore_field(key: bytes, field: bytes, found: Found, wanted: State, facts: Facts) -> list[Command]:
    assert wanted.content is not None
    commands: list[Command] = []
    if found.key_type not in (b"hash", b"none"):
        commands += remove(Target(key), facts)
    expires_at = wanted.field_expires_at if facts.has_hash_field_ttl else None
    own = found.state.field_expires_at
    if expires_at == own:
        commands += _write_field(key, field, wanted.content, own, facts)
    else:
        commands.append(Command(("HSET", key, field), wanted.content))  # which takes an expiry away
        if expires_at is not None:
            commands += expire(Target(key, field), expires_at, facts)
    if found.key_type != b"hash":  # the hash went with its last field; its expiry comes back with it
        commands += _expire_key(key, wanted.expires_at)
    return commands


def _restore_object(key: bytes, found: Found, wanted: State, facts: Facts, *, portable: bool) -> list[Command]:
    there = [Command.of("UNLINK", key)] if found.key_type != b"none" else []
    if wanted.content is not None and not portable:
        if wanted.content.size <= WHOLE:
            ends = ("ABSTTL",) if wanted.expires_at is not None else ()
            replaces = ("REPLACE",) if there else ()
            words = ("RESTORE", key, wanted.expires_at or 0, wanted.content.read(), *replaces, *ends)
            return [Command(words)]
        return [*there, Command(("RESTORE", key, 0), wanted.content), *_expire_key(key, wanted.expires_at)]
    if wanted.logical is None or not can_rebuild(wanted.type):
        raise NotSupportedError(
            f"no copy of this {wanted.type.decode('ascii', 'replace')} was kept that could be restored"
        )
    copy = wanted.logical
    rebuilt = Command(("rebuild", key), series=lambda: rebuild(key, copy, facts))
    return [*there, rebuilt, *_expire_key(key, wanted.expires_at)]


def _expire_key(key: bytes, at_ms: int | None) -> list[Command]:
    return [] if at_ms is None else [Command.of("PEXPIREAT", key, at_ms)]
