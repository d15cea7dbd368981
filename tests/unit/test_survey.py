"""The room survey: conditions, the commands that a scan sends, and the paths of keys."""

from collections.abc import Collection, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.errors import UsageError
from redisfuse.paths.grammar import KeyRef, PathCodec
from redisfuse.survey import naming
from redisfuse.survey.conditions import (
    Condition,
    Interval,
    NameFilter,
    parse_expiry,
    parse_idle,
    parse_quantity,
    parse_types,
)
from redisfuse.survey.fields import iter_fields
from redisfuse.survey.naming import DirectorySet, PathNamer, iter_named
from redisfuse.survey.records import KeyRecord, Property
from redisfuse.survey.scan import KeySurvey, Scope
from tests.support.redis_server import RedisServer

CODEC = PathCodec()
NO_NAMES = NameFilter(b":")


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[RedisClient]:
    """Connect a client to the shared, empty server."""
    client = RedisClient(Address.parse(redis_server.url()))
    client.connect()
    yield client
    client.close()


def find(
    client: RedisClient,
    *conditions: Condition,
    scope: Scope | None = None,
    names: NameFilter = NO_NAMES,
    properties: Collection[Property] = (),
) -> list[bytes]:
    """Return the keys that a survey finds, sorted."""
    survey = KeySurvey([client], scope or Scope(), names)
    rest = survey.scan_only(conditions)
    return sorted(record.key for _, record in survey.iter_records(rest, properties))


def sent_commands(server: RedisServer) -> dict[str, int]:
    """Return how many commands of each name the server has executed, without those of connecting."""
    stats = server.client().info("commandstats")
    counts = {name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()}
    ignored = (
        "info",
        "client|setname",
        "flushall",
        "config|resetstat",
        "hello",
        "select",
        "dbsize",
        "ping",
        "client|setinfo",
    )
    return {name: calls for name, calls in counts.items() if name not in ignored}


def fill(server: RedisServer, *, strings: int = 100, hashes: int = 50) -> None:
    """Write strings, of which half expire, and hashes; then reset the server's counts."""
    client = server.client()
    for number in range(strings):
        client.set(f"s:{number}", "x" * number, ex=3600 if number % 2 else None)
    for number in range(hashes):
        client.hset(f"h:{number}", mapping={"name": "n", "nick": "k", "other": "o" * number})
    client.config_resetstat()


# -- conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("+1M", Interval(1048577, None)),
        ("-64K", Interval(None, 65535)),
        ("0", Interval(0, 0)),
        ("100", Interval(100, 100)),
    ],
)
def test_sizes(text: str, interval: Interval) -> None:
    """`+` is more, `-` is less; a plain number is exact."""
    assert parse_quantity("size", text).interval == interval


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("-1h", Interval(None, 3_599_999)),
        ("+7d", Interval(604_800_001, None)),
        ("5m", Interval(300_000, 359_999)),
        ("90", Interval(90_000, 90_999)),
        ("250ms", Interval(250, 250)),
        ("any", Interval(0, None)),
        ("none", None),
    ],
)
def test_times_to_live(text: str, interval: Interval | None) -> None:
    """A plain time covers its unit; `none` and `any` are words of their own."""
    assert parse_expiry(text).interval == interval


def test_no_expiry_is_no_number() -> None:
    """A key that never expires satisfies neither `+7d` nor `-1h`."""
    never, soon = KeyRecord(b"k", ttl_ms=-1), KeyRecord(b"k", ttl_ms=5000)
    assert [parse_expiry(text).matches(never) for text in ("+7d", "-1h", "any", "none")] == [False, False, False, True]
    assert [parse_expiry(text).matches(soon) for text in ("+7d", "-1h", "any", "none")] == [False, True, True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_expiry("soon"), "--ttl soon: not a time"),
        (lambda: parse_idle("none"), "--idle none: not a time"),
        (lambda: parse_quantity("size", "+big"), r"--size \+big: not a size"),
        (lambda: parse_quantity("elements", "1.5"), r"--elements 1.5: not a number"),
    ],
)
def test_wrong_conditions(call: object, message: str) -> None:
    """A condition that can't be parsed names the option and the forms that can."""
    assert callable(call)
    with pytest.raises(UsageError, match=message):
        call()


def test_names() -> None:
    """`--name` is for the last component, `--key` for the whole key; of several, one must match."""
    keys = [b"user:1:mail", b"user:2:name", b"mail", b"x:mail:y"]
    assert NameFilter(b":", name_globs=(b"mail",)).select(keys) == [b"user:1:mail", b"mail"]
    assert NameFilter(b":", name_globs=(b"ma*", b"n?me")).select(keys) == [b"user:1:mail", b"user:2:name", b"mail"]
    assert NameFilter(b":", key_globs=(b"user:*",), name_globs=(b"mail",)).select(keys) == [b"user:1:mail"]
    assert NameFilter(b":", key_globs=(b"user:1*",)).scan_prefix == b"user:1"


# -- the commands that are sent --------------------------------------------------------------------------------------


def test_names_alone_cost_one_scan(redis_server: RedisServer, client: RedisClient) -> None:
    """A search without conditions sends one SCAN for each 1000 keys, and nothing else."""
    fill(redis_server)
    assert len(find(client)) == 150
    assert sent_commands(redis_server) == {"scan": 1}


def test_a_type_alone_costs_one_scan(redis_server: RedisServer, client: RedisClient) -> None:
    """The server selects by one type or two, in a scan for each: no TYPE is sent. Three are selected by TYPE."""
    fill(redis_server)
    assert len(find(client, parse_types(["hash"]))) == 50
    assert sent_commands(redis_server) == {"scan": 1}
    assert len(find(client, parse_types(["hash,string"]))) == 150
    assert sent_commands(redis_server) == {"scan": 3}
    assert len(find(client, parse_types(["hash,list,set"]))) == 50
    assert sent_commands(redis_server) == {"scan": 4, "type": 150}


def test_a_size_alone_reads_strings_only(redis_server: RedisServer, client: RedisClient) -> None:
    """Only strings have a size, so the server selects them, unless another type is requested: nothing is sent then."""
    fill(redis_server)
    assert len(find(client, parse_quantity("size", "+49"))) == 50
    assert sent_commands(redis_server) == {"scan": 1, "strlen": 100}
    assert find(client, parse_quantity("size", "0"), parse_types(["list"])) == []
    assert sent_commands(redis_server) == {"scan": 1, "strlen": 100}


def test_a_condition_costs_one_command_for_each_key_that_is_left(
    redis_server: RedisServer, client: RedisClient
) -> None:
    """Later conditions are checked for the keys that satisfy the earlier ones."""
    fill(redis_server)
    found = find(client, parse_quantity("memory", "+1"), parse_quantity("size", "+49"), parse_expiry("-2h"))
    assert found == sorted(b"s:%d" % number for number in range(51, 100, 2))
    # The strings, of which 50 expire. Then the lengths of those, then the memory of the 25 that are long enough.
    assert sent_commands(redis_server) == {"scan": 1, "pttl": 100, "strlen": 50, "memory|usage": 25}


def test_two_conditions_cost_three_commands_a_key(redis_server: RedisServer, client: RedisClient) -> None:
    """A key that satisfies a condition on its elements and another one costs TYPE and one command for each."""
    fill(redis_server, strings=0)
    assert len(find(client, parse_quantity("elements", "-10"), parse_idle("-1h"))) == 50
    assert sent_commands(redis_server) == {"scan": 1, "type": 50, "hlen": 50, "object|idletime": 50}


def test_fields_cost_one_command_a_hash(redis_server: RedisServer, client: RedisClient) -> None:
    """The fields of small hashes are found with one HSCAN each, and their lengths with one command a field."""
    fill(redis_server, strings=0)
    hashes = [KeyRecord(b"h:%d" % number, type=b"hash") for number in range(50)]
    survey = KeySurvey([client], Scope(), NO_NAMES)
    fields = list(iter_fields(client, hashes, b"n*", survey.unreadable))
    assert sorted({(record.key, record.field) for record in fields}) == sorted(
        (record.key, name) for record in hashes for name in (b"name", b"nick")
    )
    assert sent_commands(redis_server) == {"hscan": 50}
    assert all(record.size == 1 for record in survey.select(client, fields, (), ["length"]))
    assert sent_commands(redis_server) == {"hscan": 50, "hstrlen": 100}


def test_a_large_hash_is_searched_in_pieces(redis_server: RedisServer, client: RedisClient) -> None:
    """All fields of a hash of 5000 are found, by HSCANs of at most 1000."""
    redis_server.client().hset("h", mapping={f"f{number}": "v" * 200 for number in range(5000)})
    survey = KeySurvey([client], Scope(), NO_NAMES)
    fields = list(iter_fields(client, [KeyRecord(b"h", type=b"hash")], b"f1*", survey.unreadable))
    assert sorted(record.field for record in fields if record.field) == sorted(
        b"f%d" % number for number in range(5000) if str(number).startswith("1")
    )


def test_a_scope_of_one_key_sends_no_scan(redis_server: RedisServer, client: RedisClient) -> None:
    """One key or field is looked up; one that does not exist is not found."""
    fill(redis_server)
    assert find(client, scope=Scope(b"s:", KeyRef(b"s:7"))) == [b"s:7"]
    assert find(client, scope=Scope(b"s:", KeyRef(b"nope"))) == []
    assert "scan" not in sent_commands(redis_server)


def test_lfu_has_no_idle_times(own_redis: RedisServer) -> None:
    """With an LFU policy the server has no idle times, and the error says so."""
    own_redis.client().config_set("maxmemory-policy", "allkeys-lfu")
    own_redis.client().set("k", "v")
    client = RedisClient(Address.parse(own_redis.url()))
    with pytest.raises(UsageError, match="LFU"):
        find(client, parse_idle("+1h"))
    client.close()


def test_denied_keys_are_counted(own_redis: RedisServer) -> None:
    """Keys that the ACL denies are left out and counted; the others are found."""
    own_redis.client().mset({"a:1": "x", "b:1": "y"})
    own_redis.client().execute_command("ACL", "SETUSER", "some", "on", "nopass", "~a:*", "+@read", "+info", "+client")
    client = RedisClient(Address.parse(own_redis.url(), username="some", password="x"))
    survey = KeySurvey([client], Scope(), NO_NAMES)
    records = [record.key for _, record in survey.iter_records([parse_expiry("none")])]
    assert (records, survey.unreadable.count) == ([b"a:1"], 1)
    assert "no permissions" in survey.unreadable.reason.lower()
    client.close()


# -- paths -----------------------------------------------------------------------------------------------------------


def name_all(client: RedisClient) -> dict[bytes, bytes]:
    """Return the path of each key."""
    directories = DirectorySet(b":")
    survey = KeySurvey([client], Scope(), NO_NAMES, directories=directories)
    namer = PathNamer(CODEC, directories)
    found = survey.iter_records()
    return {record.key: path for record, path in iter_named(found, namer, survey.iter_all_keys())}


NEIGHBOURS = {
    b"a": b"a%",  # beside a:b
    b"a:b": b"a/b",
    b"v1.2": b"v1%2E2",  # a hash
    b"plain.txt": b"plain.txt",
    b"hash": b"hash",
    b"hash.field": b"hash%2Efield",  # a field has this name
    b"::x": b"%/%/x",
    b".hidden": b".hidden",
    b"\xff": b"%FF",
}


def write_neighbours(server: RedisServer) -> None:
    """Write the keys of NEIGHBOURS."""
    client = server.client()
    for key in NEIGHBOURS:
        if key in (b"v1.2", b"hash"):
            client.hset(key, "field", "x")
        else:
            client.set(key, "x")


def test_paths_depend_on_neighbours(redis_server: RedisServer, client: RedisClient) -> None:
    """Keys get the paths under which a mount lists them, whatever the order of the scan."""
    write_neighbours(redis_server)
    assert name_all(client) == NEIGHBOURS


def test_more_records_than_are_held_are_named_too(
    redis_server: RedisServer, client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more records than MAX_HELD_RECORDS the names are scanned a second time, and the paths are the same."""
    monkeypatch.setattr(naming, "MAX_HELD_RECORDS", 2)
    monkeypatch.setattr(naming, "_RECORDS_PER_BATCH", 2)
    write_neighbours(redis_server)
    redis_server.client().config_resetstat()
    assert name_all(client) == NEIGHBOURS
    assert sent_commands(redis_server)["scan"] == 2


@given(
    key=st.lists(st.sampled_from([b":", b"::", b"a", b"b c", b".", b"%", b"/", b"\xff", b"-"]), max_size=6).map(
        b"".join
    ),
    separator=st.sampled_from([b":", b"::", b"-"]),
)
def test_plain_paths_are_those_of_the_grammar(key: bytes, separator: bytes) -> None:
    """Where the quick way has a path, it is that of the grammar."""
    path = naming.build_plain_path(key, separator)
    assert path is None or path == PathCodec(separator).key_path(key)


def test_a_longer_separator_splits_from_the_left() -> None:
    """With `::`, a:::b is in the folder a, not in a: ."""
    directories = DirectorySet(b"::")
    directories.add_keys([b"a:::b", b"x::y::z"])
    assert [key in directories for key in (b"a", b"a:", b"x", b"x::y", b"x::y::z")] == [True, False, True, True, False]
