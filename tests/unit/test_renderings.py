"""Renderings, JSON documents and dumps on a real server, of keys of any size and of keys that change meanwhile."""

import builtins
import json
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
import redis

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.client.limits import Limits
from redisfuse.errors import ConflictError, NotFoundError, RedisFuseError, TooLargeError, WrongTypeError
from redisfuse.rendering.dump import fetch_dump
from redisfuse.rendering.json_document import render_json_document
from redisfuse.rendering.registry import RENDERERS, join_within, render_text
from tests.support.redis_server import RedisServer
from tests.support.unescape import unescape


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[RedisClient]:
    """Return redisfuse's client of the test's server."""
    server = RedisClient(Address.parse(redis_server.url()), Limits(timeout=20.0))
    yield server
    server.close()


@pytest.fixture
def client(redis_server: RedisServer) -> redis.Redis:
    """Return a client of the test, which may write."""
    return redis_server.client()


def fill(client: redis.Redis, type: str, count: int, size: int = 10) -> None:
    """Create a key `k` of a type, with `count` elements of about `size` bytes."""
    for start in range(0, count, 1000):
        numbers = range(start, min(start + 1000, count))
        values = {b"%0*d" % (size, number): number for number in numbers}
        if type == "list":
            client.rpush("k", *values)
        elif type == "set":
            client.sadd("k", *values)
        elif type == "zset":
            client.zadd("k", values)
        elif type == "hash":
            client.hset("k", items=[part for pair in values.items() for part in pair])
        else:
            pipeline = client.pipeline(transaction=False)
            for name, number in values.items():
                pipeline.xadd("k", {"n": name}, id=f"{number + 1}-0")
            pipeline.execute()


def parts(text: bytes) -> list[bytes]:
    """Return the last column of every line."""
    return [unescape(line.rsplit(b"\t", 1)[-1]) for line in text.split(b"\n")[:-1]]


TYPES = [type.decode() for type in RENDERERS]


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("count", [1, 15, 16, 17, 144, 3000])
def test_every_element_is_rendered_once(server: RedisClient, client: redis.Redis, type: str, count: int) -> None:
    """A rendering has each element once, in order where the type has one, wherever its batches end."""
    fill(client, type, count)
    text = b"".join(render_text(server, b"k", type.encode()))
    lines = text.split(b"\n")[:-1]
    names = [b"%010d" % number for number in range(count)]
    expected = {
        "list": names,
        "set": names,
        "zset": [b"%d\t%b" % pair for pair in enumerate(names)],
        "hash": [b"%b\t%d" % (name, number) for number, name in enumerate(names)],
        "stream": [b"%d-0\tn=%b" % (number + 1, name) for number, name in enumerate(names)],
    }[type]
    assert (sorted(lines) if type in ("set", "hash") else lines) == expected


@pytest.mark.parametrize("type", ["set", "hash"])
@pytest.mark.parametrize("count", [2, 1500])
def test_equal_collections_have_equal_renderings(
    server: RedisClient, client: redis.Redis, type: str, count: int
) -> None:
    """Sets and hashes are sorted by their bytes, as text and as JSON, up to the limit; larger ones are rendered too."""
    names = [b"%d \xff" % number for number in range(count)]
    for key, order in (("k", names), ("other", names[::-1])):
        for name in order:
            if type == "set":
                client.sadd(key, name)
            else:
                client.hset(key, name, b"v")
    key_type = type.encode()
    for limit in (count, count + 1):
        text = b"".join(render_text(server, b"k", key_type, max_sorted=limit))
        assert text == b"".join(render_text(server, b"other", key_type, max_sorted=limit))
        assert parts(text) == (sorted(names) if type == "set" else [b"v"] * count)
        assert text.split(b"\n")[:-1] == sorted(text.split(b"\n")[:-1])
        documents = [
            b"".join(render_json_document(server, key, max_sorted=limit)).partition(b'"value"')[2]
            for key in (b"k", b"other")
        ]
        assert documents[0] == documents[1]
    text = b"".join(render_text(server, b"k", key_type, max_sorted=count - 1))
    assert text.count(b"\n") == count


def test_large_elements_are_not_collected(server: RedisClient, client: redis.Redis) -> None:
    """A set of few but large members is rendered as it is fetched."""
    for number in range(10):
        client.sadd("k", b"%d" % number + bytes(1_000_000))
    chunks = render_text(server, b"k", b"set", max_sorted=10_000)
    assert sum(chunk.count(b"\n") for chunk in chunks) == 10


def test_scores_read_as_redis_shows_them(server: RedisClient, client: redis.Redis) -> None:
    """Scores are written as the server writes them: 3, 1.5, inf."""
    client.zadd("k", {"low": float("-inf"), "three": 3, "half": 1.5, "big": 1e21, "high": float("inf")})
    assert b"".join(render_text(server, b"k", b"zset")) == b"-inf\tlow\n1.5\thalf\n3\tthree\n1e+21\tbig\ninf\thigh\n"


def test_an_empty_stream_is_an_empty_file(server: RedisClient, client: redis.Redis) -> None:
    """A stream without entries exists; its file is empty."""
    client.xadd("k", {"a": "b"}, id="1-0")
    client.xdel("k", "1-0")
    assert b"".join(render_text(server, b"k", b"stream")) == b""


@pytest.mark.parametrize("type", [*TYPES, "string", "none"])
def test_a_missing_key_is_not_an_empty_file(server: RedisClient, type: str) -> None:
    """Rendering a key that doesn't exist raises NotFoundError, whatever type it is rendered as."""
    with pytest.raises(NotFoundError):
        b"".join(render_text(server, b"gone", type.encode()))


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda client: client.delete("k"), NotFoundError),
        (lambda client: (client.delete("k"), client.set("k", "x")), WrongTypeError),
    ],
    ids=["vanishes", "becomes a string"],
)
def test_a_key_that_vanishes_midway_is_not_a_short_file(
    server: RedisClient,
    client: redis.Redis,
    type: str,
    change: Callable[[redis.Redis], object],
    error: builtins.type[RedisFuseError],
) -> None:
    """A key that vanishes or changes its type while it streams is an error, never just the end."""
    fill(client, type, 5000)
    text, json_text = render_text(server, b"k", type.encode()), render_json_document(server, b"k")
    next(text)
    while len(next(json_text)) < 100:  # up to the first elements
        pass
    change(client)
    with pytest.raises(error):
        b"".join(text)
    with pytest.raises(error):
        b"".join(json_text)


def test_no_element_is_repeated_when_a_table_shrinks(server: RedisClient, client: redis.Redis) -> None:
    """*SCAN may return elements twice when the table shrinks meanwhile; a rendering has every survivor once."""
    fill(client, "set", 60_000)
    text = render_text(server, b"k", b"set")
    first_chunks = [next(text) for _ in range(30)]
    for start in range(0, 60_000, 1000):
        client.srem("k", *[b"%010d" % number for number in range(start, start + 1000) if number % 20])
    members = parts(b"".join([*first_chunks, *text]))
    assert {b"%010d" % number for number in range(0, 60_000, 20)} <= set(members)
    assert len(members) == len(set(members))


@pytest.mark.parametrize("type", ["set", "hash", "list"])
def test_streaming_keeps_memory_flat(server: RedisClient, client: redis.Redis, type: str) -> None:
    """200 000 elements stream without being buffered: memory stays under 24 MB, most of it to recognize repetitions."""
    fill(client, type, 200_000)
    tracemalloc.start()
    try:
        count = sum(chunk.count(b"\n") for chunk in render_text(server, b"k", type.encode()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 200_000
    assert peak < 24 << 20


@pytest.mark.parametrize("type", ["hash", "list", "zset"])
def test_batches_are_bounded(server: RedisClient, client: redis.Redis, type: str) -> None:
    """Commands request at most 1000 elements, and fewer where elements are large."""
    fill(client, type, 400, size=100_000)
    client.config_resetstat()
    before = server.stats.bytes_received
    assert sum(map(len, render_text(server, b"k", type.encode()))) > 40_000_000
    assert server.stats.bytes_received - before < 45_000_000
    calls = {name: stats["calls"] for name, stats in client.info("commandstats").items()}
    command = {"hash": "hscan", "list": "lrange", "zset": "zrange"}[type]
    assert 30 <= calls[f"cmdstat_{command}"] <= 120


def test_join_within_stops_at_its_limit(server: RedisClient, client: redis.Redis) -> None:
    """A rendering is joined up to a number of bytes; beyond, the result is None."""
    fill(client, "list", 1000)
    expected = b"".join([b"%010d\n" % number for number in range(1000)])
    assert join_within(render_text(server, b"k", b"list"), 11_000) == expected
    assert join_within(render_text(server, b"k", b"list"), 10_999) is None


def test_documents_of_all_types(server: RedisClient, client: redis.Redis) -> None:
    """NAME%json is one JSON document: key, type, ttl in ms, value; bytes that are not UTF-8 as base64."""

    def read(key: str | bytes) -> dict[str, object]:
        raw = key if isinstance(key, bytes) else key.encode()
        document = json.loads(b"".join(render_json_document(server, raw)))
        assert isinstance(document, dict)
        return document

    client.set("s", "text", px=100_000)
    document = read("s")
    ttl = document.pop("ttl")
    assert isinstance(ttl, int)
    assert 0 < ttl <= 100_000
    assert document == {"key": "s", "type": "string", "value": "text"}
    client.set(b"\xff", b"\xfe")
    assert read(b"\xff") == {"key": {"base64": "/w=="}, "type": "string", "ttl": -1, "value": {"base64": "/g=="}}
    client.rpush("l", "a", b"\x80")
    assert read("l")["value"] == ["a", {"base64": "gA=="}]
    client.sadd("t", "a")
    assert read("t")["value"] == ["a"]
    client.zadd("z", {"a": 1.5, "b": float("inf")})
    assert read("z")["value"] == [{"member": "a", "score": 1.5}, {"member": "b", "score": "inf"}]
    client.hset("h", mapping={"a": "b"})
    assert read("h") == {"key": "h", "type": "hash", "ttl": -1, "value": {"a": "b"}}
    client.hset("h", mapping={b"\xff": b"\xfe", b"\xfe": "c"})
    document = read("h")
    assert document["value"] == {"a": "b"}
    pairs = document["binary_fields"]
    assert isinstance(pairs, list)
    assert sorted(pairs, key=str) == [[{"base64": "/g=="}, "c"], [{"base64": "/w=="}, {"base64": "/g=="}]]
    client.delete("h")
    client.hset("h", mapping={b"\xff": "x"})
    assert (read("h")["value"], read("h")["binary_fields"]) == ({}, [[{"base64": "/w=="}, "x"]])
    client.hset("h", mapping={b"\xff": b"\xff"})  # CPython has one object for each single byte
    assert read("h")["binary_fields"] == [[{"base64": "/w=="}, {"base64": "/w=="}]]
    client.xadd("x", {"a": "b", "c": b"\xff"}, id="1-1")
    assert read("x")["value"] == [{"id": "1-1", "fields": [["a", "b"], ["c", {"base64": "/w=="}]]}]
    with pytest.raises(NotFoundError):
        read("gone")


def test_consumer_groups(server: RedisClient, client: redis.Redis, redis_server: RedisServer) -> None:
    """The document of a stream has its groups, with pending counts and lag; `null` if the user may not see them."""

    def read(reader: RedisClient) -> dict[str, object]:
        document = json.loads(b"".join(render_json_document(reader, b"x")))
        assert isinstance(document, dict)
        return document

    for number in range(1, 6):
        client.xadd("x", {"n": number}, id=f"{number}-0")
    assert read(server)["groups"] == []
    client.xgroup_create("x", "mail", "0")
    client.xgroup_create("x", b"\xff", "$")
    client.xreadgroup("mail", "worker", {"x": ">"}, count=3)
    client.xack("x", "mail", "1-0")
    group: dict[str, object] = {"consumers": 1, "pending": 2, "last_delivered_id": "3-0", "entries_read": 3, "lag": 2}
    groups = read(server)["groups"]
    assert isinstance(groups, list)
    assert {"name": "mail"} | group in groups
    assert {"base64": "/w=="} in [other["name"] for other in groups]
    client.execute_command("ACL", "SETUSER", "narrow", "on", "nopass", "~*", "+@read", "-xinfo", "+@connection")
    narrow = RedisClient(Address.parse(redis_server.url(), username="narrow", password="any"))
    try:
        document = read(narrow)
    finally:
        narrow.close()
        client.execute_command("ACL", "DELUSER", "narrow")
    assert document["groups"] is None
    assert document["value"] == read(server)["value"]


@pytest.mark.parametrize("type", TYPES)
def test_documents_stream(server: RedisClient, client: redis.Redis, type: str) -> None:
    """A document of a large collection is valid JSON with every element, and is not built in memory."""
    fill(client, type, 20_000)
    chunks = list(render_json_document(server, b"k"))
    assert len(json.loads(b"".join(chunks))["value"]) == 20_000
    assert max(map(len, chunks)) < 200_000


@pytest.mark.parametrize("content", ["é漢" * 700_000, b"\xff" * 3_000_001], ids=["text", "bytes"])
def test_documents_of_large_strings(server: RedisClient, client: redis.Redis, content: str | bytes) -> None:
    """A string longer than a chunk is one JSON value too, with characters and base64 intact where chunks join."""
    client.set("k", content)
    value = json.loads(b"".join(render_json_document(server, b"k")))["value"]
    if isinstance(content, str):
        assert value == content
    else:
        assert len(value["base64"]) == 4_000_004


def test_a_string_that_changes_is_not_a_mixture(server: RedisClient, client: redis.Redis) -> None:
    """A large string whose length changes while it is rendered raises ConflictError."""
    client.set("k", b"a" * 3_000_000)
    text = render_text(server, b"k", b"string")
    next(text)
    client.set("k", b"b" * 3_000_001)
    with pytest.raises(ConflictError):
        b"".join(text)


def test_dump_is_the_payload_of_dump(server: RedisClient, client: redis.Redis) -> None:
    """NAME%dump is the reply of DUMP, so RESTORE takes it."""
    fill(client, "zset", 300)
    payload = fetch_dump(server, b"k", 300)
    assert payload == client.dump("k")
    client.restore("copy", 0, payload)
    assert client.zcard("copy") == 300


@pytest.mark.parametrize("type", TYPES)
def test_dump_refuses_keys_that_would_block_the_server(server: RedisClient, client: redis.Redis, type: str) -> None:
    """Above the limit of elements, or of bytes, DUMP is not sent."""
    fill(client, type, 300, size=1000)
    client.config_resetstat()
    with pytest.raises(TooLargeError, match="299"):
        fetch_dump(server, b"k", 299)
    with pytest.raises(TooLargeError, match="bytes"):
        fetch_dump(server, b"k", 300, max_bytes=200_000)
    assert "cmdstat_dump" not in client.info("commandstats")


def test_dump_of_strings_is_bounded_by_bytes(server: RedisClient, client: redis.Redis) -> None:
    """A string counts by its bytes, not as one element; a missing key raises NotFoundError."""
    client.set("k", b"x" * 1000)
    assert fetch_dump(server, b"k", 1, max_bytes=1000) == client.dump("k")
    with pytest.raises(TooLargeError):
        fetch_dump(server, b"k", 10_000, max_bytes=999)
    with pytest.raises(NotFoundError):
        fetch_dump(server, b"gone", 1)


def test_reading_causes_no_errors_on_the_server(server: RedisClient, client: redis.Redis) -> None:
    """Renderings, documents and dumps of every type leave the server's errorstats empty."""
    for type in TYPES:
        client.flushall()
        fill(client, type, 2000)
        client.config_resetstat()
        b"".join(render_text(server, b"k", type.encode()))
        b"".join(render_json_document(server, b"k"))
        fetch_dump(server, b"k", 10_000)
        assert client.info("errorstats") == {}
