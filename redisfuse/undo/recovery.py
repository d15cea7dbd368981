"""Settling what a crash or a silent server left open: changes are compared with what is there, never guessed."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from redisfuse.edits.capture import Capture, Found
from redisfuse.edits.compare import look_for, same_state, verdict
from redisfuse.edits.steps import server_time
from redisfuse.journal.journal import Journal, now
from redisfuse.journal.states import Change, Intent, Outcome
from redisfuse.names import Target
from redisfuse.server.server import Server

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

    Changes in flight of other living sessions are left to these. Raises UnavailableError (what is settled stays so).
    """
    waiting = open_changes(journal, journal.session(session).info.server.name, session)
    return settle(journal, server, waiting, progress=progress)


def open_changes(journal: Journal, name: str | None = None, session: int | None = None) -> list[Change]:
    """Changes that nobody will settle if not we: of a server (None: of all), those of other living sessions apart."""
    return [change for change in journal.pending(name) if not _in_flight(journal, change, session)]


def settle(
    journal: Journal, server: Server, waiting: Sequence[Change], *, progress: Progress = lambda _count: None
) -> list[tuple[Change, Outcome]]:
    """Settle these changes, all of this server. Raises UnavailableError."""
    settled: list[tuple[Change, Outcome]] = []
    for batch in _batches(waiting):
        for change, outcome in zip(batch, _outcomes(journal, server, batch), strict=True):
            journal.settle([change.id], outcome, WORDS[outcome])
            settled.append((change, outcome))
        progress(len(batch))
    if settled:
        journal.flush()
    return settled


def _batches(changes: Sequence[Change]) -> Iterator[list[Change]]:
    """In order, each target at most once in a batch: one reading can't serve two changes of it."""
    batch: list[Change] = []
    seen: set[Target] = set()
    for change in changes:
        target = Target(change.key, change.field)
        if batch and (len(batch) >= BATCH or target in seen):
            yield batch
            batch, seen = [], set()
        batch.append(change)
        seen.add(target)
    if batch:
        yield batch


def _in_flight(journal: Journal, change: Change, session: int | None) -> bool:
    if change.session == session or now() - change.at > LIVING:
        return False
    other = journal.session(change.session)
    return other.ended_at is None and not other.died


def _outcomes(journal: Journal, server: Server, changes: Sequence[Change]) -> list[Outcome]:
    intents = [intent_of(change) for change in changes]
    found = _read(server, intents)
    at = server_time(server)
    outcomes: list[Outcome] = []
    for change, intent in zip(changes, intents, strict=True):
        outcome: Outcome = verdict(intent, found[Target(change.key, change.field)], at)
        outcomes.append(_witnessed(journal, change) or outcome)
    return outcomes


def _read(server: Server, intents: Sequence[Intent]) -> dict[Target, Found]:
    looks = [look_for(Target(intent.key, intent.field), intent.prior, intent.new) for intent in intents]
    with server.dialogue() as dialogue:
        return Capture(server, dialogue, dump_limit=0).read(looks)


def _witnessed(journal: Journal, change: Change) -> Outcome | None:
    """What the next change of the same target saw before it was made, if there is one: it was there first."""
    later = [each for each in journal.later_changes(change) if each.field == change.field and each.state == "applied"]
    if not later:
        return None
    seen = later[-1].prior
    if same_state(seen, change.new):
        return "applied"
    return "failed" if same_state(seen, change.prior) else None


def intent_of(change: Change) -> Intent:
    """The intent that a change was recorded from."""
    return Intent(
        change.path,
        change.op,
        change.key,
        change.field,
        change.prior,
        change.new,
        reverts=change.reverts,
        applies=change.applies,
        new_path=change.new_path,
    )
