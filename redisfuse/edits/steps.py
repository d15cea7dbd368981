"""One change, step by step (JOURNAL.md): watch and read, check, journal (one fsync), then MULTI, the write, EXEC.

Everything that changes Redis goes through `Steps.run`. Thread-safe: threads share connections through the server's pool
and fsyncs through the journal's writer; WATCH keeps them, and everybody else, apart.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import Any

from redisfuse.edits.capture import Asked, Capture, Found, Look
from redisfuse.edits.commands import Command, NotAppliedError, transact
from redisfuse.edits.compare import holds, look_for, verdict
from redisfuse.errors import (
    BusyError,
    ConflictError,
    ConnectionLostError,
    OutcomeUnknownError,
    RedisFuseError,
    TryAgainError,
    UnavailableError,
)
from redisfuse.journal.journal import Journal
from redisfuse.journal.states import CHUNK, Intent, Outcome
from redisfuse.names import Target
from redisfuse.server.server import Dialogue, Server

ATTEMPTS = 16  # how often a change is begun anew because its key changed in the middle
MULTI_STEPS = 500  # steps in one transaction
MULTI_BYTES = 64 * CHUNK  # bytes in one transaction, unless one step alone has more
PAUSE = 0.05  # seconds between looks at a server that does not answer
SETTLING = 0.1  # seconds after which a write that was not seen is taken as not done

CHANGED = "the key changed while it was being written; begun anew"
HALFWAY = "a key changed while many were being changed; the rest was left as it is (see `redisfuse log`)"
LOST = "the answer was lost"

_Answer = list[Any] | UnavailableError | None  # of a transaction: replies, a lost answer, or a changed key


@dataclass(frozen=True, slots=True)
class Step:
    """The smallest piece that is done whole: its rows of the journal, and its commands in their order.

    Steps that follow each other with the same `operation` are one group of the journal.
    """

    intents: tuple[Intent, ...]
    commands: tuple[Command, ...]
    operation: int = 0

    @property
    def size(self) -> int:
        """Bytes to send, about."""
        return sum(command.size for command in self.commands)


OnApplied = Callable[[Mapping[bytes, bool | None]], None]
"""Told of the keys that were changed, and whether each exists now (None: it has to be looked at)."""


class RefusedError(Exception):
    """Raised by a `Decide`: nothing may be written; the edits are kept in the journal as refused, `error` is raised."""

    def __init__(self, error: RedisFuseError, intents: Sequence[Intent]) -> None:
        super().__init__(str(error))
        self.error = error
        self.intents = intents


Decide = Callable[[Mapping[Target, Found]], Sequence[Step]]
"""From what the targets hold now to what is to be done; called again whenever a key changed meanwhile."""


class PartlyAppliedError(RedisFuseError):
    """Some steps of an operation were applied and others not; `failed` says which and why."""

    def __init__(self, failed: Sequence[tuple[Step, RedisFuseError]]) -> None:
        super().__init__(str(failed[0][1]))
        self.failed = failed
        self.errno = failed[0][1].errno


class _NotBegunError(Exception):
    """The connection was lost, or the server not ready, before anything was written."""

    def __init__(self, error: UnavailableError) -> None:
        super().__init__(str(error))
        self.error = error


class Steps:
    """Runs changes for one session of the journal."""

    def __init__(
        self,
        server: Server,
        journal: Journal,
        session: int,
        *,
        dump_limit: int,
        on_applied: OnApplied,
    ) -> None:
        self.server = server
        self.journal = journal
        self.session = session
        self._dump_limit = dump_limit
        self._on_applied = on_applied
        self._proved = False  # that this user may use MULTI and EXEC at all
        self._lock = threading.Lock()  # of the next line only
        self._leftovers: list[tuple[list[int], Sequence[Intent]]] = []  # rows whose answers never came

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self, looks: Sequence[Look], decide: Decide) -> list[int]:
        """Read, decide, journal, write; returns the ids of the changes.

        Raises what `decide` raises; the journal's errors (Redis was not touched); BusyError (the keys kept changing);
        the server's own errors, mapped (nothing was done); PartlyAppliedError; UnavailableError (nothing was done);
        OutcomeUnknownError (nobody knows: the rows stay pending).
        """
        deadline = time.monotonic() + self.server.limits.timeout
        reconnected = False
        attempts = 0
        while attempts < ATTEMPTS:
            self.settle_leftovers()
            try:
                ids = self._attempt(looks, decide)
            except _NotBegunError as lost:
                again = isinstance(lost.error, TryAgainError) or (
                    isinstance(lost.error, ConnectionLostError) and not reconnected
                )
                if not again or time.monotonic() > deadline:
                    raise lost.error from None
                reconnected = reconnected or isinstance(lost.error, ConnectionLostError)
                time.sleep(PAUSE if isinstance(lost.error, TryAgainError) else 0)
                continue
            if ids is not None:
                return ids
            attempts += 1
        raise BusyError(f"the key kept changing: given up after {ATTEMPTS} attempts; try again when it is quieter")

    def _attempt(self, looks: Sequence[Look], decide: Decide) -> list[int] | None:
        """One time from reading to writing; None if a key changed on the way."""
        if len(looks) > MULTI_STEPS:
            return self._in_batches(looks, decide)
        with self.server.writer() as dialogue:
            steps = self._decide(decide, self._capture(dialogue, looks))
            one = len(steps) == 1 or sum(step.size for step in steps) <= MULTI_BYTES
            if one and steps:
                ids = self._intend(steps)
                answer = self._send(dialogue, steps, ids)
        if not steps:
            return []
        if not one:
            return self._in_batches(looks, decide)
        return ids if self._conclude(steps, ids, answer) else None

    def _decide(self, decide: Decide, found: Mapping[Target, Found]) -> list[Step]:
        """The steps to be done; edits that are refused are kept."""
        try:
            return list(decide(found))
        except RefusedError as refused:
            ids = self.journal.intend(self.session, refused.intents, state="refused", error=str(refused.error))
            raise type(refused.error)(
                f"{refused.error}; nothing was written, the edit is kept as change {ids[0]}: "
                f"see `redisfuse diff {ids[0]}`, write it with `redisfuse apply {ids[0]}`"
            ) from None

    def _capture(self, dialogue: Dialogue, looks: Sequence[Look]) -> dict[Target, Found]:
        # Somebody who may SET but not MULTI would else write outside of any transaction: see once that they may.
        before: Asked = [] if self._proved else [("MULTI",), ("EXEC",)]
        try:
            found = Capture(self.server, dialogue, dump_limit=self._dump_limit).read(looks, before=before)
        except UnavailableError as error:
            raise _NotBegunError(error) from error
        self._proved = True
        return found

    def _intend(self, steps: Sequence[Step]) -> list[int]:
        intents = [intent for step in steps for intent in step.intents]
        operations = groupby(steps, key=lambda step: step.operation)
        sizes = [sum(len(step.intents) for step in operation) for _, operation in operations]
        return self.journal.intend(self.session, intents, group=sizes)

    def _in_batches(self, looks: Sequence[Look], decide: Decide) -> list[int]:
        """More than one transaction can carry: journal it all, then do it piece by piece, each piece read once more.

        A piece whose keys have changed meanwhile, and all after it, are not done: ConflictError, the rows say which.
        """
        found: dict[Target, Found] = {}
        for start in range(0, len(looks), MULTI_STEPS):
            with self.server.writer() as dialogue:
                found |= self._capture(dialogue, looks[start : start + MULTI_STEPS])
        steps = self._decide(decide, found)
        ids = self._intend(steps)
        by_target = {look.target: look for look in looks}
        begun = 0
        try:
            for batch in _batches(steps):
                rows = ids[begun : begun + sum(len(step.intents) for step in batch)]
                with self.server.writer() as dialogue:
                    again = self._capture(dialogue, [by_target[target] for target in _targets(batch)])
                    if not all(_same(found[target], now) for target, now in again.items()):
                        raise ConflictError(HALFWAY)
                    begun += len(rows)
                    answer = self._send(dialogue, batch, rows)
                if not self._conclude(batch, rows, answer):
                    raise ConflictError(HALFWAY)
        except (RedisFuseError, _NotBegunError) as problem:
            error = problem.error if isinstance(problem, _NotBegunError) else problem
            if ids[begun:]:
                self.journal.settle(ids[begun:], "failed", f"not begun: {error}")
            raise error from None
        return ids

    def _send(self, dialogue: Dialogue, steps: Sequence[Step], ids: list[int]) -> "_Answer":
        """The transaction of steps that are journaled. Raises if surely nothing was done (rows failed)."""
        try:
            return transact(dialogue, [command for step in steps for command in step.commands])
        except UnavailableError as lost:
            return lost
        except NotAppliedError as refused:
            self.journal.settle(ids, "failed", str(refused.reason))
            raise refused.reason from None
        except (RedisFuseError, OSError, ValueError) as error:  # while sending: the server has seen no EXEC
            self.journal.settle(ids, "failed", str(error))
            raise

    def _conclude(self, steps: Sequence[Step], ids: list[int], answer: "_Answer") -> bool:
        """Note what the answer says; False if a key changed since it was watched. The connection is free by now."""
        if answer is None:
            self.journal.settle(ids, "failed", CHANGED)
            return False
        if isinstance(answer, UnavailableError):
            self._find_out(ids, steps, answer)
        elif any(isinstance(reply, RedisFuseError) for reply in answer):
            self._sort_out(ids, steps, answer)
        else:
            self._applied(ids, [intent for step in steps for intent in step.intents])
        return True

    def _sort_out(self, ids: list[int], steps: Sequence[Step], replies: list[Any]) -> None:
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
                self.journal.settle(step_ids, "failed", str(errors[0]))
            else:
                self._note(step_ids, step.intents, self._verdicts(step.intents), str(errors[0]))
        if done:
            self._applied(done, made)
        if len(failed) == len(steps) == 1:
            raise failed[0][1]
        raise PartlyAppliedError(failed)

    def _applied(self, ids: Sequence[int], intents: Sequence[Intent]) -> None:
        self.journal.settle(ids, "applied")
        self._on_applied({intent.key: _exists_after(intent) for intent in intents})

    # -- lost answers -------------------------------------------------------------------------------------------------

    def _find_out(self, ids: list[int], steps: Sequence[Step], lost: UnavailableError) -> None:
        """The answer to a write never came: look, within the time-out, what became of it. Returns if it was applied.

        Raises `lost` if it was not, OutcomeUnknownError if that can't be told (now).
        """
        intents = [intent for step in steps for intent in step.intents]
        deadline = time.monotonic() + self.server.limits.timeout
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
        self._note(ids, intents, outcomes, LOST)
        if all(outcome == "applied" for outcome in outcomes):
            return
        if all(outcome == "failed" for outcome in outcomes):
            raise lost
        raise OutcomeUnknownError(
            f"the answer to change {ids[0]} was lost, and the key holds neither what it held nor what was written"
        ) from lost

    def _look_twice(self, intents: Sequence[Intent]) -> list[Outcome]:
        """Verdicts, where a write that was not seen gets a moment to arrive from a connection that is gone."""
        outcomes = self._verdicts(intents)
        if "failed" in outcomes:
            time.sleep(SETTLING)
            outcomes = self._verdicts(intents)
        return outcomes

    def _verdicts(self, intents: Sequence[Intent]) -> list[Outcome]:
        looks = [look_for(Target(each.key, each.field), each.prior, each.new) for each in intents]
        found: dict[Target, Found] = {}
        for start in range(0, len(looks), MULTI_STEPS):
            try:
                with self.server.writer() as dialogue:
                    found |= self._capture(dialogue, looks[start : start + MULTI_STEPS])
            except _NotBegunError as lost:
                raise lost.error from None
        now = server_time(self.server)
        return [verdict(intent, found[Target(intent.key, intent.field)], now) for intent in intents]

    def _note(self, ids: Sequence[int], intents: Sequence[Intent], outcomes: Sequence[Outcome], why: str) -> None:
        endings: tuple[tuple[Outcome, str], ...] = (
            ("failed", "holds what it held before"),
            ("unknown", "holds neither the prior nor the new state"),
        )
        for outcome, words in endings:
            rows = [id for id, each in zip(ids, outcomes, strict=True) if each == outcome]
            if rows:
                self.journal.settle(rows, outcome, f"{why}; the key {words}")
        applied = [id for id, each in zip(ids, outcomes, strict=True) if each == "applied"]
        if applied:
            self.journal.settle(applied, "applied")
        self._on_applied({intent.key: None for intent in intents})

    def settle_leftovers(self) -> None:
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
            self._note(ids, intents, outcomes, LOST)
            del leftovers[0]


def _exists_after(intent: Intent) -> bool | None:
    """Whether a key exists after a change; not known of a hash that lost a field."""
    if intent.new.kind != "absent":
        return True
    return False if intent.field is None else None


def server_time(server: Server) -> int:
    """The server's clock, Unix time in ms: expiries go by it, not by ours."""
    seconds, microseconds = server.ask("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


def _targets(steps: Sequence[Step]) -> set[Target]:
    return {Target(intent.key, intent.field) for intent in chain.from_iterable(step.intents for step in steps)}


def _same(before: Found, now: Found) -> bool:
    return before.key_type == now.key_type and holds(now, before.state, expiry=True)


def _batches(steps: Sequence[Step]) -> Iterator[list[Step]]:
    batch: list[Step] = []
    size = 0
    for step in steps:
        if batch and (len(batch) >= MULTI_STEPS or size + step.size > MULTI_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(step)
        size += step.size
    if batch:
        yield batch
