"""Resolves changes that a crash or an unreachable server left pending.

The connections that were to execute them are closed at the server, so that none is executed later. Then they are
compared with what the keys hold.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol

from redisfuse.client.client import RedisClient
from redisfuse.client.connection_id import ConnectionId
from redisfuse.journal.journal import Journal, now_ms
from redisfuse.journal.models import Change, Outcome, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.matching import build_read_request, find_last_reached_state, may_be_same_state
from redisfuse.transactions.server_fingerprint import exclude_other_servers
from redisfuse.transactions.state_reader import StateReader, fetch_server_time_ms

log = logging.getLogger(__name__)

ChangeChain = list[Change]
"""Changes of one target that were recorded together, oldest first."""

IN_FLIGHT_LIMIT_MS = 60_000  # ms; a younger change of a session that is still running is left to that session
MAX_CHAINS_PER_BATCH = 500

OUTCOME_MESSAGES = {
    "applied": None,
    "failed": "found at recovery: the key holds its prior state",
    "unknown": "found at recovery: the key holds neither the prior nor the new state",
}


class ProgressCallback(Protocol):
    """Called with the number of changes examined since the last call."""

    def __call__(self, count: int, /) -> None: ...


def recover_pending(
    journal: Journal, client: RedisClient, session_id: int, *, progress: ProgressCallback = lambda _count: None
) -> list[tuple[Change, Outcome]]:
    """Resolve the pending changes of the session's server.

    `client` may write. Returns each that was resolved, with its outcome. A change stays pending if it has not been
    applied and may still be: a change in flight of another running session, or one whose connection the server still
    has (and the ACL forbids CLIENT KILL). So does one of a server that seems to be another one; the log reports those.
    Raises UnavailableError; what was resolved until then stays so.
    """
    pending = journal.find_pending_changes(journal.get_session(session_id).metadata.server.name)
    if pending:
        pending, others = exclude_other_servers(journal, client, pending)
        for comparison in others:
            log.warning("changes stay pending (see `redisfuse recover`): %s", comparison.explanation)
    return resolve_changes(journal, client, pending, session_id=session_id, progress=progress)


def resolve_changes(
    journal: Journal,
    client: RedisClient,
    pending: Sequence[Change],
    *,
    session_id: int | None = None,
    progress: ProgressCallback = lambda _count: None,
) -> list[tuple[Change, Outcome]]:
    """Resolve these changes, all of one server, as `recover_pending` does."""
    resolved: list[tuple[Change, Outcome]] = []
    in_flight_ids = {change.id for change in pending if _is_in_flight(journal, change, session_id)}
    settleable = [change for change in pending if change.id not in in_flight_ids]
    undeliverable = _end_connections(journal, client, settleable, session_id)
    for batch in _batch_chains(_group_into_chains(pending)):
        for chain, outcomes in zip(batch, _determine_outcomes(journal, client, batch), strict=True):
            for change, outcome in zip(chain, outcomes, strict=True):
                may_be_applied = change.id in in_flight_ids or (
                    outcome == "failed" and change.connection_id not in undeliverable
                )
                if outcome == "applied" or not may_be_applied:
                    journal.record_outcome([change.id], outcome, OUTCOME_MESSAGES[outcome])
                    resolved.append((change, outcome))
        progress(sum(len(chain) for chain in batch))
    if resolved:
        journal.flush()
    return resolved


def _end_connections(
    journal: Journal, client: RedisClient, changes: Sequence[Change], session_id: int | None
) -> set[str | None]:
    """Close the connections of these changes at the server.

    Those of other running sessions are only checked. Returns the identities of those that can execute nothing any more,
    with None, which is that of a connection that was not recorded (by an older redisfuse, or of a server before Redis
    6).
    """
    in_use: dict[ConnectionId, bool] = {}
    for change in changes:
        if change.connection_id is not None:
            connection = ConnectionId.parse(change.connection_id)
            in_use[connection] = change.session_id != session_id and _is_session_running(journal, change.session_id)
    gone: set[ConnectionId] = set()
    for only_check in (False, True):
        connections = [connection for connection, is_in_use in in_use.items() if is_in_use is only_check]
        gone |= client.terminate_connections(connections, only_check=only_check)
    return {None, *(connection.text for connection in gone)}


def _group_into_chains(changes: Sequence[Change]) -> list[ChangeChain]:
    """Group the changes of one target that were recorded in the same moment.

    They may have been one transaction. A change of a slice is a chain of its own.
    """
    chains: dict[tuple[object, ...], ChangeChain] = {}
    for change in changes:
        slice_id = change.id if "slice" in (change.prior.kind, change.new.kind) else None
        identity = (change.session_id, change.recorded_at, change.key, change.field, slice_id)
        chains.setdefault(identity, []).append(change)
    return list(chains.values())


def _batch_chains(chains: Sequence[ChangeChain]) -> Iterator[list[ChangeChain]]:
    """Yield the chains in batches, each target at most once in a batch.

    One read can't serve two chains.
    """
    batch: list[ChangeChain] = []
    targets: set[KeyRef] = set()
    for chain in chains:
        target = _get_target(chain[0])
        if batch and (len(batch) >= MAX_CHAINS_PER_BATCH or target in targets):
            yield batch
            batch, targets = [], set()
        batch.append(chain)
        targets.add(target)
    if batch:
        yield batch


def _get_target(change: Change) -> KeyRef:
    return KeyRef(change.key, change.field)


def _is_in_flight(journal: Journal, change: Change, session_id: int | None) -> bool:
    """Whether another session may be about to apply the change right now."""
    if change.session_id == session_id or now_ms() - change.recorded_at > IN_FLIGHT_LIMIT_MS:
        return False
    return _is_session_running(journal, change.session_id)


def _is_session_running(journal: Journal, session_id: int) -> bool:
    session = journal.get_session(session_id)
    return session.ended_at is None and not session.has_died


def _determine_outcomes(journal: Journal, client: RedisClient, chains: Sequence[ChangeChain]) -> list[list[Outcome]]:
    requests = [build_read_request(_get_target(chain[0]), *_list_states(chain)) for chain in chains]
    with client.reading_channel() as channel:
        states = StateReader(client, channel, dump_limit=0).read(requests)
    server_time_ms = fetch_server_time_ms(client)
    outcomes: list[list[Outcome]] = []
    for chain in chains:
        applied_count = _count_applied_from_later_change(journal, chain)
        if applied_count is None:
            current = states[_get_target(chain[0])]
            applied_count = find_last_reached_state(_list_states(chain), current, server_time_ms)
        outcomes.append(_assign_outcomes(chain, applied_count))
    return outcomes


def _list_states(chain: ChangeChain) -> list[State]:
    """Return the state before the first change, and the state after each."""
    return [chain[0].prior, *(change.new for change in chain)]


def _assign_outcomes(chain: ChangeChain, applied_count: int | None) -> list[Outcome]:
    """Return the outcome of each change.

    The first `applied_count` were applied; None: unknown.
    """
    if applied_count is None:
        return ["unknown"] * len(chain)
    return ["applied" if index < applied_count else "failed" for index in range(len(chain))]


def _count_applied_from_later_change(journal: Journal, chain: ChangeChain) -> int | None:
    """Return how many changes were applied, as the target's next change shows.

    Its prior state is better evidence than the current state. None: there is no such change, or it fits several states.
    """
    last = chain[-1]
    later = [
        change
        for change in journal.find_later_changes(last)
        if change.field == last.field and change.recorded_at != last.recorded_at
    ]
    if not later:
        return None
    matching = [index for index, state in enumerate(_list_states(chain)) if may_be_same_state(later[-1].prior, state)]
    return matching[0] if len(matching) == 1 else None
