"""Operations as values: what they read and plan from a real server's states, without a journal's row or a write."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from redisfuse.errors import ConflictError
from redisfuse.journal.content import Blob
from redisfuse.journal.models import State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.apply import Apply
from redisfuse.transactions.content_operations import PatchRange, SaveWhole
from redisfuse.transactions.group_commit import CommitQueue, CommitRequest
from redisfuse.transactions.key_operations import RemoveEach, RemoveTogether, SetExpiry
from redisfuse.transactions.operation import MutationRefusedError, Operation, WatchedState
from redisfuse.transactions.precondition import Precondition
from redisfuse.transactions.rename import Rename, RenamePair
from redisfuse.transactions.revert import Revert
from tests.support.edit_bench import EditBench
from tests.support.redis_server import RedisServer
from tests.unit.test_rollback import contents

K, J, FIELD = KeyRef(b"k"), KeyRef(b"j"), KeyRef(b"h", b"f")
ANYTHING = Precondition.unconditional()
NEW = Blob.from_bytes(b"new")


@pytest.fixture
def bench(redis_server: RedisServer, tmp_path: Path) -> Iterator[EditBench]:
    bench = EditBench.create(tmp_path / "state", redis_server)
    bench.redis.mset({"k": "old", "j": "other"})
    bench.redis.hset("h", mapping={"f": "1", "g": "2"})
    yield bench
    bench.close()


def read_state(bench: EditBench, operation: Operation) -> WatchedState:
    """Read what the operation needs, as the executor does."""
    return WatchedState(bench.key_writer.executor.reader.read_unguarded(operation.reads()), bench.server)


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (SaveWhole(K, NEW, ANYTHING, b"k"), ["SET"]),
        (SaveWhole(FIELD, NEW, ANYTHING, b"h.f"), ["HSET"]),
        (PatchRange(K, 3, NEW, ANYTHING, b"k"), ["APPEND"]),
        (PatchRange(K, 1, NEW, ANYTHING, b"k"), ["SETRANGE"]),
        (RemoveTogether((K, FIELD, KeyRef(b"absent")), b"dir", ANYTHING), ["UNLINK", "HDEL"]),
        (RemoveEach({K: b"k", KeyRef(b"h"): b"h"}), ["UNLINK", "UNLINK"]),
        (SetExpiry(K, int(time.time() * 1000) + 3_600_000, b"k"), ["PEXPIREAT"]),
        (Rename((RenamePair(K, J),), b"k", b"j"), ["RENAME"]),
        (Rename((RenamePair(K, FIELD),), b"k", b"h.f"), ["HSET", "UNLINK"]),
    ],
)
def test_a_plan_follows_from_the_state_and_changes_nothing(
    bench: EditBench, operation: Operation, words: list[str]
) -> None:
    """The same state gives the same mutations each time; neither Redis nor the journal is changed."""
    before = contents(bench.redis)
    state = read_state(bench, operation)
    mutations = operation.plan(state)
    assert [command.args[0] for mutation in mutations for command in mutation.commands] == words
    assert operation.plan(state) == mutations
    assert contents(bench.redis) == before
    assert not bench.changes()


def test_a_refused_save_carries_its_content(bench: EditBench) -> None:
    """A save whose precondition is violated raises with the intent to be kept, and its ConflictError."""
    operation = SaveWhole(K, NEW, Precondition.from_bytes(b"mine"), b"k")
    with pytest.raises(MutationRefusedError) as caught:
        operation.plan(read_state(bench, operation))
    assert isinstance(caught.value.error, ConflictError)
    [intent] = caught.value.intents
    assert (intent.prior, intent.new) == (State.from_value(b"old"), State.from_value(b"new"))


def test_a_precondition_that_is_not_enforced_only_sizes_the_read(bench: EditBench) -> None:
    """Without enforcement every state satisfies it, and its size still saves the read a round trip."""
    strict = Precondition.from_bytes(b"mine")
    hint = strict.without_enforcement()
    assert (hint.expected_size, hint.required_size) == (strict.expected_size, None)
    operation = SaveWhole(K, NEW, hint, b"k")
    assert operation.may_share_transaction
    assert len(operation.plan(read_state(bench, operation))) == 1


def test_a_revert_reports_the_decision_of_its_last_plan(bench: EditBench) -> None:
    """A revert that is planned again, because a key changed, reports only what it decided last."""
    bench.save(b"k", b"new")
    change = bench.last_change
    operation = Revert(bench.journal, ((change,),), frozenset([change.id]))
    assert len(operation.plan(read_state(bench, operation))) == 1
    assert ([each.change for each in operation.decision.inverses], operation.decision.conflicts) == ([change], [])
    bench.redis.set("k", "theirs")
    assert operation.plan(read_state(bench, operation)) == []
    assert operation.decision.inverses == []
    assert [conflict.change for conflict in operation.decision.conflicts] == [change]
    assert bench.redis.get("k") == b"theirs"


def test_an_apply_plans_nothing_where_the_target_is_absent_already(bench: EditBench) -> None:
    """Applying a removal to an absent key has no mutation."""
    bench.key_writer.remove([K], path=b"k")
    operation = Apply(bench.last_change)
    assert operation.plan(read_state(bench, operation)) == []


def test_a_shared_transaction_has_each_key_once() -> None:
    """Of concurrent requests each is committed by one leader, and no batch has two that share a key."""
    queue = CommitQueue()
    requests = [CommitRequest(SaveWhole(KeyRef(b"%d" % (number // 2)), NEW, ANYTHING, b"p")) for number in range(40)]
    batches: list[list[CommitRequest]] = []

    def submit(request: CommitRequest) -> None:
        batch = queue.join(request)
        if batch:
            batches.append(batch)
            for each in batch:
                each.change_ids = []
            queue.finish(batch)

    first = CommitRequest(SaveWhole(K, NEW, ANYTHING, b"k"))
    assert queue.join(first) == [first]
    threads = [threading.Thread(target=submit, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    time.sleep(0.2)  # long enough for all to queue behind the first, which stays the leader
    assert batches == []
    queue.finish([first])
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    committed = [request for batch in batches for request in batch]
    assert sorted(map(id, committed)) == sorted(map(id, requests))
    assert len(batches) < len(requests)
    for batch in batches:
        keys = [key for request in batch for key in request.keys]
        assert len(set(keys)) == len(keys)
