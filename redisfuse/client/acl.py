"""What a user must be allowed, for each way to mount, in the words of Redis's ACL; and what the present one is allowed.

https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/ has the words. The rules name what the
allow-lists name; `tests/faults/test_permissions.py` holds the two together, on a real server.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from redisfuse.client.allowlist import INVALIDATION_CHANNEL, DiscardedTransactionFilter
from redisfuse.client.capabilities import ServerInfo
from redisfuse.client.channel import Channel, CommandArgument
from redisfuse.client.client import RedisClient
from redisfuse.errors import AccessError, NoSpaceError, ReadOnlyError, RedisFuseError

AccessMode = Literal["read-only", "following", "write"]
ACCESS_MODES: tuple[AccessMode, ...] = ("read-only", "following", "write")
"""To read; to be told of changes besides (without it a mount is right, but slower); and to write, which follows too."""

READ_KEY_PATTERN = "%R~{keys}"
WRITE_KEY_PATTERN = "~{keys}"

READ_RULES = (
    *("+@read", "-pfcount", "-keys"),
    *("+info", "+ping", "+select", "+time", "+client|setname"),
    *("+multi", "+exec", "+discard", "+watch", "+unwatch"),
)
"""All that reads, but for PFCOUNT, which writes, and KEYS, which stalls a server; and what a connection needs."""

TRACKING_RULES = ("+client|tracking", "+subscribe", f"&{INVALIDATION_CHANNEL.decode()}")

WRITE_RULES = (
    *("+set", "+setrange", "+append", "+hset", "+hdel"),
    *("+del", "+unlink", "+rename", "+renamenx", "+pexpireat", "+persist"),
    *("+restore", "+rpush", "+sadd", "+zadd", "+xadd", "+xsetid", "+xgroup|create"),
)


def build_required_acl(mode: AccessMode, server_info: ServerInfo, key_glob: str = "*") -> str:
    """The least ACL rule for a mode, on a server of this version: what follows `ACL SETUSER name on >password`.

    `keys` is a glob that narrows it: `config:*`.
    """
    pattern = WRITE_KEY_PATTERN if mode == "write" or not server_info.version_at_least((7, 0)) else READ_KEY_PATTERN
    words = ["resetchannels"] if server_info.version_at_least((6, 2)) else []
    words += [pattern.format(keys=key_glob), *READ_RULES]
    if server_info.has_no_touch:
        words.append("+client|no-touch")
    if mode in ("following", "write"):
        words += [word for word in TRACKING_RULES if word[0] != "&" or server_info.version_at_least((6, 2))]
    if mode == "write":
        words += WRITE_RULES
        words += ["+hsetex"] if server_info.has_hsetex else []
        words += ["+hpexpireat", "+hpersist"] if server_info.has_hash_field_ttl else []
        words += ["+json.set"] if server_info.has_json else []
    return " ".join(words)


@dataclass(frozen=True, slots=True)
class ModeAccess:
    """Whether a mode can be used: `allowed` is None where that could not be found out."""

    mode: AccessMode
    allowed: bool | None
    missing_rules: tuple[str, ...]  # the words that would have to be added to the user's rule
    required_acl: str  # the whole least rule


@dataclass(frozen=True, slots=True)
class AclReport:
    """What inspect() found."""

    user: str
    method: Literal["dry run", "rehearsal"]  # ACL DRYRUN, or MULTI ... DISCARD
    modes: tuple[ModeAccess, ...]
    notes: tuple[str, ...]  # why writes fail though they are allowed: a replica, a full memory

    def get_mode_access(self, mode: AccessMode) -> ModeAccess:
        """The verdict on one mode."""
        return next(verdict for verdict in self.modes if verdict.mode == mode)


def check_acl(client: RedisClient, *, prefix: bytes = b"", queue_writes: bool = False) -> AclReport:
    """What the present user may do with keys that begin with `prefix`. Nothing is changed, no key is made.

    Where ACL DRYRUN is not allowed (it is an administrator's), commands are queued and thrown away; a denial then shows
    in the server's ACL LOG, so writes are tried only with `rehearse_writes`. Raises UnavailableError, AccessError.
    """
    facts = client.server_info
    user = client.address.username or "default"
    key = prefix + b"redisfuse:doctor"
    keys = prefix.decode("utf-8", "backslashreplace") + "*"
    rehearsal = DiscardedTransactionFilter()
    with client.dedicated_channel(command_filter=rehearsal) as dialogue:
        dry_run = _DryRunProbe(dialogue, user)
        trial = dry_run if dry_run.is_supported else _DiscardedTransactionProbe(dialogue, rehearsal)
        findings: dict[AccessMode, dict[str, bool | None]] = {
            "read-only": trial.check_commands(_read_commands(facts, key)),
            "following": trial.check_commands(_TRACKING_COMMANDS) if facts.has_tracking else {},
        }
        may_try = dry_run.is_supported or queue_writes
        writes = _write_commands(facts, key)
        findings["write"] = trial.check_commands(writes) if may_try else dict.fromkeys(_rules_for_commands(writes))
    verdicts: list[ModeAccess] = []
    for mode in ACCESS_MODES:
        found = findings["read-only"] | findings[mode] | (findings["following"] if mode == "write" else {})
        missing = tuple(_expand_rule(word, mode, facts, keys) for word, allowed in found.items() if allowed is False)
        unknown = any(allowed is None for allowed in found.values())
        allowed = False if missing else None if unknown else True
        verdicts.append(ModeAccess(mode, allowed, tuple(dict.fromkeys(missing)), build_required_acl(mode, facts, keys)))
    return AclReport(user, "dry run" if dry_run.is_supported else "rehearsal", tuple(verdicts), tuple(trial.notes))


def _expand_rule(rule: str, mode: AccessMode, server_info: ServerInfo, key_glob: str) -> str:
    if rule != _KEY_PATTERN_RULE:
        return rule
    return (
        WRITE_KEY_PATTERN if mode == "write" or not server_info.version_at_least((7, 0)) else READ_KEY_PATTERN
    ).format(keys=key_glob)


# -- what is tried ---------------------------------------------------------------------------------------------------

_KEY_PATTERN_RULE = "keys"
"""Stands for the key pattern among the words that can be missing."""

_CommandTuples = tuple[tuple[CommandArgument, ...], ...]

_TRACKING_COMMANDS: _CommandTuples = ((b"CLIENT", b"TRACKING", b"ON", b"BCAST"), (b"SUBSCRIBE", INVALIDATION_CHANNEL))


def _read_commands(server_info: ServerInfo, key: bytes) -> _CommandTuples:
    """One call of each reading command that a mount uses, with arguments that any server takes."""
    whole: _CommandTuples = (
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
        *whole,
        *([(b"PEXPIRETIME", key)] if server_info.has_pexpiretime else []),
        *([(b"CLIENT", b"NO-TOUCH", b"ON")] if server_info.has_no_touch else []),
        *([(b"HPEXPIRETIME", key, b"FIELDS", 1, b"f")] if server_info.has_hash_field_ttl else []),
        *([(b"JSON.GET", key)] if server_info.has_json else []),
        *([(b"HRANDFIELD", key, 1)] if server_info.version_at_least((6, 2)) else []),
    )


def _write_commands(server_info: ServerInfo, key: bytes) -> _CommandTuples:
    """One call of each writing command that edits and rollbacks use."""
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
    """The word of a rule that allows a command: `+scan`, `+client|tracking`."""
    words = [bytes(word).decode().lower() for word in command[:2] if isinstance(word, bytes)]
    return "+" + ("|".join(words) if words[0] in ("client", "xgroup") else words[0])


def _rules_for_commands(commands: _CommandTuples) -> Iterable[str]:
    return map(_rule_for_command, commands)


# -- how it is tried -------------------------------------------------------------------------------------------------


class _AclProbe(ABC):
    """Tries commands without running them."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.notes: list[str] = []

    def check_commands(self, commands: _CommandTuples) -> dict[str, bool | None]:
        """For each word of a rule: whether the user has it (None: can't be told)."""
        found: dict[str, bool | None] = {}
        for command, answer in zip(commands, self.fetch_replies(commands), strict=True):
            word = _rule_for_command(command)
            denied = _denied_part(answer)
            if denied == "key":
                found[_KEY_PATTERN_RULE] = False
            elif denied == "channel":
                found[TRACKING_RULES[-1]] = False
            elif isinstance(answer, ReadOnlyError | NoSpaceError):  # these are checked after the ACL
                found[word] = True
                self.notes += [str(answer)] if str(answer) not in self.notes else []
            elif answer is None or (isinstance(answer, RedisFuseError) and not denied):
                found[word] = None
                continue
            found[word] = denied != "command"
        return found

    @abstractmethod
    def fetch_replies(self, commands: _CommandTuples) -> list[object]:
        """What the server says to each command; None where it was not asked."""


class _DryRunProbe(_AclProbe):
    """ACL DRYRUN (7.0): exact, and leaves no trace, but only administrators may."""

    def __init__(self, channel: Channel, user: str) -> None:
        super().__init__(channel)
        self._user = user
        self.is_supported = not isinstance(self.fetch_replies(((b"PING",),))[0], RedisFuseError)

    def fetch_replies(self, commands: _CommandTuples) -> list[object]:
        return self.channel.execute([(b"ACL", b"DRYRUN", self._user, *command) for command in commands])


class _DiscardedTransactionProbe(_AclProbe):
    """MULTI, the commands, DISCARD: the ACL is checked as they are queued, and then they are thrown away."""

    def __init__(self, channel: Channel, command_filter: DiscardedTransactionFilter) -> None:
        super().__init__(channel)
        self._command_filter = command_filter

    def fetch_replies(self, commands: _CommandTuples) -> list[object]:
        apart = {b"WATCH", b"UNWATCH", b"MULTI", b"DISCARD", b"EXEC"}  # which can't be queued
        queued = [command for command in commands if command[0] not in apart]
        begun, ended = self.channel.execute([(b"MULTI",)])[0], None
        answers: dict[tuple[CommandArgument, ...], object] = {(b"MULTI",): begun}
        if begun == b"OK":
            self._command_filter.begin_transaction()
            *rest, ended = self.channel.execute([*queued, (b"DISCARD",)])
            answers |= dict(zip(queued, rest, strict=True)) | {(b"DISCARD",): ended}
        if ended == b"OK":
            watching = [command for command in commands if command[0] in (b"WATCH", b"UNWATCH")]
            answers |= dict(zip(watching, self.channel.execute(watching), strict=True)) if watching else {}
            answers[(b"EXEC",)] = b"OK"  # not tried: no rule gives MULTI and DISCARD without it on purpose
        return [answers.get(command) for command in commands]


def _denied_part(reply: object) -> str:
    """What of a command the ACL denies: its "command", "key", "channel", or "" if that is not what was answered."""
    if isinstance(reply, AccessError):
        text = str(reply)
    elif isinstance(reply, bytes) and reply not in (b"OK", b"QUEUED") and b"permission" in reply:
        text = reply.decode("utf-8", "replace")
    else:
        return ""
    if " run the " in text:
        return "command"
    return "channel" if "channel" in text else "key"
