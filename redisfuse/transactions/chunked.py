"""Applies an operation in several transactions.

That is one that is too large for one transaction, or that has keys of several slots. All of its mutations are journaled
first. Each transaction reads its targets again. If they have changed since, it and those after it are not applied:
ConflictError, and the rows say which.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from more_itertools import chunked

from redisfuse.client.channel import Channel
from redisfuse.client.client import RedisClient
from redisfuse.errors import ConflictError, RedirectedError, RedisFuseError, TryAgainError, UnavailableError
from redisfuse.journal.models import State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.group_commit import CommitRequest
from redisfuse.transactions.in_doubt import RETRY_DELAY_SECONDS, ExecResult
from redisfuse.transactions.matching import are_unchanged, holds_state
from redisfuse.transactions.multi_exec import TransactionRejectedError
from redisfuse.transactions.mutation import (
    MAX_MUTATIONS_PER_TRANSACTION,
    JournaledMutations,
    Mutation,
    collect_targets,
    split_into_transactions,
)
from redisfuse.transactions.revert import Revert
from redisfuse.transactions.state_reader import CurrentState, ReadRequest
from redisfuse.transactions.watched_reader import NotStartedError

if TYPE_CHECKING:
    from redisfuse.transactions.executor import TransactionExecutor

log = logging.getLogger(__name__)

CHUNK_CONFLICT_MESSAGE = "a key changed while many were being changed; the rest was left as it is (see `redisfuse log`)"

REDIRECTING_CODES = ("MOVED", "ASK", "CLUSTERDOWN", "TRYAGAIN")
"""Codes of EXEC's error replies in a cluster after which the same transaction may succeed."""


def spans_partitions(client: RedisClient, requests: Sequence[ReadRequest]) -> bool:
    """Return whether targets are of several slots of a cluster.

    Then they can't be changed in one transaction.
    """
    return client.is_partitioned and len({client.partition(request.target.key) for request in requests}) > 1


def run_chunked(executor: TransactionExecutor, request: CommitRequest) -> None:
    """Journal all mutations of a request, then apply them in several transactions.

    Raises ConflictError, the server's errors, and NotStartedError for what may be tried again as a whole.
    """
    client = executor.client
    states = _read_all(executor, request)
    mutations = executor.plan_request(request, states)
    if not mutations:
        return
    all_journaled, _ = executor.record_intents([(request, mutations)], None)
    reads = {read.target: read for read in request.reads}
    applied: JournaledMutations | None = None
    written: dict[KeyRef, State] = {}  # by the transactions so far
    remaining_ids = list(all_journaled.change_ids)  # of the rows whose transactions were not sent
    try:
        for chunk in all_journaled.split(list(_split(client, mutations))):
            chunk_reads = [reads[target] for target in collect_targets(chunk.mutations)]
            result = _send_chunk(executor, chunk, chunk_reads, states, written)
            del remaining_ids[: len(chunk.change_ids)]
            _record_result(executor, request, *result)
            applied = chunk
            written |= {KeyRef(intent.key, intent.field): intent.new for intent in chunk.intents}
    except (RedisFuseError, NotStartedError) as problem:
        error = problem.error if isinstance(problem, NotStartedError) else problem
        if remaining_ids:
            executor.journal.record_outcome(remaining_ids, "failed", f"not started: {error}")
        if applied is not None and isinstance(error, ConflictError):
            _take_back(executor, applied)
        raise error from None
    request.change_ids = all_journaled.change_ids


def _read_all(executor: TransactionExecutor, request: CommitRequest) -> dict[KeyRef, CurrentState]:
    states: dict[KeyRef, CurrentState] = {}
    for batch in chunked(request.reads, MAX_MUTATIONS_PER_TRANSACTION):
        if executor.client.is_partitioned:
            states |= executor.reader.read_unguarded(batch)
        else:
            with executor.client.write_channel() as channel:
                states |= executor.reader.read(channel, batch)
    return states


def _split(client: RedisClient, mutations: Sequence[Mutation]) -> Iterator[list[Mutation]]:
    """Yield the mutations of each transaction, in order."""
    if not client.is_partitioned:
        yield from split_into_transactions(mutations)
        return
    run: list[Mutation] = []
    for mutation in mutations:
        if run and client.partition(mutation.intents[0].key) != client.partition(run[0].intents[0].key):
            yield from split_into_transactions(run)
            run = []
        run.append(mutation)
    yield from split_into_transactions(run)


def _send_chunk(
    executor: TransactionExecutor,
    chunk: JournaledMutations,
    reads: Sequence[ReadRequest],
    states: Mapping[KeyRef, CurrentState],
    written: Mapping[KeyRef, State],
) -> tuple[JournaledMutations, ExecResult | TransactionRejectedError]:
    """Send one transaction; return it as it was sent, and its result.

    Where a cluster redirected it, it begins again until the time-out. Any error means that nothing was executed.
    """
    deadline = time.monotonic() + executor.client.limits.timeout
    after: RedirectedError | None = None
    while True:
        try:
            with executor.client.write_channel(reads[0].target.key, after) as channel:
                current = executor.reader.read(channel, reads)
                if not _are_as_expected(states, written, current):
                    raise ConflictError(CHUNK_CONFLICT_MESSAGE)
                sent = _assign_connection(executor, chunk, channel)
                return sent, executor.send_transaction(channel, sent, current)
        except NotStartedError as lost:
            may_retry = executor.client.is_partitioned and isinstance(lost.error, RedirectedError | TryAgainError)
            if not may_retry or time.monotonic() >= deadline:
                raise
            after = lost.error if isinstance(lost.error, RedirectedError) else None
            time.sleep(RETRY_DELAY_SECONDS)


def _are_as_expected(
    states: Mapping[KeyRef, CurrentState], written: Mapping[KeyRef, State], current: Mapping[KeyRef, CurrentState]
) -> bool:
    """Return whether each target of `current` is as it is expected to be.

    That is as it was read, or as this operation has written it.
    """
    untouched = {target: now for target, now in current.items() if target not in written}
    return are_unchanged(states, untouched) and all(
        holds_state(now, written[target]) for target, now in current.items() if target in written
    )


def _record_result(
    executor: TransactionExecutor,
    request: CommitRequest,
    sent: JournaledMutations,
    result: ExecResult | TransactionRejectedError,
) -> None:
    if isinstance(result, TransactionRejectedError):
        raise result.reason
    if not executor.resolver.record_result(sent, result, request.changed_keys):
        raise ConflictError(CHUNK_CONFLICT_MESSAGE)


def _assign_connection(
    executor: TransactionExecutor, chunk: JournaledMutations, channel: Channel
) -> JournaledMutations:
    """Record that this channel is to execute a chunk."""
    if channel.connection_id is None:
        return chunk
    executor.journal.record_connection(chunk.change_ids, channel.connection_id.text)
    return replace(chunk, connection_id=channel.connection_id)


def _take_back(executor: TransactionExecutor, applied: JournaledMutations) -> None:
    """Revert the last applied mutation, if it is the first half of a pair.

    That is the copy of a key that was to be renamed to another slot.
    """
    if not applied.mutations[-1].is_first_half:
        return
    executor.journal.publish_outcomes()
    change = executor.journal.get_change(applied.change_ids[-1])
    operation = Revert(executor.journal, ((change,),), frozenset({change.id}))
    try:
        executor.run(operation)
    except (RedisFuseError, UnavailableError) as error:
        log.warning("the copy that change %d made could not be taken back: %s", change.id, error)
