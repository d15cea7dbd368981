"""Prefetching: fewer round trips, no more commands, nothing stale."""

import random
from collections.abc import Callable, Iterator

import pytest
import redis

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.errors import NotFoundError, WrongTypeError
from redisfuse.keyspace.metadata import KeyMetadata, MetadataStore
from redisfuse.keyspace.prefetch import (
    INITIAL_PREFETCH_KEYS,
    MAX_PREFETCH_KEYS,
    MAX_PREFETCH_VALUE_BYTES,
    MIN_SEQUENTIAL_READS,
    AccessPattern,
)
from redisfuse.paths.grammar import KeyRef
from tests.support.listeners import FixedFreshness
from tests.support.redis_server import RedisServer

KEYS = [b"k:%d" % number for number in range(1000)]


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
    assert round_trips <= 40


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
    assert store.get_cached_content(changed) is not None
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
    batch = AccessPattern(KEYS)
    assert [batch.detect_order(key, len) for key in KEYS[:MIN_SEQUENTIAL_READS]] == [False] * (
        MIN_SEQUENTIAL_READS - 1
    ) + [True]
    place = MIN_SEQUENTIAL_READS - 1
    while place < len(KEYS):
        allowed = batch.plan_prefetch(place)
        assert INITIAL_PREFETCH_KEYS <= allowed <= MAX_PREFETCH_KEYS
        batch.record_prefetch(allowed, place + allowed)
        for _ in range(allowed):
            batch.record_hit()
        place += allowed + 1
    assert allowed == MAX_PREFETCH_KEYS
