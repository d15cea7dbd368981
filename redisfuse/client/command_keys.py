"""The keys that a command names, by which a cluster routes it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_KEYLESS = (
    *(b"ASKING", b"AUTH", b"CLIENT", b"CLUSTER", b"DBSIZE", b"DISCARD", b"EXEC", b"HELLO", b"INFO", b"MULTI", b"PING"),
    *(b"READONLY", b"SCAN", b"SELECT", b"SUBSCRIBE", b"TIME", b"UNWATCH", b"WAIT"),
)
_CONTAINERS = (b"MEMORY", b"OBJECT", b"XGROUP", b"XINFO")

_KEY_POSITION: dict[bytes | str, int] = {
    **dict.fromkeys(_KEYLESS, 0),
    **dict.fromkeys([name.decode() for name in _KEYLESS], 0),
    **dict.fromkeys(_CONTAINERS, 2),
    **dict.fromkeys([name.decode() for name in _CONTAINERS], 2),
}
"""Where a command has its first key; 0: nowhere. Of all others it is the first argument."""

_CURSOR_COMMANDS = frozenset({b"HSCAN", b"SSCAN", b"ZSCAN", "HSCAN", "SSCAN", "ZSCAN"})


class NodeCursor(bytes):
    """A cursor that only the node that returned it understands."""

    node_id: str


def command_key(command: Sequence[Any]) -> bytes | None:
    """Return the first key of a command; None if it has none."""
    position = _KEY_POSITION.get(command[0], 1)
    if not position:
        return None
    key = command[position]
    return key if isinstance(key, bytes) else str(key).encode()


def is_cursor_command(command: Sequence[Any]) -> bool:
    """Return whether the reply to a command has a cursor of its node."""
    return command[0] in _CURSOR_COMMANDS


def command_cursor(command: Sequence[Any]) -> NodeCursor | None:
    """Return the cursor of a node that a command continues."""
    return command[2] if command[0] in _CURSOR_COMMANDS and isinstance(command[2], NodeCursor) else None


def bind_cursor(reply: Any, node_id: str) -> Any:
    """Return the reply to a cursor command, with a cursor that knows its node."""
    if not isinstance(reply, list) or len(reply) != 2 or reply[0] == b"0":
        return reply
    cursor = NodeCursor(reply[0])
    cursor.node_id = node_id
    return [cursor, reply[1]]
