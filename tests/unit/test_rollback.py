"""Rollback, apply and recovery on a real server with a real journal."""

import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from redisfuse.errors import ConflictError, UsageError
from redisfuse.journal.content import Blob
from redisfuse.journal.models import ABSENT, ChangeIntent, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.apply import apply_change
from redisfuse.transactions.combined_change import count_changes
from redisfuse.transactions.precondition import Precondition
from redisfuse.transactions.recovery import recover_pending
from redisfuse.transactions.rollback_plan import RollbackPlan, iter_plan, plan_rollback
from redisfuse.transactions.selection import SelectedChanges
from tests.support.changes import monitor_writes
from tests.support.edit_bench import BenchFactory, EditBench, select_for_rollback
from tests.support.redis_server import RedisServer

MIB = 1 << 20


@pytest.fixture
def make_bench(redis_server: RedisServer, tmp_path: Path) -> Iterator[BenchFactory]:
    opened: list[EditBench] = []

    def make(**options: object) -> EditBench:
        opened.append(EditBench.create(tmp_path / f"state{len(opened)}", redis_server, **options))
        return opened[-1]

    yield make
    for bench in opened:
        bench.close()


@pytest.fixture
def bench(make_bench: BenchFactory) -> EditBench:
    return make_bench()


def make_plan(bench: EditBench, selected: SelectedChanges) -> RollbackPlan:
    return plan_rollback(bench.journal, bench.server, selected.groups, selected.ids)


def in_an_hour() -> int:
    """Return the time one hour from now, absolute ms."""
    return int(time.time() * 1000) + 3_600_000


def contents(client: redis.Redis) -> dict[bytes, tuple[object, int]]:
    """Return every key with its value, in a comparable form, and its expiry (absolute ms; -1: none)."""
    values: dict[bytes, tuple[object, int]] = {}
    for key in client.scan_iter(count=1000):
        key_type = client.type(key)
        value: object
        if key_type == b"string":
            value = client.get(key)
        elif key_type == b"list":
            value = client.lrange(key, 0, -1)
        elif key_type == b"set":
            value = client.smembers(key)
        elif key_type == b"zset":
            value = client.zrange(key, 0, -1, withscores=True)
        elif key_type == b"hash":
            value = client.hgetall(key)
        else:
            value = (client.xrange(key), client.xinfo_groups(key), client.xinfo_stream(key)["last-generated-id"])
        values[key] = (value, client.pexpiretime(key))
    return values


def create_one_of_each(client: redis.Redis, prefix: str = "") -> list[bytes]:
    """Create one key of each built-in type; return the keys."""
    client.set(prefix + "string", b"v\x00\xff")
    client.rpush(prefix + "list", "a", b"\xff\n", "a")
    client.sadd(prefix + "set", "a", b"\xff")
    client.zadd(prefix + "zset", {"a": 1.5, "b": float("inf"), b"\xfe": -2})
    client.hset(prefix + "hash", mapping={"f": "v", b"\xff": b"\x00"})
    client.xadd(prefix + "stream", {"f": "v"}, "5-1")
    client.xgroup_create(prefix + "stream", "g", "0")
    return [(prefix + name).encode() for name in ("string", "list", "set", "zset", "hash", "stream")]


# -- one change ------------------------------------------------------------------------------------------------------


def test_a_save_is_rolled_back_and_redone(bench: EditBench) -> None:
    """A rollback writes the prior value, its own rollback the new one; each has a row that names what it reverts."""
    bench.redis.set("k", "old")
    bench.save(b"k", b"new")
    first = bench.last_change.id
    assert bench.roll_back(first).is_clean
    assert bench.redis.get("k") == b"old"
    second = bench.last_change
    assert (second.op, second.reverts, second.outcome) == ("rollback", first, "applied")
    assert bench.roll_back(second.id).is_clean
    assert bench.redis.get("k") == b"new"
    assert bench.last_change.reverts == second.id


def test_creations_and_removals_of_every_type_are_rolled_back(bench: EditBench) -> None:
    """Created keys are removed; removed keys are restored exactly: type, content, stream groups, expiry."""
    at = in_an_hour()
    for key in create_one_of_each(bench.redis):
        bench.redis.pexpireat(key, at)
    before = contents(bench.redis)
    bench.save(b"fresh", b"1")
    bench.save(b"hash", b"1", b"fresh")
    for key in before:
        bench.key_writer.remove([KeyRef(key)], path=key)
    assert set(contents(bench.redis)) == {b"fresh"}
    report = bench.roll_back(session_id=bench.session)
    assert report.is_clean
    assert len(report.reverted) == 8
    assert contents(bench.redis) == before


def test_removing_the_last_field_and_back_keeps_the_hashs_expiry(bench: EditBench) -> None:
    """Removing the last field removes the hash; its rollback restores the hash with its expiry."""
    at = in_an_hour()
    bench.redis.hset("h", mapping={"f": "1", "g": "2"})
    bench.redis.pexpireat("h", at)
    before = contents(bench.redis)
    bench.key_writer.remove([KeyRef(b"h", b"f"), KeyRef(b"h", b"g")], path=b"h")
    assert bench.redis.exists("h") == 0
    assert bench.roll_back(bench.last_change.id).is_clean
    assert contents(bench.redis) == before


def test_slices_are_rolled_back(bench: EditBench) -> None:
    """Appends and patches of a large string, across its end too, are reverted and redone; the expiry stays."""
    at = in_an_hour()
    size = 3 * MIB
    bench.redis.set("k", b"a" * size, pxat=at)
    patches = [(size, b"b" * 1000), (5, b"XYZ"), (size + 990, b"c" * 20), (size + 2000, b"gap")]
    versions = [bench.redis.get("k")]
    for offset, data in patches:
        bench.key_writer.patch(
            KeyRef(b"k"), offset, Blob.from_bytes(data), precondition=Precondition.unconditional(), path=b"k"
        )
        versions.append(bench.redis.get("k"))
    ids = [row.id for row in bench.changes()]
    for id, before, after in reversed(list(zip(ids, versions, versions[1:], strict=False))):
        assert bench.roll_back(id).is_clean
        assert bench.redis.get("k") == before
        assert bench.roll_back(bench.last_change.id).is_clean
        assert bench.redis.get("k") == after
        assert bench.roll_back(bench.last_change.id).is_clean
        assert bench.redis.get("k") == before
    assert bench.redis.pexpiretime("k") == at


def test_renames_are_rolled_back(bench: EditBench) -> None:
    """Renames of every type, over an existing key, from a field to a string and of a directory are reverted, redone."""
    at = in_an_hour()
    for key in create_one_of_each(bench.redis, "old:"):
        bench.redis.pexpireat(key, at)
    bench.redis.set("target", "replaced", pxat=at + 1)
    bench.redis.hset("h", "f", "1")
    before = contents(bench.redis)
    names = list(before)
    moves = [(KeyRef(key), KeyRef(b"new:" + key[4:])) for key in names if key.startswith(b"old:")]
    bench.key_writer.rename(moves, path=b"old", new_path=b"new")
    bench.key_writer.rename([(KeyRef(b"new:string"), KeyRef(b"target"))], path=b"new/string", new_path=b"target")
    bench.key_writer.rename([(KeyRef(b"h", b"f"), KeyRef(b"s"))], path=b"h.f", new_path=b"s")
    after = contents(bench.redis)
    report = bench.roll_back(session_id=bench.session)
    assert report.is_clean
    assert contents(bench.redis) == before
    groups = {row.group_id for row in bench.changes() if row.op == "rollback"}
    assert len(groups) == 3
    for group in sorted(groups, reverse=True):
        assert bench.roll_back(group).is_clean
    assert contents(bench.redis) == after


def test_one_id_selects_its_whole_operation(bench: EditBench) -> None:
    """The ID of one of a rename's two changes reverts both."""
    bench.redis.set("a", "1")
    bench.key_writer.rename([(KeyRef(b"a"), KeyRef(b"b"))], path=b"a", new_path=b"b")
    assert bench.roll_back(bench.changes()[0].id).is_clean
    assert contents(bench.redis) == {b"a": (b"1", -1)}


def test_a_large_directorys_rename_is_rolled_back(bench: EditBench) -> None:
    """A rename of 700 keys, in several transactions, is reverted as one operation."""
    names = [b"%d" % number for number in range(700)]
    bench.redis.mset({b"old:" + name: name for name in names})
    before = contents(bench.redis)
    moves = [(KeyRef(b"old:" + name), KeyRef(b"new:" + name)) for name in names]
    bench.key_writer.rename(moves, path=b"old", new_path=b"new")
    report = bench.roll_back(bench.last_change.id)
    assert report.is_clean
    assert len(report.reverted) == 1400
    assert contents(bench.redis) == before


def test_empty_directories_are_rolled_back(bench: EditBench) -> None:
    """mkdir and rmdir are reverted in the journal, and so are these rollbacks."""
    bench.key_writer.make_directory((b"a",), path=b"a")
    bench.key_writer.remove_directory((b"a",), path=b"a")
    assert bench.roll_back(bench.last_change.id).is_clean
    assert bench.list_directories() == {(b"a",)}
    assert bench.roll_back(bench.changes()[0].id).is_clean
    assert bench.list_directories() == set()
    assert bench.roll_back(bench.last_change.id).is_clean
    assert bench.list_directories() == {(b"a",)}


# -- expiries --------------------------------------------------------------------------------------------------------


def test_a_set_expiry_is_rolled_back(bench: EditBench) -> None:
    """A changed expiry is restored, or cleared if there was none."""
    at = in_an_hour()
    bench.redis.set("k", "v")
    bench.key_writer.expire(KeyRef(b"k"), at, path=b"k")
    bench.key_writer.expire(KeyRef(b"k"), at + 1000, path=b"k")
    assert bench.roll_back(bench.last_change.id).is_clean
    assert bench.redis.pexpiretime("k") == at
    assert bench.roll_back(bench.changes()[0].id).is_clean
    assert bench.redis.pexpiretime("k") == -1


def test_a_key_that_expired_because_of_a_change_is_restored(bench: EditBench) -> None:
    """If an expiry that was set has passed, its rollback restores the value, without an expiry."""
    bench.redis.set("k", "v")
    bench.key_writer.expire(KeyRef(b"k"), int(time.time() * 1000) + 30, path=b"k")
    time.sleep(0.05)
    assert bench.redis.exists("k") == 0
    assert bench.roll_back(bench.last_change.id).is_clean
    assert bench.redis.get("k") == b"v"
    assert bench.redis.pexpiretime("k") == -1


def test_a_key_whose_prior_expiry_has_passed_is_not_restored(bench: EditBench) -> None:
    """A key that would have expired by now is not restored; with force, a newer value is removed. Both have a note."""
    at = int(time.time() * 1000) + 2000  # time for the removals, also on a busy machine
    bench.redis.set("k", "v", pxat=at)
    bench.redis.set("j", "v", pxat=at)
    bench.key_writer.remove([KeyRef(b"k")], path=b"k")
    bench.key_writer.remove([KeyRef(b"j")], path=b"j")
    time.sleep(2.05)
    bench.redis.set("j", "newer")
    report = bench.roll_back(*(row.id for row in bench.changes()), force=True)
    assert report.is_clean
    assert bench.redis.exists("k", "j") == 0
    assert len(report.notes) == 2
    assert all("expiry has passed" in note for _, note in report.notes)


def test_an_extended_expiry_stays(bench: EditBench) -> None:
    """Reverting a change that left the expiry alone keeps an expiry that was extended since."""
    at = in_an_hour()
    bench.redis.set("k", "old", px=60_000)
    bench.save(b"k", b"new")
    bench.redis.pexpireat("k", at)
    report = bench.roll_back(bench.last_change.id)
    assert report.is_clean
    assert bench.redis.get("k") == b"old"
    assert bench.redis.pexpiretime("k") == at


# -- conflicts -------------------------------------------------------------------------------------------------------


def test_a_conflict_excludes_its_whole_operation(bench: EditBench) -> None:
    """If one key of a group was changed since, nothing of the group is reverted; other operations are."""
    for key in "abc":
        bench.redis.set(key, "1")
    bench.key_writer.remove([KeyRef(b"a"), KeyRef(b"b")], path=b"dir")
    bench.save(b"c", b"2")
    bench.redis.set("b", "theirs")
    report = bench.roll_back(session_id=bench.session)
    assert not report.is_clean
    assert [(conflict.change.key, conflict.current.state.content) for conflict in report.conflicts] == [
        (b"b", Blob.from_bytes(b"theirs"))
    ]
    assert contents(bench.redis) == {b"b": (b"theirs", -1), b"c": (b"1", -1)}


def test_force_overwrites_and_records_what_it_overwrote(bench: EditBench) -> None:
    """With force, the prior value and expiry are written over anything, and that can itself be rolled back."""
    at = in_an_hour()
    bench.redis.set("k", "old", pxat=at)
    bench.save(b"k", b"new")
    id = bench.last_change.id
    bench.redis.delete("k")
    bench.redis.rpush("k", "theirs")
    assert not bench.roll_back(id).is_clean
    assert bench.roll_back(id, force=True).is_clean
    assert contents(bench.redis) == {b"k": (b"old", at)}
    assert bench.last_change.prior.type == b"list"
    assert bench.roll_back(bench.last_change.id).is_clean
    assert bench.redis.lrange("k", 0, -1) == [b"theirs"]


def test_a_plan_names_the_later_change_and_changes_nothing(bench: EditBench) -> None:
    """The plan for an older change has a conflict that names the command that reverts the later change too."""
    bench.redis.set("k", "0")
    for data in (b"1", b"2"):
        bench.save(b"k", data)
    first, second = (row.id for row in bench.changes())
    plan = make_plan(bench, select_for_rollback(bench.journal, first))
    assert [conflict.combined_command for conflict in plan.conflicts] == [f"redisfuse rollback {second} {first}"]
    both = make_plan(bench, select_for_rollback(bench.journal, first, second))
    assert not both.conflicts
    [entry] = both.entries
    assert (entry.change.id, count_changes([entry.change])) == (second, 2)
    assert bench.redis.get("k") == b"2"
    assert bench.roll_back(first, second).is_clean
    assert bench.redis.get("k") == b"0"


def test_a_slice_compares_size_and_bytes(bench: EditBench) -> None:
    """An append is not reverted if the string grew since or the appended bytes were changed."""
    bench.redis.set("k", b"a" * 10)
    bench.key_writer.patch(
        KeyRef(b"k"), 10, Blob.from_bytes(b"bb"), precondition=Precondition.unconditional(), path=b"k"
    )
    bench.redis.append("k", "c")
    assert not bench.roll_back(bench.last_change.id).is_clean
    bench.redis.set("k", b"a" * 10 + b"bX")
    assert not bench.roll_back(bench.last_change.id).is_clean
    bench.redis.set("k", b"Z" * 10 + b"bb")
    assert bench.roll_back(bench.last_change.id).is_clean
    assert bench.redis.get("k") == b"Z" * 10


# -- refused payloads ------------------------------------------------------------------------------------------------


def test_a_refused_dump_is_replaced_by_the_portable_copy(bench: EditBench) -> None:
    """If the server refuses a DUMP of an unknown version, the key is rebuilt from its elements, with a note."""
    at = in_an_hour()
    keys = create_one_of_each(bench.redis)[1:]
    for key in keys:
        bench.redis.pexpireat(key, at)
    before = contents(bench.redis)
    for key in keys:
        bench.key_writer.remove([KeyRef(key)], path=key)
    # The same changes once more, with payloads of a version that no server has.
    for row in bench.changes():
        assert row.prior.content is not None
        payload = row.prior.content.read()
        unloadable = Blob.from_bytes(payload[:-10] + b"\xff\xff" + payload[-8:])
        prior = State.from_object(row.prior.type, unloadable, row.prior.portable_copy, expires_at=row.prior.expires_at)
        [id] = bench.journal.record_intents(
            bench.session, [ChangeIntent(row.path, "remove", row.key, None, prior, ABSENT)]
        )
        bench.journal.record_outcome([id], "applied")
        report = bench.roll_back(id)
        assert report.is_clean
        assert any("refused the exact copy" in note for _, note in report.notes)
    assert contents(bench.redis) == before


def test_collections_over_the_dump_limit_are_restored(make_bench: BenchFactory) -> None:
    """A set and a hash that were too large to be DUMPed are rebuilt from their elements."""
    bench = make_bench(dump_limit=100)
    bench.redis.sadd("s", *(b"%d" % number for number in range(3000)))
    bench.redis.hset("h", mapping={b"%d" % number: b"v" * 400 for number in range(3000)})
    before = contents(bench.redis)
    for key in (b"s", b"h"):
        bench.key_writer.remove([KeyRef(key)], path=key)
    assert bench.roll_back(session_id=bench.session).is_clean
    assert contents(bench.redis) == before


# -- selection -------------------------------------------------------------------------------------------------------


def test_reverted_changes_are_not_selected_again(bench: EditBench) -> None:
    """A second rollback of a session selects only the rest; --last goes further back each time."""
    for key in (b"a", b"b", b"c"):
        bench.save(key, b"1")
    bench.roll_back(bench.last_change.id)
    assert [group[0].key for group in select_for_rollback(bench.journal, session_id=bench.session).groups] == [
        b"b",
        b"a",
    ]
    assert bench.roll_back(last=1).reverted[0].key == b"b"
    assert bench.roll_back(last=1).reverted[0].key == b"a"
    assert len(select_for_rollback(bench.journal, last=1).groups) == 0
    assert len(select_for_rollback(bench.journal, since=0).groups) == 0


def test_selections(bench: EditBench) -> None:
    """A key glob selects whole operations, `since` by time; a change that was never applied is an error."""
    bench.redis.set("a:1", "1")
    bench.key_writer.rename([(KeyRef(b"a:1"), KeyRef(b"b:1"))], path=b"a/1", new_path=b"b/1")
    bench.save(b"c", b"1")
    assert [len(group) for group in select_for_rollback(bench.journal, key_glob=b"a:*").groups] == [2]
    assert len(select_for_rollback(bench.journal, since=bench.last_change.recorded_at + 1).groups) == 0
    with pytest.raises(ConflictError):
        bench.save(b"c", b"2", precondition=Precondition.absent())
    with pytest.raises(UsageError, match="refused"):
        select_for_rollback(bench.journal, bench.last_change.id)
    with pytest.raises(UsageError):
        select_for_rollback(bench.journal)


def test_an_interrupted_rollback_is_finished_by_another(bench: EditBench) -> None:
    """After a rollback that stopped half-way, the same selection reverts the rest."""
    for number in range(40):
        bench.save(b"%d" % number, b"1")
    groups = select_for_rollback(bench.journal, session_id=bench.session)
    bench.create_rollback().run(list(groups.groups)[:15], groups.ids)
    report = bench.roll_back(session_id=bench.session)
    assert len(report.reverted) == 25
    assert bench.redis.dbsize() == 0


# -- apply -----------------------------------------------------------------------------------------------------------


def test_a_refused_edit_is_applied_after_review(bench: EditBench) -> None:
    """Apply writes a refused edit over the value that it was refused for, keeps the expiry and names the change."""
    at = in_an_hour()
    bench.redis.set("k", "theirs", pxat=at)
    with pytest.raises(ConflictError):
        bench.save(b"k", b"mine", precondition=Precondition.from_bytes(b"old"))
    refused = bench.last_change
    apply_change(bench.key_writer.executor, refused)
    assert contents(bench.redis) == {b"k": (b"mine", at)}
    assert (bench.last_change.op, bench.last_change.applies) == ("apply", refused.id)
    assert bench.roll_back(bench.last_change.id).is_clean
    assert bench.redis.get("k") == b"theirs"


def test_apply_refuses_an_unreviewed_value(bench: EditBench) -> None:
    """A key that changed again since the refusal, or has another type now, needs force."""
    bench.redis.set("k", "theirs")
    with pytest.raises(ConflictError):
        bench.save(b"k", b"mine", precondition=Precondition.from_bytes(b"old"))
    refused = bench.last_change
    bench.redis.set("k", "third")
    with pytest.raises(ConflictError, match="--force"):
        apply_change(bench.key_writer.executor, refused)
    bench.redis.delete("k")
    bench.redis.sadd("k", "m")
    with pytest.raises(ConflictError):
        apply_change(bench.key_writer.executor, refused)
    apply_change(bench.key_writer.executor, refused, force=True)
    assert bench.redis.get("k") == b"mine"


# -- recovery --------------------------------------------------------------------------------------------------------


def test_pending_changes_are_resolved_by_reading(bench: EditBench) -> None:
    """The new state means applied, the prior one failed, neither unknown; also for slices, fields and expiries."""
    at = in_an_hour()
    old, new = State.from_value(b"old"), State.from_value(b"new")
    bench.redis.mset({"applied": "new", "failed": "old", "unknown": "other", "slice": "aaaXXX", "ttl": "v"})
    bench.redis.hset("h", "f", "new")
    bench.redis.pexpireat("ttl", at)
    field = {"prior": State.from_value(b"old", b"field"), "new": State.from_value(b"new", b"field")}
    value = State.from_value(b"v")

    def intent(key: bytes, prior: State, new: State, field: bytes | None = None) -> ChangeIntent:
        return ChangeIntent(key, "write", key, field, prior, new)

    intents = [
        (intent(b"applied", old, new), "applied"),
        (intent(b"failed", old, new), "failed"),
        (intent(b"unknown", old, new), "unknown"),
        (intent(b"gone", old, ABSENT), "applied"),
        (intent(b"missing", ABSENT, new), "failed"),
        (intent(b"h", field["prior"], field["new"], b"f"), "applied"),
        (intent(b"slice", State.from_slice(b"", 3, 3), State.from_slice(b"XXX", 3, 6)), "applied"),
        (intent(b"slice", State.from_slice(b"", 6, 6), State.from_slice(b"YYY", 6, 9)), "failed"),
        (intent(b"ttl", value, State.from_value(b"v", expires_at=at)), "applied"),
        (intent(b"ttl", State.from_value(b"v", expires_at=at), value), "failed"),
    ]
    ids = []
    for pending, _ in intents:
        ids += bench.journal.record_intents(bench.session, [pending])
        time.sleep(0.002)
    resolved = recover_pending(bench.journal, bench.server, bench.session)
    assert [(change.id, outcome) for change, outcome in resolved] == [
        (id, outcome) for id, (_, outcome) in zip(ids, intents, strict=True)
    ]
    assert [bench.journal.get_change(id).outcome for id in ids] == [outcome for _, outcome in intents]
    assert recover_pending(bench.journal, bench.server, bench.session) == []


def test_a_later_change_is_evidence(bench: EditBench) -> None:
    """A change that another one followed is resolved by that one's prior state, whatever the key holds now."""
    first, second = State.from_value(b"1"), State.from_value(b"2")
    [id] = bench.journal.record_intents(bench.session, [ChangeIntent(b"k", "write", b"k", None, first, second)])
    bench.redis.set("k", "2")
    bench.save(b"k", b"3")
    assert [outcome for _, outcome in recover_pending(bench.journal, bench.server, bench.session)] == ["applied"]
    assert bench.journal.get_change(id).outcome == "applied"


def test_successive_changes_of_one_target_are_resolved_together(bench: EditBench) -> None:
    """Of two changes of one target, recorded together, neither, the first or both were applied."""
    one, two, three = (State.from_value(data) for data in (b"1", b"2", b"3"))
    chain = [
        ChangeIntent(b"k", "rollback", b"k", None, one, two),
        ChangeIntent(b"k", "rollback", b"k", None, two, three),
    ]
    for value, outcomes in ((b"1", ["failed"] * 2), (b"2", ["applied", "failed"]), (b"3", ["applied"] * 2)):
        bench.redis.set("k", value)
        bench.journal.record_intents(bench.session, chain, grouping=[1, 1])
        assert [outcome for _, outcome in recover_pending(bench.journal, bench.server, bench.session)] == outcomes


def test_changes_in_flight_of_another_session_are_resolved_only_if_applied(bench: EditBench) -> None:
    """A change that a running mount may be about to write is not recorded as failed; an applied one is resolved."""
    other = bench.journal.begin_session(bench.journal.get_session(bench.session).metadata)
    bench.redis.mset({"applied": "new", "in flight": "old"})
    old, new = State.from_value(b"old"), State.from_value(b"new")
    for key in (b"applied", b"in flight"):
        bench.journal.record_intents(other, [ChangeIntent(key, "write", key, None, old, new)])
    resolved = recover_pending(bench.journal, bench.server, bench.session)
    assert [(change.key, outcome) for change, outcome in resolved] == [(b"applied", "applied")]
    bench.journal.end_session(other)
    resolved = recover_pending(bench.journal, bench.server, bench.session)
    assert [(change.key, outcome) for change, outcome in resolved] == [(b"in flight", "failed")]


def test_a_later_append_is_evidence_by_its_size(bench: EditBench) -> None:
    """An append that another one followed was applied, though the string is longer now."""
    bench.redis.set("k", "aaabbcc")
    first = ChangeIntent(b"k", "append", b"k", None, State.from_slice(b"", 3, 3), State.from_slice(b"bb", 3, 5))
    second = ChangeIntent(b"k", "append", b"k", None, State.from_slice(b"", 5, 5), State.from_slice(b"cc", 5, 7))
    for append in (first, second):
        bench.journal.record_intents(bench.session, [append])
        time.sleep(0.002)
    outcomes = [outcome for _, outcome in recover_pending(bench.journal, bench.server, bench.session)]
    assert outcomes == ["applied", "applied"]


# -- net effects -----------------------------------------------------------------------------------------------------


def test_many_changes_of_a_key_take_one_command(bench: EditBench, redis_server: RedisServer) -> None:
    """Saves, a removal and a creation of one key are taken back by one SET, in one row that can be rolled back."""
    bench.redis.mset({"k": "start", "other": "start"})
    for number in range(20):
        bench.save(b"k", b"value %d" % number)
        if number == 10:
            bench.key_writer.remove([KeyRef(b"k")], path=b"k")
        if number % 5 == 0:
            bench.save(b"other", b"value %d" % number)
    ids = [row.id for row in bench.changes()]
    with monitor_writes(redis_server, b"k") as commands:
        report = bench.roll_back(session_id=bench.session)
    assert report.is_clean
    assert count_changes(report.reverted) == 25
    assert [words[0] for words in commands] == ["SET"]
    assert bench.redis.mget("k", "other") == [b"start", b"start"]
    assert len(select_for_rollback(bench.journal, *ids).groups) == 0
    rows = [row for row in bench.changes() if row.op == "rollback"]
    assert sorted((row.reverts, row.reverts_through) for row in rows) == [(1, 25), (2, 21)]
    assert bench.roll_back(*(row.id for row in rows)).is_clean
    assert bench.redis.mget("k", "other") == [b"value 19", b"value 15"]
    assert bench.roll_back(session_id=bench.session).is_clean
    assert bench.redis.mget("k", "other") == [b"start", b"start"]


def test_a_change_by_others_separates_net_changes(bench: EditBench) -> None:
    """Changes with a foreign one in between are not combined: the older ones are a conflict, as one by one."""
    bench.save(b"k", b"1")
    bench.redis.set("k", "foreign")
    bench.save(b"k", b"2")
    bench.save(b"k", b"3")
    report = bench.roll_back(session_id=bench.session)
    assert [conflict.change.id for conflict in report.conflicts] == [1]
    assert count_changes(report.reverted) == 2
    assert bench.redis.get("k") == b"foreign"


def test_a_rename_keeps_its_place_among_the_changes(bench: EditBench) -> None:
    """Changes before and after a rename are combined apart, and all come back in order."""
    bench.redis.set("a", "start")
    for key in (b"a", b"a", b"b", b"b"):
        if key == b"b" and not bench.redis.exists("b"):
            bench.key_writer.rename([(KeyRef(b"a"), KeyRef(b"b"))], path=b"a", new_path=b"b")
        bench.save(key, b"value of " + key + bytes([len(bench.changes())]))
    selected = select_for_rollback(bench.journal, session_id=bench.session)
    assert [count_changes(group) for group in selected.groups] == [2, 2, 2]
    assert bench.create_rollback().run(selected.groups, selected.ids).is_clean
    assert contents(bench.redis) == {b"a": (b"start", -1)}


def test_a_stopped_rollback_continues(bench: EditBench) -> None:
    """A rollback that is stopped finishes its batch; the same selection then has the rest."""
    for number in range(600):
        bench.save(b"k%d" % number, b"v")
    selected = select_for_rollback(bench.journal, session_id=bench.session)
    rollback = bench.create_rollback()
    report = rollback.run(selected.groups, selected.ids, progress=lambda _count: rollback.stop())
    assert report.is_interrupted
    assert not report.is_clean
    assert bench.redis.dbsize() == 350
    assert bench.roll_back(session_id=bench.session).is_clean
    assert bench.redis.dbsize() == 0


def test_the_memory_of_a_rollback_is_that_of_its_keys_names(make_bench: BenchFactory) -> None:
    """Selecting and planning keeps some hundred bytes a key, whatever the changes are like."""
    peaks = [_measure_peak(make_bench(), count) for count in (1500, 6000)]
    assert (peaks[1] - peaks[0]) / 4500 < 1024


def _measure_peak(bench: EditBench, count: int) -> int:
    """Return the peak of the memory in which changes of `count` keys are selected and planned."""
    bench.redis.flushdb()
    values = {b"key:%d" % number: b"value %d" % number for number in range(count)}
    bench.redis.mset(dict(values))
    intents = [
        ChangeIntent(key, "write", key, None, State.from_value(b"before"), State.from_value(value))
        for key, value in values.items()
    ]
    ids = bench.journal.record_intents(bench.session, intents, grouping=False)
    bench.journal.record_outcome(ids, "applied")
    del intents
    tracemalloc.start()
    try:
        selected = select_for_rollback(bench.journal, session_id=bench.session)
        entries = iter_plan(
            bench.journal, bench.server, selected.groups, selected.ids, repeated_keys=selected.groups.repeated_keys
        )
        assert sum(entry.inverse is not None and entry.conflict is None for entry in entries) == count
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
