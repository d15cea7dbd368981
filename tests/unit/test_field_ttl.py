"""Hash fields with an expiry of their own (Redis 7.4, Valkey 9): writes keep it, rollbacks restore it."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from redisfuse.journal.content import Blob
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.precondition import Precondition
from tests.support.edit_bench import EditBench
from tests.support.redis_server import RedisServer

AT = int(time.time() * 1000) + 3_600_000


@pytest.fixture(params=["with HSETEX", "without HSETEX"])
def bench(request: pytest.FixtureRequest, newer_redis: RedisServer, tmp_path: Path) -> Iterator[EditBench]:
    """Return a bench on a server whose fields can expire, once with HSETEX and once without."""
    newer_redis.client().flushall()
    bench = EditBench.create(tmp_path / "state", newer_redis)
    facts = bench.server.server_info
    assert facts.has_hash_field_ttl
    if request.param == "without HSETEX":
        bench.server._connector.server_info = replace(facts, vendor="redis", version=(7, 4, 0))
    yield bench
    bench.close()


def expiry(bench: EditBench, key: bytes, field: bytes) -> int:
    """Return when a field expires, absolute ms; -1: never."""
    [at] = bench.redis.execute_command("HPEXPIRETIME", key, "FIELDS", 1, field)
    assert isinstance(at, int)
    return at


def create_hash(bench: EditBench) -> None:
    """Create `h` with a field that expires and one that does not."""
    bench.redis.hset("h", mapping={"f": "old", "g": "stays"})
    bench.redis.execute_command("HPEXPIREAT", "h", AT, "FIELDS", 1, "f")


def test_a_save_keeps_the_fields_expiry(bench: EditBench) -> None:
    """A save of a field keeps the field's expiry; so does its rollback."""
    create_hash(bench)
    for data in (b"new", b"n" * (3 << 20)):
        bench.save(b"h", data, b"f")
        assert bench.redis.hget("h", "f") == data
        assert expiry(bench, b"h", b"f") == AT
        assert bench.last_change.prior.field_expires_at == bench.last_change.new.field_expires_at == AT
    assert bench.roll_back(last=2).is_clean
    assert bench.redis.hget("h", "f") == b"old"
    assert expiry(bench, b"h", b"f") == AT
    assert expiry(bench, b"h", b"g") == -1


def test_a_fields_expiry_is_set_and_rolled_back(bench: EditBench) -> None:
    """Setting and clearing a field's expiry is journaled and can be rolled back."""
    create_hash(bench)
    bench.key_writer.expire(KeyRef(b"h", b"f"), AT + 1000, path=b"h.f")
    bench.key_writer.expire(KeyRef(b"h", b"g"), AT, path=b"h.g")
    bench.key_writer.expire(KeyRef(b"h", b"f"), None, path=b"h.f")
    assert (expiry(bench, b"h", b"f"), expiry(bench, b"h", b"g")) == (-1, AT)
    assert bench.roll_back(last=1).is_clean
    assert expiry(bench, b"h", b"f") == AT + 1000
    assert bench.roll_back(last=2).is_clean
    assert (expiry(bench, b"h", b"f"), expiry(bench, b"h", b"g")) == (AT, -1)


def test_a_restored_field_has_its_expiry(bench: EditBench) -> None:
    """A removed field, alone or with its hash, is restored with its expiry, from a portable copy too."""
    create_hash(bench)
    bench.key_writer.remove([KeyRef(b"h", b"f")], path=b"h.f")
    assert bench.roll_back(last=1).is_clean
    assert expiry(bench, b"h", b"f") == AT
    bench.key_writer.remove([KeyRef(b"h")], path=b"h")
    assert bench.roll_back(last=1).is_clean
    assert expiry(bench, b"h", b"f") == AT
    bench.key_writer.executor.reader.dump_limit = 1
    bench.key_writer.remove([KeyRef(b"h")], path=b"h")
    assert bench.last_change.prior.content is None
    assert bench.roll_back(last=1).is_clean
    assert bench.redis.hgetall("h") == {b"f": b"old", b"g": b"stays"}
    assert (expiry(bench, b"h", b"f"), expiry(bench, b"h", b"g")) == (AT, -1)


def test_renames_carry_and_keep_expiries(bench: EditBench) -> None:
    """A string's expiry moves into a new field and back; a string that replaces a field takes over its expiry."""
    create_hash(bench)
    bench.redis.set("s", "string", pxat=AT + 5)
    bench.key_writer.rename([(KeyRef(b"s"), KeyRef(b"h", b"new"))], path=b"s", new_path=b"h.new")
    assert expiry(bench, b"h", b"new") == AT + 5
    bench.key_writer.rename([(KeyRef(b"h", b"new"), KeyRef(b"h", b"f"))], path=b"h.new", new_path=b"h.f")
    assert bench.redis.hget("h", "f") == b"string"
    assert expiry(bench, b"h", b"f") == AT
    bench.key_writer.rename([(KeyRef(b"h", b"f"), KeyRef(b"t"))], path=b"h.f", new_path=b"t")
    assert bench.redis.pexpiretime("t") == AT
    assert bench.roll_back(last=3).is_clean
    assert bench.redis.hgetall("h") == {b"f": b"old", b"g": b"stays"}
    assert expiry(bench, b"h", b"f") == AT
    assert bench.redis.pexpiretime("s") == AT + 5


def test_a_field_that_would_have_expired_is_not_restored(bench: EditBench) -> None:
    """A field whose expiry has passed would be gone by now: it is not restored, and there is a note."""
    soon = int(time.time() * 1000) + 60
    bench.redis.hset("h", mapping={"f": "old", "g": "stays"})
    bench.redis.execute_command("HPEXPIREAT", "h", soon, "FIELDS", 1, "f")
    bench.key_writer.remove([KeyRef(b"h", b"f")], path=b"h.f")
    time.sleep(0.1)
    report = bench.roll_back(last=1)
    assert report.is_clean
    assert bench.redis.hgetall("h") == {b"g": b"stays"}
    assert "expiry has passed" in report.notes[0][1]


def test_a_conflict_check_on_fields(bench: EditBench) -> None:
    """The precondition of a field with an expiry is its bytes, as for any other field."""
    create_hash(bench)
    target = KeyRef(b"h", b"f")
    bench.key_writer.save(target, Blob.from_bytes(b"new"), precondition=Precondition.from_bytes(b"old"), path=b"h.f")
    assert expiry(bench, b"h", b"f") == AT
