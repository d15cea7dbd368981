"""Recognizes a server: whether it has the data of an earlier session.

An address can lead to another server than it did, or to the same one, restarted without its data. A change must not be
taken back, applied or resolved there. A server has a new run_id after each start. After that, it is recognized by its
replication id (a promoted replica continues the master's), else by some keys that existed when the session began and
that no journaled change has touched: at least half of them must be as they were. A run that was recognized is recorded
as such, since later changes touch those keys, and further restarts follow.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, Protocol

from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.client.connection_id import ConnectionId
from redisfuse.errors import RedisFuseError
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change, JournalSession, ServerFingerprint
from redisfuse.text import escape_text, literal_glob

ServerVerdict = Literal["same_run", "same_data", "unrecognized", "other_data"]
"""Whether the server is the session's: the same process; restarted, with its data; no evidence; evidence against."""

MAX_SAMPLED_KEYS = 16
MAX_CANDIDATE_KEYS = 48  # keys whose types are read to sample some
MAX_SAMPLED_KEY_BYTES = 1024  # longer keys are not sampled
SAMPLED_CONTENT_BYTES = 1024  # of a string, from its beginning
SCAN_COUNT = 200
MAX_SCANS = 5  # a prefix that few keys have may then have no sample

_SIZE_COMMANDS = {b"string": "STRLEN", b"hash": "HLEN", b"set": "SCARD", b"zset": "ZCARD"}
"""Of lists and streams, which are often queues, only the type counts."""


@dataclass(frozen=True, slots=True)
class ServerComparison:
    """A comparison of the server with the one of an earlier session."""

    session_id: int
    run_id: str  # of the earlier run
    verdict: ServerVerdict
    explanation: str = ""  # for the user; empty if there is nothing to report


def fetch_fingerprint(client: RedisClient, prefix: bytes = b"") -> ServerFingerprint:
    """Read the evidence by which this server can be recognized later.

    It takes a few round trips, whatever the number of keys. `prefix`: sample only keys that begin with it. What the
    user may not read is left out. Raises UnavailableError.
    """
    key_count, keys = _scan_keys(client, prefix)
    replies = client.execute_many([(name, key) for key in keys for name in ("TYPE", "PTTL")])
    types = {
        key: key_type
        for key, key_type, ttl in zip(keys, replies[::2], replies[1::2], strict=True)
        if isinstance(key_type, bytes) and ttl == -1
    }
    strings_first = sorted(types, key=lambda key: types[key] != b"string")  # more of them is compared
    sampled = {key: types[key] for key in strings_first[:MAX_SAMPLED_KEYS]}
    return ServerFingerprint(client.server_info.replication_id, key_count, _fetch_digests(client, sampled))


def _scan_keys(client: RedisClient, prefix: bytes) -> tuple[int | None, list[bytes]]:
    """Return the number of keys (None: not allowed) and some of the keys.

    They are in the server's order, which is random.
    """
    options = ("MATCH", literal_glob(prefix) + b"*") if prefix else ()
    scan: RedisCommand = ("SCAN", b"0", *options, "COUNT", SCAN_COUNT)
    sizes: list[Any] = []
    keys: dict[bytes, None] = {}
    for number, server in enumerate(client.servers, start=1):  # one, or the primaries of a cluster
        max_keys = MAX_CANDIDATE_KEYS * number // len(client.servers)
        size, reply = server.execute_many([("DBSIZE",), scan])
        sizes.append(size)
        for _ in range(MAX_SCANS):
            if isinstance(reply, RedisFuseError):
                break
            cursor, names = reply
            short_names = [key for key in names if len(key) <= MAX_SAMPLED_KEY_BYTES]
            keys |= dict.fromkeys(short_names[: max(0, max_keys - len(keys))])
            if cursor == b"0" or len(keys) >= max_keys:
                break
            (reply,) = server.execute_many([("SCAN", cursor, *scan[2:])])
    return _add_sizes(sizes), list(keys)


def _add_sizes(sizes: Sequence[Any]) -> int | None:
    """Return the sum of replies to DBSIZE; None if one of them is an error."""
    return sum(sizes) if all(isinstance(size, int) for size in sizes) else None


def _fetch_digests(client: RedisClient, types: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return digests of the types and contents of these keys.

    Those that the user may not read are left out.
    """
    commands: list[RedisCommand] = []
    for key, key_type in types.items():
        if key_type in _SIZE_COMMANDS:
            commands.append((_SIZE_COMMANDS[key_type], key))
        if key_type == b"string":
            commands.append(("GETRANGE", key, 0, SAMPLED_CONTENT_BYTES - 1))
    replies = iter(client.execute_many(commands))
    digests: dict[bytes, bytes] = {}
    for key, key_type in types.items():
        count = (key_type in _SIZE_COMMANDS) + (key_type == b"string")
        parts: list[Any] = [key_type, *(next(replies) for _ in range(count))]
        if not any(isinstance(part, RedisFuseError) for part in parts):
            content = b"\0".join(part if isinstance(part, bytes) else b"%d" % part for part in parts)
            digests[key] = sha256(content).digest()
    return digests


# -- comparing -------------------------------------------------------------------------------------------------------


class ChangeOfSession(Protocol):
    """A change, or several, as far as their server is concerned."""

    @property
    def session_id(self) -> int:
        """The session."""

    @property
    def connection_id(self) -> str | None:
        """The connection; None: unknown."""


def compare_servers(
    journal: Journal, client: RedisClient, changes: Iterable[ChangeOfSession]
) -> list[ServerComparison]:
    """Compare the server with those on which changes were made.

    Returns one comparison for each run of a server. The evidence of the newest session of a run counts. Raises
    UnavailableError.
    """
    run_ids = _RunIds(journal)
    newest_by_run: dict[str, int] = {}
    for change in changes:
        run_id = run_ids.get_run_id(change)
        newest_by_run[run_id] = max(change.session_id, newest_by_run.get(run_id, 0))
    return [compare_server(journal, client, journal.get_session(id), run_id) for run_id, id in newest_by_run.items()]


def exclude_other_servers(
    journal: Journal, client: RedisClient, changes: Sequence[Change]
) -> tuple[list[Change], list[ServerComparison]]:
    """Return the changes that may have been made on this server.

    Also returns the comparisons with the servers that seem to be other ones. Raises UnavailableError.
    """
    others = [each for each in compare_servers(journal, client, changes) if each.verdict == "other_data"]
    other_run_ids = {comparison.run_id for comparison in others}
    run_ids = _RunIds(journal)
    return [change for change in changes if run_ids.get_run_id(change) not in other_run_ids], others


class _RunIds:
    """The runs of servers in which changes were made."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._session_run_ids: dict[int, str] = {}

    def get_run_id(self, change: ChangeOfSession) -> str:
        """Return the run_id of the server process that a change was sent to.

        If that is unknown, it is the one at the begin of the session.
        """
        if change.connection_id is not None and (run_id := ConnectionId.parse(change.connection_id).run_id):
            return run_id
        if change.session_id not in self._session_run_ids:
            session = self._journal.get_session(change.session_id)
            self._session_run_ids[change.session_id] = session.metadata.run_id
        return self._session_run_ids[change.session_id]


def record_recognized(journal: Journal, client: RedisClient, comparisons: Iterable[ServerComparison]) -> None:
    """Record that the server is recognized, or confirmed by the user.

    One that seems to be another server is confirmed for one time only.
    """
    run_id = client.server_info.run_id
    for comparison in comparisons:
        earlier = comparison.run_id
        is_confirmed = comparison.verdict in ("same_data", "unrecognized")
        if is_confirmed and run_id and earlier and not journal.is_recognized_run(run_id, earlier):
            journal.add_recognized_run(run_id, earlier)


def recognize_newest_session(journal: Journal, client: RedisClient, server_name: str) -> None:
    """Record whether the server is that of its newest session.

    Call it before another session's changes touch the keys. Raises UnavailableError.
    """
    session = journal.get_newest_session(server_name)
    if session is None:
        return
    comparison = compare_server(journal, client, session, session.metadata.run_id)
    if comparison.verdict == "same_data":
        record_recognized(journal, client, [comparison])


def compare_server(journal: Journal, client: RedisClient, session: JournalSession, run_id: str) -> ServerComparison:
    """Compare the server with a run of a session's server.

    Raises UnavailableError.
    """
    current_run_id = client.server_info.run_id
    if run_id and run_id == current_run_id:
        return ServerComparison(session.id, run_id, "same_run")
    is_restart_known = bool(run_id and current_run_id)
    verdict, reason = _judge(journal, client, session, run_id)
    if not is_restart_known and verdict != "other_data":
        return ServerComparison(session.id, run_id, "same_run")
    event = "was restarted or replaced" if is_restart_known else "is not as it was"
    name = escape_text(session.metadata.server.name.encode())
    explanation = f"the server {name} {event} since session {session.id}: {reason}"
    return ServerComparison(session.id, run_id, verdict, explanation)


def _judge(journal: Journal, client: RedisClient, session: JournalSession, run_id: str) -> tuple[ServerVerdict, str]:
    info, server_name = client.server_info, session.metadata.server.name
    if run_id and info.run_id and journal.is_recognized_run(info.run_id, run_id):
        return "same_data", "it was recognized as the same one before"
    recorded = journal.get_fingerprint(session.id) or ServerFingerprint()
    if recorded.replication_id and recorded.replication_id in (info.replication_id, info.previous_replication_id):
        return "same_data", "it continues that server's replication"
    touched = journal.find_changed_keys(server_name, recorded.sampled_keys, session.started_at)
    samples = {key: digest for key, digest in recorded.sampled_keys.items() if key not in touched}
    current = _fetch_current_digests(client, list(samples))
    samples = {key: digest for key, digest in samples.items() if key in current}
    if samples:
        equal = sum(current[key] == digest for key, digest in samples.items())
        found = f"{equal} of {len(samples)} keys that no change touched are as they were"
        if 2 * equal >= len(samples):
            return "same_data", found
        return "other_data", f"it seems to be another one, as only {found}"
    size = _add_sizes([server.execute_many([("DBSIZE",)])[0] for server in client.servers])
    if recorded.key_count is None or size is None:
        return "unrecognized", "it may be another one, as nothing is recorded by which to recognize it"
    sizes = f"it has {size:,} keys, and had {recorded.key_count:,}"
    unexplained = recorded.key_count - size - journal.count_changes(server_name, session.started_at)
    if 2 * unexplained > recorded.key_count:
        return "other_data", f"it seems to be another one, as {sizes}"
    return "unrecognized", f"it may be another one, as there is no untouched key by which to recognize it; {sizes}"


def _fetch_current_digests(client: RedisClient, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return digests of the keys as they are now, absent ones included.

    Those that the user may not read are left out.
    """
    replies = client.execute_many([("TYPE", key) for key in keys])
    types = {key: reply for key, reply in zip(keys, replies, strict=True) if isinstance(reply, bytes)}
    return _fetch_digests(client, types)
