"""Carries out operations: watch and read, plan, journal, then MULTI and EXEC.

Journaling takes one fsync. Everything that changes Redis passes through `TransactionExecutor.run`
(docs/architecture.md). WATCH isolates threads from each other as it does from other clients.
"""

import contextlib
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from redisfuse.client.channel import Channel
from redisfuse.client.client import RedisClient
from redisfuse.errors import (
    BusyError,
    ConnectionLostError,
    JournalError,
    NoSpaceError,
    RedirectedError,
    RedisFuseError,
    TryAgainError,
    UnavailableError,
)
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import ChangeIntent
from redisfuse.keyspace.listener import WriteListener
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.callers import Caller, UnknownCaller, attribute_intents
from redisfuse.transactions.chunked import REDIRECTING_CODES, run_chunked, spans_partitions
from redisfuse.transactions.group_commit import CommitQueue, CommitRequest, fail_requests
from redisfuse.transactions.in_doubt import (
    RETRY_DELAY_SECONDS,
    ExecResult,
    InDoubtResolver,
    raise_if_not_applied,
)
from redisfuse.transactions.matching import are_unchanged
from redisfuse.transactions.multi_exec import MultiRefusedError, TransactionRejectedError, run_multi_exec
from redisfuse.transactions.mutation import (
    MAX_MUTATIONS_PER_TRANSACTION,
    MAX_TRANSACTION_BYTES,
    ChangedKeys,
    JournaledMutations,
    Mutation,
    collect_intents,
    collect_targets,
)
from redisfuse.transactions.operation import MutationRefusedError, Operation, WatchedState
from redisfuse.transactions.state_reader import CurrentState, ReadRequest
from redisfuse.transactions.watched_reader import NotStartedError, WatchedReader

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 16  # attempts at an operation while its keys keep changing

KEY_MOVING_MESSAGE = "the key is moving to another node of the cluster; try again later"


@dataclass(frozen=True, slots=True)
class _Planned:
    """A request and its mutations, which are journaled."""

    request: CommitRequest
    journaled: JournaledMutations


class TransactionExecutor:
    """Carries out operations in one session of the journal.

    Thread-safe: threads share channels, fsyncs and transactions. `dump_limit`: the number of elements above which a
    collection is not DUMPed. `listener` receives the changed keys after each operation, in the thread that ran it, also
    if the outcome is unknown. `caller`: the process for which the calling thread works.
    """

    def __init__(
        self,
        client: RedisClient,
        journal: Journal,
        session_id: int,
        *,
        dump_limit: int,
        listener: WriteListener,
        caller: Caller | None = None,
    ) -> None:
        self.client = client
        self.journal = journal
        self.session_id = session_id
        self.reader = WatchedReader(client, dump_limit=dump_limit)
        self._listener = listener
        self._caller: Caller = caller or UnknownCaller()
        self.resolver = InDoubtResolver(client, journal, self.reader)
        self._commit_queue = CommitQueue()

    def run(self, operation: Operation) -> list[int]:
        """Read, plan, journal and write; return the ids of the changes.

        Raises what `operation.plan` raises; a JournalError (Redis was not touched); BusyError (the keys kept changing);
        the server's error replies (nothing was changed); PartiallyAppliedError; UnavailableError (nothing was changed);
        OutcomeUnknownError (the rows stay pending).
        """
        request = CommitRequest(operation, process=self._caller.identify())
        try:
            if operation.may_share_transaction and not self.client.is_partitioned:
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

    def attribute(self, intents: Sequence[ChangeIntent]) -> list[ChangeIntent]:
        """Return the intents as those of the process for which this thread works."""
        return attribute_intents(intents, self._caller.identify())

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
            self.resolver.resolve_in_doubt(changed_keys, keys)
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
                self.resolver.resolve_in_doubt(requests[0].changed_keys, keys)
                self._attempt_transaction(requests)
            except NotStartedError as lost:
                if not isinstance(lost.error, ConnectionLostError | TryAgainError):
                    fail_requests(requests, lost.error)
            except BaseException as error:
                fail_requests(requests, error)
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
        after: RedirectedError | None = None
        is_chunked = len(request.reads) > MAX_MUTATIONS_PER_TRANSACTION or spans_partitions(self.client, request.reads)
        attempts = 0
        while attempts < MAX_ATTEMPTS:
            try:
                self.resolver.resolve_in_doubt(request.changed_keys, request.keys)
                if is_chunked or not self._attempt_transaction([request], after):
                    run_chunked(self, request)
            except NotStartedError as lost:
                after = lost.error if isinstance(lost.error, RedirectedError) else None
                may_retry = isinstance(lost.error, TryAgainError | RedirectedError) or (
                    isinstance(lost.error, ConnectionLostError) and not has_reconnected
                )
                if not may_retry or time.monotonic() > deadline:
                    raise (lost.error if after is None else TryAgainError(KEY_MOVING_MESSAGE)) from None
                has_reconnected = has_reconnected or isinstance(lost.error, ConnectionLostError)
                time.sleep(RETRY_DELAY_SECONDS if isinstance(lost.error, TryAgainError) else 0)
                continue
            if not request.is_pending:
                return
            attempts += 1
        raise BusyError(f"the key kept changing: gave up after {MAX_ATTEMPTS} attempts; try again later")

    # -- one transaction ----------------------------------------------------------------------------------------------

    def _attempt_transaction(self, requests: Sequence[CommitRequest], after: RedirectedError | None = None) -> bool:
        """Try all requests in one transaction.

        Returns False if the one request is too large for that. A request stays pending if a watched key changed, or if
        the server rejected a transaction of several requests. `after`: how the last attempt was redirected.
        """
        with self.client.write_channel(requests[0].reads[0].target.key, after) as channel:
            states = self.reader.read(channel, [read for request in requests for read in request.reads])
            plans = [(request, self.plan_request(request, states)) for request in requests]
            plans = [(request, mutations) for request, mutations in plans if mutations]
            if not plans:
                return True
            all_mutations = [mutation for _, mutations in plans for mutation in mutations]
            if len(all_mutations) > 1 and sum(each.approximate_bytes for each in all_mutations) > MAX_TRANSACTION_BYTES:
                return False
            all_journaled, planned = self.record_intents(plans, channel)
            result = self.send_transaction(channel, all_journaled, states)
        if isinstance(result, TransactionRejectedError):
            if len(planned) == 1:
                raise result.reason
            return True
        self._record_results(planned, all_journaled, result)
        return True

    def plan_request(self, request: CommitRequest, states: Mapping[KeyRef, CurrentState]) -> list[Mutation]:
        """Return the mutations of a request.

        If there are none, the request has its outcome.
        """
        own_states = {read.target: states[read.target] for read in request.reads}
        watched = WatchedState(own_states, self.client, request.process)
        try:
            mutations = list(request.operation.plan(watched))
        except MutationRefusedError as refused:
            change_ids = self.journal.record_intents(
                self.session_id,
                attribute_intents(refused.intents, request.process),
                outcome="refused",
                error=str(refused.error),
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

    def record_intents(
        self, plans: Sequence[tuple[CommitRequest, list[Mutation]]], channel: Channel | None
    ) -> tuple[JournaledMutations, list[_Planned]]:
        """Journal the mutations of all requests with one fsync.

        `channel` is to execute them; None: that is recorded later. Returns them together, and for each request.
        Successive mutations of a request with the same group index form one group of the journal.
        """
        group_sizes: list[int] = []
        intents: list[ChangeIntent] = []
        for request, mutations in plans:
            for _, group in groupby(mutations, key=lambda mutation: mutation.group_index):
                own_intents = collect_intents(group)
                group_sizes.append(len(own_intents))
                intents += attribute_intents(own_intents, request.process)
        connection_id = None if channel is None else channel.connection_id
        change_ids = self.journal.record_intents(
            self.session_id,
            intents,
            grouping=group_sizes,
            connection_id=None if connection_id is None else connection_id.text,
        )
        all_mutations = [mutation for _, mutations in plans for mutation in mutations]
        all_journaled = JournaledMutations(all_mutations, change_ids, connection_id)
        parts = all_journaled.split([mutations for _, mutations in plans])
        planned = [_Planned(request, part) for (request, _), part in zip(plans, parts, strict=True)]
        for each in planned:
            each.request.recorded_change_id = each.journaled.change_ids[0]
        return all_journaled, planned

    def send_transaction(
        self, channel: Channel, journaled: JournaledMutations, states: Mapping[KeyRef, CurrentState]
    ) -> ExecResult | TransactionRejectedError:
        """Run MULTI, the commands, EXEC, and confirm that no fail-over undoes them.

        Where certainly nothing was executed, the rows are recorded as failed.
        """
        result = self._execute(channel, journaled, states)
        if isinstance(result, list):
            try:
                self.client.confirm_write(channel)
            except UnavailableError as error:
                return error
        return result

    def _execute(
        self, channel: Channel, journaled: JournaledMutations, states: Mapping[KeyRef, CurrentState]
    ) -> ExecResult | TransactionRejectedError:
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
                if rejected.reason.reply_code in REDIRECTING_CODES and isinstance(rejected.reason, UnavailableError):
                    raise NotStartedError(rejected.reason) from None
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
        if not are_unchanged(states, self.reader.read(channel, requests)):
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
                if self.resolver.record_result(each.journaled, own_result, each.request.changed_keys):
                    each.request.change_ids = each.journaled.change_ids
            except RedisFuseError as error:
                each.request.error = error

    def _resolve_lost_reply(
        self, planned: Sequence[_Planned], all_journaled: JournaledMutations, cause: UnavailableError
    ) -> None:
        """Find out the outcomes of several requests, whose one reply was lost."""
        first = planned[0].request
        try:
            outcomes = self.resolver.resolve(all_journaled, cause, first.changed_keys)
        except RedisFuseError as error:
            fail_requests([each.request for each in planned], error)
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
