"""The states of a connection, and the commands that begin and end them.

The states are WATCH and MULTI. Pure.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from redisfuse.errors import RedisFuseError

STATE_RESET_COMMANDS = {b"WATCH": b"UNWATCH", b"MULTI": b"DISCARD", b"EXEC": b"", b"DISCARD": b"", b"UNWATCH": b""}
"""Commands that begin or end a connection state, each with the command that then resets the state."""

STATEFUL_COMMANDS = frozenset({b"SUBSCRIBE", *STATE_RESET_COMMANDS})

MULTI_END_COMMANDS = {b"EXEC", b"DISCARD"}
_DISCARDING_CODES = {"EXECABORT", "MOVED", "ASK", "CLUSTERDOWN", "TRYAGAIN", "CROSSSLOT"}


def iter_in_multi(names: Iterable[bytes], reset_command: bytes) -> Iterator[bool]:
    """Yield for each command whether it is sent inside MULTI.

    `names`: of the commands, in upper case. `reset_command`: what resets the state before the first of them.
    """
    is_in_multi = reset_command == b"DISCARD"
    for name in names:
        yield is_in_multi
        is_in_multi = name == b"MULTI" or (is_in_multi and name not in MULTI_END_COMMANDS)


def _may_be_in_multi(reply: Any) -> bool:
    """Return whether the connection may still be inside MULTI.

    `reply` is that to EXEC or DISCARD. The server discards the transaction with each of its errors. Any other error may
    be that of a proxy, which did not pass the command on.
    """
    if not isinstance(reply, RedisFuseError):
        return False
    return reply.reply_code not in _DISCARDING_CODES and "without MULTI" not in str(reply)


def is_left_in_multi(names: Iterable[bytes], replies: Iterable[Any]) -> bool:
    """Return whether a connection may still be inside MULTI after these replies.

    `names`: of the commands, in upper case and in the order of the replies.
    """
    return any(
        name in MULTI_END_COMMANDS and _may_be_in_multi(reply) for name, reply in zip(names, replies, strict=True)
    )
