"""Finds the outcome of a transaction: by its replies or, if lost, by its keys.

A write is never sent twice. A row whose reply was lost stays pending until the server can be read again.
"""

import threading
import time
from collections.abc import Sequence
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
    ChangedKeys,
    JournaledMutations,
    Mutation,
    PartiallyAppliedError,
    key_exists_after,
)
from redisfuse.transactions.state_reader import CurrentState, fetch_server_time_ms
from redisfuse.transactions.watched_reader import WatchedReader

RETRY_DELAY_SECONDS = 0.05  # seconds between attempts to reach an unresponsive server
ARRIVAL_GRACE_SECONDS = 0.1  # seconds after which a write that has not arrived is taken as not executed

KEY_CHANGED_MESSAGE = "the key changed while it was being written; tried again"
REPLY_LOST_MESSAGE = "the reply was lost"

ExecResult = list[Any] | UnavailableError | None
"""The replies of a transaction; or the error with which they were lost; or None: a watched key had changed."""


class InDoubtResolver:
    """Records outcomes in the journal.

    Thread-safe. Methods add the changed keys to `changed_keys`.
    """

    def __init__(self, client: RedisClient, journal: Journal, reader: WatchedReader) -> None:
        self._client = client
        self._journal = journal
        self._reader = reader
        self._lock = threading.Lock()  # guards _in_doubt; held only briefly, no other lock is taken under it
        self._in_doubt: list[tuple[list[int], list[ChangeIntent]]] = []  # rows whose replies were lost

    def record_result(self, journaled: JournaledMutations, result: ExecResult, changed_keys: ChangedKeys) -> bool:
        """Record the outcome of a result.

        Returns False if nothing was executed because a key had changed. Raises the server's error for a single
        mutation; PartiallyAppliedError; for a lost reply its UnavailableError if nothing was executed, else
        OutcomeUnknownError.
        """
        if result is None:
            self._journal.record_outcome(journaled.change_ids, "failed", KEY_CHANGED_MESSAGE)
            return False
        if isinstance(result, UnavailableError):
            outcomes = self.resolve(journaled.change_ids, journaled.intents, result, changed_keys)
            raise_if_not_applied(journaled.change_ids, outcomes, result)
        elif any(isinstance(reply, RedisFuseError) for reply in result):
            self._record_partial_failure(journaled, result, changed_keys)
        else:
            self._record_applied(journaled.change_ids, journaled.intents, changed_keys)
        return True

    def _record_applied(
        self, change_ids: Sequence[int], intents: Sequence[ChangeIntent], changed_keys: ChangedKeys
    ) -> None:
        self._journal.record_outcome(change_ids, "applied")
        changed_keys.update({intent.key: key_exists_after(intent) for intent in intents})

    def _record_partial_failure(
        self, journaled: JournaledMutations, replies: list[Any], changed_keys: ChangedKeys
    ) -> None:
        """Record the outcome of each mutation; always raises.

        An error inside EXEC stops only its own command.
        """
        failures: list[tuple[Mutation, RedisFuseError]] = []
        applied_ids: list[int] = []
        applied_intents: list[ChangeIntent] = []
        remaining = iter(replies)
        for part in journaled.split([[mutation] for mutation in journaled.mutations]):
            (mutation,) = part.mutations
            own_replies = list(islice(remaining, len(mutation.commands)))
            errors = [reply for reply in own_replies if isinstance(reply, RedisFuseError)]
            if not errors:
                applied_ids += part.change_ids
                applied_intents += mutation.intents
                continue
            failures.append((mutation, errors[0]))
            if len(errors) == len(mutation.commands):
                self._journal.record_outcome(part.change_ids, "failed", str(errors[0]))
            else:
                outcomes = self._infer_outcomes(mutation.intents)
                self._record_outcomes(part.change_ids, mutation.intents, outcomes, str(errors[0]), changed_keys)
        if applied_ids:
            self._record_applied(applied_ids, applied_intents, changed_keys)
        if len(failures) == len(journaled.mutations) == 1:
            raise failures[0][1]
        raise PartiallyAppliedError(failures)

    # -- lost replies -------------------------------------------------------------------------------------------------

    def resolve(
        self, change_ids: list[int], intents: list[ChangeIntent], cause: UnavailableError, changed_keys: ChangedKeys
    ) -> list[Outcome]:
        """Find out, record and return the outcomes of a write whose reply was lost.

        Tries until the time-out. Raises OutcomeUnknownError if the server does not answer; the rows then stay pending.
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
                        f"the server did not confirm change {change_ids[0]} ({error}); "
                        "its outcome is determined as soon as the server answers"
                    ) from cause
                time.sleep(RETRY_DELAY_SECONDS)
        self._record_outcomes(change_ids, intents, outcomes, REPLY_LOST_MESSAGE, changed_keys)
        return outcomes

    def resolve_in_doubt(self, changed_keys: ChangedKeys) -> None:
        """Find out the outcomes of rows that stayed pending. Raises UnavailableError.

        To be called before anything else is changed, while the keys still show the outcome.
        """
        if not self._in_doubt:
            return
        with self._lock:
            unresolved, self._in_doubt = self._in_doubt, []
        while unresolved:
            change_ids, intents = unresolved[0]
            try:
                outcomes = self._infer_outcomes_after_grace(intents)
            except RedisFuseError:
                with self._lock:
                    self._in_doubt = unresolved + self._in_doubt
                raise
            self._record_outcomes(change_ids, intents, outcomes, REPLY_LOST_MESSAGE, changed_keys)
            del unresolved[0]

    def _infer_outcomes_after_grace(self, intents: Sequence[ChangeIntent]) -> list[Outcome]:
        """Infer the outcomes, after a delay if a write is not there yet.

        It may still arrive from a connection that is gone.
        """
        outcomes = self._infer_outcomes(intents)
        if "failed" in outcomes:
            time.sleep(ARRIVAL_GRACE_SECONDS)
            outcomes = self._infer_outcomes(intents)
        return outcomes

    def _infer_outcomes(self, intents: Sequence[ChangeIntent]) -> list[Outcome]:
        """Infer each outcome from what its target holds now.

        Several changes of one target in one transaction were all executed or none of them.
        """
        merged: dict[KeyRef, ChangeIntent] = {}
        for intent in intents:
            target = KeyRef(intent.key, intent.field)
            first = merged.get(target, intent)
            merged[target] = replace(intent, prior=first.prior)
        requests = [build_read_request(target, intent.prior, intent.new) for target, intent in merged.items()]
        states: dict[KeyRef, CurrentState] = {}
        for batch in batched(requests, MAX_MUTATIONS_PER_TRANSACTION):
            states |= self._reader.read_unguarded(batch)
        now_ms = fetch_server_time_ms(self._client)
        outcomes: dict[KeyRef, Outcome] = {
            target: infer_outcome(intent, states[target], now_ms) for target, intent in merged.items()
        }
        return [outcomes[KeyRef(intent.key, intent.field)] for intent in intents]

    def _record_outcomes(
        self,
        change_ids: Sequence[int],
        intents: Sequence[ChangeIntent],
        outcomes: Sequence[Outcome],
        reason: str,
        changed_keys: ChangedKeys,
    ) -> None:
        messages: tuple[tuple[Outcome, str | None], ...] = (
            ("applied", None),
            ("failed", f"{reason}; the key holds its prior state"),
            ("unknown", f"{reason}; the key holds neither the prior nor the new state"),
        )
        for outcome, message in messages:
            ids = [id for id, inferred in zip(change_ids, outcomes, strict=True) if inferred == outcome]
            if ids:
                self._journal.record_outcome(ids, outcome, message)
        changed_keys.update({intent.key: None for intent in intents})


def raise_if_not_applied(change_ids: Sequence[int], outcomes: Sequence[Outcome], cause: UnavailableError) -> None:
    """Raise unless all of an operation was executed.

    Raises `cause` if nothing of it was, else OutcomeUnknownError.
    """
    if all(outcome == "applied" for outcome in outcomes):
        return
    if all(outcome == "failed" for outcome in outcomes):
        raise cause
    raise OutcomeUnknownError(
        f"the reply to change {change_ids[0]} was lost, and the key holds neither the prior nor the new state"
    ) from cause
