"""One change, step by step (JOURNAL.md): watch and read, check, journal (one fsync), then MULTI, the write, EXEC.

Everything that changes Redis goes through `TransactionExecutor.run`. Thread-safe: threads share connections through the pool, and
transactions and fsyncs by going together; WATCH keeps them, and everybody else, apart.
"""

import contextlib
import logging
import time
import weakref
from collections.abc import Mapping, Sequence
from itertools import groupby

from redisfuse.batching import batched
from redisfuse.client.client import Channel, RedisClient
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
from redisfuse.keyspace.listener import WriteListener
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.group_commit import CommitQueue, CommitRequest
from redisfuse.transactions.in_doubt import (
    RETRY_DELAY_SECONDS,
    ExecResult,
    InDoubtResolver,
    fetch_server_time_ms,
    raise_if_not_applied,
)
from redisfuse.transactions.matching import holds_state
from redisfuse.transactions.multi_exec import MultiRefusedError, TransactionRejectedError, run_multi_exec
from redisfuse.transactions.mutation import (
    MAX_MUTATIONS_PER_TRANSACTION,
    MAX_TRANSACTION_BYTES,
    AppliedCallback,
    Mutation,
    MutationRefusedError,
    PartiallyAppliedError,
    PlanFunction,
    collect_intents,
    collect_targets,
    split_into_transactions,
)
from redisfuse.transactions.state_reader import CurrentState, PipelinedCommands, ReadRequest, StateReader

log = logging.getLogger(__name__)

__all__ = [
    "AppliedCallback",
    "Mutation",
    "MutationRefusedError",
    "PartiallyAppliedError",
    "PlanFunction",
    "TransactionExecutor",
    "fetch_server_time_ms",
]

MAX_ATTEMPTS = 16  # how often a change is begun anew because its key changed in the middle

CHUNK_CONFLICT_MESSAGE = "a key changed while many were being changed; the rest was left as it is (see `redisfuse log`)"


class _NotStartedError(Exception):
    """The connection was lost, or the server not ready, before anything was written."""

    def __init__(self, error: UnavailableError) -> None:
        super().__init__(str(error))
        self.error = error


class TransactionExecutor:
    """Runs changes for one session of the journal."""

    def __init__(
        self, client: RedisClient, journal: Journal, session_id: int, *, dump_limit: int, listener: WriteListener
    ) -> None:
        self.client = client
        self.journal = journal
        self.session_id = session_id
        self._dump_limit = dump_limit
        self._listener = listener
        self._verified_channels: weakref.WeakSet[Channel] = (
            weakref.WeakSet()
        )  # on which this user may use MULTI and EXEC at all
        self._resolver = InDoubtResolver(client, journal, self._read_states)
        self._commit_queue = CommitQueue(self._run_batch)

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self, reads: Sequence[ReadRequest], plan: PlanFunction, *, group_commit: bool = False) -> list[int]:
        """Read, decide, journal, write; returns the ids of the changes. `light`: small, so it may go with others.

        Raises what `decide` raises; the journal's errors (Redis was not touched); BusyError (the keys kept changing);
        the server's own errors, mapped (nothing was done); PartlyAppliedError; UnavailableError (nothing was done);
        OutcomeUnknownError (nobody knows: the rows stay pending).
        """
        request = CommitRequest(reads, plan)
        try:
            if group_commit:
                self._commit_queue.submit(request)
            else:
                self._run_single(request)
        finally:
            if request.changed_keys:
                self._listener.keys_written(request.changed_keys)
        if request.error is not None:
            self._publish_failed_change(request)
            raise request.error
        assert request.change_ids is not None
        return request.change_ids

    def _publish_failed_change(self, request: CommitRequest) -> None:
        """Who looks into the journal because of the error finds what became of the change."""
        if isinstance(request.error, RedisFuseError) and request.recorded_change_id is not None:
            request.error.change_id = request.recorded_change_id
            with contextlib.suppress(JournalError):
                self.journal.publish_outcomes()

    def resolve_in_doubt(self) -> None:
        """Find out about changes whose answers never came. Raises UnavailableError."""
        self._resolver.resolve_in_doubt(self._listener.keys_written)

    def _run_batch(self, requests: list[CommitRequest]) -> None:
        """Several at once; those that are not settled so, one by one."""
        if len(requests) > 1:
            try:
                self._resolver.resolve_in_doubt(requests[0].add_changed_keys)
                self._attempt_transaction(requests)
            except _NotStartedError as lost:
                if not isinstance(lost.error, ConnectionLostError | TryAgainError):
                    _fail_requests(requests, lost.error)
            except BaseException as error:
                _fail_requests(requests, error)
        for request in requests:
            if request.is_pending:
                self._run_single(request)

    def _run_single(self, request: CommitRequest) -> None:
        try:
            self._run_with_retries(request)
        except BaseException as error:
            request.error = error

    def _run_with_retries(self, request: CommitRequest) -> None:
        deadline = time.monotonic() + self.client.limits.timeout
        reconnected = False
        attempts = 0
        while attempts < MAX_ATTEMPTS:
            try:
                self._resolver.resolve_in_doubt(request.add_changed_keys)
                if len(request.reads) > MAX_MUTATIONS_PER_TRANSACTION or not self._attempt_transaction([request]):
                    self._run_chunked(request)
            except _NotStartedError as lost:
                again = isinstance(lost.error, TryAgainError) or (
                    isinstance(lost.error, ConnectionLostError) and not reconnected
                )
                if not again or time.monotonic() > deadline:
                    raise lost.error from None
                reconnected = reconnected or isinstance(lost.error, ConnectionLostError)
                time.sleep(RETRY_DELAY_SECONDS if isinstance(lost.error, TryAgainError) else 0)
                continue
            if not request.is_pending:
                return
            attempts += 1
        raise BusyError(f"the key kept changing: given up after {MAX_ATTEMPTS} attempts; try again when it is quieter")

    # -- one transaction ----------------------------------------------------------------------------------------------

    def _attempt_transaction(self, requests: Sequence[CommitRequest]) -> bool:
        """One time from reading to writing, for all; False if it is too much for one transaction.

        A request stays open if a key changed on the way, or if one of several was refused by the server.
        """
        with self.client.write_channel() as dialogue:
            found = self._read_watched(dialogue, [look for request in requests for look in request.reads])
            going: list[tuple[CommitRequest, list[Mutation]]] = []
            for request in requests:
                steps = self._plan_request(request, found)
                if steps:
                    going.append((request, steps))
            everything = [step for _, steps in going for step in steps]
            if not everything:
                return True
            if len(everything) > 1 and sum(step.approximate_bytes for step in everything) > MAX_TRANSACTION_BYTES:
                return False
            ids = self._record_intents([steps for _, steps in going])
            _assign_change_ids(going, ids)
            answer = self._send_transaction(dialogue, everything, ids, found)
        if isinstance(answer, TransactionRejectedError):
            if len(going) == 1:
                raise answer.reason
            return True
        self._record_results(going, ids, answer)
        return True

    def _plan_request(self, request: CommitRequest, states: Mapping[KeyRef, CurrentState]) -> list[Mutation]:
        """The steps of a request; it is settled if there are none. Edits that are refused are kept."""
        try:
            steps = list(request.plan({look.target: states[look.target] for look in request.reads}))
        except MutationRefusedError as refused:
            ids = self.journal.record_intents(
                self.session_id, refused.intents, outcome="refused", error=str(refused.error)
            )
            request.recorded_change_id = ids[0]
            request.error = type(refused.error)(
                f"{refused.error}; nothing was written, the edit is kept as change {ids[0]}: "
                f"see `redisfuse diff {ids[0]}`, write it with `redisfuse apply {ids[0]}`"
            )
            return []
        except RedisFuseError as error:
            request.error = error
            return []
        if not steps:
            request.change_ids = []
        return steps

    def _read_watched(self, channel: Channel, reads: Sequence[ReadRequest]) -> dict[KeyRef, CurrentState]:
        # Somebody who may SET but not MULTI would else write outside of any transaction: see once that they may. (It
        # can be forbidden later, but not unnoticed: see `_send_transaction`.)
        before: PipelinedCommands = [] if channel in self._verified_channels else [("MULTI",), ("EXEC",)]
        try:
            found = StateReader(self.client, channel, dump_limit=self._dump_limit).read(reads, preamble=before)
        except UnavailableError as error:
            raise _NotStartedError(error) from error
        self._verified_channels.add(channel)
        return found

    def _read_states(self, reads: Sequence[ReadRequest]) -> dict[KeyRef, CurrentState]:
        """What targets hold, for those who only want to know. Raises UnavailableError."""
        try:
            with self.client.write_channel() as dialogue:
                return self._read_watched(dialogue, reads)
        except _NotStartedError as lost:
            raise lost.error from None

    def _record_intents(self, groups: Sequence[Sequence[Mutation]]) -> list[int]:
        """Journal the steps; each list, and in it each operation, is a group."""
        sizes = [
            sum(len(step.intents) for step in operation)
            for steps in groups
            for _, operation in groupby(steps, key=lambda step: step.group_index)
        ]
        intents = [intent for steps in groups for intent in collect_intents(steps)]
        return self.journal.record_intents(self.session_id, intents, grouping=sizes)

    def _send_transaction(
        self,
        channel: Channel,
        mutations: Sequence[Mutation],
        change_ids: list[int],
        states: Mapping[KeyRef, CurrentState],
    ) -> ExecResult | TransactionRejectedError:
        """The transaction of steps that are journaled; NotAppliedError if surely nothing was done (rows failed)."""
        commands = [command for step in mutations for command in step.commands]
        try:
            try:
                return run_multi_exec(channel, commands)
            except MultiRefusedError as error:
                log.warning("written without a transaction, for which the server refused MULTI: %s", error)
                return error.replies
            except TransactionRejectedError as refused:
                if isinstance(refused.reason, NoSpaceError) and all(command.is_removal for command in commands):
                    return self._remove_without_multi(channel, mutations, states)
                self.journal.record_outcome(change_ids, "failed", str(refused.reason))
                return refused
        except UnavailableError as lost:
            return lost
        except _NotStartedError as lost:
            self.journal.record_outcome(change_ids, "failed", f"not begun: {lost}")
            raise
        except (RedisFuseError, OSError, ValueError) as error:  # while sending: the server has seen no EXEC
            self.journal.record_outcome(change_ids, "failed", str(error))
            raise

    def _remove_without_multi(
        self, channel: Channel, mutations: Sequence[Mutation], states: Mapping[KeyRef, CurrentState]
    ) -> ExecResult:
        """Remove without MULTI, in which a server that is out of memory refuses everything, also what would help.

        WATCH is no guard then, so all is compared once more right before; what comes in the next moment is not seen.
        """
        again = self._read_watched(channel, [ReadRequest(target) for target in collect_targets(mutations)])
        if not all(_is_unchanged(states[target], now) for target, now in again.items()):
            return None
        return channel.execute([command.args for step in mutations for command in step.commands])

    def _record_results(
        self, planned: Sequence[tuple[CommitRequest, list[Mutation]]], change_ids: list[int], result: ExecResult
    ) -> None:
        """Note what the answer says to each request. The connection is free by now."""
        if len(planned) > 1 and isinstance(result, UnavailableError):
            self._resolve_lost_reply(planned, change_ids, result)
            return
        row = reply = 0
        for request, steps in planned:
            rows = change_ids[row : row + sum(len(step.intents) for step in steps)]
            commands = sum(len(step.commands) for step in steps)
            part = result[reply : reply + commands] if isinstance(result, list) else result
            row, reply = row + len(rows), reply + commands
            try:
                if self._resolver.record_result(rows, steps, part, request.add_changed_keys):
                    request.change_ids = rows
            except RedisFuseError as error:
                request.error = error

    def _resolve_lost_reply(
        self, planned: Sequence[tuple[CommitRequest, list[Mutation]]], change_ids: list[int], cause: UnavailableError
    ) -> None:
        """One answer for several was lost: they are looked for together."""
        everything = [step for _, steps in planned for step in steps]
        try:
            outcomes = self._resolver.resolve(
                change_ids, collect_intents(everything), cause, planned[0][0].add_changed_keys
            )
        except RedisFuseError as error:
            _fail_requests([request for request, _ in planned], error)
            return
        row = 0
        for request, steps in planned:
            part = slice(row, row + len(collect_intents(steps)))
            row = part.stop
            try:
                raise_if_not_applied(change_ids[part], outcomes[part], cause)
                request.change_ids = change_ids[part]
            except UnavailableError as error:
                request.error = error

    # -- more than one transaction can carry --------------------------------------------------------------------------

    def _run_chunked(self, request: CommitRequest) -> None:
        """Journal it all, then do it piece by piece, each piece read once more.

        A piece whose keys have changed meanwhile, and all after it, are not done: ConflictError, the rows say which.
        """
        found: dict[KeyRef, CurrentState] = {}
        for looks_at_once in batched(request.reads, MAX_MUTATIONS_PER_TRANSACTION):
            with self.client.write_channel() as dialogue:
                found |= self._read_watched(dialogue, looks_at_once)
        steps = self._plan_request(request, found)
        if not steps:
            return
        ids = self._record_intents([steps])
        _assign_change_ids([(request, steps)], ids)
        looks = {look.target: look for look in request.reads}
        begun = 0
        try:
            for piece in split_into_transactions(steps):
                rows = ids[begun : begun + len(collect_intents(piece))]
                with self.client.write_channel() as dialogue:
                    again = self._read_watched(dialogue, [looks[target] for target in collect_targets(piece)])
                    if not all(_is_unchanged(found[target], now) for target, now in again.items()):
                        raise ConflictError(CHUNK_CONFLICT_MESSAGE)
                    begun += len(rows)
                    answer = self._send_transaction(dialogue, piece, rows, again)
                if isinstance(answer, TransactionRejectedError):
                    raise answer.reason
                if not self._resolver.record_result(rows, piece, answer, request.add_changed_keys):
                    raise ConflictError(CHUNK_CONFLICT_MESSAGE)
        except (RedisFuseError, _NotStartedError) as problem:
            error = problem.error if isinstance(problem, _NotStartedError) else problem
            if ids[begun:]:
                self.journal.record_outcome(ids[begun:], "failed", f"not begun: {error}")
            raise error from None
        request.change_ids = ids


def _assign_change_ids(planned: Sequence[tuple[CommitRequest, list[Mutation]]], change_ids: Sequence[int]) -> None:
    row = 0
    for request, steps in planned:
        request.recorded_change_id = change_ids[row]
        row += len(collect_intents(steps))


def _fail_requests(requests: Sequence[CommitRequest], error: BaseException) -> None:
    for request in requests:
        if request.is_pending:
            request.error = error


def _is_unchanged(before: CurrentState, current: CurrentState) -> bool:
    return before.key_type == current.key_type and holds_state(current, before.state, compare_expiry=True)
