"""Carries out operations: watch and read, plan, journal, then MULTI and EXEC.

Journaling takes one fsync. Everything that changes Redis passes through `TransactionExecutor.run`
(docs/architecture.md). WATCH isolates threads from each other as it does from other clients.
"""

import contextlib
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
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
    raise_if_not_applied,
)
from redisfuse.transactions.matching import holds_state
from redisfuse.transactions.multi_exec import MultiRefusedError, TransactionRejectedError, run_multi_exec
from redisfuse.transactions.mutation import (
    MAX_MUTATIONS_PER_TRANSACTION,
    MAX_TRANSACTION_BYTES,
    ChangedKeys,
    JournaledMutations,
    Mutation,
    collect_intents,
    collect_targets,
    split_into_transactions,
)
from redisfuse.transactions.operation import MutationRefusedError, Operation, WatchedState
from redisfuse.transactions.state_reader import CurrentState, ReadRequest
from redisfuse.transactions.watched_reader import NotStartedError, WatchedReader

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 16  # attempts at an operation while its keys keep changing

CHUNK_CONFLICT_MESSAGE = "a key changed while many were being changed; the rest was left as it is (see `redisfuse log`)"


@dataclass(frozen=True, slots=True)
class _Planned:
    """A request and its mutations, which are journaled."""

    request: CommitRequest
    journaled: JournaledMutations


class TransactionExecutor:
    """Carries out operations in one session of the journal.

    Thread-safe: threads share channels, fsyncs and transactions. `dump_limit`: the number of elements above which a
    collection is not DUMPed. `listener` receives the changed keys after each operation, in the thread that ran it, also
    if the outcome is unknown.
    """

    def __init__(
        self, client: RedisClient, journal: Journal, session_id: int, *, dump_limit: int, listener: WriteListener
    ) -> None:
        self.client = client
        self.journal = journal
        self.session_id = session_id
        self.reader = WatchedReader(client, dump_limit=dump_limit)
        self._listener = listener
        self._resolver = InDoubtResolver(client, journal, self.reader)
        self._commit_queue = CommitQueue()

    def run(self, operation: Operation) -> list[int]:
        """Read, plan, journal and write; return the ids of the changes.

        Raises what `operation.plan` raises; a JournalError (Redis was not touched); BusyError (the keys kept changing);
        the server's error replies (nothing was changed); PartiallyAppliedError; UnavailableError (nothing was changed);
        OutcomeUnknownError (the rows stay pending).
        """
        request = CommitRequest(operation)
        try:
            if operation.may_share_transaction:
                self._run_shared(request)
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
        """Publish the outcome before the error is raised, and name the change in it."""
        if isinstance(request.error, RedisFuseError) and request.recorded_change_id is not None:
            request.error.change_id = request.recorded_change_id
            with contextlib.suppress(JournalError):
                self.journal.publish_outcomes()

    def resolve_in_doubt(self, keys: Collection[bytes] = ()) -> None:
        """Find out the outcomes of changes whose replies were lost.

        `keys`: those whose outcomes are required now. Raises UnavailableError.
        """
        changed_keys: ChangedKeys = {}
        try:
            self._resolver.resolve_in_doubt(changed_keys, keys)
        finally:
            if changed_keys:
                self._listener.keys_written(changed_keys)

    # -- attempts -----------------------------------------------------------------------------------------------------

    def _run_shared(self, request: CommitRequest) -> None:
        batch = self._commit_queue.join(request)
        if not batch:
            return
        try:
            self._run_batch(batch)
        finally:
            self._commit_queue.finish(batch)

    def _run_batch(self, requests: list[CommitRequest]) -> None:
        """Run several in one transaction, then each that has no outcome from it alone."""
        if len(requests) > 1:
            try:
                keys = {key for request in requests for key in request.keys}
                self._resolver.resolve_in_doubt(requests[0].changed_keys, keys)
                self._attempt_transaction(requests)
            except NotStartedError as lost:
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
        has_reconnected = False
        attempts = 0
        while attempts < MAX_ATTEMPTS:
            try:
                self._resolver.resolve_in_doubt(request.changed_keys, request.keys)
                if len(request.reads) > MAX_MUTATIONS_PER_TRANSACTION or not self._attempt_transaction([request]):
                    self._run_chunked(request)
            except NotStartedError as lost:
                may_retry = isinstance(lost.error, TryAgainError) or (
                    isinstance(lost.error, ConnectionLostError) and not has_reconnected
                )
                if not may_retry or time.monotonic() > deadline:
                    raise lost.error from None
                has_reconnected = has_reconnected or isinstance(lost.error, ConnectionLostError)
                time.sleep(RETRY_DELAY_SECONDS if isinstance(lost.error, TryAgainError) else 0)
                continue
            if not request.is_pending:
                return
            attempts += 1
        raise BusyError(f"the key kept changing: gave up after {MAX_ATTEMPTS} attempts; try again later")

    # -- one transaction ----------------------------------------------------------------------------------------------

    def _attempt_transaction(self, requests: Sequence[CommitRequest]) -> bool:
        """Try all requests in one transaction.

        Returns False if the one request is too large for that. A request stays pending if a watched key changed, or if
        the server rejected a transaction of several requests.
        """
        with self.client.write_channel() as channel:
            states = self.reader.read(channel, [read for request in requests for read in request.reads])
            plans = [(request, self._plan_request(request, states)) for request in requests]
            plans = [(request, mutations) for request, mutations in plans if mutations]
            if not plans:
                return True
            all_mutations = [mutation for _, mutations in plans for mutation in mutations]
            if len(all_mutations) > 1 and sum(each.approximate_bytes for each in all_mutations) > MAX_TRANSACTION_BYTES:
                return False
            all_journaled, planned = self._record_intents(plans, channel)
            result = self._send_transaction(channel, all_journaled, states)
        if isinstance(result, TransactionRejectedError):
            if len(planned) == 1:
                raise result.reason
            return True
        self._record_results(planned, all_journaled, result)
        return True

    def _plan_request(self, request: CommitRequest, states: Mapping[KeyRef, CurrentState]) -> list[Mutation]:
        """Return the mutations of a request.

        If there are none, the request has its outcome.
        """
        watched = WatchedState({read.target: states[read.target] for read in request.reads}, self.client)
        try:
            mutations = list(request.operation.plan(watched))
        except MutationRefusedError as refused:
            change_ids = self.journal.record_intents(
                self.session_id, refused.intents, outcome="refused", error=str(refused.error)
            )
            request.recorded_change_id = id = change_ids[0]
            request.error = type(refused.error)(
                f"{refused.error}; nothing was written, the edit is kept as change {id}: "
                f"see `redisfuse diff {id}`, write it with `redisfuse apply {id}`"
            )
            return []
        except RedisFuseError as error:
            request.error = error
            return []
        if not mutations:
            request.change_ids = []
        return mutations

    def _record_intents(
        self, plans: Sequence[tuple[CommitRequest, list[Mutation]]], channel: Channel | None
    ) -> tuple[JournaledMutations, list[_Planned]]:
        """Journal the mutations of all requests with one fsync.

        `channel` is to execute them; None: that is recorded later. Returns them together, and for each request.
        Successive mutations of a request with the same group index form one group of the journal.
        """
        group_sizes = [
            len(collect_intents(list(group)))
            for _, mutations in plans
            for _, group in groupby(mutations, key=lambda mutation: mutation.group_index)
        ]
        all_mutations = [mutation for _, mutations in plans for mutation in mutations]
        connection_id = None if channel is None else channel.connection_id
        change_ids = self.journal.record_intents(
            self.session_id,
            collect_intents(all_mutations),
            grouping=group_sizes,
            connection_id=None if connection_id is None else connection_id.text,
        )
        all_journaled = JournaledMutations(all_mutations, change_ids, connection_id)
        parts = all_journaled.split([mutations for _, mutations in plans])
        planned = [_Planned(request, part) for (request, _), part in zip(plans, parts, strict=True)]
        for each in planned:
            each.request.recorded_change_id = each.journaled.change_ids[0]
        return all_journaled, planned

    def _send_transaction(
        self, channel: Channel, journaled: JournaledMutations, states: Mapping[KeyRef, CurrentState]
    ) -> ExecResult | TransactionRejectedError:
        """Run MULTI, the commands, EXEC.

        Where certainly nothing was executed, the rows are recorded as failed.
        """
        commands = journaled.commands
        try:
            try:
                return run_multi_exec(channel, commands)
            except MultiRefusedError as error:
                log.warning("written without a transaction, because the server refused MULTI: %s", error)
                return error.replies
            except TransactionRejectedError as rejected:
                if isinstance(rejected.reason, NoSpaceError) and all(command.is_removal for command in commands):
                    return self._remove_without_multi(channel, journaled, states)
                self.journal.record_outcome(journaled.change_ids, "failed", str(rejected.reason))
                return rejected
        except UnavailableError as lost:
            return lost
        except NotStartedError as lost:
            self.journal.record_outcome(journaled.change_ids, "failed", f"not started: {lost}")
            raise
        except (RedisFuseError, OSError, ValueError) as error:  # while sending: the server has not seen EXEC
            self.journal.record_outcome(journaled.change_ids, "failed", str(error))
            raise

    def _remove_without_multi(
        self, channel: Channel, journaled: JournaledMutations, states: Mapping[KeyRef, CurrentState]
    ) -> ExecResult:
        """Remove without MULTI, after one more comparison.

        A server that is out of memory refuses MULTI, even around commands that free memory. Without MULTI, WATCH guards
        nothing, so the targets are compared once more right before. A change after that comparison is not noticed.
        """
        requests = [ReadRequest(target) for target in collect_targets(journaled.mutations)]
        if not _are_unchanged(states, self.reader.read(channel, requests)):
            return None
        return channel.execute([command.args for command in journaled.commands])

    def _record_results(
        self, planned: Sequence[_Planned], all_journaled: JournaledMutations, result: ExecResult
    ) -> None:
        """Give each request its outcome. The channel is free by now."""
        if len(planned) > 1 and isinstance(result, UnavailableError):
            self._resolve_lost_reply(planned, all_journaled, result)
            return
        start = 0
        for each in planned:
            end = start + len(each.journaled.commands)
            own_result = result[start:end] if isinstance(result, list) else result
            start = end
            try:
                if self._resolver.record_result(each.journaled, own_result, each.request.changed_keys):
                    each.request.change_ids = each.journaled.change_ids
            except RedisFuseError as error:
                each.request.error = error

    def _resolve_lost_reply(
        self, planned: Sequence[_Planned], all_journaled: JournaledMutations, cause: UnavailableError
    ) -> None:
        """Find out the outcomes of several requests, whose one reply was lost."""
        first = planned[0].request
        try:
            outcomes = self._resolver.resolve(all_journaled, cause, first.changed_keys)
        except RedisFuseError as error:
            _fail_requests([each.request for each in planned], error)
            return
        start = 0
        for each in planned:
            end = start + len(each.journaled.change_ids)
            try:
                raise_if_not_applied(each.journaled.change_ids, outcomes[start:end], cause)
                each.request.change_ids = each.journaled.change_ids
            except UnavailableError as error:
                each.request.error = error
            start = end

    # -- more than one transaction ------------------------------------------------------------------------------------

    def _run_chunked(self, request: CommitRequest) -> None:
        """Journal all mutations, then apply them in several transactions.

        Each transaction reads its targets again. If the keys of a transaction have changed since, it and those after it
        are not applied: ConflictError, and the rows say which.
        """
        states: dict[KeyRef, CurrentState] = {}
        for batch in batched(request.reads, MAX_MUTATIONS_PER_TRANSACTION):
            with self.client.write_channel() as channel:
                states |= self.reader.read(channel, batch)
        mutations = self._plan_request(request, states)
        if not mutations:
            return
        all_journaled, _ = self._record_intents([(request, mutations)], None)
        reads = {read.target: read for read in request.reads}
        started = 0
        try:
            for chunk in all_journaled.split(list(split_into_transactions(mutations))):
                with self.client.write_channel() as channel:
                    targets = collect_targets(chunk.mutations)
                    current = self.reader.read(channel, [reads[target] for target in targets])
                    if not _are_unchanged(states, current):
                        raise ConflictError(CHUNK_CONFLICT_MESSAGE)
                    started += len(chunk.change_ids)
                    chunk = self._assign_connection(chunk, channel)
                    result = self._send_transaction(channel, chunk, current)
                if isinstance(result, TransactionRejectedError):
                    raise result.reason
                if not self._resolver.record_result(chunk, result, request.changed_keys):
                    raise ConflictError(CHUNK_CONFLICT_MESSAGE)
        except (RedisFuseError, NotStartedError) as problem:
            error = problem.error if isinstance(problem, NotStartedError) else problem
            if all_journaled.change_ids[started:]:
                self.journal.record_outcome(all_journaled.change_ids[started:], "failed", f"not started: {error}")
            raise error from None
        request.change_ids = all_journaled.change_ids

    def _assign_connection(self, chunk: JournaledMutations, channel: Channel) -> JournaledMutations:
        """Record that this channel is to execute a chunk."""
        if channel.connection_id is None:
            return chunk
        self.journal.record_connection(chunk.change_ids, channel.connection_id.text)
        return replace(chunk, connection_id=channel.connection_id)


def _fail_requests(requests: Sequence[CommitRequest], error: BaseException) -> None:
    for request in requests:
        if request.is_pending:
            request.error = error


def _are_unchanged(before: Mapping[KeyRef, CurrentState], current: Mapping[KeyRef, CurrentState]) -> bool:
    """Whether each target of `current` holds its state of `before`, expiry included."""
    return all(
        before[target].key_type == now.key_type and holds_state(now, before[target].state, compare_expiry=True)
        for target, now in current.items()
    )
