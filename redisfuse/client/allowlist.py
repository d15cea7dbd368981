"""The third read-only barrier (DESIGN.md §6): which commands a connection may send. A new one is added here, by hand.

A command is judged by its first word, a container command (CLIENT, OBJECT, XINFO...) by its first two. What is judged
is the bytes about to be sent: they are parsed, and packed again; only if that gives the same bytes are the words known
to be what the server will read. Scripts, KEYS, CONFIG, DEBUG, SORT, MONITOR, FLUSH*, PFCOUNT (which writes,
though flagged readonly), and the unbounded HGETALL, SMEMBERS, HKEYS, HVALS are on no list.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import hiredis

from redisfuse.errors import ForbiddenCommandError

INVALIDATION_CHANNEL = b"__redis__:invalidate"
"""The one channel that may be subscribed to: where a RESP2 or RESP3 connection is told of changed keys."""

_CONNECTION_COMMANDS = frozenset({b"AUTH", b"HELLO", b"INFO", b"PING", b"SELECT", b"TIME"})

_TRANSACTION_COMMANDS = frozenset({b"DISCARD", b"EXEC", b"MULTI", b"UNWATCH", b"WATCH"})
"""WATCH, pieces, MULTI, STRLEN, EXEC tells whether a value changed while it was read; EXEC runs only what was sent."""

_READ_COMMANDS = frozenset(
    {
        *(b"DBSIZE", b"DUMP", b"EXISTS", b"PEXPIRETIME", b"PTTL", b"SCAN", b"TYPE"),
        *(b"GETRANGE", b"STRLEN"),
        *(b"HEXISTS", b"HGET", b"HLEN", b"HMGET", b"HPEXPIRETIME", b"HPTTL", b"HRANDFIELD", b"HSCAN", b"HSTRLEN"),
        *(b"LLEN", b"LRANGE"),
        *(b"SCARD", b"SSCAN"),
        *(b"ZCARD", b"ZRANGE", b"ZSCAN"),
        *(b"XLEN", b"XRANGE"),
        b"JSON.GET",
    }
)

_READ_SUBCOMMANDS = {
    b"CLIENT": frozenset({b"NO-TOUCH", b"SETNAME", b"TRACKING"}),
    b"OBJECT": frozenset({b"ENCODING"}),
    b"XINFO": frozenset({b"GROUPS", b"STREAM"}),
}

_WRITE_COMMANDS = frozenset(
    {
        *(b"DEL", b"PERSIST", b"PEXPIREAT", b"RENAME", b"RENAMENX", b"RESTORE", b"UNLINK"),
        *(b"APPEND", b"SET", b"SETRANGE"),
        *(b"HDEL", b"HPERSIST", b"HPEXPIREAT", b"HSET", b"HSETEX"),
        *(b"RPUSH", b"SADD", b"ZADD", b"XADD", b"XSETID", b"JSON.SET"),
    }
)


@dataclass(frozen=True, slots=True)
class AllowList:
    """The commands, and the container commands with their second words, that a kind of connection may send."""

    name: str
    commands: frozenset[bytes]
    subcommands: dict[bytes, frozenset[bytes]] = field(default_factory=dict)

    def allows(self, command: list[bytes]) -> bool:
        """Whether this list has the command; `command` is its words as sent."""
        if not command:
            return False
        if command[0] in self.commands:  # all but foreign callers write them in capitals
            return True
        word = command[0].upper()
        if word in self.commands:
            return True
        if word == b"SUBSCRIBE":
            return b"SUBSCRIBE" in self.subcommands and len(command) == 2 and command[1] == INVALIDATION_CHANNEL
        return word in self.subcommands and len(command) > 1 and command[1].upper() in self.subcommands[word]

    def check(self, commands: list[list[bytes]]) -> None:
        """Raise ForbiddenCommandError unless the list has every one of the commands."""
        if all(commands) and self.commands.issuperset([command[0] for command in commands]):
            return  # the usual case, without a call for each
        for command in commands:
            if self.allows(command):
                continue
            words = b" ".join(command[:2] if command and command[0].upper() in self.subcommands else command[:1])
            shown = words[:40].decode("ascii", "backslashreplace")
            raise ForbiddenCommandError(f"{shown!r} was not sent: it is not on the list of {self.name} commands")


READ_ALLOWLIST = AllowList(
    "read",
    _CONNECTION_COMMANDS | _TRANSACTION_COMMANDS | _READ_COMMANDS,
    {**_READ_SUBCOMMANDS, b"SUBSCRIBE": frozenset({INVALIDATION_CHANNEL})},
)
"""What any connection of a read-only mount, and every reading connection of a writing one, may send."""

WRITE_ALLOWLIST = AllowList(
    "write",
    _CONNECTION_COMMANDS | _TRANSACTION_COMMANDS | _READ_COMMANDS | _WRITE_COMMANDS,
    {**_READ_SUBCOMMANDS, b"XGROUP": frozenset({b"CREATE"})},
)
"""What the connections that transactions.py writes on may send."""

SENTINEL_ALLOWLIST = AllowList(
    "Sentinel", frozenset({b"AUTH", b"HELLO", b"PING"}), {b"SENTINEL": frozenset({b"GET-MASTER-ADDR-BY-NAME"})}
)
"""What may be sent to a Sentinel."""


_pack_command: Callable[[Any], bytes] = hiredis.pack_command


class CommandFilter(Protocol):
    """What judges commands before they are sent."""

    def check(self, commands: list[list[bytes]]) -> None:
        """Raise ForbiddenCommandError unless every one of the commands may be sent."""


_INSPECTION_ALLOWLIST = AllowList(
    "inspection",
    READ_ALLOWLIST.commands - {b"EXEC"},
    {**READ_ALLOWLIST.subcommands, b"ACL": frozenset({b"DRYRUN"})},
)

_DISCARDED_ALLOWLIST = AllowList(
    "rehearsal",
    WRITE_ALLOWLIST.commands - {b"EXEC", b"MULTI"},
    {**WRITE_ALLOWLIST.subcommands, **READ_ALLOWLIST.subcommands},
)


class DiscardedTransactionFilter:
    """What `redisfuse doctor` may send: writes too, but only where they are queued and then thrown away.

    A server checks its ACL when a command is queued. So between MULTI, which the server must have accepted (`begin_transaction`
    says so), and DISCARD, a write tells whether it would be allowed, and nothing else happens. EXEC is always refused.
    """

    def __init__(self) -> None:
        self._in_transaction = False

    def begin_transaction(self) -> None:
        """The server has answered OK to MULTI, on this connection."""
        self._in_transaction = True

    def check(self, commands: list[list[bytes]]) -> None:
        """Raise ForbiddenCommandError unless nothing of this can have an effect."""
        for command in commands:
            if self._in_transaction and [word.upper() for word in command] == [b"DISCARD"]:
                self._in_transaction = False
                continue
            (_DISCARDED_ALLOWLIST if self._in_transaction else _INSPECTION_ALLOWLIST).check([command])


def parse_commands(packed: bytes) -> list[list[bytes]]:
    """The commands in bytes that are about to be sent.

    Raises ForbiddenCommandError if they are anything but whole commands in the one usual form (RESP arrays of bulk
    strings): inline commands, cut or nested ones, or spellings that another parser could read otherwise.
    """
    reader = hiredis.Reader(notEnoughData=Ellipsis)
    commands: list[list[bytes]] = []
    try:
        reader.feed(packed)
        while (command := reader.gets()) is not Ellipsis:
            commands.append(command)
        same = pack_commands(map(tuple, commands)) == packed
    except (hiredis.ProtocolError, TypeError, ValueError):
        same = False
    if not same:
        raise ForbiddenCommandError("bytes that are not whole, plainly written commands were not sent")
    return commands


def pack_commands(commands: Iterable[tuple[bytes | str | int, ...]]) -> bytes:
    """Commands as they are sent."""
    return b"".join(map(_pack_command, commands))
