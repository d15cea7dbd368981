"""The ACL rules of each access mode, and a check of the current user's.

The rules are in Redis's ACL syntax (https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/). They
allow what the allow-lists name; `tests/faults/test_acl.py` compares the two on a real server.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from redisfuse.client.allowlist import INVALIDATION_CHANNEL, DiscardedTransactionFilter
from redisfuse.client.capabilities import ServerInfo
from redisfuse.client.channel import Channel, CommandArgument
from redisfuse.client.client import RedisClient
from redisfuse.errors import AccessError, NoSpaceError, ReadOnlyError, RedisFuseError
from redisfuse.text import literal_glob

AccessMode = Literal["read-only", "following", "write"]
ACCESS_MODES: tuple[AccessMode, ...] = ("read-only", "following", "write")
"""Reading; reading with invalidation messages (a mount without them is correct, but slower); writing, with both."""

READ_KEY_PATTERN = "%R~{keys}"
WRITE_KEY_PATTERN = "~{keys}"

READ_RULES = (
    *("+@read", "-pfcount", "-keys"),
    *("+info", "+ping", "+select", "+time", "+client|setname"),
    *("+multi", "+exec", "+discard", "+watch", "+unwatch"),
)
"""All read commands except PFCOUNT, which writes, and KEYS, which blocks the server; and connection commands."""

CLUSTER_RULES = ("+cluster|slots", "+asking", "+readonly")
"""The rules for reading each node of a cluster, besides `READ_RULES`."""

TRACKING_RULES = ("+client|tracking", "+subscribe", f"&{INVALIDATION_CHANNEL.decode()}")

WRITE_RULES = (
    *("+set", "+setrange", "+append", "+hset", "+hdel"),
    *("+del", "+unlink", "+rename", "+renamenx", "+pexpireat", "+persist"),
    *("+restore", "+rpush", "+sadd", "+zadd", "+xadd", "+xsetid", "+xgroup|create"),
)


def build_required_acl(mode: AccessMode, server_info: ServerInfo, key_glob: str = "*") -> str:
    """Return the minimal ACL rules of a mode for this server version.

    The rules follow `ACL SETUSER name on >password`. `key_glob` limits them to some keys: `config:*`.
    """
    rules = ["resetchannels"] if server_info.version_at_least((6, 2)) else []
    rules += [_key_rule(mode, server_info, key_glob), *READ_RULES]
    if server_info.has_no_touch:
        rules.append("+client|no-touch")
    if server_info.has_json:
        rules.append("+json.get")  # not in @read in ReJSON 2.8
    rules += CLUSTER_RULES if server_info.is_cluster else ()
    if mode in ("following", "write"):
        rules += [rule for rule in TRACKING_RULES if rule[0] != "&" or server_info.version_at_least((6, 2))]
    if mode == "write":
        rules += WRITE_RULES
        rules += ["+hsetex"] if server_info.has_hsetex else []
        rules += ["+hpexpireat", "+hpersist"] if server_info.has_hash_field_ttl else []
        rules += ["+json.set"] if server_info.has_json else []
    return " ".join(rules)


def _key_rule(mode: AccessMode, server_info: ServerInfo, key_glob: str) -> str:
    # ReJSON 2.8 declares that JSON.GET writes its key, so the right to read it isn't enough.
    read_only = mode != "write" and server_info.version_at_least((7, 0)) and not server_info.has_json
    return (READ_KEY_PATTERN if read_only else WRITE_KEY_PATTERN).format(keys=key_glob)


def _build_prefix_glob(prefix: bytes) -> str:
    """Return the glob of the keys that begin with `prefix`.

    A rule can't contain blanks, and only text can be printed: `?` matches other bytes.
    """
    text = literal_glob(prefix).decode("utf-8", "surrogateescape")
    return "".join(character if character.isprintable() and character != " " else "?" for character in text) + "*"


@dataclass(frozen=True, slots=True)
class ModeAccess:
    """Whether the user may use a mode; `allowed` is None if that is unknown."""

    mode: AccessMode
    allowed: bool | None
    missing_rules: tuple[str, ...]  # the rules that the user lacks
    required_acl: str  # all rules of the mode


@dataclass(frozen=True, slots=True)
class AclReport:
    """The result of `check_acl`."""

    user: str
    method: Literal["dry run", "discarded transaction"]  # ACL DRYRUN, or MULTI ... DISCARD
    modes: tuple[ModeAccess, ...]
    notes: tuple[str, ...]  # why writes fail although the ACL allows them: a replica, out of memory

    def get_mode_access(self, mode: AccessMode) -> ModeAccess:
        """Return the result for one mode."""
        return next(access for access in self.modes if access.mode == mode)


def check_acl(
    client: RedisClient, *, prefix: bytes = b"", queue_writes: bool = False, suffix: bytes = b"redisfuse:doctor"
) -> AclReport:
    """Check what the current user may do with keys that begin with `prefix`.

    `suffix`: the rest of the key that is tried; the node of a cluster must own its slot.

    Changes nothing, creates no key. If the user may not run ACL DRYRUN (an administrator's command), commands are
    queued and discarded. A denial then appears in the server's ACL LOG, so writes are queued only with `queue_writes`.
    Raises UnavailableError, AccessError.
    """
    server_info = client.server_info
    user = client.address.username or "default"
    key = prefix + suffix
    key_glob = _build_prefix_glob(prefix)
    command_filter = DiscardedTransactionFilter()
    with client.dedicated_channel(command_filter=command_filter) as channel:
        dry_run = _DryRunProbe(channel, user)
        probe = dry_run if dry_run.is_supported else _DiscardedTransactionProbe(channel, command_filter)
        rules_by_mode: dict[AccessMode, dict[str, bool | None]] = {
            "read-only": probe.check_commands(_read_commands(server_info, key)),
            "following": probe.check_commands(_TRACKING_COMMANDS) if server_info.has_tracking else {},
        }
        writes = _write_commands(server_info, key)
        if dry_run.is_supported or queue_writes:
            rules_by_mode["write"] = probe.check_commands(writes)
        else:
            rules_by_mode["write"] = dict.fromkeys(map(_rule_for_command, writes))
    modes: list[ModeAccess] = []
    for mode in ACCESS_MODES:
        rules = rules_by_mode["read-only"] | rules_by_mode[mode]
        if mode == "write":
            rules |= rules_by_mode["following"]
        missing = tuple(
            _key_rule(mode, server_info, key_glob) if rule == _KEY_RULE else rule
            for rule, allowed in rules.items()
            if allowed is False
        )
        mode_allowed = False if missing else None if None in rules.values() else True
        required_acl = build_required_acl(mode, server_info, key_glob)
        modes.append(ModeAccess(mode, mode_allowed, tuple(dict.fromkeys(missing)), required_acl))
    method: Literal["dry run", "discarded transaction"] = "dry run" if dry_run.is_supported else "discarded transaction"
    return AclReport(user, method, tuple(modes), tuple(probe.notes))


# -- commands to check -----------------------------------------------------------------------------------------------

_KEY_RULE = "keys"
"""A placeholder for the key pattern among the missing rules."""

_CommandTuples = tuple[tuple[CommandArgument, ...], ...]

_TRACKING_COMMANDS: _CommandTuples = ((b"CLIENT", b"TRACKING", b"ON", b"BCAST"), (b"SUBSCRIBE", INVALIDATION_CHANNEL))


def _read_commands(server_info: ServerInfo, key: bytes) -> _CommandTuples:
    """Return one call of each read command that a mount uses.

    The arguments are such that any server accepts them.
    """
    common: _CommandTuples = (
        *((b"INFO",), (b"PING",), (b"SELECT", 0), (b"TIME",), (b"CLIENT", b"SETNAME", b"redisfuse")),
        *((b"DBSIZE",), (b"SCAN", 0)),
        *(
            (name, key)
            for name in (b"TYPE", b"EXISTS", b"PTTL", b"DUMP", b"STRLEN", b"HLEN", b"LLEN", b"SCARD", b"ZCARD")
        ),
        *((name, key) for name in (b"XLEN",)),
        *((name, key, 0, 0) for name in (b"GETRANGE", b"LRANGE", b"ZRANGE")),
        *((name, key, 0) for name in (b"HSCAN", b"SSCAN", b"ZSCAN")),
        *((name, key, b"f") for name in (b"HGET", b"HEXISTS", b"HSTRLEN", b"HMGET")),
        *((b"XRANGE", key, b"-", b"+"), (b"OBJECT", b"ENCODING", key), (b"XINFO", b"STREAM", key)),
        *((b"WATCH", key), (b"UNWATCH",), (b"MULTI",), (b"EXEC",), (b"DISCARD",)),
    )
    return (
        *common,
        *([(b"PEXPIRETIME", key)] if server_info.has_pexpiretime else []),
        *([(b"CLIENT", b"NO-TOUCH", b"ON")] if server_info.has_no_touch else []),
        *([(b"HPEXPIRETIME", key, b"FIELDS", 1, b"f")] if server_info.has_hash_field_ttl else []),
        *([(b"JSON.GET", key)] if server_info.has_json else []),
        *(((b"CLUSTER", b"SLOTS"), (b"ASKING",), (b"READONLY",)) if server_info.is_cluster else ()),
        *([(b"HRANDFIELD", key, 1)] if server_info.version_at_least((6, 2)) else []),
    )


def _write_commands(server_info: ServerInfo, key: bytes) -> _CommandTuples:
    """Return one call of each write command that saves and rollbacks use."""
    return (
        *((name, key, b"v") for name in (b"SET", b"APPEND", b"RPUSH", b"SADD")),
        *((name, key) for name in (b"DEL", b"UNLINK", b"PERSIST")),
        *((name, key, key) for name in (b"RENAME", b"RENAMENX")),
        *((b"SETRANGE", key, 0, b"v"), (b"HSET", key, b"f", b"v"), (b"HDEL", key, b"f"), (b"ZADD", key, 1, b"v")),
        *((b"PEXPIREAT", key, 1), (b"RESTORE", key, 0, b"v"), (b"XADD", key, b"*", b"f", b"v")),
        *((b"XSETID", key, b"1-1"), (b"XGROUP", b"CREATE", key, b"g", b"$")),
        *([(b"HSETEX", key, b"KEEPTTL", b"FIELDS", 1, b"f", b"v")] if server_info.has_hsetex else []),
        *([(b"HPEXPIREAT", key, 1, b"FIELDS", 1, b"f")] if server_info.has_hash_field_ttl else []),
        *([(b"HPERSIST", key, b"FIELDS", 1, b"f")] if server_info.has_hash_field_ttl else []),
        *([(b"JSON.SET", key, b"$", b"1")] if server_info.has_json else []),
    )


def _rule_for_command(command: tuple[CommandArgument, ...]) -> str:
    """Return the ACL rule that allows a command: `+scan`, `+client|tracking`."""
    words = [bytes(word).decode().lower() for word in command[:2] if isinstance(word, bytes)]
    return "+" + ("|".join(words) if words[0] in ("client", "cluster", "xgroup") else words[0])


# -- probes ----------------------------------------------------------------------------------------------------------


class _AclProbe(ABC):
    """A way to check commands against the ACL without running them."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.notes: list[str] = []

    def check_commands(self, commands: _CommandTuples) -> dict[str, bool | None]:
        """Return, for each rule that the commands require, whether the user has it.

        None: unknown.
        """
        rules: dict[str, bool | None] = {}
        for command, reply in zip(commands, self.fetch_replies(commands), strict=True):
            rule = _rule_for_command(command)
            denied = _denied_part(reply)
            if denied == "key":
                rules[_KEY_RULE] = False
            elif denied == "channel":
                rules[TRACKING_RULES[-1]] = False
            elif isinstance(reply, ReadOnlyError | NoSpaceError):  # the server checks these after the ACL
                rules[rule] = True
                self.notes += [str(reply)] if str(reply) not in self.notes else []
            elif reply is None or (isinstance(reply, RedisFuseError) and not denied):
                rules[rule] = None
                continue
            rules[rule] = denied != "command"
        return rules

    @abstractmethod
    def fetch_replies(self, commands: _CommandTuples) -> list[object]:
        """Return the server's reply to each command; None if it was not sent."""


class _DryRunProbe(_AclProbe):
    """ACL DRYRUN (Redis 7.0), which is exact and leaves no traces.

    Only administrators may run it.
    """

    def __init__(self, channel: Channel, user: str) -> None:
        super().__init__(channel)
        self._user = user
        self.is_supported = not isinstance(self.fetch_replies(((b"PING",),))[0], RedisFuseError)

    def fetch_replies(self, commands: _CommandTuples) -> list[object]:
        return self.channel.execute([(b"ACL", b"DRYRUN", self._user, *command) for command in commands])


class _DiscardedTransactionProbe(_AclProbe):
    """MULTI, the commands, DISCARD.

    The server checks the ACL as it queues the commands, and discards them.
    """

    def __init__(self, channel: Channel, command_filter: DiscardedTransactionFilter) -> None:
        super().__init__(channel)
        self._command_filter = command_filter

    def fetch_replies(self, commands: _CommandTuples) -> list[object]:
        unqueueable = {b"WATCH", b"UNWATCH", b"MULTI", b"DISCARD", b"EXEC"}
        queued = [command for command in commands if command[0] not in unqueueable]
        multi_reply, discard_reply = self.channel.execute([(b"MULTI",)])[0], None
        replies: dict[tuple[CommandArgument, ...], object] = {(b"MULTI",): multi_reply}
        if multi_reply == b"OK":
            self._command_filter.begin_transaction()
            *queue_replies, discard_reply = self.channel.execute([*queued, (b"DISCARD",)])
            replies |= dict(zip(queued, queue_replies, strict=True)) | {(b"DISCARD",): discard_reply}
        if discard_reply == b"OK":
            watches = [command for command in commands if command[0] in (b"WATCH", b"UNWATCH")]
            replies |= dict(zip(watches, self.channel.execute(watches), strict=True)) if watches else {}
            replies[(b"EXEC",)] = b"OK"  # never sent; no sensible rule allows MULTI and DISCARD without EXEC
        return [replies.get(command) for command in commands]


def _denied_part(reply: object) -> str:
    """Return what the ACL denies: "command", "key" or "channel".

    Returns "" if the reply is not a denial.
    """
    if isinstance(reply, AccessError):
        text = str(reply)
    elif isinstance(reply, bytes) and reply not in (b"OK", b"QUEUED") and b"permission" in reply:
        text = reply.decode("utf-8", "replace")
    else:
        return ""
    if " run the " in text:
        return "command"
    return "channel" if "channel" in text else "key"
