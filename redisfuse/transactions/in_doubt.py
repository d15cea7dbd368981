"""Finds the outcome of a transaction: by its replies or, if lost, by its keys.

A write is never sent twice. A row whose reply was lost stays pending until the server can be read again and, if the key
holds its prior state, until the write can't arrive any more: the server no longer has the connection that sent it, or
another change of the key has been applied since, so that the WATCH makes the server discard the write.
"""

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from more_itertools import chunked

from redisfuse.client.client import RedisClient
from redisfuse.client.connection_id import ConnectionId
from redisfuse.errors import OutcomeUnknownError, RedisFuseError, UnavailableError, UnconfirmedWriteError
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import ChangeIntent, Outcome, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.matching import build_read_request, infer_outcome, may_be_same_state
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
MAX_RETRY_DELAY_SECONDS = 0.5  # the delay doubles up to this
MAX_DELIVERY_CHECK_SECONDS = 10.0  # most seconds between two checks whether a write can still arrive
ARRIVAL_GRACE_SECONDS = 0.1  # after which a write without a known connection is taken as not executed

KEY_CHANGED_MESSAGE = "the key changed while it was being written; tried again"
REPLY_LOST_MESSAGE = "the reply was lost"
SUPERSEDED_MESSAGE = "the reply was lost, and another change was applied since"

ExecResult = list[Any] | UnavailableError | None
"""The replies of a transaction; or the error with which they were lost; or None: a watched key had changed."""


class MayStillArriveError(UnavailableError):
    """The key holds its prior state, but the write may still be executed.

    The server still has the connection that sent it.
    """


@dataclass(slots=True, eq=False)
class _UnconfirmedWrite:
    """A write whose reply was lost. Guarded by the resolver's `_resolving`."""

    change_ids: list[int]
    intents: list[ChangeIntent]
    connection_id: ConnectionId | None  # of the connection that sent it; None: unknown
    is_superseded: bool = False  # another change of one of its keys was applied: the server discards it
    check_delay: float = MAX_RETRY_DELAY_SECONDS
    next_check: float = 0.0  # time.monotonic() before which it is not checked, unless one of its keys is to be changed

    @property
    def keys(self) -> set[bytes]:
        return {intent.key for intent in self.intents}

    def postpone(self) -> None:
        """Check less often: each check takes a connection."""
        self.next_check = time.monotonic() + self.check_delay
        self.check_delay = min(2 * self.check_delay, MAX_DELIVERY_CHECK_SECONDS)

    def merge_by_target(self) -> dict[KeyRef, ChangeIntent]:
        """Return one intent for each target.

        It leads from the state before the target's first change to that after its last. Several changes of one target
        in one transaction were all executed or none of them.
        """
        merged: dict[KeyRef, ChangeIntent] = {}
        for intent in self.intents:
            target = KeyRef(intent.key, intent.field)
            merged[target] = replace(intent, prior=merged.get(target, intent).prior)
        return merged


class InDoubtResolver:
    """Records outcomes in the journal.

    Thread-safe. Methods add the changed keys to `changed_keys`.

    Lock order: `_resolving`, held while the server is queried; then `_lock`, a leaf that is held for a few operations
    on the list.
    """

    def __init__(self, client: RedisClient, journal: Journal, reader: WatchedReader) -> None:
        self._client = client
        self._journal = journal
        self._reader = reader
        self._resolving = threading.Lock()
        self._lock = threading.Lock()
        self._in_doubt: list[_UnconfirmedWrite] = []  # changed under `_lock`; empty in all but rare cases

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
            outcomes = self.resolve(journaled, result, changed_keys)
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
        if self._in_doubt:
            self._settle_superseded(intents)
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
                write = _UnconfirmedWrite(part.change_ids, list(mutation.intents), None)
                self._record_outcomes(write, self._infer_outcomes(write), str(errors[0]), changed_keys)
        if applied_ids:
            self._record_applied(applied_ids, applied_intents, changed_keys)
        if len(failures) == len(journaled.mutations) == 1:
            raise failures[0][1]
        raise PartiallyAppliedError(failures)

    # -- lost replies -------------------------------------------------------------------------------------------------

    def resolve(
        self, journaled: JournaledMutations, cause: UnavailableError, changed_keys: ChangedKeys
    ) -> list[Outcome]:
        """Find out, record and return the outcomes of a write whose reply was lost.

        Tries until the time-out. Raises OutcomeUnknownError if the server does not answer, or if the write may still
        arrive; the rows then stay pending.
        """
        write = _UnconfirmedWrite(journaled.change_ids, journaled.intents, journaled.connection_id)
        deadline = time.monotonic() + self._client.limits.timeout
        delay = RETRY_DELAY_SECONDS
        while True:
            try:
                outcomes = self._determine_outcomes(write)
                break
            except UnavailableError as error:
                if time.monotonic() >= deadline:
                    with self._lock:
                        self._in_doubt.append(write)
                    raise OutcomeUnknownError(
                        f"the server did not confirm change {write.change_ids[0]} ({error}); "
                        "its outcome is determined as soon as the server answers"
                    ) from cause
                time.sleep(delay)
                delay = min(2 * delay, MAX_RETRY_DELAY_SECONDS)
        reason = str(cause) if isinstance(cause, UnconfirmedWriteError) else REPLY_LOST_MESSAGE
        self._record_outcomes(write, outcomes, reason, changed_keys)
        return outcomes

    def resolve_in_doubt(self, changed_keys: ChangedKeys, keys: Collection[bytes] = ()) -> None:
        """Find out the outcomes of rows that stayed pending. Raises UnavailableError.

        To be called before anything else is changed, while the keys still show the outcome. `keys` are those that are
        to be changed. A write that may still arrive stays in doubt: a change of its key makes the server discard it.
        """
        if not self._in_doubt:
            return
        with self._resolving:
            for write in list(self._in_doubt):
                if time.monotonic() < write.next_check and write.keys.isdisjoint(keys):
                    continue
                try:
                    outcomes = self._determine_outcomes(write)
                except MayStillArriveError:
                    write.postpone()
                    continue
                self._settle(write, outcomes, REPLY_LOST_MESSAGE, changed_keys)

    def _settle(
        self, write: _UnconfirmedWrite, outcomes: Sequence[Outcome], reason: str, changed_keys: ChangedKeys
    ) -> None:
        """Record the outcomes of a write in doubt, unless another thread did."""
        with self._lock:
            if write not in self._in_doubt:
                return
            self._in_doubt.remove(write)
        self._record_outcomes(write, outcomes, reason, changed_keys)

    def _settle_superseded(self, applied: Sequence[ChangeIntent]) -> None:
        """Settle the writes in doubt of which a key has been changed by these changes.

        The prior states of the changes, read under WATCH, show whether the write had arrived by then; it can't any
        more.
        """
        priors = {KeyRef(intent.key, intent.field): intent.prior for intent in reversed(applied)}
        keys = {target.key for target in priors}
        for write in list(self._in_doubt):
            if write.keys.isdisjoint(keys):
                continue
            write.is_superseded = True
            outcome = _infer_from_later_states(write, priors)
            if outcome is not None:
                self._settle(write, [outcome] * len(write.intents), SUPERSEDED_MESSAGE, {})

    def _determine_outcomes(self, write: _UnconfirmedWrite) -> list[Outcome]:
        """Infer the outcomes of a write.

        Where its key holds the prior state, that is repeated once the write can't arrive any more. Raises
        MayStillArriveError, UnavailableError.
        """
        outcomes = self._infer_outcomes(write)
        if "failed" not in outcomes or write.is_superseded:
            return outcomes
        if write.connection_id is None:
            time.sleep(ARRIVAL_GRACE_SECONDS)
        elif not self._client.terminate_connections([write.connection_id]):
            raise MayStillArriveError("the server still has the connection that sent it; its ACL forbids CLIENT KILL")
        return self._infer_outcomes(write)

    def _infer_outcomes(self, write: _UnconfirmedWrite) -> list[Outcome]:
        """Infer each outcome from what its target holds now."""
        merged = write.merge_by_target()
        requests = [build_read_request(target, intent.prior, intent.new) for target, intent in merged.items()]
        states: dict[KeyRef, CurrentState] = {}
        for batch in chunked(requests, MAX_MUTATIONS_PER_TRANSACTION):
            states |= self._reader.read_unguarded(batch)
        now_ms = fetch_server_time_ms(self._client)
        outcomes: dict[KeyRef, Outcome] = {
            target: infer_outcome(intent, states[target], now_ms) for target, intent in merged.items()
        }
        return [outcomes[KeyRef(intent.key, intent.field)] for intent in write.intents]

    def _record_outcomes(
        self, write: _UnconfirmedWrite, outcomes: Sequence[Outcome], reason: str, changed_keys: ChangedKeys
    ) -> None:
        messages: tuple[tuple[Outcome, str | None], ...] = (
            ("applied", None),
            ("failed", f"{reason}; the key holds its prior state"),
            ("unknown", f"{reason}; the key holds neither the prior nor the new state"),
        )
        for outcome, message in messages:
            ids = [id for id, inferred in zip(write.change_ids, outcomes, strict=True) if inferred == outcome]
            if ids:
                self._journal.record_outcome(ids, outcome, message)
        changed_keys.update({intent.key: None for intent in write.intents})


def _infer_from_later_states(write: _UnconfirmedWrite, later: Mapping[KeyRef, State]) -> Outcome | None:
    """Return the outcome of a write as later states of its targets show it.

    None if they do not show it.
    """
    for target, intent in write.merge_by_target().items():
        if target in later:
            matches = [state for state in (intent.prior, intent.new) if may_be_same_state(later[target], state)]
            if not matches:
                return "unknown"
            if len(matches) == 1:
                return "failed" if matches[0] is intent.prior else "applied"
    return None


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
