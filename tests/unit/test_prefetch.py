"""Prefetching: fewer round trips, no more commands, nothing stale."""

import math
import random
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.errors import NotFoundError, WrongTypeError
from redisfuse.keyspace.metadata import ABSENT, KeyMetadata, MetadataStore
from redisfuse.keyspace.packed_metadata import PackedMetadata
from redisfuse.keyspace.prefetch import (
    AS_LISTED,
    INITIAL_PREFETCH_KEYS,
    MAX_PREFETCH_KEYS,
    MAX_PREFETCH_VALUE_BYTES,
    MIN_SEQUENTIAL_READS,
    AccessPattern,
    Listing,
    ReadingHint,
    ReadingOrder,
)
from redisfuse.paths.grammar import KeyRef
from tests.support.listeners import FixedFreshness
from tests.support.redis_server import RedisServer

KEYS = [b"k:%d" % number for number in range(1000)]
PACKABLE = (b"string", b"hash", b"list", b"set", b"zset", b"stream", b"module")


@pytest.fixture
def client(redis_server: RedisServer) -> redis.Redis:
    """Create the strings and return a client that may write."""
    client = redis_server.client()
    client.mset({key: b"content of " + key for key in KEYS})
    return client


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[RedisClient]:
    """redisfuse's own read connection to the test server."""
    server = RedisClient(Address.parse(redis_server.url()))
    server.connect()
    yield server
    server.close()


@pytest.fixture
def store(server: RedisClient, client: redis.Redis) -> MetadataStore:
    """Return a store that has listed the strings."""
    assert client.exists(*KEYS) == len(KEYS)
    store = MetadataStore(server, freshness=FixedFreshness(), sort_key=lambda key: key[::-1])
    store.get_many(KEYS)
    return store


def read(store: MetadataStore, server: RedisClient, keys: list[bytes]) -> tuple[int, int]:
    """Read these keys; return how many commands and round trips that took."""
    before = server.stats.snapshot()
    for key in keys:
        assert store.get_content(KeyRef(key)) == b"content of " + key
    after = server.stats.snapshot()
    return after["commands"] - before["commands"], after["round_trips"] - before["round_trips"]


@pytest.mark.parametrize("order", [None, lambda key: key, lambda key: key[::-1]], ids=["listed", "name", "other"])
def test_sequential_reads(store: MetadataStore, server: RedisClient, order: Callable[[bytes], bytes] | None) -> None:
    """All strings of a listing, read in a known order, take one command each and few round trips."""
    commands, round_trips = read(store, server, KEYS if order is None else sorted(KEYS, key=order))
    assert commands == len(KEYS)
    assert round_trips <= MIN_SEQUENTIAL_READS + 5


MANY = [b"many:%d" % number for number in range(20_000)]


@pytest.fixture
def many(server: RedisClient, client: redis.Redis) -> MetadataStore:
    """Return a store that has listed 20 000 strings, in 20 batches."""
    client.mset({key: b"content of " + key for key in MANY})
    store = MetadataStore(server, freshness=FixedFreshness(), sort_key=lambda key: key[::-1])
    store.get_many(MANY)
    return store


@pytest.mark.parametrize("order", [None, lambda key: key[::-1]], ids=["listed", "interleaved"])
def test_a_long_directory(many: MetadataStore, server: RedisClient, order: Callable[[bytes], bytes] | None) -> None:
    """Each string takes one command, and all together n/100 round trips, with the two for each 1000 of the listing.

    The order is detected once, also where the reads are scattered over all batches.
    """
    commands, round_trips = read(many, server, MANY if order is None else sorted(MANY, key=order))
    assert commands == len(MANY)
    assert round_trips + 2 * len(MANY) // 1000 <= len(MANY) // 100


def test_reads_of_few_keys_of_many_directories(many: MetadataStore, server: RedisClient) -> None:
    """A wrong hint wastes few commands."""
    read(many, server, MANY[:5000])
    commands, _ = read(many, server, MANY[5500::1000])
    assert commands <= 4 * 256 + 15 * (1 + INITIAL_PREFETCH_KEYS)


def test_another_order_than_the_last_one(many: MetadataStore, server: RedisClient) -> None:
    """Keys that are read in another order than before have that order detected."""
    read(many, server, MANY[:3000])
    keys = sorted(MANY[3000:], key=lambda key: key[::-1])
    _, round_trips = read(many, server, keys)
    assert round_trips <= len(keys) // 100


@pytest.mark.parametrize("order", [None, lambda key: key[::-1]], ids=["listed", "interleaved"])
def test_contents_that_do_not_fit(
    server: RedisClient, client: redis.Redis, order: Callable[[bytes], bytes] | None
) -> None:
    """Contents that were read make room, so that metadata which was not used yet stays cached."""
    for start in range(0, len(MANY), 1000):
        client.mset({key: b"content of " + key + bytes(2000) for key in MANY[start : start + 1000]})
    store = MetadataStore(
        server, freshness=FixedFreshness(), sort_key=lambda key: key[::-1], max_cache_bytes=len(MANY) * 600
    )
    store.get_many(MANY)
    before = server.stats.snapshot()
    for key in MANY if order is None else sorted(MANY, key=order):
        assert store.get_content(KeyRef(key)) == b"content of " + key + bytes(2000)
    after = server.stats.snapshot()
    assert after["commands"] - before["commands"] <= 1.1 * len(MANY)
    assert after["round_trips"] - before["round_trips"] <= len(MANY) // 20
    assert store.cache.memory_bytes <= store.cache.max_bytes


def test_random_reads(store: MetadataStore, server: RedisClient) -> None:
    """Strings that are read in random order are fetched alone."""
    assert read(store, server, random.Random(3).sample(KEYS, 200)) == (200, 200)


def test_with_gaps(store: MetadataStore, server: RedisClient) -> None:
    """If every third string is read, no more strings are prefetched than are read."""
    keys = KEYS[::3]
    commands, round_trips = read(store, server, keys)
    assert commands <= 1.2 * len(keys)
    assert round_trips <= len(keys)


def test_the_first_reads_are_single(store: MetadataStore, server: RedisClient) -> None:
    """A program that reads only a few files of a directory fetches only these."""
    assert read(store, server, KEYS[: MIN_SEQUENTIAL_READS - 1]) == (MIN_SEQUENTIAL_READS - 1, MIN_SEQUENTIAL_READS - 1)


def test_reading_on_after_a_jump(store: MetadataStore, server: RedisClient) -> None:
    """A read elsewhere in the directory is fetched alone; prefetching resumes when the reads continue from there."""
    read(store, server, KEYS[:20])
    assert read(store, server, KEYS[500:501]) == (1, 1)
    assert read(store, server, KEYS[501 : 501 + INITIAL_PREFETCH_KEYS])[1] == 1


def test_prefetch_of_changed_keys(store: MetadataStore, server: RedisClient, client: redis.Redis) -> None:
    """A key to prefetch that was deleted, has another type or has grown has no effect, and shows its new state."""
    client.delete(KEYS[5])
    client.delete(KEYS[6])
    client.rpush(KEYS[6], "element")
    client.set(KEYS[7], b"x" * (MAX_PREFETCH_VALUE_BYTES + 1))
    read(store, server, KEYS[:5])
    with pytest.raises(NotFoundError):
        store.get_content(KeyRef(KEYS[5]))
    with pytest.raises(WrongTypeError):
        store.get_content(KeyRef(KEYS[6]))
    assert store.get_content(KeyRef(KEYS[7])) == b"x" * (MAX_PREFETCH_VALUE_BYTES + 1)
    read(store, server, KEYS[8:])


def test_a_change_invalidates_a_prefetched_content(
    store: MetadataStore, server: RedisClient, client: redis.Redis
) -> None:
    """A prefetched content is invalidated like any other when its key changes."""
    read(store, server, KEYS[:MIN_SEQUENTIAL_READS])
    changed = KEYS[MIN_SEQUENTIAL_READS + 2]
    assert store.cache.peek_content(changed) is not None
    client.set(changed, "new")
    store.invalidate([changed])
    assert store.get_content(KeyRef(changed)) == b"new"


def test_a_change_during_a_prefetch(store: MetadataStore) -> None:
    """The content of a key that changes during its fetch is not cached."""
    cache = store.cache
    for key in KEYS[: MIN_SEQUENTIAL_READS - 1]:
        assert cache.select_prefetch(key) == {}
    with cache.begin_fetch() as fetch:
        ahead = cache.select_prefetch(KEYS[MIN_SEQUENTIAL_READS - 1])
        changed = KEYS[MIN_SEQUENTIAL_READS]
        assert changed in ahead
        cache.invalidate([changed])
        cache.store(fetch, {key: (KeyMetadata(b"string", 3), b"old") for key in ahead})
    assert cache.peek_content(changed) is None
    assert cache.peek_content(KEYS[MIN_SEQUENTIAL_READS + 1]) == b"old"


def test_no_content_is_prefetched_twice(store: MetadataStore) -> None:
    """A content that is being fetched for one reader is not prefetched for another."""
    cache = store.cache
    for key in KEYS[: MIN_SEQUENTIAL_READS - 1]:
        assert cache.select_prefetch(key) == {}
    first = cache.select_prefetch(KEYS[MIN_SEQUENTIAL_READS - 1])
    second = cache.select_prefetch(KEYS[MIN_SEQUENTIAL_READS])
    assert len(first) == INITIAL_PREFETCH_KEYS
    assert first.keys().isdisjoint(second)


def test_prefetches_are_bounded() -> None:
    """No prefetch exceeds its bounds."""
    pattern = AccessPattern(0.0)
    for key in KEYS:
        pattern.table.put(key, None)
    hint = ReadingHint()
    possible = [pattern.record_read(key, len, hint) for key in KEYS[:MIN_SEQUENTIAL_READS]]
    assert possible[:-1] == [[]] * (MIN_SEQUENTIAL_READS - 1)
    assert AS_LISTED in possible[-1]
    assert pattern.adopt_order(ReadingOrder.sort(pattern.table, AS_LISTED, len), hint)
    rank = MIN_SEQUENTIAL_READS - 1
    while rank < len(KEYS):
        allowed = pattern.plan_prefetch(rank)
        assert INITIAL_PREFETCH_KEYS <= allowed <= MAX_PREFETCH_KEYS
        pattern.record_prefetch(allowed, rank + allowed)
        for _ in range(allowed):
            pattern.record_hit()
        rank += allowed + 1
    assert allowed == MAX_PREFETCH_KEYS


# -- more keys than the cache has room for ----------------------------------------------------------------------------


def make_small_store(server: RedisClient, **freshness: bool) -> MetadataStore:
    """Return a store whose cache has room for the entries of less than 3000 keys."""
    return MetadataStore(
        server, freshness=FixedFreshness(**freshness), sort_key=lambda key: key[::-1], max_cache_bytes=2 << 20
    )


@pytest.mark.parametrize(
    ("order", "may_expire"),
    [(None, False), (lambda key: key, True), (lambda key: key[::-1], False)],
    ids=["listed", "by name", "interleaved"],
)
def test_metadata_that_does_not_fit(
    server: RedisClient, client: redis.Redis, order: Callable[[bytes], bytes] | None, may_expire: bool
) -> None:
    """At most 4 commands a key list and read many more keys than fit, in n/100 round trips; `stat` sends none."""
    client.mset({key: b"content of " + key for key in MANY})
    for key in MANY[::2] if may_expire else ():
        client.pexpire(key, 1_000_000)
    store = make_small_store(server, may_expire=may_expire)
    before = server.stats.snapshot()
    listed = store.get_many(MANY)
    assert store.cache.memory_bytes <= 2 << 20
    sent = server.stats.snapshot()["commands"]
    for number, (key, metadata) in enumerate(zip(MANY, listed, strict=True)):
        assert store.get(key) == metadata
        assert (metadata.expires_at is not None) == (may_expire and number % 2 == 0)
        assert metadata.length == len(b"content of " + key)
    assert server.stats.snapshot()["commands"] == sent
    read(store, server, MANY if order is None else sorted(MANY, key=order))
    after = server.stats.snapshot()
    assert after["commands"] - before["commands"] <= 4.01 * len(MANY)
    assert after["round_trips"] - before["round_trips"] <= len(MANY) // 100
    assert store.cache.memory_bytes <= 2 << 20


def test_extended_metadata_that_does_not_fit(server: RedisClient, client: redis.Redis) -> None:
    """The extended attributes of many more keys than fit take 4 commands a key and n/100 round trips."""
    client.mset({key: b"content of " + key for key in MANY})
    store = make_small_store(server, may_expire=True)
    before = server.stats.snapshot()
    store.get_many(MANY)
    for key in MANY:
        assert store.get_extended(key).encoding == b"embstr"
    after = server.stats.snapshot()
    assert after["commands"] - before["commands"] <= 4 * len(MANY)
    assert after["round_trips"] - before["round_trips"] <= len(MANY) // 100


def test_changes_of_keys_that_did_not_fit(server: RedisClient, client: redis.Redis) -> None:
    """Listed metadata of a key is not used once the key has changed, expired or was fetched again."""
    client.mset({key: b"content of " + key for key in MANY})
    client.pexpire(MANY[3], 1500)
    freshness = FixedFreshness(may_expire=True)
    store = MetadataStore(server, freshness=freshness, max_cache_bytes=2 << 20)
    store.get_many(MANY)
    client.delete(MANY[0])
    client.set(MANY[1], "new")
    client.set(MANY[2], "longer than it was")
    store.invalidate(MANY[:2])
    assert store.get(MANY[0]) == ABSENT
    assert store.get(MANY[1]).length == 3
    assert store.get_content(KeyRef(MANY[2])) == b"longer than it was"
    assert store.get(MANY[2]).length == len("longer than it was")
    store.get_many(MANY[10_000:])
    assert store.get(MANY[1]).length == 3
    assert store.get(MANY[2]).length == len("longer than it was")
    time.sleep(1.6)
    assert store.get(MANY[3]) == ABSENT
    meter = server.stats.snapshot()["commands"]
    store.get(MANY[4])
    assert server.stats.snapshot()["commands"] == meter
    freshness.age = 0.5
    store.get(MANY[5])
    assert server.stats.snapshot()["commands"] > meter, "changes are not announced any more"
    freshness.age = math.inf
    store.invalidate_all()
    meter = server.stats.snapshot()["commands"]
    store.get(MANY[6])
    assert server.stats.snapshot()["commands"] > meter


def test_a_change_while_keys_are_listed(server: RedisClient) -> None:
    """The metadata of a key that changed during the fetch is not restored later."""
    cache = make_small_store(server).cache
    with cache.begin_fetch() as fetch:
        cache.invalidate([MANY[7]])
        cache.store(fetch, {key: (KeyMetadata(b"string", 3), None) for key in MANY}, listing=Listing())
    assert cache.get(MANY[7]) is None
    assert cache.get(MANY[8]) == KeyMetadata(b"string", 3)


def test_keys_beyond_all_memory(server: RedisClient, client: redis.Redis) -> None:
    """The cache keeps to its memory, and counts the keys that it could not hold."""
    store = MetadataStore(server, freshness=FixedFreshness(), max_cache_bytes=300_000)
    client.mset(dict.fromkeys(MANY, b"x"))
    for start in range(0, len(MANY), 5000):
        store.get_many(MANY[start : start + 5000])
        assert store.cache.memory_bytes <= 300_000
    assert 10_000 < store.cache.evicted_keys < len(MANY)
    meter = server.stats.snapshot()["commands"]
    store.get_many(MANY[-500:])
    assert server.stats.snapshot()["commands"] == meter
    store.get(MANY[0])
    assert server.stats.snapshot()["commands"] > meter


@given(st.lists(st.tuples(st.binary(max_size=3), st.sampled_from(PACKABLE), st.integers(0, 2**32 - 1)), max_size=60))
def test_packed_metadata(puts: list[tuple[bytes, bytes, int]]) -> None:
    """A packed table has the keys in order, and of each what was put last."""
    table = PackedMetadata()
    expected: dict[bytes, KeyMetadata | None] = {}
    for number, (key, type, length) in enumerate(puts):
        metadata = KeyMetadata(type, length, number / 4 if number % 3 == 2 else None)
        table.put(key, metadata)
        expected[key] = None if type == b"module" else metadata
    assert [table.get_key(position) for position in range(len(table))] == list(expected)
    for position, (key, metadata) in enumerate(expected.items()):
        assert table.find(key) == position
        assert table.get_metadata(position) == metadata
    assert table.find(b"missing") is None
    if not expected:
        assert table.prefix is None
        return
    assert table.prefix is not None
    beginnings = {key[: len(table.prefix) + 1] for key in expected}
    assert all(beginning.startswith(table.prefix) for beginning in beginnings)
    assert len(expected) == 1 or len(beginnings) > 1  # it is the longest


@pytest.mark.parametrize(("max_bytes", "searched"), [(64 << 20, 0), (1_000_000, 1)])
def test_few_tables_are_searched(
    server: RedisClient, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, max_bytes: int, searched: int
) -> None:
    """The tables of other directories are not searched for a key, and none before an entry was evicted."""
    store = MetadataStore(server, max_cache_bytes=max_bytes, freshness=FixedFreshness())
    keys = [[b"dir:%d:%d" % (folder, number) for number in range(100)] for folder in range(100, 140)]
    client.mset({key: b"x" for folder in keys for key in folder})
    for folder in keys[:-1]:
        store.get_many(folder)
    needs_bytes = 1_700_000  # of entries and tables
    assert (store.cache.memory_bytes < needs_bytes) == bool(searched)
    found: list[bytes] = []
    find = PackedMetadata.find
    monkeypatch.setattr(PackedMetadata, "find", lambda self, key: found.append(key) or find(self, key))
    store.get_many(keys[0])
    assert len(found) <= searched * 2 * len(keys[0])  # once for the key, and once for one that is evicted
    store.get_many(keys[-1])
    assert len(found) <= searched * 4 * len(keys[0])
