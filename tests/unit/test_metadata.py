"""The metadata store on real servers: how many commands it sends, and that it caches nothing stale."""

import math
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest
import redis

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.client.limits import Limits
from redisfuse.errors import NotFoundError, WrongTypeError
from redisfuse.keyspace.metadata import ABSENT, UNREADABLE, KeyMetadata, MetadataStore
from redisfuse.keyspace.metadata_cache import MAX_RECENT_CHANGES, MetadataCache
from redisfuse.paths.grammar import KeyRef
from tests.support.listeners import FixedFreshness
from tests.support.redis_server import RedisServer

MIB = 1 << 20


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[RedisClient]:
    """redisfuse's own read connection to the test server."""
    server = RedisClient(Address.parse(redis_server.url()), Limits(timeout=20.0))
    server.connect()
    yield server
    server.close()


@pytest.fixture
def client(redis_server: RedisServer) -> redis.Redis:
    """Return a client that may write."""
    return redis_server.client()


@pytest.fixture
def store(server: RedisClient) -> MetadataStore:
    """Return a store whose entries are valid until they are invalidated; no key expires."""
    return MetadataStore(server, freshness=FixedFreshness())


class Meter:
    """Counts the commands and round trips since it was created."""

    def __init__(self, server: RedisClient) -> None:
        self._counters = server.stats
        self._commands, self._round_trips = server.stats.commands, server.stats.round_trips

    @property
    def commands(self) -> int:
        return self._counters.commands - self._commands

    @property
    def round_trips(self) -> int:
        return self._counters.round_trips - self._round_trips


def fill(client: redis.Redis) -> dict[bytes, KeyMetadata]:
    """Create a key of every type; return their metadata."""
    client.set("string", "12345")
    client.set("empty", "")
    client.rpush("list", "a", "b")
    client.sadd("set", "a")
    client.zadd("zset", {"a": 1, "b": 2, "c": 3})
    client.hset("hash", mapping={"a": "1", "b": "22", "empty": ""})
    client.xadd("stream", {"a": "b"})
    return {
        b"string": KeyMetadata(b"string", 5),
        b"empty": KeyMetadata(b"string", 0),
        b"list": KeyMetadata(b"list", 2),
        b"set": KeyMetadata(b"set", 1),
        b"zset": KeyMetadata(b"zset", 3),
        b"hash": KeyMetadata(b"hash", 3),
        b"stream": KeyMetadata(b"stream", 1),
        b"missing": ABSENT,
    }


# -- keys -------------------------------------------------------------------------------------------------------------


def test_metadata_of_every_type(store: MetadataStore, server: RedisClient, client: redis.Redis) -> None:
    """Two round trips and at most two commands a key fetch type and length of each type; then they are cached."""
    expected = fill(client)
    meter = Meter(server)
    assert dict(zip(expected, store.get_many(list(expected)), strict=True)) == expected
    assert (meter.commands, meter.round_trips) == (2 * len(expected) - 1, 2)
    assert [store.get(key) for key in expected] == list(expected.values())
    assert (meter.round_trips, store.hits, store.misses) == (2, len(expected), len(expected))


def test_many_keys_take_two_commands_each(store: MetadataStore, server: RedisClient, client: redis.Redis) -> None:
    """`ls -l` of 3000 strings takes 6000 commands in 6 round trips, no PTTL, and causes no error on the server."""
    client.mset({f"k:{number}": "x" * (number % 7) for number in range(3000)})
    client.config_resetstat()
    meter = Meter(server)
    found = store.get_many([b"k:%d" % number for number in range(3000)])
    assert [attributes.length for attributes in found] == [number % 7 for number in range(3000)]
    assert (meter.commands, meter.round_trips) == (6000, 6)
    assert client.info("errorstats") == {}


def test_a_duplicate_key_is_fetched_once(store: MetadataStore, server: RedisClient, client: redis.Redis) -> None:
    """A key that is requested twice is fetched once."""
    client.set("k", "x")
    meter = Meter(server)
    assert store.get_many([b"k", b"missing", b"k"]) == [KeyMetadata(b"string", 1), ABSENT, KeyMetadata(b"string", 1)]
    assert meter.commands == 3


@pytest.mark.parametrize("size", [0, 1, 16_383])
def test_cat_of_a_small_string_is_two_round_trips(
    store: MetadataStore, server: RedisClient, client: redis.Redis, size: int
) -> None:
    """A cold look-up fetches type, length and content, so that opening sends nothing more."""
    client.set("k", b"x" * size)
    meter = Meter(server)
    assert store.get_with_content(b"k") == KeyMetadata(b"string", size)
    assert meter.round_trips == 2
    assert store.get_content(KeyRef(b"k")) == b"x" * size
    assert meter.round_trips == 2


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 16_385, MIB - 1, MIB])
def test_cat_after_ls_is_one_round_trip(
    store: MetadataStore, server: RedisClient, client: redis.Redis, size: int
) -> None:
    """After get_many, a content of up to 1 MiB takes one round trip, and is cached."""
    client.set("k", b"x" * size)
    store.get_many([b"k"])
    meter = Meter(server)
    for _ in range(2):
        assert store.get_content(KeyRef(b"k")) == b"x" * size
        assert meter.round_trips == 1
    assert store.get(b"k") == KeyMetadata(b"string", size)
    assert meter.round_trips == 1


def test_a_larger_string_is_not_fetched_whole(store: MetadataStore, server: RedisClient, client: redis.Redis) -> None:
    """No command fetches a content above 1 MiB."""
    client.set("k", b"x" * MIB + b"yz")
    assert store.get_with_content(b"k") == KeyMetadata(b"string", MIB + 2)
    meter = Meter(server)
    assert store.get_content(KeyRef(b"k")) is None
    assert meter.commands == 0


def test_a_string_that_grew_since_ls_has_its_new_length(store: MetadataStore, client: redis.Redis) -> None:
    """A content that has become too large is None, and the metadata has the new length."""
    client.set("k", b"x")
    store.get(b"k")
    client.set("k", b"x" * (MIB + 1))
    assert store.get_content(KeyRef(b"k")) is None
    assert store.get(b"k") == KeyMetadata(b"string", MIB + 1)


def test_contents_of_missing_keys_and_other_types(store: MetadataStore, client: redis.Redis) -> None:
    """A missing key or field is NotFoundError, never empty; another type is WrongTypeError."""
    fill(client)
    for target in (KeyRef(b"missing"), KeyRef(b"missing", b"a"), KeyRef(b"hash", b"missing")):
        with pytest.raises(NotFoundError):
            store.get_content(target)
    for target in (KeyRef(b"hash"), KeyRef(b"list"), KeyRef(b"list", b"a"), KeyRef(b"string", b"a")):
        with pytest.raises(WrongTypeError):
            store.get_content(target)


@pytest.mark.parametrize("change", ["delete", "list"])
def test_a_string_that_was_deleted_since_ls(store: MetadataStore, client: redis.Redis, change: str) -> None:
    """A key that is deleted, or changes its type, between listing and opening is an error, and is refetched next."""
    client.set("k", "x")
    store.get(b"k")
    client.delete("k")
    if change == "list":
        client.rpush("k", "x")
    with pytest.raises(WrongTypeError if change == "list" else NotFoundError):
        store.get_content(KeyRef(b"k"))
    assert store.get(b"k") == (KeyMetadata(b"list", 1) if change == "list" else ABSENT)


def test_extended_metadata(store: MetadataStore, server: RedisClient, client: redis.Redis) -> None:
    """Type, TTL, encoding and length take one round trip if the type is cached, and none until the key changes."""
    client.set("k", "12345", px=60_000)
    store.invalidate([b"k"])  # as the server's message does
    store.get(b"k")
    meter = Meter(server)
    found = store.get_extended(b"k")
    assert (found.type, found.encoding, found.length) == (b"string", b"int", 5)
    assert 0 < found.ttl_ms <= 60_000
    assert meter.round_trips == 1
    assert meter.commands == 1, "the listing has fetched the TTL"
    assert store.get_extended(b"k").ttl_ms <= found.ttl_ms
    assert meter.round_trips == 1
    client.delete("k")
    client.hset("k", "a", "b")
    store.invalidate([b"k"])
    found = store.get_extended(b"k")
    assert (found.type, found.ttl_ms, found.encoding, found.length) == (b"hash", -1, b"listpack", 1)
    with pytest.raises(NotFoundError):
        store.get_extended(b"missing")


@pytest.mark.parametrize("may_expire", [True, False])
def test_extended_metadata_of_many_keys(server: RedisClient, client: redis.Redis, may_expire: bool) -> None:
    """In the order of a listing, they are fetched together: at most four commands a key, and few round trips."""
    client.mset({f"k:{number}": "x" * (number % 90) for number in range(1000)})
    for number in range(0, 1000, 3) if may_expire else ():
        client.pexpire(f"k:{number}", 100_000)
    store = MetadataStore(server, freshness=FixedFreshness(may_expire=may_expire))
    keys = [b"k:%d" % number for number in range(1000)]
    meter = Meter(server)
    store.get_many(keys)
    for number, key in enumerate(keys):
        found = store.get_extended(key)
        assert found.encoding in (b"embstr", b"raw")
        assert (found.ttl_ms > 0) == (may_expire and number % 3 == 0)
    assert meter.commands <= (4 if may_expire else 3) * 1000
    assert meter.round_trips <= 20
    for key in keys:
        store.get_extended(key)
    assert meter.commands <= (4 if may_expire else 3) * 1000


def test_extended_metadata_of_scattered_keys(store: MetadataStore, server: RedisClient, client: redis.Redis) -> None:
    """Out of order, nothing is fetched that was not requested."""
    client.mset({f"k:{number}": "x" for number in range(1000)})
    store.get_many([b"k:%d" % number for number in range(1000)])
    meter = Meter(server)
    for number in range(900, 0, -100):
        store.get_extended(b"k:%d" % number)
    assert meter.commands <= 2 * 9


def test_extended_metadata_of_a_key_that_is_gone(store: MetadataStore, client: redis.Redis) -> None:
    """A key that was deleted since it was cached is not found, and a changed one is fetched again."""
    client.set("k", "1")
    store.get(b"k")
    client.delete("k")
    with pytest.raises(NotFoundError):
        store.get_extended(b"k")


def test_expiries_of_fields(newer_redis: RedisServer) -> None:
    """The expiries of all fields of a hash take one command for 1000 fields, and none until the hash changes."""
    client = newer_redis.client()
    client.flushall()
    client.hset("h", mapping={f"f{number}": "x" for number in range(50)})
    client.execute_command("HPEXPIRE", "h", 100_000, "FIELDS", 1, "f7")
    server = RedisClient(Address.parse(newer_redis.url()))
    store = MetadataStore(server, freshness=FixedFreshness())
    try:
        store.list_fields(b"h", 100)
        meter = Meter(server)
        expiries = {number: store.get_field_expiry(b"h", b"f%d" % number) for number in range(50)}
        assert [number for number, expires_at in expiries.items() if expires_at is not None] == [7]
        assert meter.commands == 1
        client.hset("large", mapping={f"f{number}": "x" for number in range(3000)})
        fields = store.list_fields(b"large", 3000) or []
        meter = Meter(server)
        assert [store.get_field_expiry(b"large", field) for field in fields] == [None] * 3000
        assert meter.commands == 3
        store.invalidate([b"h"])
        with pytest.raises(NotFoundError):
            store.get_field_expiry(b"h", b"missing")
    finally:
        server.close()


def test_a_key_hidden_by_the_acl_is_unreadable(redis_server: RedisServer, client: redis.Redis) -> None:
    """One key that the user may not read does not make a listing fail."""
    client.set("mine", "x")
    client.set("other", "x")
    client.acl_setuser(
        "reader", enabled=True, passwords=["+secret"], keys=["mine"], categories=["+@read", "+@connection"]
    )
    try:
        address = Address.parse(redis_server.url().replace("unix://", "unix://reader:secret@"))
        server = RedisClient(address)
        store = MetadataStore(server, freshness=FixedFreshness(may_expire=True))
        assert store.get_many([b"mine", b"other"]) == [KeyMetadata(b"string", 1), UNREADABLE]
        server.close()
    finally:
        client.acl_deluser("reader")


# -- fields -----------------------------------------------------------------------------------------------------------


def test_cat_of_a_field_is_two_round_trips(store: MetadataStore, server: RedisClient, client: redis.Redis) -> None:
    """A cold look-up of `a.b` fetches the field of a small hash, or the string `a.b`, with its content."""
    client.hset("a", mapping={"b": "value", "empty": ""})
    client.set("x.y", "string")
    meter = Meter(server)
    assert store.resolve_field_or_key(b"a", b"b", b"a.b") == (KeyMetadata(b"hash", 2), 5, ABSENT)
    assert store.get_content(KeyRef(b"a", b"b")) == b"value"
    assert meter.round_trips == 2
    assert store.resolve_field_or_key(b"x", b"y", b"x.y") == (ABSENT, None, KeyMetadata(b"string", 6))
    assert store.get_content(KeyRef(b"x.y")) == b"string"
    assert meter.round_trips == 4
    assert store.resolve_field_or_key(b"a", b"empty", b"a.empty")[1] == 0
    assert store.resolve_field_or_key(b"a", b"missing", b"a.missing")[1] is None
    meter = Meter(server)
    assert store.resolve_field_or_key(b"a", b"empty", b"a.empty")[1] == 0
    assert store.resolve_field_or_key(b"a", b"missing", b"a.missing")[1] is None
    assert store.resolve_field_or_key(b"a", b"b", b"a.b")[1] == 5
    assert meter.round_trips == 0


def test_a_field_beside_a_key(store: MetadataStore, client: redis.Redis) -> None:
    """If both the field and the key exist, both are returned."""
    client.hset("a", "b", "field")
    client.set("a.b", "string")
    assert store.resolve_field_or_key(b"a", b"b", b"a.b") == (KeyMetadata(b"hash", 1), 5, KeyMetadata(b"string", 6))


def test_a_field_of_a_large_hash(store: MetadataStore, server: RedisClient, client: redis.Redis) -> None:
    """Where values may be large, HSTRLEN and HEXISTS come first, and no value above 1 MiB is fetched."""
    client.hset("a", mapping={"b": "x" * 1000, "empty": "", "big": "x" * (MIB + 1)})
    meter = Meter(server)
    assert store.resolve_field_or_key(b"a", b"b", b"a.b")[1] == 1000
    assert meter.round_trips == 2
    assert store.get_content(KeyRef(b"a", b"b")) == b"x" * 1000
    assert meter.round_trips == 3
    assert store.resolve_field_or_key(b"a", b"empty", b"a.empty")[1] == 0
    assert store.resolve_field_or_key(b"a", b"missing", b"a.missing")[1] is None
    assert store.get_content(KeyRef(b"a", b"big")) is None
    assert client.info("commandstats")["cmdstat_hget"]["calls"] == 1


@pytest.mark.parametrize("size", [10, 100], ids=["compact", "table"])
def test_fields_are_listed_with_their_metadata(
    store: MetadataStore, server: RedisClient, client: redis.Redis, size: int
) -> None:
    """Two round trips list all fields of many hashes; where values are small, lengths and contents are cached."""
    for number in range(50):
        client.hset(f"h:{number}", mapping={f"f{field}": "x" * size for field in range(20)})
    keys = [b"h:%d" % number for number in range(50)]
    store.get_many([*keys, b"missing"])
    meter = Meter(server)
    found = store.list_fields_many([*keys, b"missing"], 1000)
    assert [sorted(names or []) for names in found[:-1]] == [sorted(b"f%d" % n for n in range(20))] * 50
    assert found[-1] is None
    assert meter.round_trips == 2
    assert store.get_field_lengths(keys[7], found[7] or []) == [size] * 20
    assert store.get_content(KeyRef(keys[7], b"f3")) == b"x" * size
    assert meter.round_trips == (2 if size == 10 else 4)
    meter = Meter(server)
    assert store.get_content(KeyRef(keys[7], b"f3")) == b"x" * size
    assert store.list_fields(keys[7], 1000) == found[7]
    assert store.get_field_lengths(keys[7], [b"missing"]) == [None]
    assert meter.round_trips == 0


def test_fields_up_to_a_limit(store: MetadataStore, server: RedisClient, client: redis.Redis) -> None:
    """A hash with more fields than the limit is None, by its length alone; a hash table is scanned in batches."""
    client.hset("h", mapping={f"f{field}": "x" * 100 for field in range(1500)})
    client.set("string", "x")
    meter = Meter(server)
    assert store.list_fields(b"h", 1499) is None
    assert meter.commands == 2
    assert sorted(store.list_fields(b"h", 1500) or []) == sorted(b"f%d" % n for n in range(1500))
    assert store.list_fields(b"string", 10) is None
    assert store.list_fields(b"missing", 10) is None


def test_fields_are_listed_without_large_values(store: MetadataStore, server: RedisClient, client: redis.Redis) -> None:
    """Listing a hash of up to 1000 fields with large values transfers only their names."""
    client.hset("h", mapping={f"f{field}": "x" * 200_000 for field in range(100)})
    received = server.stats.bytes_received
    assert sorted(store.list_fields(b"h", 1000) or []) == sorted(b"f%d" % n for n in range(100))
    assert server.stats.bytes_received - received < 2000
    assert store.get_field_lengths(b"h", [b"f0", b"f99"]) == [200_000] * 2


def test_fields_of_a_hash_that_grows_meanwhile(store: MetadataStore, client: redis.Redis) -> None:
    """A hash that exceeds 1000 fields after its HLEN is listed completely, or not at all if over the limit."""
    client.hset("h", mapping={f"f{field}": "x" * 100 for field in range(900)})
    assert store.get(b"h").length == 900
    client.hset("h", mapping={f"g{field}": "x" * 100 for field in range(300)})
    assert store.list_fields(b"h", 1000) is None
    assert len(store.list_fields(b"h", 1200) or []) == 1200


def test_lengths_and_existence_of_any_fields(store: MetadataStore, server: RedisClient, client: redis.Redis) -> None:
    """Lengths and existence of many pairs are fetched in pipelines; an empty field differs from a missing one."""
    client.hset("a", mapping={"x": "123", "empty": ""})
    client.hset("b", "y", "12345")
    client.set("string", "x")
    meter = Meter(server)
    pairs = [(b"a", b"x"), (b"a", b"empty"), (b"a", b"missing"), (b"b", b"y"), (b"missing", b"z")]
    assert store.get_field_lengths_many(pairs) == [3, 0, None, 5, None]
    assert meter.round_trips == 2
    assert store.fields_exist([*pairs, (b"string", b"x")]) == [True, True, False, True, False, False]
    assert store.get_field_lengths(b"a", [b"empty"]) == [0]
    client.delete("a")
    client.set("a", "no hash any more")
    assert store.get_field_lengths_many([(b"a", b"new"), (b"b", b"other")]) == [None, None]
    assert store.get(b"a").type == b"string"
    assert MetadataStore(server, freshness=FixedFreshness(0.0)).get_field_lengths(b"string", [b"x"]) == [None]


# -- validity ---------------------------------------------------------------------------------------------------------


def test_invalidated_keys_are_fetched_again(store: MetadataStore, client: redis.Redis) -> None:
    """After invalidate(keys) or invalidate_all() the server is queried again, for fields and contents, too."""
    client.set("k", "old")
    client.hset("h", "f", "old")

    def read() -> list[object]:
        store.list_fields(b"h", 10)
        return [
            store.get_with_content(b"k").length,
            store.get_content(KeyRef(b"k")),
            store.get_content(KeyRef(b"h", b"f")),
        ]

    assert read() == [3, b"old", b"old"]
    client.set("k", "newer")
    client.hset("h", "f", "newer")
    assert read() == [3, b"old", b"old"]
    store.invalidate([b"k", b"h", b"other"])
    assert read() == [5, b"newer", b"newer"]
    client.delete("k", "h")
    client.set("k", "x")
    client.hset("h", "f", "x")
    store.invalidate_all()
    assert read() == [1, b"x", b"x"]


def test_max_age_bounds_the_age(server: RedisClient, client: redis.Redis) -> None:
    """An entry is valid while both the current maximum age and that of its fetch allow it."""
    freshness = FixedFreshness(0.15, may_expire=True)
    store = MetadataStore(server, freshness=freshness)
    client.set("k", "x")
    assert store.get(b"k").length == 1
    client.set("k", "xx")
    assert store.get(b"k").length == 1
    freshness.age = math.inf  # an entry that was fetched with a short max_age still expires
    time.sleep(0.2)
    assert store.get(b"k").length == 2
    client.set("k", "xxx")
    freshness.age = 0.0
    assert store.get(b"k").length == 3
    assert store.resolve_field_or_key(b"k", b"f", b"k.f") == (KeyMetadata(b"string", 3), None, ABSENT)
    assert store.get_content(KeyRef(b"k")) == b"xxx"


def test_a_fetch_that_began_before_an_invalidation_is_not_cached() -> None:
    """A result that was requested before an invalidation is not stored after it, for that key alone, or for all."""
    cache = MetadataCache(MIB, FixedFreshness())
    old = (KeyMetadata(b"hash", 1), None)
    with cache.begin_fetch() as fetch:
        cache.invalidate([b"a"])
        cache.store(fetch, {b"a": old, b"b": old})
        assert cache.get_many([b"a", b"b"]) == [None, old[0]]
        cache.invalidate([b"b"])
        cache.store_fields(fetch, b"b", {b"f": 1})
        cache.invalidate_all()
        cache.store(fetch, {b"c": old})
        assert cache.get_many([b"a", b"b", b"c"]) == [None] * 3
    with cache.begin_fetch() as fetch:
        cache.store(fetch, {b"a": old})
    assert cache.get_many([b"a"]) == [old[0]]


@pytest.mark.parametrize("max_cache_bytes", [64 << 20, 8_000, 5_000])
def test_no_stale_entry_survives_a_writer(server: RedisClient, client: redis.Redis, max_cache_bytes: int) -> None:
    """With a writer that changes keys and then invalidates them, the cache equals the server once the writer stops.

    Also if most entries are evicted and restored.
    """
    store = MetadataStore(server, freshness=FixedFreshness(), max_cache_bytes=max_cache_bytes)
    keys = [b"k%d" % number for number in range(20)]
    stop = threading.Event()
    wrong: list[str] = []

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            key = keys[number % len(keys)]
            if number % 7 == 0:
                client.delete(key)
            elif number % 5 == 0:
                client.delete(key)
                client.hset(key, mapping={"f": "v" * (number % 50)})
            else:
                client.set(key, b"x" * (number % 100))
            store.invalidate([key])

    def read() -> None:
        while not stop.is_set():
            for attributes in store.get_many(keys):
                if attributes.type not in (b"string", b"hash", b"none"):
                    wrong.append(str(attributes))
            for key in keys:
                try:
                    store.get_with_content(key)
                    store.get_content(KeyRef(key))
                    store.get_content(KeyRef(key, b"f"))
                except (NotFoundError, WrongTypeError):
                    pass

    threads = [threading.Thread(target=write), *[threading.Thread(target=read) for _ in range(3)]]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    stop.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not wrong
    fresh = MetadataStore(server, freshness=FixedFreshness())
    assert [store.get(key) for key in keys] == fresh.get_many(keys)
    assert store.get_many(keys) == fresh.get_many(keys)
    for key, attributes in zip(keys, store.get_many(keys), strict=True):
        target = KeyRef(key, b"f" if attributes.type == b"hash" else None)
        if attributes != ABSENT:
            assert store.get_content(target) == fresh.get_content(target)


def test_memory_is_bounded(server: RedisClient, client: redis.Redis) -> None:
    """The least recently used entries are evicted at the bound, without further effects."""
    client.mset({f"k:{number}": "x" * 1000 for number in range(500)})
    store = MetadataStore(server, max_cache_bytes=100_000, freshness=FixedFreshness(may_expire=True))
    for number in range(500):
        assert store.get_with_content(b"k:%d" % number).length == 1000
        assert store.get_content(KeyRef(b"k:%d" % number)) == b"x" * 1000
        assert store.cache.memory_bytes <= 100_000
    assert store.get_cached(b"k:0") is None
    assert store.get_cached(b"k:499") == KeyMetadata(b"string", 1000)
    client.hset("h", mapping={f"f{number}": "v" for number in range(500)})
    assert len(store.list_fields(b"h", 1000) or []) == 500
    assert store.cache.memory_bytes <= 100_000


def test_the_estimate_of_memory_holds(server: RedisClient, client: redis.Redis) -> None:
    """The estimated memory is not less than the memory in use."""
    client.mset({f"some:longer:key:{number}": "x" * 100 for number in range(5000)})
    client.hset("h", mapping={f"field{number}": "value" for number in range(5000)})
    keys = [b"some:longer:key:%d" % number for number in range(5000)]
    store = MetadataStore(server, freshness=FixedFreshness(may_expire=True))
    tracemalloc.start()
    try:
        store.get_many(keys)
        before = tracemalloc.get_traced_memory()[0]
        used = store.cache.memory_bytes
        assert before < used * 1.1
        store.list_fields(b"h", 10_000)
        after = tracemalloc.get_traced_memory()[0]
        assert after - before < (store.cache.memory_bytes - used) * 1.1
    finally:
        tracemalloc.stop()


# -- expiry -----------------------------------------------------------------------------------------------------------


def test_expiring_keys_are_valid_until_their_deadline(server: RedisClient, client: redis.Redis) -> None:
    """Where keys expire, PTTL is fetched, too; the deadline is scheduled, and ends the entry without a message."""
    freshness = FixedFreshness(may_expire=True)
    store = MetadataStore(server, freshness=freshness)
    client.set("short", "x", px=500)
    client.set("long", "x")
    meter = Meter(server)
    short, long = store.get_many([b"short", b"long"])
    assert meter.commands == 6
    assert long == KeyMetadata(b"string", 1, None)
    assert short.expires_at is not None
    assert short.expires_at - time.monotonic() <= 0.5
    assert freshness.deadlines == {b"short": short.expires_at}
    time.sleep(max(0.0, short.expires_at - time.monotonic()) + 0.02)
    assert store.get(b"short") == ABSENT


def test_the_ttl_of_recently_changed_keys_is_fetched(store: MetadataStore, client: redis.Redis) -> None:
    """PTTL of an invalidated key is fetched even where no key is known to expire: the change may be an expiry."""
    client.set("k", "x")
    store.get(b"k")
    client.pexpire("k", 100_000)
    store.invalidate([b"k"])
    assert store.get(b"k").expires_at is not None
    store.invalidate([b"%d" % number for number in range(MAX_RECENT_CHANGES + 1)])
    client.set("other", "x", px=100_000)
    assert store.get(b"other").expires_at is not None
