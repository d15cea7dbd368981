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
from redisfuse.client.client import RedisClient
from redisfuse.errors import OutcomeUnknownError, RedisFuseError, UnavailableError
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import ChangeIntent, Outcome
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.matching import build_read_request, infer_outcome
from redisfuse.transactions.mutation import (
    MAX_MUTATIONS_PER_TRANSACTION,
    AppliedCallback,
    Mutation,
    PartiallyAppliedError,
    collect_intents,
    key_exists_after,
)
from redisfuse.transactions.state_reader import CurrentState, ReadRequest

RETRY_DELAY_SECONDS = 0.05  # seconds between looks at a server that does not answer
ARRIVAL_GRACE_SECONDS = 0.1  # seconds after which a write that was not seen is taken as not done

KEY_CHANGED_MESSAGE = "the key changed while it was being written; begun anew"
REPLY_LOST_MESSAGE = "the answer was lost"

ExecResult = list[Any] | UnavailableError | None
"""Of a transaction: its replies, the error with which the answer was lost, or None: a watched key had changed."""


class InDoubtResolver:
    """Notes outcomes in the journal. Thread-safe. `read` reads targets, as Capture.read, on a connection of its own."""

    def __init__(
        self,
        client: RedisClient,
        journal: Journal,
        read_states: Callable[[Sequence[ReadRequest]], Mapping[KeyRef, CurrentState]],
    ) -> None:
        self._client = client
        self._journal = journal
        self._read_states = read_states
        self._lock = threading.Lock()  # of the next line only
        self._in_doubt: list[tuple[list[int], list[ChangeIntent]]] = []  # rows whose answers never came

    def record_result(
        self, change_ids: list[int], mutations: Sequence[Mutation], result: ExecResult, on_applied: AppliedCallback
    ) -> bool:
        """Note what the answer says; False if a key had changed, so that nothing was done.

        Raises the server's error for the only step; PartlyAppliedError; the error of a lost answer if nothing was done,
        else OutcomeUnknownError.
        """
        if result is None:
            self._journal.record_outcome(change_ids, "failed", KEY_CHANGED_MESSAGE)
            return False
        if isinstance(result, UnavailableError):
            raise_if_not_applied(
                change_ids, self.resolve(change_ids, collect_intents(mutations), result, on_applied), result
            )
        elif any(isinstance(reply, RedisFuseError) for reply in result):
            self._record_partial_failure(change_ids, mutations, result, on_applied)
        else:
            self._record_applied(change_ids, collect_intents(mutations), on_applied)
        return True

    def _record_applied(
        self, change_ids: Sequence[int], intents: Sequence[ChangeIntent], on_applied: AppliedCallback
    ) -> None:
        self._journal.record_outcome(change_ids, "applied")
        on_applied({intent.key: key_exists_after(intent) for intent in intents})

    def _record_partial_failure(
        self, change_ids: list[int], mutations: Sequence[Mutation], replies: list[Any], on_applied: AppliedCallback
    ) -> None:
        """An error inside EXEC stops only its own command: see which steps were done, and say so."""
        failed: list[tuple[Mutation, RedisFuseError]] = []
        done: list[int] = []
        made: list[ChangeIntent] = []
        rows, answers = iter(change_ids), iter(replies)
        for step in mutations:
            step_ids = list(islice(rows, len(step.intents)))
            step_replies = list(islice(answers, len(step.commands)))
            errors = [reply for reply in step_replies if isinstance(reply, RedisFuseError)]
            if not errors:
                done += step_ids
                made += step.intents
                continue
            failed.append((step, errors[0]))
            if len(errors) == len(step.commands):
                self._journal.record_outcome(step_ids, "failed", str(errors[0]))
            else:
                self._record_outcomes(
                    step_ids, step.intents, self._infer_outcomes(step.intents), str(errors[0]), on_applied
                )
        if done:
            self._record_applied(done, made, on_applied)
        if len(failed) == len(mutations) == 1:
            raise failed[0][1]
        raise PartiallyAppliedError(failed)

    # -- lost answers -------------------------------------------------------------------------------------------------

    def resolve(
        self, change_ids: list[int], intents: list[ChangeIntent], cause: UnavailableError, on_applied: AppliedCallback
    ) -> list[Outcome]:
        """The answer to a write never came: look, within the time-out, what became of it, and note that.

        Raises OutcomeUnknownError if the server does not answer.
        """
        deadline = time.monotonic() + self._client.limits.timeout
        while True:
            try:
                outcomes = self._infer_outcomes_after_grace(intents)
                break
            except UnavailableError as error:
                if time.monotonic() >= deadline:
                    with self._lock:
                        self._in_doubt.append((change_ids, intents))
                    raise OutcomeUnknownError(
                        f"the server did not say whether change {change_ids[0]} was made ({error}); "
                        "it is settled as soon as the server answers"
                    ) from cause
                time.sleep(RETRY_DELAY_SECONDS)
        self._record_outcomes(change_ids, intents, outcomes, REPLY_LOST_MESSAGE, on_applied)
        return outcomes

    def resolve_in_doubt(self, on_applied: AppliedCallback) -> None:
        """Find out about rows whose answers never came, before anything else is changed. Raises UnavailableError."""
        if not self._in_doubt:
            return
        with self._lock:
            leftovers, self._in_doubt = self._in_doubt, []
        while leftovers:
            ids, intents = leftovers[0]
            try:
                outcomes = self._infer_outcomes_after_grace(intents)
            except RedisFuseError:
                with self._lock:
                    self._in_doubt = leftovers + self._in_doubt
                raise
            self._record_outcomes(ids, intents, outcomes, REPLY_LOST_MESSAGE, on_applied)
            del leftovers[0]

    def _infer_outcomes_after_grace(self, intents: Sequence[ChangeIntent]) -> list[Outcome]:
        """Verdicts, where a write that was not seen gets a moment to arrive from a connection that is gone."""
        outcomes = self._infer_outcomes(intents)
        if "failed" in outcomes:
            time.sleep(ARRIVAL_GRACE_SECONDS)
            outcomes = self._infer_outcomes(intents)
        return outcomes

    def _infer_outcomes(self, intents: Sequence[ChangeIntent]) -> list[Outcome]:
        """What became of each; several changes of one target in one transaction were done together or not at all."""
        whole: dict[KeyRef, ChangeIntent] = {}
        for intent in intents:
            target = KeyRef(intent.key, intent.field)
            first = whole.get(target, intent)
            whole[target] = replace(intent, prior=first.prior)
        looks = [build_read_request(target, intent.prior, intent.new) for target, intent in whole.items()]
        found: dict[KeyRef, CurrentState] = {}
        for batch in batched(looks, MAX_MUTATIONS_PER_TRANSACTION):
            found |= self._read_states(batch)
        now = fetch_server_time_ms(self._client)
        verdicts: dict[KeyRef, Outcome] = {
            target: infer_outcome(intent, found[target], now) for target, intent in whole.items()
        }
        return [verdicts[KeyRef(intent.key, intent.field)] for intent in intents]

    def _record_outcomes(
        self,
        change_ids: Sequence[int],
        intents: Sequence[ChangeIntent],
        outcomes: Sequence[Outcome],
        reason: str,
        on_applied: AppliedCallback,
    ) -> None:
        endings: tuple[tuple[Outcome, str | None], ...] = (
            ("applied", None),
            ("failed", f"{reason}; the key holds what it held before"),
            ("unknown", f"{reason}; the key holds neither the prior nor the new state"),
        )
        for outcome, words in endings:
            rows = [id for id, each in zip(change_ids, outcomes, strict=True) if each == outcome]
            if rows:
                self._journal.record_outcome(rows, outcome, words)
        on_applied({intent.key: None for intent in intents})


def raise_if_not_applied(change_ids: Sequence[int], outcomes: Sequence[Outcome], cause: UnavailableError) -> None:
    """Raise `lost` if nothing of an operation was done, OutcomeUnknownError if that can't be told of all of it."""
    if all(outcome == "applied" for outcome in outcomes):
        return
    if all(outcome == "failed" for outcome in outcomes):
        raise cause
    raise OutcomeUnknownError(
        f"the answer to change {change_ids[0]} was lost, and the key holds neither what it held nor what was written"
    ) from cause


def fetch_server_time_ms(client: RedisClient) -> int:
    """The server's clock, Unix time in ms: expiries go by it, not by ours."""
    seconds, microseconds = client.execute("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000
