"""What a user must be allowed, for each way to mount, in the words of Redis's ACL; and what the present one is allowed.

https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/ has the words. The rules name what the
allow-lists name; `tests/faults/test_permissions.py` holds the two together, on a real server.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from redisfuse.client.allowlist import INVALIDATIONS, Rehearsal
from redisfuse.client.capabilities import Facts
from redisfuse.client.channel import Argument, Dialogue
from redisfuse.client.client import Server
from redisfuse.errors import AccessError, NoSpaceError, ReadOnlyError, RedisFuseError

Mode = Literal["read-only", "following", "write"]
MODES: tuple[Mode, ...] = ("read-only", "following", "write")
"""To read; to be told of changes besides (without it a mount is right, but slower); and to write, which follows too."""

READ_KEYS = "%R~{keys}"
WRITE_KEYS = "~{keys}"

READ_WORDS = (
    *("+@read", "-pfcount", "-keys"),
    *("+info", "+ping", "+select", "+time", "+client|setname"),
    *("+multi", "+exec", "+discard", "+watch", "+unwatch"),
)
"""All that reads, but for PFCOUNT, which writes, and KEYS, which stalls a server; and what a connection needs."""

FOLLOW_WORDS = ("+client|tracking", "+subscribe", f"&{INVALIDATIONS.decode()}")

WRITE_WORDS = (
    *("+set", "+setrange", "+append", "+hset", "+hdel"),
    *("+del", "+unlink", "+rename", "+renamenx", "+pexpireat", "+persist"),
    *("+restore", "+rpush", "+sadd", "+zadd", "+xadd", "+xsetid", "+xgroup|create"),
)


def rule(mode: Mode, facts: Facts, keys: str = "*") -> str:
    """The least ACL rule for a mode, on a server of this version: what follows `ACL SETUSER name on >password`.

    `keys` is a glob that narrows it: `config:*`.
    """
    pattern = WRITE_KEYS if mode == "write" or not facts.at_least((7, 0)) else READ_KEYS
    words = ["resetchannels"] if facts.at_least((6, 2)) else []
    words += [pattern.format(keys=keys), *READ_WORDS]
    if facts.has_no_touch:
        words.append("+client|no-touch")
    if mode in ("following", "write"):
        words += [word for word in FOLLOW_WORDS if word[0] != "&" or facts.at_least((6, 2))]
    if mode == "write":
        words += WRITE_WORDS
        words += ["+hsetex"] if facts.has_hsetex else []
        words += ["+hpexpireat", "+hpersist"] if facts.has_hash_field_ttl else []
        words += ["+json.set"] if facts.has_json else []
    return " ".join(words)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a mode can be used: `allowed` is None where that could not be found out."""

    mode: Mode
    allowed: bool | None
    missing: tuple[str, ...]  # the words that would have to be added to the user's rule
    rule: str  # the whole least rule


@dataclass(frozen=True, slots=True)
class Report:
    """What inspect() found."""

    user: str
    method: Literal["dry run", "rehearsal"]  # ACL DRYRUN, or MULTI ... DISCARD
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]  # why writes fail though they are allowed: a replica, a full memory

    def verdict(self, mode: Mode) -> Verdict:
        """The verdict on one mode."""
        return next(verdict for verdict in self.verdicts if verdict.mode == mode)


def inspect(server: Server, *, prefix: bytes = b"", rehearse_writes: bool = False) -> Report:
    """What the present user may do with keys that begin with `prefix`. Nothing is changed, no key is made.

    Where ACL DRYRUN is not allowed (it is an administrator's), commands are queued and thrown away; a denial then shows
    in the server's ACL LOG, so writes are tried only with `rehearse_writes`. Raises UnavailableError, AccessError.
    """
    facts = server.facts
    user = server.address.username or "default"
    key = prefix + b"redisfuse:doctor"
    keys = prefix.decode("utf-8", "backslashreplace") + "*"
    rehearsal = Rehearsal()
    with server.dialogue(guard=rehearsal) as dialogue:
        dry_run = _DryRun(dialogue, user)
        trial = dry_run if dry_run.works else _Rehearsed(dialogue, rehearsal)
        findings: dict[Mode, dict[str, bool | None]] = {
            "read-only": trial.try_all(_reads(facts, key)),
            "following": trial.try_all(_FOLLOWING) if facts.has_tracking else {},
        }
        may_try = dry_run.works or rehearse_writes
        writes = _writes(facts, key)
        findings["write"] = trial.try_all(writes) if may_try else dict.fromkeys(_words_of(writes))
    verdicts: list[Verdict] = []
    for mode in MODES:
        found = findings["read-only"] | findings[mode] | (findings["following"] if mode == "write" else {})
        missing = tuple(_in_words(word, mode, facts, keys) for word, allowed in found.items() if allowed is False)
        unknown = any(allowed is None for allowed in found.values())
        allowed = False if missing else None if unknown else True
        verdicts.append(Verdict(mode, allowed, tuple(dict.fromkeys(missing)), rule(mode, facts, keys)))
    return Report(user, "dry run" if dry_run.works else "rehearsal", tuple(verdicts), tuple(trial.notes))


def _in_words(word: str, mode: Mode, facts: Facts, keys: str) -> str:
    if word != _KEYS:
        return word
    return (WRITE_KEYS if mode == "write" or not facts.at_least((7, 0)) else READ_KEYS).format(keys=keys)


# -- what is tried ---------------------------------------------------------------------------------------------------

_KEYS = "keys"
"""Stands for the key pattern among the words that can be missing."""

_Tried = tuple[tuple[Argument, ...], ...]

_FOLLOWING: _Tried = ((b"CLIENT", b"TRACKING", b"ON", b"BCAST"), (b"SUBSCRIBE", INVALIDATIONS))


def _reads(facts: Facts, key: bytes) -> _Tried:
    """One call of each reading command that a mount uses, with arguments that any server takes."""
    whole: _Tried = (
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
        *([(b"PEXPIRETIME", key)] if facts.has_pexpiretime else []),
        *([(b"CLIENT", b"NO-TOUCH", b"ON")] if facts.has_no_touch else []),
        *([(b"HPEXPIRETIME", key, b"FIELDS", 1, b"f")] if facts.has_hash_field_ttl else []),
        *([(b"JSON.GET", key)] if facts.has_json else []),
        *([(b"HRANDFIELD", key, 1)] if facts.at_least((6, 2)) else []),
    )


def _writes(facts: Facts, key: bytes) -> _Tried:
    """One call of each writing command that edits and rollbacks use."""
    return (
        *((name, key, b"v") for name in (b"SET", b"APPEND", b"RPUSH", b"SADD")),
        *((name, key) for name in (b"DEL", b"UNLINK", b"PERSIST")),
        *((name, key, key) for name in (b"RENAME", b"RENAMENX")),
        *((b"SETRANGE", key, 0, b"v"), (b"HSET", key, b"f", b"v"), (b"HDEL", key, b"f"), (b"ZADD", key, 1, b"v")),
        *((b"PEXPIREAT", key, 1), (b"RESTORE", key, 0, b"v"), (b"XADD", key, b"*", b"f", b"v")),
        *((b"XSETID", key, b"1-1"), (b"XGROUP", b"CREATE", key, b"g", b"$")),
        *([(b"HSETEX", key, b"KEEPTTL", b"FIELDS", 1, b"f", b"v")] if facts.has_hsetex else []),
        *([(b"HPEXPIREAT", key, 1, b"FIELDS", 1, b"f")] if facts.has_hash_field_ttl else []),
        *([(b"HPERSIST", key, b"FIELDS", 1, b"f")] if facts.has_hash_field_ttl else []),
        *([(b"JSON.SET", key, b"$", b"1")] if facts.has_json else []),
    )


def _word_of(command: tuple[Argument, ...]) -> str:
    """The word of a rule that allows a command: `+scan`, `+client|tracking`."""
    words = [bytes(word).decode().lower() for word in command[:2] if isinstance(word, bytes)]
    return "+" + ("|".join(words) if words[0] in ("client", "xgroup") else words[0])


def _words_of(commands: _Tried) -> Iterable[str]:
    return map(_word_of, commands)


# -- how it is tried -------------------------------------------------------------------------------------------------


class _Trial(ABC):
    """Tries commands without running them."""

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self.notes: list[str] = []

    def try_all(self, commands: _Tried) -> dict[str, bool | None]:
        """For each word of a rule: whether the user has it (None: can't be told)."""
        found: dict[str, bool | None] = {}
        for command, answer in zip(commands, self.answers(commands), strict=True):
            word = _word_of(command)
            denied = _denied(answer)
            if denied == "key":
                found[_KEYS] = False
            elif denied == "channel":
                found[FOLLOW_WORDS[-1]] = False
            elif isinstance(answer, ReadOnlyError | NoSpaceError):  # these are checked after the ACL
                found[word] = True
                self.notes += [str(answer)] if str(answer) not in self.notes else []
            elif answer is None or (isinstance(answer, RedisFuseError) and not denied):
                found[word] = None
                continue
            found[word] = denied != "command"
        return found

    @abstractmethod
    def answers(self, commands: _Tried) -> list[object]:
        """What the server says to each command; None where it was not asked."""


class _DryRun(_Trial):
    """ACL DRYRUN (7.0): exact, and leaves no trace, but only administrators may."""

    def __init__(self, dialogue: Dialogue, user: str) -> None:
        super().__init__(dialogue)
        self._user = user
        self.works = not isinstance(self.answers(((b"PING",),))[0], RedisFuseError)

    def answers(self, commands: _Tried) -> list[object]:
        return self.dialogue.exchange([(b"ACL", b"DRYRUN", self._user, *command) for command in commands])


class _Rehearsed(_Trial):
    """MULTI, the commands, DISCARD: the ACL is checked as they are queued, and then they are thrown away."""

    def __init__(self, dialogue: Dialogue, rehearsal: Rehearsal) -> None:
        super().__init__(dialogue)
        self._rehearsal = rehearsal

    def answers(self, commands: _Tried) -> list[object]:
        apart = {b"WATCH", b"UNWATCH", b"MULTI", b"DISCARD", b"EXEC"}  # which can't be queued
        queued = [command for command in commands if command[0] not in apart]
        begun, ended = self.dialogue.exchange([(b"MULTI",)])[0], None
        answers: dict[tuple[Argument, ...], object] = {(b"MULTI",): begun}
        if begun == b"OK":
            self._rehearsal.begin()
            *rest, ended = self.dialogue.exchange([*queued, (b"DISCARD",)])
            answers |= dict(zip(queued, rest, strict=True)) | {(b"DISCARD",): ended}
        if ended == b"OK":
            watching = [command for command in commands if command[0] in (b"WATCH", b"UNWATCH")]
            answers |= dict(zip(watching, self.dialogue.exchange(watching), strict=True)) if watching else {}
            answers[(b"EXEC",)] = b"OK"  # not tried: no rule gives MULTI and DISCARD without it on purpose
        return [answers.get(command) for command in commands]


def _denied(answer: object) -> str:
    """What of a command the ACL denies: its "command", "key", "channel", or "" if that is not what was answered."""
    if isinstance(answer, AccessError):
        text = str(answer)
    elif isinstance(answer, bytes) and answer not in (b"OK", b"QUEUED") and b"permission" in answer:
        text = answer.decode("utf-8", "replace")
    else:
        return ""
    if " run the " in text:
        return "command"
    return "channel" if "channel" in text else "key"
