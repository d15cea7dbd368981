"""Edits against a real server and a real journal: what each change does, what it records, what it refuses."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from redisfuse.errors import (
    AccessError,
    BusyError,
    ConflictError,
    ExistsError,
    InvalidError,
    NotFoundError,
    NotSupportedError,
    TooLargeError,
)
from redisfuse.journal.models import Content
from redisfuse.paths.grammar import Target
from redisfuse.transactions.precondition import Basis
from tests.support.edit_bench import Bench, MakeBench
from tests.support.redis_server import RedisServer

MIB = 1 << 20


@pytest.fixture
def make_bench(redis_server: RedisServer, tmp_path: Path) -> Iterator[MakeBench]:
    opened: list[Bench] = []

    def make(**options: object) -> Bench:
        opened.append(Bench.of(tmp_path / f"state{len(opened)}", redis_server, **options))
        return opened[-1]

    yield make
    for bench in opened:
        bench.close()


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench()


def in_an_hour() -> int:
    """Absolute ms."""
    return int(time.time() * 1000) + 3_600_000


# -- saving ----------------------------------------------------------------------------------------------------------


def test_a_save_writes_and_records_what_it_replaced(bench: Bench) -> None:
    """A saved string is in Redis, its prior value and type are in the journal, and the row is applied."""
    bench.redis.set("k", "old")
    bench.save(b"k", b"new")
    assert bench.redis.get("k") == b"new"
    row = bench.last
    assert (row.state, row.op, row.key, row.field) == ("applied", "write", b"k", None)
    assert (row.prior.kind, row.prior.type, row.prior.content) == ("value", b"string", Content.of(b"old"))
    assert (row.new.kind, row.new.content) == ("value", Content.of(b"new"))
    assert bench.applied == [b"k"]


def test_a_save_keeps_the_time_to_live(bench: Bench) -> None:
    """The absolute expiry of a key is the same to the millisecond after a save, small or large, and in both states."""
    at = in_an_hour()
    for data in (b"new", b"", b"n" * (3 * MIB)):
        bench.redis.set("k", "old", pxat=at)
        bench.save(b"k", data)
        assert bench.redis.get("k") == data
        assert bench.redis.pexpiretime("k") == at
        assert bench.last.prior.expires_at == bench.last.new.expires_at == at


def test_an_emptied_string_stays_a_key(bench: Bench) -> None:
    """Saving nothing makes an empty string, not an absent key."""
    bench.redis.set("k", "old")
    bench.save(b"k", b"")
    assert bench.redis.exists("k") == 1
    assert bench.redis.get("k") == b""


def test_a_field_is_saved_alone(bench: Bench) -> None:
    """Saving a field leaves the other fields and the hash's expiry as they were."""
    at = in_an_hour()
    bench.redis.hset("h", mapping={"a": "1", "b": "2"})
    bench.redis.pexpireat("h", at)
    bench.save(b"h", b"new", b"a")
    assert bench.redis.hgetall("h") == {b"a": b"new", b"b": b"2"}
    assert bench.redis.pexpiretime("h") == at
    assert bench.last.prior.content == Content.of(b"1")
    assert bench.last.prior.type == b"field"


def test_a_small_save_is_two_round_trips_and_one_write(bench: Bench) -> None:
    """Saving a small string or field that is as it was opened takes two round trips to the server."""
    bench.redis.set("k", "old")
    bench.redis.hset("h", "f", "old")
    bench.save(b"warm", b"up")
    for target, old in ((Target(b"k"), b"old"), (Target(b"h", b"f"), b"old"), (Target(b"fresh"), None)):
        basis = Basis.absent() if old is None else Basis.of(old)
        before = bench.server.counters.round_trips
        bench.edits.save(target, Content.of(b"new"), basis=basis, path=b"p")
        assert bench.server.counters.round_trips - before == 2


def test_large_values_are_saved_and_recorded_whole(bench: Bench) -> None:
    """A string and a field of several MiB are replaced, with their prior bytes in the journal."""
    old, new = b"o" * (3 * MIB + 17), b"n" * (2 * MIB + 1)
    bench.redis.set("k", old)
    bench.redis.hset("h", "f", old)
    for target in (Target(b"k"), Target(b"h", b"f")):
        bench.save(target.key, new, target.field)
        assert bench.last.prior.content is not None
        assert bench.last.prior.content.read() == old
    assert bench.redis.get("k") == new
    assert bench.redis.hget("h", "f") == new


def test_too_large_is_refused_before_anything(bench: Bench) -> None:
    """A value over 512 MiB is TooLargeError, with no row and no command."""
    huge = Content(512 * MIB + 1, b"\0" * 32, b"")
    before = bench.server.counters.commands
    with pytest.raises(TooLargeError):
        bench.edits.save(Target(b"k"), huge, basis=Basis.anything(), path=b"k")
    with pytest.raises(TooLargeError):
        bench.edits.patch(Target(b"k"), 512 * MIB, Content.of(b"x"), basis=Basis.anything(), path=b"k")
    assert bench.server.counters.commands == before
    assert not bench.rows()


def test_the_server_sees_one_write_and_no_empty_moment(bench: Bench) -> None:
    """MONITOR shows exactly one write command for a save: SET with KEEPTTL, in a transaction."""
    bench.redis.set("k", "old")
    with bench.redis.monitor() as monitor:
        bench.save(b"k", b"new")
        bench.redis.ping()
        seen = []
        for command in monitor.listen():
            seen.append(command["command"])
            if command["command"] == "PING":
                break
    assert [words for words in seen if words.split()[0] in ("SET", "DEL", "SETRANGE")] == ["SET k new KEEPTTL"]


# -- patches ---------------------------------------------------------------------------------------------------------


def test_a_patch_sends_and_records_only_a_slice(bench: Bench) -> None:
    """Appending to and patching a large string moves a few KiB, and the journal has the slice with the lengths."""
    size = 20 * MIB
    bench.redis.set("k", b"a" * size)
    bench.save(b"warm", b"up")
    before = bench.server.counters.snapshot()
    bench.edits.patch(Target(b"k"), size, Content.of(b"b" * 1024), basis=Basis.big(size, lambda: True), path=b"k")
    after = bench.server.counters.snapshot()
    assert after["bytes_sent"] + after["bytes_received"] - before["bytes_sent"] - before["bytes_received"] < 4096
    row = bench.last
    assert (row.op, row.prior.kind, row.prior.offset, row.prior.total) == ("append", "slice", size, size)
    assert (row.new.offset, row.new.total) == (size, size + 1024)
    bench.edits.patch(Target(b"k"), 5, Content.of(b"XYZ"), basis=Basis.anything(), path=b"k")
    assert bench.redis.getrange("k", 0, 9) == b"aaaaaXYZaa"
    assert bench.last.prior.content == Content.of(b"aaa")
    assert bench.redis.strlen("k") == size + 1024


def test_a_patch_over_the_end_and_beyond_it(bench: Bench) -> None:
    """A patch may cross the end, or leave a gap that is filled with NULs."""
    bench.redis.set("k", "0123456789")
    bench.edits.patch(Target(b"k"), 8, Content.of(b"abcd"), basis=Basis.anything(), path=b"k")
    assert bench.redis.get("k") == b"01234567abcd"
    assert bench.last.prior.content == Content.of(b"89")
    bench.edits.patch(Target(b"k"), 14, Content.of(b"z"), basis=Basis.anything(), path=b"k")
    assert bench.redis.get("k") == b"01234567abcd\0\0z"


# -- conflicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [None, b"f"])
def test_a_conflict_is_refused_and_kept(bench: Bench, field: bytes | None) -> None:
    """A save over what somebody else wrote meanwhile is refused; both values are in the row, Redis has theirs."""
    if field:
        bench.redis.hset("k", "f", "theirs")
    else:
        bench.redis.set("k", "theirs")
    for basis in (Basis.of(b"mine"), Basis.absent(), Basis.big(6, lambda: False), Basis.big(7, lambda: True)):
        with pytest.raises(ConflictError, match="redisfuse apply"):
            bench.save(b"k", b"new", field, basis=basis)
        row = bench.last
        assert row.state == "refused"
        assert row.prior.content == Content.of(b"theirs")
        assert row.new.content == Content.of(b"new")
    assert (bench.redis.hget("k", "f") if field else bench.redis.get("k")) == b"theirs"


def test_a_vanished_key_is_a_conflict(bench: Bench) -> None:
    """A key that was deleted under an open file is not silently made anew."""
    with pytest.raises(ConflictError, match="gone"):
        bench.save(b"k", b"new", basis=Basis.of(b"old"))
    assert bench.redis.exists("k") == 0
    assert bench.last.state == "refused"


def test_another_type_is_a_conflict_even_unchecked(make_bench: MakeBench) -> None:
    """A key that became a hash is never overwritten by a string, also with the conflict check off."""
    bench = make_bench(conflict_check=False)
    bench.redis.hset("k", "f", "v")
    bench.redis.set("s", "v")
    with pytest.raises(ConflictError):
        bench.save(b"k", b"new")
    with pytest.raises(ConflictError):
        bench.save(b"s", b"new", b"f")
    assert bench.redis.hgetall("k") == {b"f": b"v"}
    assert bench.redis.get("s") == b"v"
    assert {row.state for row in bench.rows()} == {"refused"}


def test_without_the_check_the_prior_is_what_was_there(make_bench: MakeBench) -> None:
    """With the conflict check off a save goes through, and records the value that it really replaced."""
    bench = make_bench(conflict_check=False)
    bench.redis.set("k", "theirs")
    bench.save(b"k", b"mine", basis=Basis.of(b"older"))
    assert bench.redis.get("k") == b"mine"
    assert bench.last.prior.content == Content.of(b"theirs")


def test_a_key_that_changes_in_the_middle_is_begun_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write between WATCH and EXEC loses nothing: the row fails, the next attempt meets the new value."""
    bench.redis.set("k", "old")
    intend = bench.journal.intend
    once = iter([True])

    def meddle(*arguments: object, **options: object) -> list[int]:
        ids = intend(*arguments, **options)  # type: ignore[arg-type]
        if next(once, False):
            bench.redis.set("k", "theirs")
        return ids

    monkeypatch.setattr(bench.journal, "intend", meddle)
    bench.save(b"k", b"mine")
    assert [row.state for row in bench.rows()] == ["failed", "applied"]
    assert bench.last.prior.content == Content.of(b"theirs")
    assert bench.redis.get("k") == b"mine"


def test_only_allowed_keys_are_changed(make_bench: MakeBench) -> None:
    """A key outside --allow is AccessError for every operation, and Redis is not asked."""
    bench = make_bench(allow=lambda key: key.startswith(b"config:"))
    bench.save(b"config:a", b"1")
    bench.redis.set("k", "v")
    with pytest.raises(AccessError):
        bench.save(b"k", b"new")
    with pytest.raises(AccessError):
        bench.edits.remove([Target(b"k")], path=b"k")
    with pytest.raises(AccessError):
        bench.edits.rename([(Target(b"config:a"), Target(b"k"))], path=b"config/a", new_path=b"k")
    assert bench.redis.get("k") == b"v"


# -- removing --------------------------------------------------------------------------------------------------------


def make_one_of_each(client: redis.Redis) -> list[bytes]:
    """One key of every type that a plain server has."""
    client.set("string", "v")
    client.rpush("list", "a", b"\xff\n", "a")
    client.sadd("set", "a", b"\xff")
    client.zadd("zset", {"a": 1.5, "b": float("inf")})
    client.hset("hash", mapping={"f": "v", b"\xff": b"\x00"})
    client.xadd("stream", {"f": "v"}, "5-1")
    client.xgroup_create("stream", "g", "0")
    return [b"string", b"list", b"set", b"zset", b"hash", b"stream"]


def test_any_type_is_removed_and_recorded(bench: Bench) -> None:
    """Removing a key of any type records its exact DUMP (or value), a portable copy and its expiry."""
    at = in_an_hour()
    for key in make_one_of_each(bench.redis):
        bench.redis.pexpireat(key, at)
        dump = bench.redis.dump(key)
        bench.edits.remove([Target(key)], path=key)
        assert bench.redis.exists(key) == 0
        row = bench.last
        assert (row.op, row.state, row.new.kind, row.prior.expires_at) == ("remove", "applied", "absent", at)
        if key != b"string":
            assert row.prior.kind == "object"
            assert row.prior.content is not None
            assert row.prior.content.read() == dump
            assert row.prior.logical is not None
            assert row.prior.version is not None


def test_removing_several_is_one_group(bench: Bench) -> None:
    """Several targets go in one transaction and one group of the journal; what is gone already is passed over."""
    bench.redis.set("a", "1")
    bench.redis.hset("h", mapping={"f": "1", "g": "2"})
    bench.edits.remove([Target(b"a"), Target(b"h", b"f"), Target(b"missing")], path=b"dir")
    assert bench.redis.exists("a") == 0
    assert bench.redis.hgetall("h") == {b"g": b"2"}
    assert len({row.group for row in bench.rows()}) == 1
    with pytest.raises(NotFoundError):
        bench.edits.remove([Target(b"missing")], path=b"missing")


def test_a_large_collection_is_not_dumped(make_bench: MakeBench) -> None:
    """Above the dump limit only the portable copy is kept, read in pieces, and the row says so."""
    bench = make_bench(dump_limit=1000)
    bench.redis.sadd("s", *(b"member %d" % number for number in range(5000)))
    bench.edits.remove([Target(b"s")], path=b"s")
    prior = bench.last.prior
    assert prior.content is None
    assert prior.logical is not None
    assert prior.logical.read().count(b"\n") == 5001
    assert prior.note is not None
    assert "--dump-limit" in prior.note


# -- renaming --------------------------------------------------------------------------------------------------------


def test_a_rename_moves_the_key_and_its_expiry(bench: Bench) -> None:
    """Every type moves to a new name with its expiry; both keys have a row, in one group."""
    at = in_an_hour()
    for key in make_one_of_each(bench.redis):
        bench.redis.pexpireat(key, at)
        bench.edits.rename([(Target(key), Target(b"new:" + key))], path=key, new_path=b"new/" + key)
        assert bench.redis.exists(key) == 0
        assert bench.redis.pexpiretime(b"new:" + key) == at
        source, target = bench.rows()[-2:]
        assert source.group == target.group
        assert (source.key, source.new.kind) == (key, "absent")
        assert (target.key, target.prior.kind) == (b"new:" + key, "absent")
        assert source.prior.content == target.new.content
        assert target.new_path == b"new/" + key


@pytest.mark.parametrize(("source_at", "target_at"), [(None, 1), (1, None), (1, 2), (None, None)])
def test_a_rename_over_a_key_keeps_the_targets_expiry(
    bench: Bench, source_at: int | None, target_at: int | None
) -> None:
    """A string that replaces a string takes over its expiry, or its having none."""
    at = in_an_hour()
    bench.redis.set("a", "new", pxat=source_at and at + source_at)
    bench.redis.set("b", "old", pxat=target_at and at + target_at)
    bench.edits.rename([(Target(b"a"), Target(b"b"))], path=b"a", new_path=b"b")
    assert bench.redis.get("b") == b"new"
    assert bench.redis.exists("a") == 0
    assert bench.redis.pexpiretime("b") == (-1 if target_at is None else at + target_at)
    assert bench.last.prior.content == Content.of(b"old")


def test_renames_between_strings_and_fields(bench: Bench) -> None:
    """A string becomes a field, a field a string, a field another field; a hash's last field takes the hash along."""
    bench.redis.set("s", "1")
    bench.redis.hset("h", "old", "0")
    bench.edits.rename([(Target(b"s"), Target(b"h", b"f"))], path=b"s", new_path=b"h.f")
    assert bench.redis.exists("s") == 0
    assert bench.redis.hgetall("h") == {b"old": b"0", b"f": b"1"}
    bench.edits.rename([(Target(b"h", b"f"), Target(b"h", b"old"))], path=b"h.f", new_path=b"h.old")
    assert bench.redis.hgetall("h") == {b"old": b"1"}
    bench.edits.rename([(Target(b"h", b"old"), Target(b"t"))], path=b"h.old", new_path=b"t")
    assert bench.redis.exists("h") == 0
    assert bench.redis.get("t") == b"1"
    assert {row.state for row in bench.rows()} == {"applied"}


def test_renames_that_are_refused(bench: Bench) -> None:
    """NOREPLACE, a string over a collection, a collection as a field, a field of a string: errors, and no row."""
    bench.redis.set("a", "1")
    bench.redis.set("b", "2")
    bench.redis.rpush("l", "x")

    def rename(source: Target, target: Target, **options: bool) -> None:
        bench.edits.rename([(source, target)], path=b"p", new_path=b"q", **options)

    with pytest.raises(ExistsError):
        rename(Target(b"a"), Target(b"b"), replace=False)
    with pytest.raises(AccessError):
        rename(Target(b"a"), Target(b"l"))
    with pytest.raises(InvalidError):
        rename(Target(b"l"), Target(b"h", b"f"))
    with pytest.raises(ConflictError):
        rename(Target(b"a"), Target(b"b", b"f"))
    with pytest.raises(NotFoundError):
        rename(Target(b"missing"), Target(b"c"))
    assert not bench.rows()
    assert bench.redis.get("b") == b"2"


def test_a_directory_is_one_group_however_large(bench: Bench) -> None:
    """1300 keys move as one group of the journal, in several transactions."""
    names = [b"%d" % number for number in range(1300)]
    bench.redis.mset({b"old:" + name: name for name in names})
    moves = [(Target(b"old:" + name), Target(b"new:" + name)) for name in names]
    bench.edits.rename(moves, path=b"old", new_path=b"new")
    assert bench.redis.dbsize() == 1300
    assert bench.redis.mget([b"new:" + name for name in names]) == names
    rows = bench.rows()
    assert len(rows) == 2600
    assert {row.state for row in rows} == {"applied"}
    assert len({row.group for row in rows}) == 1


# -- expiries, directories, read-only --------------------------------------------------------------------------------


def test_an_expiry_is_set_and_taken_away(bench: Bench) -> None:
    """Setting and removing an expiry are journaled with the whole value; a field's needs a server that has it."""
    at = in_an_hour()
    bench.redis.set("k", "v")
    bench.edits.expire(Target(b"k"), at, path=b"k")
    assert bench.redis.pexpiretime("k") == at
    assert (bench.last.prior.expires_at, bench.last.new.expires_at) == (None, at)
    assert bench.last.prior.content == Content.of(b"v")
    bench.edits.expire(Target(b"k"), None, path=b"k")
    assert bench.redis.pexpiretime("k") == -1
    with pytest.raises(InvalidError):
        bench.edits.expire(Target(b"k"), 1, path=b"k")
    bench.redis.hset("h", "f", "v")
    if not bench.server.facts.has_hash_field_ttl:
        with pytest.raises(NotSupportedError):
            bench.edits.expire(Target(b"h", b"f"), at, path=b"h.f")


def test_empty_directories_live_in_the_journal(bench: Bench) -> None:
    """mkdir and rmdir of an empty directory change the journal and no key."""
    bench.edits.make_directory((b"a", b"b"), path=b"a/b")
    assert bench.edits.directories() == {(b"a", b"b")}
    bench.edits.remove_directory((b"a", b"b"), path=b"a/b")
    assert bench.edits.directories() == set()
    assert [row.op for row in bench.rows()] == ["mkdir", "rmdir"]
    assert bench.redis.dbsize() == 0


# -- many at once ----------------------------------------------------------------------------------------------------


def test_parallel_saves_share_transactions_and_groups_stay_apart(bench: Bench) -> None:
    """Saves of many threads are each made once, each an operation of its own, in far fewer transactions."""
    bench.save(b"warm", b"up")
    before = bench.redis.info("commandstats")["cmdstat_exec"]["calls"]

    def work(thread: int) -> None:
        for number in range(50):
            name = b"%d:%d" % (thread, number)
            bench.edits.save(Target(name), Content.of(name), basis=Basis.absent(), path=name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    made = bench.redis.info("commandstats")["cmdstat_exec"]["calls"] - before
    assert made < 200
    rows = bench.rows()
    assert len(rows) == 401
    assert {row.state for row in rows} == {"applied"}
    assert all(row.group == row.id for row in rows)
    assert all(bench.redis.get(row.key) == row.key for row in rows if row.key != b"warm")
    assert len(bench.applied) == 401


def test_of_changes_that_go_together_each_has_its_own_outcome(bench: Bench) -> None:
    """One conflict, or one key that changes in the middle, does not spoil the saves beside it."""
    bench.redis.mset({str(number): "old" for number in range(8)})
    stop = threading.Event()

    def meddle() -> None:
        while not stop.is_set():
            bench.redis.set("0", "old")

    def work(number: int) -> Exception | None:
        basis = Basis.of(b"wrong" if number == 7 else b"old")
        try:
            for _ in range(20):
                bench.edits.save(Target(b"%d" % number), Content.of(b"old"), basis=basis, path=b"p")
        except (ConflictError, BusyError) as error:
            return error
        return None

    meddler = threading.Thread(target=meddle)
    meddler.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(work, range(8)))
    finally:
        stop.set()
        meddler.join(10)
    assert isinstance(outcomes[7], ConflictError)
    assert outcomes[1:7] == [None] * 6
    assert sum(row.state == "applied" for row in bench.rows() if row.key in b"123456") == 120
