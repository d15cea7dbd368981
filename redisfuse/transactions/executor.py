"""One change, step by step (JOURNAL.md): watch and read, check, journal (one fsync), then MULTI, the write, EXEC.

Everything that changes Redis goes through `Steps.run`. Thread-safe: threads share connections through the pool, and
transactions and fsyncs by going together; WATCH keeps them, and everybody else, apart.
"""

import contextlib
import logging
import time
import weakref
from collections.abc import Mapping, Sequence
from itertools import groupby

from redisfuse.batching import batched
from redisfuse.client.client import Dialogue, Server
from redisfuse.errors import (
    BusyError,
    ConflictError,
    ConnectionLostError,
    JournalError,
    NoSpaceError,
    RedisFuseError,
    TryAgainError,
    UnavailableError,
)
from redisfuse.journal.journal import Journal
from redisfuse.paths.grammar import Target
from redisfuse.transactions.group_commit import Line, Request
from redisfuse.transactions.in_doubt import PAUSE, Answer, Outcomes, raise_if_not_applied, server_time
from redisfuse.transactions.matching import holds
from redisfuse.transactions.multi_exec import NotAppliedError, NoTransactionError, transact
from redisfuse.transactions.mutation import (
    MULTI_BYTES,
    MULTI_STEPS,
    Decide,
    OnApplied,
    PartlyAppliedError,
    RefusedError,
    Step,
    intents_of,
    targets_of,
    transactions,
)
from redisfuse.transactions.state_reader import Asked, Capture, Found, Look

log = logging.getLogger(__name__)

__all__ = ["Decide", "OnApplied", "PartlyAppliedError", "RefusedError", "Step", "Steps", "server_time"]

ATTEMPTS = 16  # how often a change is begun anew because its key changed in the middle

HALFWAY = "a key changed while many were being changed; the rest was left as it is (see `redisfuse log`)"


class _NotBegunError(Exception):
    """The connection was lost, or the server not ready, before anything was written."""

    def __init__(self, error: UnavailableError) -> None:
        super().__init__(str(error))
        self.error = error


class Steps:
    """Runs changes for one session of the journal."""

    def __init__(
        self, server: Server, journal: Journal, session: int, *, dump_limit: int, on_applied: OnApplied
    ) -> None:
        self.server = server
        self.journal = journal
        self.session = session
        self._dump_limit = dump_limit
        self._on_applied = on_applied
        self._proved: weakref.WeakSet[Dialogue] = weakref.WeakSet()  # on which this user may use MULTI and EXEC at all
        self._outcomes = Outcomes(server, journal, self._read)
        self._line = Line(self._together)

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self, looks: Sequence[Look], decide: Decide, *, light: bool = False) -> list[int]:
        """Read, decide, journal, write; returns the ids of the changes. `light`: small, so it may go with others.

        Raises what `decide` raises; the journal's errors (Redis was not touched); BusyError (the keys kept changing);
        the server's own errors, mapped (nothing was done); PartlyAppliedError; UnavailableError (nothing was done);
        OutcomeUnknownError (nobody knows: the rows stay pending).
        """
        request = Request(looks, decide)
        try:
            if light:
                self._line.settle(request)
            else:
                self._alone(request)
        finally:
            if request.told:
                self._on_applied(request.told)
        if request.error is not None:
            self._say(request)
            raise request.error
        assert request.ids is not None
        return request.ids

    def _say(self, request: Request) -> None:
        """Who looks into the journal because of the error finds what became of the change."""
        if isinstance(request.error, RedisFuseError) and request.recorded is not None:
            request.error.change = request.recorded
            with contextlib.suppress(JournalError):
                self.journal.show()

    def settle_leftovers(self) -> None:
        """Find out about changes whose answers never came. Raises UnavailableError."""
        self._outcomes.settle_leftovers(self._on_applied)

    def _together(self, requests: list[Request]) -> None:
        """Several at once; those that are not settled so, one by one."""
        if len(requests) > 1:
            try:
                self._outcomes.settle_leftovers(requests[0].tell)
                self._attempt(requests)
            except _NotBegunError as lost:
                if not isinstance(lost.error, ConnectionLostError | TryAgainError):
                    _fail(requests, lost.error)
            except BaseException as error:
                _fail(requests, error)
        for request in requests:
            if request.open:
                self._alone(request)

    def _alone(self, request: Request) -> None:
        try:
            self._until_done(request)
        except BaseException as error:
            request.error = error

    def _until_done(self, request: Request) -> None:
        deadline = time.monotonic() + self.server.limits.timeout
        reconnected = False
        attempts = 0
        while attempts < ATTEMPTS:
            try:
                self._outcomes.settle_leftovers(request.tell)
                if len(request.looks) > MULTI_STEPS or not self._attempt([request]):
                    self._in_pieces(request)
            except _NotBegunError as lost:
                again = isinstance(lost.error, TryAgainError) or (
                    isinstance(lost.error, ConnectionLostError) and not reconnected
                )
                if not again or time.monotonic() > deadline:
                    raise lost.error from None
                reconnected = reconnected or isinstance(lost.error, ConnectionLostError)
                time.sleep(PAUSE if isinstance(lost.error, TryAgainError) else 0)
                continue
            if not request.open:
                return
            attempts += 1
        raise BusyError(f"the key kept changing: given up after {ATTEMPTS} attempts; try again when it is quieter")

    # -- one transaction ----------------------------------------------------------------------------------------------

    def _attempt(self, requests: Sequence[Request]) -> bool:
        """One time from reading to writing, for all; False if it is too much for one transaction.

        A request stays open if a key changed on the way, or if one of several was refused by the server.
        """
        with self.server.writer() as dialogue:
            found = self._capture(dialogue, [look for request in requests for look in request.looks])
            going: list[tuple[Request, list[Step]]] = []
            for request in requests:
                steps = self._decide(request, found)
                if steps:
                    going.append((request, steps))
            everything = [step for _, steps in going for step in steps]
            if not everything:
                return True
            if len(everything) > 1 and sum(step.size for step in everything) > MULTI_BYTES:
                return False
            ids = self._intend([steps for _, steps in going])
            _note_rows(going, ids)
            answer = self._send(dialogue, everything, ids, found)
        if isinstance(answer, NotAppliedError):
            if len(going) == 1:
                raise answer.reason
            return True
        self._conclude(going, ids, answer)
        return True

    def _decide(self, request: Request, found: Mapping[Target, Found]) -> list[Step]:
        """The steps of a request; it is settled if there are none. Edits that are refused are kept."""
        try:
            steps = list(request.decide({look.target: found[look.target] for look in request.looks}))
        except RefusedError as refused:
            ids = self.journal.intend(self.session, refused.intents, state="refused", error=str(refused.error))
            request.recorded = ids[0]
            request.error = type(refused.error)(
                f"{refused.error}; nothing was written, the edit is kept as change {ids[0]}: "
                f"see `redisfuse diff {ids[0]}`, write it with `redisfuse apply {ids[0]}`"
            )
            return []
        except RedisFuseError as error:
            request.error = error
            return []
        if not steps:
            request.ids = []
        return steps

    def _capture(self, dialogue: Dialogue, looks: Sequence[Look]) -> dict[Target, Found]:
        # Somebody who may SET but not MULTI would else write outside of any transaction: see once that they may. (It
        # can be forbidden later, but not unnoticed: see `_send`.)
        before: Asked = [] if dialogue in self._proved else [("MULTI",), ("EXEC",)]
        try:
            found = Capture(self.server, dialogue, dump_limit=self._dump_limit).read(looks, before=before)
        except UnavailableError as error:
            raise _NotBegunError(error) from error
        self._proved.add(dialogue)
        return found

    def _read(self, looks: Sequence[Look]) -> dict[Target, Found]:
        """What targets hold, for those who only want to know. Raises UnavailableError."""
        try:
            with self.server.writer() as dialogue:
                return self._capture(dialogue, looks)
        except _NotBegunError as lost:
            raise lost.error from None

    def _intend(self, operations: Sequence[Sequence[Step]]) -> list[int]:
        """Journal the steps; each list, and in it each operation, is a group."""
        sizes = [
            sum(len(step.intents) for step in operation)
            for steps in operations
            for _, operation in groupby(steps, key=lambda step: step.operation)
        ]
        intents = [intent for steps in operations for intent in intents_of(steps)]
        return self.journal.intend(self.session, intents, group=sizes)

    def _send(
        self, dialogue: Dialogue, steps: Sequence[Step], ids: list[int], found: Mapping[Target, Found]
    ) -> Answer | NotAppliedError:
        """The transaction of steps that are journaled; NotAppliedError if surely nothing was done (rows failed)."""
        commands = [command for step in steps for command in step.commands]
        try:
            try:
                return transact(dialogue, commands)
            except NoTransactionError as error:
                log.warning("written without a transaction, for which the server refused MULTI: %s", error)
                return error.replies
            except NotAppliedError as refused:
                if isinstance(refused.reason, NoSpaceError) and all(command.removes for command in commands):
                    return self._remove_plainly(dialogue, steps, found)
                self.journal.settle(ids, "failed", str(refused.reason))
                return refused
        except UnavailableError as lost:
            return lost
        except _NotBegunError as lost:
            self.journal.settle(ids, "failed", f"not begun: {lost}")
            raise
        except (RedisFuseError, OSError, ValueError) as error:  # while sending: the server has seen no EXEC
            self.journal.settle(ids, "failed", str(error))
            raise

    def _remove_plainly(self, dialogue: Dialogue, steps: Sequence[Step], found: Mapping[Target, Found]) -> Answer:
        """Remove without MULTI, in which a server that is out of memory refuses everything, also what would help.

        WATCH is no guard then, so all is compared once more right before; what comes in the next moment is not seen.
        """
        again = self._capture(dialogue, [Look(target) for target in targets_of(steps)])
        if not all(_same(found[target], now) for target, now in again.items()):
            return None
        return dialogue.exchange([command.words for step in steps for command in step.commands])

    def _conclude(self, going: Sequence[tuple[Request, list[Step]]], ids: list[int], answer: Answer) -> None:
        """Note what the answer says to each request. The connection is free by now."""
        if len(going) > 1 and isinstance(answer, UnavailableError):
            self._conclude_lost(going, ids, answer)
            return
        row = reply = 0
        for request, steps in going:
            rows = ids[row : row + sum(len(step.intents) for step in steps)]
            commands = sum(len(step.commands) for step in steps)
            part = answer[reply : reply + commands] if isinstance(answer, list) else answer
            row, reply = row + len(rows), reply + commands
            try:
                if self._outcomes.note(rows, steps, part, request.tell):
                    request.ids = rows
            except RedisFuseError as error:
                request.error = error

    def _conclude_lost(
        self, going: Sequence[tuple[Request, list[Step]]], ids: list[int], lost: UnavailableError
    ) -> None:
        """One answer for several was lost: they are looked for together."""
        everything = [step for _, steps in going for step in steps]
        try:
            outcomes = self._outcomes.find_out(ids, intents_of(everything), lost, going[0][0].tell)
        except RedisFuseError as error:
            _fail([request for request, _ in going], error)
            return
        row = 0
        for request, steps in going:
            part = slice(row, row + len(intents_of(steps)))
            row = part.stop
            try:
                raise_if_not_applied(ids[part], outcomes[part], lost)
                request.ids = ids[part]
            except UnavailableError as error:
                request.error = error

    # -- more than one transaction can carry --------------------------------------------------------------------------

    def _in_pieces(self, request: Request) -> None:
        """Journal it all, then do it piece by piece, each piece read once more.

        A piece whose keys have changed meanwhile, and all after it, are not done: ConflictError, the rows say which.
        """
        found: dict[Target, Found] = {}
        for looks_at_once in batched(request.looks, MULTI_STEPS):
            with self.server.writer() as dialogue:
                found |= self._capture(dialogue, looks_at_once)
        steps = self._decide(request, found)
        if not steps:
            return
        ids = self._intend([steps])
        _note_rows([(request, steps)], ids)
        looks = {look.target: look for look in request.looks}
        begun = 0
        try:
            for piece in transactions(steps):
                rows = ids[begun : begun + len(intents_of(piece))]
                with self.server.writer() as dialogue:
                    again = self._capture(dialogue, [looks[target] for target in targets_of(piece)])
                    if not all(_same(found[target], now) for target, now in again.items()):
                        raise ConflictError(HALFWAY)
                    begun += len(rows)
                    answer = self._send(dialogue, piece, rows, again)
                if isinstance(answer, NotAppliedError):
                    raise answer.reason
                if not self._outcomes.note(rows, piece, answer, request.tell):
                    raise ConflictError(HALFWAY)
        except (RedisFuseError, _NotBegunError) as problem:
            error = problem.error if isinstance(problem, _NotBegunError) else problem
            if ids[begun:]:
                self.journal.settle(ids[begun:], "failed", f"not begun: {error}")
            raise error from None
        request.ids = ids


def _note_rows(going: Sequence[tuple[Request, list[Step]]], ids: Sequence[int]) -> None:
    row = 0
    for request, steps in going:
        request.recorded = ids[row]
        row += len(intents_of(steps))


def _fail(requests: Sequence[Request], error: BaseException) -> None:
    for request in requests:
        if request.open:
            request.error = error


def _same(before: Found, now: Found) -> bool:
    return before.key_type == now.key_type and holds(now, before.state, expiry=True)
