"""Settling what a crash or a silent server left open: changes are compared with what is there, never guessed."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from redisfuse.client.client import Server
from redisfuse.journal.journal import Journal, now
from redisfuse.journal.models import Change, Outcome, State
from redisfuse.paths.grammar import Target
from redisfuse.transactions.executor import server_time
from redisfuse.transactions.matching import agrees, look_for, reached
from redisfuse.transactions.state_reader import Capture

Chain = list[Change]

LIVING = 60_000  # ms; a younger change of a session that is still running is settled by that session
BATCH = 500

WORDS = {
    "applied": None,
    "failed": "found at recovery: the key holds what it held before",
    "unknown": "found at recovery: the key holds neither the prior nor the new state",
}


class Progress(Protocol):
    """Told how many changes were settled since it was last told."""

    def __call__(self, count: int, /) -> None: ...


def recover(
    journal: Journal, server: Server, session: int, *, progress: Progress = lambda _count: None
) -> list[tuple[Change, Outcome]]:
    """Settle the pending changes of the server that `session` is for; returns each with what it turned out to be.

    Changes in flight of other living sessions are settled only if they are seen to be made. Raises UnavailableError
    (what is settled stays so).
    """
    waiting = journal.pending(journal.session(session).info.server.name)
    return settle(journal, server, waiting, session=session, progress=progress)


def settle(
    journal: Journal,
    server: Server,
    waiting: Sequence[Change],
    *,
    session: int | None = None,
    progress: Progress = lambda _count: None,
) -> list[tuple[Change, Outcome]]:
    """Settle these changes, all of one server, as `recover` does."""
    settled: list[tuple[Change, Outcome]] = []
    for batch in _batches(_chains(waiting)):
        for chain, outcomes in zip(batch, _outcomes(journal, server, batch), strict=True):
            for change, outcome in zip(chain, outcomes, strict=True):
                if outcome == "applied" or not _in_flight(journal, change, session):
                    journal.settle([change.id], outcome, WORDS[outcome])
                    settled.append((change, outcome))
        progress(sum(len(chain) for chain in batch))
    if settled:
        journal.flush()
    return settled


def _chains(changes: Sequence[Change]) -> list[Chain]:
    """Changes of one target that follow each other within a moment, perhaps in one transaction."""
    chains: dict[tuple[object, ...], Chain] = {}
    for change in changes:
        alone = change.id if "slice" in (change.prior.kind, change.new.kind) else None
        chains.setdefault((change.session, change.at, change.key, change.field, alone), []).append(change)
    return list(chains.values())


def _batches(chains: Sequence[Chain]) -> Iterator[list[Chain]]:
    """In order, each target at most once in a batch: one reading can't serve two changes of it."""
    batch: list[Chain] = []
    seen: set[Target] = set()
    for chain in chains:
        target = _target(chain[0])
        if batch and (len(batch) >= BATCH or target in seen):
            yield batch
            batch, seen = [], set()
        batch.append(chain)
        seen.add(target)
    if batch:
        yield batch


def _target(change: Change) -> Target:
    return Target(change.key, change.field)


def _in_flight(journal: Journal, change: Change, session: int | None) -> bool:
    """Whether another session may be about to make it right now."""
    if change.session == session or now() - change.at > LIVING:
        return False
    other = journal.session(change.session)
    return other.ended_at is None and not other.died


def _outcomes(journal: Journal, server: Server, chains: Sequence[Chain]) -> list[list[Outcome]]:
    looks = [look_for(_target(chain[0]), *_states(chain)) for chain in chains]
    with server.dialogue() as dialogue:
        found = Capture(server, dialogue, dump_limit=0).read(looks)
    at = server_time(server)
    outcomes: list[list[Outcome]] = []
    for chain in chains:
        seen = _witnessed(journal, chain)
        if seen is None:
            seen = reached(_states(chain), found[_target(chain[0])], at)
        outcomes.append(_each(chain, seen))
    return outcomes


def _states(chain: Chain) -> list[State]:
    """What the target held before the first, and after each."""
    return [chain[0].prior, *(change.new for change in chain)]


def _each(chain: Chain, done: int | None) -> list[Outcome]:
    """The outcome of each change, of which so many were made."""
    if done is None:
        return ["unknown"] * len(chain)
    return ["applied" if number < done else "failed" for number in range(len(chain))]


def _witnessed(journal: Journal, chain: Chain) -> int | None:
    """How many were made, by what the next change of the target found: that counts more than what is there now."""
    last = chain[-1]
    later = [each for each in journal.later_changes(last) if each.field == last.field and each.at != last.at]
    if not later:
        return None
    fitting = [number for number, state in enumerate(_states(chain)) if agrees(later[-1].prior, state)]
    return fitting[0] if len(fitting) == 1 else None
