"""The commands that a connection may send.

This is the third read-only barrier of SECURITY.md. Commands are added by hand. A command is identified by its first
word, a container command (CLIENT, OBJECT, XINFO...) by its first two. The check is made on the bytes that are about to
be sent: they are parsed and packed again, and only if the bytes are equal are the words certain to be what the server
will parse. Scripts, KEYS, CONFIG, DEBUG, SORT, MONITOR, FLUSH*, PFCOUNT (which writes, though flagged readonly), and
the unbounded HGETALL, SMEMBERS, HKEYS, HVALS are on no list.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import hiredis

from redisfuse.errors import ForbiddenCommandError

INVALIDATION_CHANNEL = b"__redis__:invalidate"
"""The only channel of a server that may be subscribed to: invalidation messages (client-side caching) name it."""

_CONNECTION_COMMANDS = frozenset({b"ASKING", b"AUTH", b"HELLO", b"INFO", b"PING", b"READONLY", b"SELECT", b"TIME"})

_TRANSACTION_COMMANDS = frozenset({b"DISCARD", b"EXEC", b"MULTI", b"UNWATCH", b"WATCH"})
"""Read transactions: WATCH, chunks, MULTI, STRLEN, EXEC detects a change during a read.

EXEC runs only commands that passed the same list.
"""

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
    b"CLUSTER": frozenset({b"SLOTS"}),
    b"MEMORY": frozenset({b"USAGE"}),
    b"OBJECT": frozenset({b"ENCODING", b"IDLETIME"}),
    b"XINFO": frozenset({b"GROUPS", b"STREAM"}),
}

_WRITE_COMMANDS = frozenset(
    {
        *(b"DEL", b"PERSIST", b"PEXPIREAT", b"RENAME", b"RENAMENX", b"RESTORE", b"UNLINK"),
        *(b"APPEND", b"SET", b"SETRANGE"),
        *(b"HDEL", b"HPERSIST", b"HPEXPIREAT", b"HSET", b"HSETEX"),
        *(b"RPUSH", b"SADD", b"ZADD", b"XADD", b"XSETID", b"JSON.SET"),
        b"WAIT",
    }
)


@dataclass(frozen=True, slots=True)
class AllowList:
    """The commands and subcommands that a kind of connection may send."""

    name: str
    commands: frozenset[bytes]
    subcommands: dict[bytes, frozenset[bytes]] = field(default_factory=dict)

    def allows(self, command: list[bytes]) -> bool:
        """Return whether the list names the command, which is given as its words."""
        if not command:
            return False
        if command[0] in self.commands:  # redisfuse itself sends upper case
            return True
        word = command[0].upper()
        if word in self.commands:
            return True
        if word == b"SUBSCRIBE":
            return len(command) == 2 and command[1] in self.subcommands.get(b"SUBSCRIBE", ())
        return word in self.subcommands and len(command) > 1 and command[1].upper() in self.subcommands[word]

    def check(self, commands: list[list[bytes]]) -> None:
        """Raise ForbiddenCommandError unless the list names every command."""
        if all(commands) and self.commands.issuperset([command[0] for command in commands]):
            return  # the usual case, without a call for each command
        for command in commands:
            if self.allows(command):
                continue
            words = b" ".join(command[:2] if command and command[0].upper() in self.subcommands else command[:1])
            name = words[:40].decode("ascii", "backslashreplace")
            raise ForbiddenCommandError(f"{name!r} was not sent: it is not on the list of {self.name} commands")


READ_ALLOWLIST = AllowList(
    "read",
    _CONNECTION_COMMANDS | _TRANSACTION_COMMANDS | _READ_COMMANDS,
    {**_READ_SUBCOMMANDS, b"SUBSCRIBE": frozenset({INVALIDATION_CHANNEL})},
)
"""For every connection of a read-only mount, and the read connections of a writable mount."""

WRITE_ALLOWLIST = AllowList(
    "write",
    _CONNECTION_COMMANDS | _TRANSACTION_COMMANDS | _READ_COMMANDS | _WRITE_COMMANDS,
    {**_READ_SUBCOMMANDS, b"XGROUP": frozenset({b"CREATE"})},
)
"""For the write connections, which only `transactions` uses."""

SENTINEL_EVENTS = (b"+odown", b"+try-failover", b"+promoted-slave", b"+switch-master")
"""The events of a Sentinel that may be subscribed to: the stages of a fail-over."""

SENTINEL_ALLOWLIST = AllowList(
    "Sentinel",
    frozenset({b"AUTH", b"HELLO", b"PING"}),
    {
        b"SENTINEL": frozenset({b"GET-MASTER-ADDR-BY-NAME", b"MASTER", b"MYID", b"REPLICAS", b"SENTINELS"}),
        b"SUBSCRIBE": frozenset(SENTINEL_EVENTS),
    },
)
"""For connections to a Sentinel."""


class CommandFilter(Protocol):
    """A check of commands before they are sent."""

    def check(self, commands: list[list[bytes]]) -> None:
        """Raise ForbiddenCommandError unless every command may be sent."""


_INSPECTION_ALLOWLIST = AllowList(
    "inspection",
    READ_ALLOWLIST.commands - {b"EXEC"},
    {**READ_ALLOWLIST.subcommands, b"ACL": frozenset({b"DRYRUN"})},
)

_DISCARDED_ALLOWLIST = AllowList(
    "discarded transaction",
    WRITE_ALLOWLIST.commands - {b"EXEC", b"MULTI"},
    {**WRITE_ALLOWLIST.subcommands, **READ_ALLOWLIST.subcommands},
)


class DiscardedTransactionFilter:
    """The filter of `redisfuse doctor`.

    Writes pass only where the server queues and then discards them. A server checks its ACL when it queues a command.
    So between MULTI, once the server has accepted it (`begin_transaction`), and DISCARD, the reply to a write shows
    whether the ACL allows it, without any effect. EXEC is always refused.
    """

    def __init__(self) -> None:
        self._in_transaction = False

    def begin_transaction(self) -> None:
        """Note that the server replied OK to MULTI on this connection."""
        self._in_transaction = True

    def check(self, commands: list[list[bytes]]) -> None:
        """Raise ForbiddenCommandError if any of the commands could have an effect."""
        for command in commands:
            if self._in_transaction and [word.upper() for word in command] == [b"DISCARD"]:
                self._in_transaction = False
                continue
            (_DISCARDED_ALLOWLIST if self._in_transaction else _INSPECTION_ALLOWLIST).check([command])


def parse_commands(packed: bytes) -> list[list[bytes]]:
    """Parse the bytes that are about to be sent into commands.

    Raises ForbiddenCommandError unless they are whole commands in canonical form (RESP arrays of bulk strings): inline,
    truncated or nested commands, and encodings that another parser could read differently, are refused.
    """
    reader = hiredis.Reader(notEnoughData=Ellipsis)
    commands: list[list[bytes]] = []
    try:
        reader.feed(packed)
        while (command := reader.gets()) is not Ellipsis:
            commands.append(command)
        is_canonical = pack_commands(map(tuple, commands)) == packed
    except (hiredis.ProtocolError, TypeError, ValueError):
        is_canonical = False
    if not is_canonical:
        raise ForbiddenCommandError("the bytes were not sent: they are not whole commands in canonical form")
    return commands


def pack_commands(commands: Iterable[tuple[bytes | str | int, ...]]) -> bytes:
    """Encode commands in RESP."""
    return b"".join(map(hiredis.pack_command, commands))  # type: ignore[arg-type]  # its stub allows one argument only
