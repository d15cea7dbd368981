"""The measures of `redisfuse top`: folders, samples and queues."""

import json
import time
from collections.abc import Iterator

import pytest

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.survey import usage
from redisfuse.survey.changes import ChangeCounter
from redisfuse.survey.conditions import NameFilter, TypeCondition
from redisfuse.survey.queues import Queue, fetch_queues, parse_entry_time, parse_time
from redisfuse.survey.scan import KeySurvey, Scope
from redisfuse.survey.usage import Measure, UsageCollector, UsageReport
from tests.support.mounts import wait_until
from tests.support.redis_server import RedisServer
from tests.unit.test_survey import sent_commands

NOW = 1_800_000_000.0


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[RedisClient]:
    """Connect a client to the shared, empty server."""
    client = RedisClient(Address.parse(redis_server.url()))
    client.connect()
    yield client
    client.close()


def collect(
    client: RedisClient,
    measure: Measure,
    *,
    prefix: bytes = b"",
    depth: int = 1,
    biggest: int = 2,
    sample: int | None = None,
) -> UsageReport:
    """Return the usage of the keys with a prefix."""
    survey = KeySurvey([client], Scope(prefix), NameFilter(b":"))
    return UsageCollector(survey, measure, separator=b":", depth=depth, biggest=biggest).collect(sample)


def fill(server: RedisServer) -> None:
    """Write 30 strings, 20 of them with an expiry, and 5 lists."""
    client = server.client()
    for number in range(10):
        client.set(f"a:x:{number}", "x" * 100)
        client.set(f"a:y:{number}", "x" * 10, ex=1800)
        client.set(f"b:{number}", "x", ex=3 * 86400)
    for number in range(5):
        client.rpush(f"queue:{number}", *range(number + 1))
    client.config_resetstat()


# -- folders ---------------------------------------------------------------------------------------------------------


def test_bytes_by_folder(redis_server: RedisServer, client: RedisClient) -> None:
    """The sums of folders are exact, with their expiries, and cost three commands a key."""
    fill(redis_server)
    report = collect(client, "bytes", depth=2)
    assert {prefix: (one.keys, one.amount) for prefix, one in report.folders.items()} == {
        b"": (35, 1110),
        b"a:": (20, 1100),
        b"a:x:": (10, 1000),
        b"a:y:": (10, 100),
        b"b:": (10, 10),
        b"queue:": (5, 0),
    }
    assert report.folders[b""].expiries == [0, 10, 0, 10, 0, 15]
    assert [(record.size, record.type) for _, record in report.biggest] == [(100, b"string")] * 2
    commands = sent_commands(redis_server)
    assert commands.pop("scan") == 1
    # Of the two biggest keys, what the output needs is fetched again.
    assert commands == {"type": 35, "strlen": 30 + 2, "llen": 5, "pttl": 35 + 2}


def test_memory_costs_two_commands_a_key(redis_server: RedisServer, client: RedisClient) -> None:
    """Memory needs no type."""
    fill(redis_server)
    report = collect(client, "memory", biggest=0)
    assert sent_commands(redis_server) == {"scan": 1, "pttl": 35, "memory|usage": 35}
    writer = redis_server.client()
    assert report.folders[b""].amount == sum(writer.memory_usage(key) for key in writer.scan_iter())


def test_a_prefix_has_its_own_total(redis_server: RedisServer, client: RedisClient) -> None:
    """Depths are counted from the folder of the scope, also where the prefix ends within a name."""
    fill(redis_server)
    assert {prefix: one.keys for prefix, one in collect(client, "keys", prefix=b"a:").folders.items()} == {
        b"a:": 20,
        b"a:x:": 10,
        b"a:y:": 10,
    }
    assert {prefix: one.keys for prefix, one in collect(client, "keys", prefix=b"a:x").folders.items()} == {
        b"a:": 10,
        b"a:x:": 10,
    }
    assert {prefix: one.keys for prefix, one in collect(client, "keys", prefix=b"none:").folders.items()} == {
        b"none:": 0
    }


def test_the_number_of_folders_is_bounded(
    redis_server: RedisServer, client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of folders beyond the limit are in the total only."""
    monkeypatch.setattr(usage, "MAX_FOLDERS", 2)
    fill(redis_server)
    report = collect(client, "keys", depth=2)
    assert len(report.folders) == 2
    assert report.folders[b""].keys == 35


# -- samples ---------------------------------------------------------------------------------------------------------


def test_a_sample_is_within_its_error(own_redis: RedisServer) -> None:
    """The estimates of a sample are near the truth, and far fewer commands are sent."""
    writer = own_redis.client()
    pipeline = writer.pipeline(transaction=False)
    for number in range(20_000):
        pipeline.set(f"f{number % 4}:{number}", "x" * (number % 4 * 100 + 1))
    pipeline.execute()
    truth = {b"f%d:" % folder: 5000 * (folder * 100 + 1) for folder in range(4)}
    writer.config_resetstat()
    client = RedisClient(Address.parse(own_redis.url()))
    report = collect(client, "bytes", sample=2000)
    client.close()
    assert report.sampled_keys == 2000
    assert report.total_keys == 20_000
    commands = sent_commands(own_redis)
    assert commands["strlen"] == 2000 + 2
    for prefix, amount in truth.items():
        folder = report.folders[prefix]
        assert 0 < folder.error < 0.2 * amount
        assert abs(folder.amount - amount) < 3 * folder.error  # six standard errors
        assert abs(folder.keys - 5000) < 1000


def test_a_sample_of_everything_is_exact(redis_server: RedisServer, client: RedisClient) -> None:
    """A sample that has all keys has no error."""
    fill(redis_server)
    report = collect(client, "bytes", sample=1000)
    assert (report.folders[b""].amount, report.folders[b""].error) == (1110, 0)


# -- queues ----------------------------------------------------------------------------------------------------------


def queues(client: RedisClient) -> dict[bytes, Queue]:
    """Return the queues of a server."""
    survey = KeySurvey([client], Scope(), NameFilter(b":"))
    is_queue = TypeCondition(frozenset([b"list", b"stream"]))
    return {
        queue.record.key: queue
        for _, records in survey.iter_batches([is_queue], ["length"])
        for queue in fetch_queues(client, records)
    }


def test_queues_of_libraries(redis_server: RedisServer, client: RedisClient) -> None:
    """The oldest job is found where a library records its time: in the entry, or in the hash of the job."""
    writer = redis_server.client()
    now = time.time()
    writer.lpush("queue:default", *(json.dumps({"class": "Job", "enqueued_at": now - age}) for age in (500, 100)))
    writer.rpush("rq:queue:high", "job-1", "job-2")
    for number, age in ((1, 90), (2, 10)):
        enqueued = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(now - age))
        writer.hset(f"rq:job:job-{number}", mapping={"enqueued_at": enqueued, "data": "x"})
    writer.lpush("bull:mail:wait", "1", "2")
    writer.hset("bull:mail:1", mapping={"timestamp": int((now - 70) * 1000), "name": "send"})
    writer.hset("bull:mail:2", mapping={"timestamp": int((now - 7) * 1000), "name": "send"})
    writer.lpush("celery", json.dumps({"body": "W10=", "headers": {"task": "t"}, "properties": {}}))
    found = queues(client)
    ages = {key: queue.oldest_age and round(queue.oldest_age, -1) for key, queue in found.items()}
    assert ages == {b"queue:default": 500, b"rq:queue:high": 90, b"bull:mail:wait": 70, b"celery": None}
    assert {key: queue.record.length for key, queue in found.items()} == {
        b"queue:default": 2,
        b"rq:queue:high": 2,
        b"bull:mail:wait": 2,
        b"celery": 1,
    }


def test_streams(redis_server: RedisServer, client: RedisClient) -> None:
    """A stream has the age of its first entry, and its groups' consumers, pending entries and lag."""
    writer = redis_server.client()
    for age in (300, 200, 100):
        writer.xadd("s", {"a": "b"}, id=f"{int((time.time() - age) * 1000)}-0")
    writer.xgroup_create("s", "g1", id="0")
    writer.xgroup_create("s", "g2", id="0")
    writer.xreadgroup("g1", "c1", {"s": ">"}, count=2)
    writer.xgroup_create("new", "g", mkstream=True)
    writer.xadd("small-ids", {"a": "b"}, id="1-1")
    found = queues(client)
    queue = found[b"s"]
    assert queue.oldest_age == pytest.approx(300, abs=5)
    assert (queue.groups, queue.consumers, queue.pending, queue.lag) == (2, 1, 2, 3)
    assert found[b"new"].oldest_age is None
    assert found[b"small-ids"].oldest_age is None


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        (b'{"enqueued_at": 1700000000.5}', 1_700_000_000.5),
        (b'{"created_at": 1700000000500}', 1_700_000_000.5),
        (b'{"timestamp": "2023-11-14T22:13:20Z"}', 1_700_000_000.0),
        (b'{"timestamp": "2023-11-14T22:13:20"}', 1_700_000_000.0),
        (b'{"ts": 12}', None),
        (b'{"ts": true}', None),
        (b'{"ts": "soon", "time": 1700000000}', 1_700_000_000.0),
        (b'{"ts": 1e400}', None),
        (b"[1700000000]", None),
        (b"{broken", None),
        (b"\xff", None),
    ],
)
def test_times_of_entries(text: bytes, moment: float | None) -> None:
    """Seconds, milliseconds and ISO 8601 are times; small numbers and other text are not."""
    assert parse_entry_time(text) == moment


def test_numbers_that_are_no_times() -> None:
    """A number from the far future is no time."""
    assert parse_time(1e18) is None
    assert parse_time(float("nan")) is None


# -- changes ---------------------------------------------------------------------------------------------------------


def test_changes_are_counted(redis_server: RedisServer, client: RedisClient) -> None:
    """Each change of a key with the prefix is counted; the busiest key is first."""
    counter = ChangeCounter([client], b"app:")
    counter.start()
    try:
        wait_until(lambda: redis_server.client().info("clients")["tracking_clients"] == 1)
        writer = redis_server.client()
        for number in range(30):
            writer.incr("app:busy")
            writer.set("other", number)
            if number % 10 == 0:
                writer.set("app:quiet", number)
        wait_until(lambda: counter.snapshot(1)[1] == 33)
        assert counter.snapshot(10)[2] == [(b"app:busy", 30), (b"app:quiet", 3)]
    finally:
        counter.close()
