"""What became of a transaction that was sent: by its replies, or, where they never came, by looking.

A write is never sent twice. A row whose answer was lost stays pending until the server can be asked what it holds now.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from redisfuse.batching import batched
from redisfuse.client.client import Server
from redisfuse.errors import OutcomeUnknownError, RedisFuseError, UnavailableError
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Intent, Outcome
from redisfuse.paths.grammar import Target
from redisfuse.transactions.matching import look_for, verdict
from redisfuse.transactions.mutation import MULTI_STEPS, OnApplied, PartlyAppliedError, Step, exists_after, intents_of
from redisfuse.transactions.state_reader import Found, Look

PAUSE = 0.05  # seconds between looks at a server that does not answer
SETTLING = 0.1  # seconds after which a write that was not seen is taken as not done

CHANGED = "the key changed while it was being written; begun anew"
LOST = "the answer was lost"

Answer = list[Any] | UnavailableError | None
"""Of a transaction: its replies, the error with which the answer was lost, or None: a watched key had changed."""


class Outcomes:
    """Notes outcomes in the journal. Thread-safe. `read` reads targets, as Capture.read, on a connection of its own."""

    def __init__(
        self, server: Server, journal: Journal, read: Callable[[Sequence[Look]], Mapping[Target, Found]]
    ) -> None:
        self._server = server
        self._journal = journal
        self._read = read
        self._lock = threading.Lock()  # of the next line only
        self._leftovers: list[tuple[list[int], list[Intent]]] = []  # rows whose answers never came

    def note(self, ids: list[int], steps: Sequence[Step], answer: Answer, on_applied: OnApplied) -> bool:
        """Note what the answer says; False if a key had changed, so that nothing was done.

        Raises the server's error for the only step; PartlyAppliedError; the error of a lost answer if nothing was done,
        else OutcomeUnknownError.
        """
        if answer is None:
            self._journal.settle(ids, "failed", CHANGED)
            return False
        if isinstance(answer, UnavailableError):
            raise_if_not_applied(ids, self.find_out(ids, intents_of(steps), answer, on_applied), answer)
        elif any(isinstance(reply, RedisFuseError) for reply in answer):
            self._sort_out(ids, steps, answer, on_applied)
        else:
            self._applied(ids, intents_of(steps), on_applied)
        return True

    def _applied(self, ids: Sequence[int], intents: Sequence[Intent], on_applied: OnApplied) -> None:
        self._journal.settle(ids, "applied")
        on_applied({intent.key: exists_after(intent) for intent in intents})

    def _sort_out(self, ids: list[int], steps: Sequence[Step], replies: list[Any], on_applied: OnApplied) -> None:
        """An error inside EXEC stops only its own command: see which steps were done, and say so."""
        failed: list[tuple[Step, RedisFuseError]] = []
        done: list[int] = []
        made: list[Intent] = []
        rows, answers = iter(ids), iter(replies)
        for step in steps:
            step_ids = list(islice(rows, len(step.intents)))
            step_replies = list(islice(answers, len(step.commands)))
            errors = [reply for reply in step_replies if isinstance(reply, RedisFuseError)]
            if not errors:
                done += step_ids
                made += step.intents
                continue
            failed.append((step, errors[0]))
            if len(errors) == len(step.commands):
                self._journal.settle(step_ids, "failed", str(errors[0]))
            else:
                self._settle(step_ids, step.intents, self._verdicts(step.intents), str(errors[0]), on_applied)
        if done:
            self._applied(done, made, on_applied)
        if len(failed) == len(steps) == 1:
            raise failed[0][1]
        raise PartlyAppliedError(failed)

    # -- lost answers -------------------------------------------------------------------------------------------------

    def find_out(
        self, ids: list[int], intents: list[Intent], lost: UnavailableError, on_applied: OnApplied
    ) -> list[Outcome]:
        """The answer to a write never came: look, within the time-out, what became of it, and note that.

        Raises OutcomeUnknownError if the server does not answer.
        """
        deadline = time.monotonic() + self._server.limits.timeout
        while True:
            try:
                outcomes = self._look_twice(intents)
                break
            except UnavailableError as error:
                if time.monotonic() >= deadline:
                    with self._lock:
                        self._leftovers.append((ids, intents))
                    raise OutcomeUnknownError(
                        f"the server did not say whether change {ids[0]} was made ({error}); "
                        "it is settled as soon as the server answers"
                    ) from lost
                time.sleep(PAUSE)
        self._settle(ids, intents, outcomes, LOST, on_applied)
        return outcomes

    def settle_leftovers(self, on_applied: OnApplied) -> None:
        """Find out about rows whose answers never came, before anything else is changed. Raises UnavailableError."""
        if not self._leftovers:
            return
        with self._lock:
            leftovers, self._leftovers = self._leftovers, []
        while leftovers:
            ids, intents = leftovers[0]
            try:
                outcomes = self._look_twice(intents)
            except RedisFuseError:
                with self._lock:
                    self._leftovers = leftovers + self._leftovers
                raise
            self._settle(ids, intents, outcomes, LOST, on_applied)
            del leftovers[0]

    def _look_twice(self, intents: Sequence[Intent]) -> list[Outcome]:
        """Verdicts, where a write that was not seen gets a moment to arrive from a connection that is gone."""
        outcomes = self._verdicts(intents)
        if "failed" in outcomes:
            time.sleep(SETTLING)
            outcomes = self._verdicts(intents)
        return outcomes

    def _verdicts(self, intents: Sequence[Intent]) -> list[Outcome]:
        """What became of each; several changes of one target in one transaction were done together or not at all."""
        whole: dict[Target, Intent] = {}
        for intent in intents:
            target = Target(intent.key, intent.field)
            first = whole.get(target, intent)
            whole[target] = replace(intent, prior=first.prior)
        looks = [look_for(target, intent.prior, intent.new) for target, intent in whole.items()]
        found: dict[Target, Found] = {}
        for batch in batched(looks, MULTI_STEPS):
            found |= self._read(batch)
        now = server_time(self._server)
        verdicts: dict[Target, Outcome] = {
            target: verdict(intent, found[target], now) for target, intent in whole.items()
        }
        return [verdicts[Target(intent.key, intent.field)] for intent in intents]

    def _settle(
        self,
        ids: Sequence[int],
        intents: Sequence[Intent],
        outcomes: Sequence[Outcome],
        why: str,
        on_applied: OnApplied,
    ) -> None:
        endings: tuple[tuple[Outcome, str | None], ...] = (
            ("applied", None),
            ("failed", f"{why}; the key holds what it held before"),
            ("unknown", f"{why}; the key holds neither the prior nor the new state"),
        )
        for outcome, words in endings:
            rows = [id for id, each in zip(ids, outcomes, strict=True) if each == outcome]
            if rows:
                self._journal.settle(rows, outcome, words)
        on_applied({intent.key: None for intent in intents})


def raise_if_not_applied(ids: Sequence[int], outcomes: Sequence[Outcome], lost: UnavailableError) -> None:
    """Raise `lost` if nothing of an operation was done, OutcomeUnknownError if that can't be told of all of it."""
    if all(outcome == "applied" for outcome in outcomes):
        return
    if all(outcome == "failed" for outcome in outcomes):
        raise lost
    raise OutcomeUnknownError(
        f"the answer to change {ids[0]} was lost, and the key holds neither what it held nor what was written"
    ) from lost


def server_time(server: Server) -> int:
    """The server's clock, Unix time in ms: expiries go by it, not by ours."""
    seconds, microseconds = server.ask("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000
