"""Settling what a crash or a silent server left open: changes are compared with what is there, never guessed."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from redisfuse.client.client import RedisClient
from redisfuse.journal.journal import Journal, now_ms
from redisfuse.journal.models import Change, Outcome, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.executor import fetch_server_time_ms
from redisfuse.transactions.matching import build_read_request, find_last_reached_state, may_be_same_state
from redisfuse.transactions.state_reader import StateReader

ChangeChain = list[Change]

IN_FLIGHT_LIMIT_MS = 60_000  # ms; a younger change of a session that is still running is settled by that session
MAX_CHAINS_PER_BATCH = 500

OUTCOME_MESSAGES = {
    "applied": None,
    "failed": "found at recovery: the key holds what it held before",
    "unknown": "found at recovery: the key holds neither the prior nor the new state",
}


class RecoveryProgress(Protocol):
    """Told how many changes were settled since it was last told."""

    def __call__(self, count: int, /) -> None: ...


def recover_pending(
    journal: Journal, client: RedisClient, session_id: int, *, progress: RecoveryProgress = lambda _count: None
) -> list[tuple[Change, Outcome]]:
    """Settle the pending changes of the server that `session` is for; returns each with what it turned out to be.

    Changes in flight of other living sessions are settled only if they are seen to be made. Raises UnavailableError
    (what is settled stays so).
    """
    waiting = journal.find_pending_changes(journal.get_session(session_id).metadata.server.name)
    return resolve_changes(journal, client, waiting, session_id=session_id, progress=progress)


def resolve_changes(
    journal: Journal,
    client: RedisClient,
    pending: Sequence[Change],
    *,
    session_id: int | None = None,
    progress: RecoveryProgress = lambda _count: None,
) -> list[tuple[Change, Outcome]]:
    """Settle these changes, all of one server, as `recover_pending` does."""
    settled: list[tuple[Change, Outcome]] = []
    for batch in _batch_chains(_group_into_chains(pending)):
        for chain, outcomes in zip(batch, _determine_outcomes(journal, client, batch), strict=True):
            for change, outcome in zip(chain, outcomes, strict=True):
                if outcome == "applied" or not _is_in_flight(journal, change, session_id):
                    journal.record_outcome([change.id], outcome, OUTCOME_MESSAGES[outcome])
                    settled.append((change, outcome))
        progress(sum(len(chain) for chain in batch))
    if settled:
        journal.flush()
    return settled


def _group_into_chains(changes: Sequence[Change]) -> list[ChangeChain]:
    """Changes of one target that follow each other within a moment, perhaps in one transaction."""
    chains: dict[tuple[object, ...], ChangeChain] = {}
    for change in changes:
        alone = change.id if "slice" in (change.prior.kind, change.new.kind) else None
        chains.setdefault((change.session_id, change.recorded_at, change.key, change.field, alone), []).append(change)
    return list(chains.values())


def _batch_chains(chains: Sequence[ChangeChain]) -> Iterator[list[ChangeChain]]:
    """In order, each target at most once in a batch: one reading can't serve two changes of it."""
    batch: list[ChangeChain] = []
    seen: set[KeyRef] = set()
    for chain in chains:
        target = _get_target(chain[0])
        if batch and (len(batch) >= MAX_CHAINS_PER_BATCH or target in seen):
            yield batch
            batch, seen = [], set()
        batch.append(chain)
        seen.add(target)
    if batch:
        yield batch


def _get_target(change: Change) -> KeyRef:
    return KeyRef(change.key, change.field)


def _is_in_flight(journal: Journal, change: Change, session_id: int | None) -> bool:
    """Whether another session may be about to make it right now."""
    if change.session_id == session_id or now_ms() - change.recorded_at > IN_FLIGHT_LIMIT_MS:
        return False
    other = journal.get_session(change.session_id)
    return other.ended_at is None and not other.has_died


def _determine_outcomes(journal: Journal, client: RedisClient, chains: Sequence[ChangeChain]) -> list[list[Outcome]]:
    looks = [build_read_request(_get_target(chain[0]), *_list_states(chain)) for chain in chains]
    with client.dedicated_channel() as dialogue:
        found = StateReader(client, dialogue, dump_limit=0).read(looks)
    at = fetch_server_time_ms(client)
    outcomes: list[list[Outcome]] = []
    for chain in chains:
        seen = _count_applied_from_later_change(journal, chain)
        if seen is None:
            seen = find_last_reached_state(_list_states(chain), found[_get_target(chain[0])], at)
        outcomes.append(_assign_outcomes(chain, seen))
    return outcomes


def _list_states(chain: ChangeChain) -> list[State]:
    """What the target held before the first, and after each."""
    return [chain[0].prior, *(change.new for change in chain)]


def _assign_outcomes(chain: ChangeChain, applied_count: int | None) -> list[Outcome]:
    """The outcome of each change, of which so many were made."""
    if applied_count is None:
        return ["unknown"] * len(chain)
    return ["applied" if number < applied_count else "failed" for number in range(len(chain))]


def _count_applied_from_later_change(journal: Journal, chain: ChangeChain) -> int | None:
    """How many were made, by what the next change of the target found: that counts more than what is there now."""
    last = chain[-1]
    later = [
        each
        for each in journal.find_later_changes(last)
        if each.field == last.field and each.recorded_at != last.recorded_at
    ]
    if not later:
        return None
    fitting = [number for number, state in enumerate(_list_states(chain)) if may_be_same_state(later[-1].prior, state)]
    return fitting[0] if len(fitting) == 1 else None
