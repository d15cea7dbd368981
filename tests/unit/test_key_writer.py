"""KeyWriter on a real server with a real journal: the effect, the record and the refusals of each operation."""

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
    InvalidArgumentError,
    NotFoundError,
    NotSupportedError,
    TooLargeError,
)
from redisfuse.journal.content import Blob
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.block_digests import BlockDigests
from redisfuse.transactions.precondition import Precondition
from tests.support.edit_bench import BenchFactory, EditBench
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


def in_an_hour() -> int:
    """Return the time one hour from now, absolute ms."""
    return int(time.time() * 1000) + 3_600_000


# -- saving ----------------------------------------------------------------------------------------------------------


def test_a_save_writes_and_records_what_it_replaced(bench: EditBench) -> None:
    """A save writes the string, and the journal has its prior value and type in an applied row."""
    bench.redis.set("k", "old")
    bench.save(b"k", b"new")
    assert bench.redis.get("k") == b"new"
    row = bench.last_change
    assert (row.outcome, row.op, row.key, row.field) == ("applied", "write", b"k", None)
    assert (row.prior.kind, row.prior.type, row.prior.content) == ("value", b"string", Blob.from_bytes(b"old"))
    assert (row.new.kind, row.new.content) == ("value", Blob.from_bytes(b"new"))
    assert bench.applied_keys == [b"k"]


def test_a_save_keeps_the_expiry(bench: EditBench) -> None:
    """A save, small or large, keeps the absolute expiry to the millisecond, and both states record it."""
    at = in_an_hour()
    for data in (b"new", b"", b"n" * (3 * MIB)):
        bench.redis.set("k", "old", pxat=at)
        bench.save(b"k", data)
        assert bench.redis.get("k") == data
        assert bench.redis.pexpiretime("k") == at
        assert bench.last_change.prior.expires_at == bench.last_change.new.expires_at == at


def test_an_empty_save_keeps_the_key(bench: EditBench) -> None:
    """Saving no bytes leaves an empty string, not an absent key."""
    bench.redis.set("k", "old")
    bench.save(b"k", b"")
    assert bench.redis.exists("k") == 1
    assert bench.redis.get("k") == b""


def test_a_field_is_saved_alone(bench: EditBench) -> None:
    """Saving a field changes neither the other fields nor the hash's expiry."""
    at = in_an_hour()
    bench.redis.hset("h", mapping={"a": "1", "b": "2"})
    bench.redis.pexpireat("h", at)
    bench.save(b"h", b"new", b"a")
    assert bench.redis.hgetall("h") == {b"a": b"new", b"b": b"2"}
    assert bench.redis.pexpiretime("h") == at
    assert bench.last_change.prior.content == Blob.from_bytes(b"1")
    assert bench.last_change.prior.type == b"field"


def test_a_small_save_is_two_round_trips_and_one_write(bench: EditBench) -> None:
    """Saving a small string or field that is unchanged since its open takes two round trips."""
    bench.redis.set("k", "old")
    bench.redis.hset("h", "f", "old")
    bench.save(b"warm", b"up")
    for target, prior in ((KeyRef(b"k"), b"old"), (KeyRef(b"h", b"f"), b"old"), (KeyRef(b"fresh"), None)):
        precondition = Precondition.absent() if prior is None else Precondition.from_bytes(prior)
        before = bench.server.stats.round_trips
        bench.key_writer.save(target, Blob.from_bytes(b"new"), precondition=precondition, path=b"p")
        assert bench.server.stats.round_trips - before == 2


def test_large_values_are_saved_and_recorded_whole(bench: EditBench) -> None:
    """Saving a string or field of several MiB records all its prior bytes."""
    old, new = b"o" * (3 * MIB + 17), b"n" * (2 * MIB + 1)
    bench.redis.set("k", old)
    bench.redis.hset("h", "f", old)
    for target in (KeyRef(b"k"), KeyRef(b"h", b"f")):
        bench.save(target.key, new, target.field)
        assert bench.last_change.prior.content is not None
        assert bench.last_change.prior.content.read() == old
    assert bench.redis.get("k") == new
    assert bench.redis.hget("h", "f") == new


def test_a_value_over_512_mib_is_refused_at_once(bench: EditBench) -> None:
    """A value over 512 MiB raises TooLargeError; no row is recorded and no command sent."""
    huge = Blob(512 * MIB + 1, b"\0" * 32, b"")
    before = bench.server.stats.commands
    with pytest.raises(TooLargeError):
        bench.key_writer.save(KeyRef(b"k"), huge, precondition=Precondition.unconditional(), path=b"k")
    with pytest.raises(TooLargeError):
        bench.key_writer.patch(
            KeyRef(b"k"), 512 * MIB, Blob.from_bytes(b"x"), precondition=Precondition.unconditional(), path=b"k"
        )
    assert bench.server.stats.commands == before
    assert not bench.changes()


def test_a_save_is_one_write_command(bench: EditBench) -> None:
    """MONITOR shows one write command for a save, SET with KEEPTTL: the key is never absent or empty."""
    bench.redis.set("k", "old")
    with bench.redis.monitor() as monitor:
        bench.save(b"k", b"new")
        bench.redis.ping()
        commands = []
        for command in monitor.listen():
            commands.append(command["command"])
            if command["command"] == "PING":
                break
    assert [text for text in commands if text.split()[0] in ("SET", "DEL", "SETRANGE")] == ["SET k new KEEPTTL"]


# -- patches ---------------------------------------------------------------------------------------------------------


def test_a_patch_sends_and_records_only_a_slice(bench: EditBench) -> None:
    """Appending to and patching a large string transfers under 4 KiB; the journal has the slice and both sizes."""
    size = 20 * MIB
    bench.redis.set("k", b"a" * size)
    bench.save(b"warm", b"up")
    before = bench.server.stats.snapshot()
    bench.key_writer.patch(
        KeyRef(b"k"),
        size,
        Blob.from_bytes(b"b" * 1024),
        precondition=Precondition.blocks_equal(BlockDigests(size), lambda: True),
        path=b"k",
    )
    after = bench.server.stats.snapshot()
    assert after["bytes_sent"] + after["bytes_received"] - before["bytes_sent"] - before["bytes_received"] < 4096
    row = bench.last_change
    assert (row.op, row.prior.kind, row.prior.offset, row.prior.total_size) == ("append", "slice", size, size)
    assert (row.new.offset, row.new.total_size) == (size, size + 1024)
    bench.key_writer.patch(
        KeyRef(b"k"), 5, Blob.from_bytes(b"XYZ"), precondition=Precondition.unconditional(), path=b"k"
    )
    assert bench.redis.getrange("k", 0, 9) == b"aaaaaXYZaa"
    assert bench.last_change.prior.content == Blob.from_bytes(b"aaa")
    assert bench.redis.strlen("k") == size + 1024


def test_a_patch_across_the_end_and_beyond_it(bench: EditBench) -> None:
    """A patch may cross the end of the string, or leave a gap, which is filled with NULs."""
    bench.redis.set("k", "0123456789")
    bench.key_writer.patch(
        KeyRef(b"k"), 8, Blob.from_bytes(b"abcd"), precondition=Precondition.unconditional(), path=b"k"
    )
    assert bench.redis.get("k") == b"01234567abcd"
    assert bench.last_change.prior.content == Blob.from_bytes(b"89")
    bench.key_writer.patch(
        KeyRef(b"k"), 14, Blob.from_bytes(b"z"), precondition=Precondition.unconditional(), path=b"k"
    )
    assert bench.redis.get("k") == b"01234567abcd\0\0z"


# -- conflicts -------------------------------------------------------------------------------------------------------


def changed_blocks() -> BlockDigests:
    """Return the digests of 6 bytes that another client has replaced."""
    blocks = BlockDigests(6)
    blocks.record(0, b"before")
    return blocks


@pytest.mark.parametrize("field", [None, b"f"])
def test_a_conflicting_save_is_refused_and_journaled(bench: EditBench, field: bytes | None) -> None:
    """A save over another client's write is refused; the row has both values, Redis keeps the other client's."""
    if field:
        bench.redis.hset("k", "f", "theirs")
    else:
        bench.redis.set("k", "theirs")
    for precondition in (
        Precondition.from_bytes(b"mine"),
        Precondition.absent(),
        Precondition.blocks_equal(changed_blocks(), lambda: True),
        Precondition.blocks_equal(BlockDigests(7), lambda: True),
    ):
        with pytest.raises(ConflictError, match="redisfuse apply"):
            bench.save(b"k", b"new", field, precondition=precondition)
        row = bench.last_change
        assert row.outcome == "refused"
        assert row.prior.content == Blob.from_bytes(b"theirs")
        assert row.new.content == Blob.from_bytes(b"new")
    assert (bench.redis.hget("k", "f") if field else bench.redis.get("k")) == b"theirs"


def test_a_removed_key_is_a_conflict(bench: EditBench) -> None:
    """A key that was deleted while its file was open is not silently created again."""
    with pytest.raises(ConflictError, match="gone"):
        bench.save(b"k", b"new", precondition=Precondition.from_bytes(b"old"))
    assert bench.redis.exists("k") == 0
    assert bench.last_change.outcome == "refused"


def test_another_type_is_a_conflict_without_the_check_too(make_bench: BenchFactory) -> None:
    """A key that became a hash is never overwritten by a string, even with the conflict check off."""
    bench = make_bench(conflict_check=False)
    bench.redis.hset("k", "f", "v")
    bench.redis.set("s", "v")
    with pytest.raises(ConflictError):
        bench.save(b"k", b"new")
    with pytest.raises(ConflictError):
        bench.save(b"s", b"new", b"f")
    assert bench.redis.hgetall("k") == {b"f": b"v"}
    assert bench.redis.get("s") == b"v"
    assert {row.outcome for row in bench.changes()} == {"refused"}


def test_without_the_check_the_replaced_value_is_recorded(make_bench: BenchFactory) -> None:
    """With the conflict check off, a save succeeds and records the value that it actually replaced."""
    bench = make_bench(conflict_check=False)
    bench.redis.set("k", "theirs")
    bench.save(b"k", b"mine", precondition=Precondition.from_bytes(b"older"))
    assert bench.redis.get("k") == b"mine"
    assert bench.last_change.prior.content == Blob.from_bytes(b"theirs")


def test_a_key_that_changes_before_exec_is_read_again(bench: EditBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write between WATCH and EXEC is not lost: the row fails, and the next attempt records the new value."""
    bench.redis.set("k", "old")
    record_intents = bench.journal.record_intents
    once = iter([True])

    def record_then_write(*arguments: object, **options: object) -> list[int]:
        ids = record_intents(*arguments, **options)  # type: ignore[arg-type]
        if next(once, False):
            bench.redis.set("k", "theirs")
        return ids

    monkeypatch.setattr(bench.journal, "record_intents", record_then_write)
    bench.save(b"k", b"mine")
    assert [row.outcome for row in bench.changes()] == ["failed", "applied"]
    assert bench.last_change.prior.content == Blob.from_bytes(b"theirs")
    assert bench.redis.get("k") == b"mine"


def test_only_allowed_keys_are_changed(make_bench: BenchFactory) -> None:
    """Every operation on a key outside --allow raises AccessError and changes nothing."""
    bench = make_bench(allow=[b"config:*"])
    bench.save(b"config:a", b"1")
    bench.redis.set("k", "v")
    with pytest.raises(AccessError):
        bench.save(b"k", b"new")
    with pytest.raises(AccessError):
        bench.key_writer.remove([KeyRef(b"k")], path=b"k")
    with pytest.raises(AccessError):
        bench.key_writer.rename([(KeyRef(b"config:a"), KeyRef(b"k"))], path=b"config/a", new_path=b"k")
    assert bench.redis.get("k") == b"v"


# -- removing --------------------------------------------------------------------------------------------------------


def create_one_of_each(client: redis.Redis) -> list[bytes]:
    """Create one key of each built-in type; return the keys."""
    client.set("string", "v")
    client.rpush("list", "a", b"\xff\n", "a")
    client.sadd("set", "a", b"\xff")
    client.zadd("zset", {"a": 1.5, "b": float("inf")})
    client.hset("hash", mapping={"f": "v", b"\xff": b"\x00"})
    client.xadd("stream", {"f": "v"}, "5-1")
    client.xgroup_create("stream", "g", "0")
    return [b"string", b"list", b"set", b"zset", b"hash", b"stream"]


def test_any_type_is_removed_and_recorded(bench: EditBench) -> None:
    """Removing a key of any type records its DUMP (a string's value), a portable copy and the expiry."""
    at = in_an_hour()
    for key in create_one_of_each(bench.redis):
        bench.redis.pexpireat(key, at)
        dump = bench.redis.dump(key)
        bench.key_writer.remove([KeyRef(key)], path=key)
        assert bench.redis.exists(key) == 0
        row = bench.last_change
        assert (row.op, row.outcome, row.new.kind, row.prior.expires_at) == ("remove", "applied", "absent", at)
        if key != b"string":
            assert row.prior.kind == "object"
            assert row.prior.content is not None
            assert row.prior.content.read() == dump
            assert row.prior.portable_copy is not None
            assert row.prior.dump_version is not None


def test_removing_several_is_one_group(bench: EditBench) -> None:
    """Several targets are removed in one group of the journal; absent ones are skipped unless all are absent."""
    bench.redis.set("a", "1")
    bench.redis.hset("h", mapping={"f": "1", "g": "2"})
    bench.key_writer.remove([KeyRef(b"a"), KeyRef(b"h", b"f"), KeyRef(b"missing")], path=b"dir")
    assert bench.redis.exists("a") == 0
    assert bench.redis.hgetall("h") == {b"g": b"2"}
    assert len({row.group_id for row in bench.changes()}) == 1
    with pytest.raises(NotFoundError):
        bench.key_writer.remove([KeyRef(b"missing")], path=b"missing")


def test_a_large_collection_is_not_dumped(make_bench: BenchFactory) -> None:
    """Over the dump limit only the portable copy is recorded, read in pages, and the row has a note."""
    bench = make_bench(dump_limit=1000)
    bench.redis.sadd("s", *(b"member %d" % number for number in range(5000)))
    bench.key_writer.remove([KeyRef(b"s")], path=b"s")
    prior = bench.last_change.prior
    assert prior.content is None
    assert prior.portable_copy is not None
    assert prior.portable_copy.read().count(b"\n") == 5001
    assert prior.note is not None
    assert "--dump-limit" in prior.note


# -- renaming --------------------------------------------------------------------------------------------------------


def test_a_rename_moves_the_key_and_its_expiry(bench: EditBench) -> None:
    """A key of any type gets the new name with its expiry; both keys have a row, in one group."""
    at = in_an_hour()
    for key in create_one_of_each(bench.redis):
        bench.redis.pexpireat(key, at)
        bench.key_writer.rename([(KeyRef(key), KeyRef(b"new:" + key))], path=key, new_path=b"new/" + key)
        assert bench.redis.exists(key) == 0
        assert bench.redis.pexpiretime(b"new:" + key) == at
        source, target = bench.changes()[-2:]
        assert source.group_id == target.group_id
        assert (source.key, source.new.kind) == (key, "absent")
        assert (target.key, target.prior.kind) == (b"new:" + key, "absent")
        assert source.prior.content == target.new.content
        assert target.new_path == b"new/" + key


@pytest.mark.parametrize(("source_at", "target_at"), [(None, 1), (1, None), (1, 2), (None, None)])
def test_a_rename_over_a_key_keeps_the_targets_expiry(
    bench: EditBench, source_at: int | None, target_at: int | None
) -> None:
    """A string that replaces a string takes over its expiry, or its lack of one."""
    at = in_an_hour()
    bench.redis.set("a", "new", pxat=source_at and at + source_at)
    bench.redis.set("b", "old", pxat=target_at and at + target_at)
    bench.key_writer.rename([(KeyRef(b"a"), KeyRef(b"b"))], path=b"a", new_path=b"b")
    assert bench.redis.get("b") == b"new"
    assert bench.redis.exists("a") == 0
    assert bench.redis.pexpiretime("b") == (-1 if target_at is None else at + target_at)
    assert bench.last_change.prior.content == Blob.from_bytes(b"old")


def test_renames_between_strings_and_fields(bench: EditBench) -> None:
    """A string becomes a field, a field a string, a field another field; a hash is gone with its last field."""
    bench.redis.set("s", "1")
    bench.redis.hset("h", "old", "0")
    bench.key_writer.rename([(KeyRef(b"s"), KeyRef(b"h", b"f"))], path=b"s", new_path=b"h.f")
    assert bench.redis.exists("s") == 0
    assert bench.redis.hgetall("h") == {b"old": b"0", b"f": b"1"}
    bench.key_writer.rename([(KeyRef(b"h", b"f"), KeyRef(b"h", b"old"))], path=b"h.f", new_path=b"h.old")
    assert bench.redis.hgetall("h") == {b"old": b"1"}
    bench.key_writer.rename([(KeyRef(b"h", b"old"), KeyRef(b"t"))], path=b"h.old", new_path=b"t")
    assert bench.redis.exists("h") == 0
    assert bench.redis.get("t") == b"1"
    assert {row.outcome for row in bench.changes()} == {"applied"}


def test_refused_renames(bench: EditBench) -> None:
    """NOREPLACE, a string over a collection, a collection as a field, a field of a string: errors without a row."""
    bench.redis.set("a", "1")
    bench.redis.set("b", "2")
    bench.redis.rpush("l", "x")

    def rename(source: KeyRef, target: KeyRef, **options: bool) -> None:
        bench.key_writer.rename([(source, target)], path=b"p", new_path=b"q", **options)

    with pytest.raises(ExistsError):
        rename(KeyRef(b"a"), KeyRef(b"b"), allow_replace=False)
    with pytest.raises(AccessError):
        rename(KeyRef(b"a"), KeyRef(b"l"))
    with pytest.raises(InvalidArgumentError):
        rename(KeyRef(b"l"), KeyRef(b"h", b"f"))
    with pytest.raises(ConflictError):
        rename(KeyRef(b"a"), KeyRef(b"b", b"f"))
    with pytest.raises(NotFoundError):
        rename(KeyRef(b"missing"), KeyRef(b"c"))
    assert not bench.changes()
    assert bench.redis.get("b") == b"2"


def test_a_directorys_rename_is_one_group(bench: EditBench) -> None:
    """1300 keys are renamed in several transactions, as one group of the journal."""
    names = [b"%d" % number for number in range(1300)]
    bench.redis.mset({b"old:" + name: name for name in names})
    moves = [(KeyRef(b"old:" + name), KeyRef(b"new:" + name)) for name in names]
    bench.key_writer.rename(moves, path=b"old", new_path=b"new")
    assert bench.redis.dbsize() == 1300
    assert bench.redis.mget([b"new:" + name for name in names]) == names
    rows = bench.changes()
    assert len(rows) == 2600
    assert {row.outcome for row in rows} == {"applied"}
    assert len({row.group_id for row in rows}) == 1


# -- expiries, directories -------------------------------------------------------------------------------------------


def test_an_expiry_is_set_and_cleared(bench: EditBench) -> None:
    """Setting and clearing an expiry is journaled with the whole value; a field's expiry needs a newer server."""
    at = in_an_hour()
    bench.redis.set("k", "v")
    bench.key_writer.expire(KeyRef(b"k"), at, path=b"k")
    assert bench.redis.pexpiretime("k") == at
    assert (bench.last_change.prior.expires_at, bench.last_change.new.expires_at) == (None, at)
    assert bench.last_change.prior.content == Blob.from_bytes(b"v")
    bench.key_writer.expire(KeyRef(b"k"), None, path=b"k")
    assert bench.redis.pexpiretime("k") == -1
    with pytest.raises(InvalidArgumentError):
        bench.key_writer.expire(KeyRef(b"k"), 1, path=b"k")
    bench.redis.hset("h", "f", "v")
    if not bench.server.server_info.has_hash_field_ttl:
        with pytest.raises(NotSupportedError):
            bench.key_writer.expire(KeyRef(b"h", b"f"), at, path=b"h.f")


def test_empty_directories_exist_in_the_journal(bench: EditBench) -> None:
    """mkdir and rmdir of an empty directory change the journal, but no key."""
    bench.key_writer.make_directory((b"a", b"b"), path=b"a/b")
    assert bench.list_directories() == {(b"a", b"b")}
    bench.key_writer.remove_directory((b"a", b"b"), path=b"a/b")
    assert bench.list_directories() == set()
    assert [row.op for row in bench.changes()] == ["mkdir", "rmdir"]
    assert bench.redis.dbsize() == 0


# -- concurrency -----------------------------------------------------------------------------------------------------


def test_parallel_saves_share_transactions_but_not_groups(bench: EditBench) -> None:
    """Saves of many threads are applied once each, as operations of their own, in far fewer transactions."""
    bench.save(b"warm", b"up")
    before = bench.redis.info("commandstats")["cmdstat_exec"]["calls"]

    def save_fifty(thread: int) -> None:
        for number in range(50):
            name = b"%d:%d" % (thread, number)
            bench.key_writer.save(KeyRef(name), Blob.from_bytes(name), precondition=Precondition.absent(), path=name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save_fifty, range(8)))
    transactions = bench.redis.info("commandstats")["cmdstat_exec"]["calls"] - before
    assert transactions < 200
    rows = bench.changes()
    assert len(rows) == 401
    assert {row.outcome for row in rows} == {"applied"}
    assert all(row.group_id == row.id for row in rows)
    assert all(bench.redis.get(row.key) == row.key for row in rows if row.key != b"warm")
    assert len(bench.applied_keys) == 401


def test_each_save_of_a_shared_transaction_has_its_own_outcome(bench: EditBench) -> None:
    """A conflict, or a key that changes before EXEC, does not affect the other saves of the transaction."""
    bench.redis.mset({str(number): "old" for number in range(8)})
    stop = threading.Event()

    def keep_writing() -> None:
        while not stop.is_set():
            bench.redis.set("0", "old")

    def save_twenty_times(number: int) -> Exception | None:
        precondition = Precondition.from_bytes(b"wrong" if number == 7 else b"old")
        try:
            for _ in range(20):
                bench.key_writer.save(
                    KeyRef(b"%d" % number), Blob.from_bytes(b"old"), precondition=precondition, path=b"p"
                )
        except (ConflictError, BusyError) as error:
            return error
        return None

    other_client = threading.Thread(target=keep_writing)
    other_client.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(save_twenty_times, range(8)))
    finally:
        stop.set()
        other_client.join(10)
    assert isinstance(outcomes[7], ConflictError)
    assert outcomes[1:7] == [None] * 6
    assert sum(row.outcome == "applied" for row in bench.changes() if row.key in b"123456") == 120
