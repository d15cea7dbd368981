"""The fingerprint of a server: which keys it samples, what counts as equal, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import ChangeIntent, ServerFingerprint, ServerIdentity, SessionMetadata, State
from redisfuse.transactions.server_fingerprint import (
    MAX_SAMPLED_KEYS,
    ServerComparison,
    ServerVerdict,
    compare_server,
    compare_servers,
    exclude_other_servers,
    fetch_fingerprint,
    record_recognized,
)
from redisfuse.transactions.session_start import start_session
from tests.support.redis_server import RedisServer

ELSEWHERE = SessionMetadata(ServerIdentity(host="127.0.0.1"), run_id="another run")


@pytest.fixture
def data(redis_server: RedisServer) -> redis.Redis:
    """Return a client of an empty server."""
    return redis_server.client()


@pytest.fixture
def server(redis_server: RedisServer, data: redis.Redis) -> Iterator[RedisClient]:  # noqa: ARG001 - empty first
    client = RedisClient(Address.parse(redis_server.url()))
    yield client
    client.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "state" / "journal.db", create=True) as journal:
        yield journal


def verdict(journal: Journal, server: RedisClient, session: int) -> ServerVerdict:
    """Return how the server compares with that of a session."""
    return compare(journal, server, session).verdict


def compare(journal: Journal, server: RedisClient, session: int) -> ServerComparison:
    """Compare the server with that at the begin of a session."""
    found = journal.get_session(session)
    return compare_server(journal, server, found, found.metadata.run_id)


# -- sampling --------------------------------------------------------------------------------------------------------


def test_permanent_keys_are_sampled(data: redis.Redis, server: RedisClient) -> None:
    """Strings are sampled before other types, keys with an expiry and very long ones never."""
    data.mset({f"s{number}": "x" for number in range(10)} | {"long" * 1000: "x"})
    data.set("temporary", "x", ex=1000)
    for number in range(20):
        data.hset(f"h{number}", "field", "value")
    found = fetch_fingerprint(server)
    assert found.key_count == 32
    assert len(found.sampled_keys) == MAX_SAMPLED_KEYS
    assert {key for key in found.sampled_keys if key.startswith(b"s")} == {b"s%d" % number for number in range(10)}
    assert b"temporary" not in found.sampled_keys
    assert len(found.replication_id) == 40


def test_an_empty_server_has_no_sample(server: RedisClient) -> None:
    """An empty database has a fingerprint without keys."""
    assert fetch_fingerprint(server) == ServerFingerprint(server.server_info.replication_id, 0, {})


def test_only_keys_below_the_prefix_are_sampled(data: redis.Redis, server: RedisClient) -> None:
    """With a prefix, which is no glob, the names of other keys do not get into the journal."""
    data.mset({f"app*:{number}": "x" for number in range(5)} | {f"app-:{number}": "x" for number in range(100)})
    assert set(fetch_fingerprint(server, b"app*:").sampled_keys) == {b"app*:%d" % number for number in range(5)}


def test_a_large_database_costs_a_few_round_trips(data: redis.Redis, server: RedisClient) -> None:
    """Whatever the number of keys, a fingerprint takes a few round trips and some dozens of commands."""
    pipeline = data.pipeline(transaction=False)
    for number in range(50_000):
        pipeline.set(f"key:{number}", "x" * 5000 if number < 50 else "x")
    pipeline.execute()
    server.connect()
    before = server.stats.snapshot()
    assert len(fetch_fingerprint(server).sampled_keys) == MAX_SAMPLED_KEYS
    after = server.stats.snapshot()
    assert after["round_trips"] - before["round_trips"] <= 4
    assert after["commands"] - before["commands"] <= 140


def test_what_the_user_may_not_read_is_left_out(data: redis.Redis, redis_server: RedisServer) -> None:
    """A user who may read only some keys, and not their number, has a fingerprint of those."""
    data.mset({f"app:{number}": "x" for number in range(5)} | {"secret": "x"})
    data.acl_setuser(
        "limited", enabled=True, nopass=True, keys=["app:*"], commands=["+@all", "-dbsize"], channels=["*"]
    )
    client = RedisClient(replace(Address.parse(redis_server.url()), username="limited", password="x"))
    try:
        found = fetch_fingerprint(client)
        assert found.key_count is None
        assert set(found.sampled_keys) == {b"app:%d" % number for number in range(5)}
        data.acl_setuser("limited", enabled=True, commands=["-scan"])
        assert fetch_fingerprint(client).sampled_keys == {}
    finally:
        client.close()
        data.acl_deluser("limited")


# -- comparing -------------------------------------------------------------------------------------------------------


def fill(data: redis.Redis) -> None:
    """Create keys of each type."""
    data.mset({"a": "1", "b": "x" * 5000})
    data.hset("hash", mapping={"f": "1", "g": "2"})
    data.sadd("set", "m", "n")
    data.zadd("zset", {"m": 1})
    data.rpush("list", "one")
    data.xadd("stream", {"f": "v"})


def test_half_of_the_keys_must_be_as_they_were(data: redis.Redis, server: RedisClient, journal: Journal) -> None:
    """Changed contents, types and sizes and absent keys count against the server; a queue's length does not."""
    fill(data)
    session = journal.begin_session(replace(ELSEWHERE, fingerprint=fetch_fingerprint(server)))
    fingerprint = journal.get_fingerprint(session)
    assert fingerprint is not None
    assert len(fingerprint.sampled_keys) == 7
    # The server continues the replication of that session's server, whatever its keys are.
    assert verdict(journal, server, session) == "same_data"
    session = journal.begin_session(replace(ELSEWHERE, fingerprint=replace(fingerprint, replication_id="other")))
    data.rpush("list", "two")
    data.xadd("stream", {"f": "v"})
    data.set("a", "2")
    data.setrange("b", 10, "y")
    data.hset("hash", "h", "3")
    assert verdict(journal, server, session) == "same_data"
    data.delete("set")
    assert verdict(journal, server, session) == "other_data"
    assert "only 3 of 7 keys" in compare(journal, server, session).explanation


def test_touched_keys_are_no_evidence(data: redis.Redis, server: RedisClient, journal: Journal) -> None:
    """Keys that a change touched since are not compared; those of refused changes and other servers are."""
    data.mset({"a": "1", "b": "1", "c": "1"})
    fingerprint = replace(fetch_fingerprint(server), replication_id="other")
    session = journal.begin_session(replace(ELSEWHERE, fingerprint=fingerprint))
    other = journal.begin_session(SessionMetadata(ServerIdentity(host="other"), run_id="x"))
    data.mset({"a": "2", "b": "2"})

    def change(key: bytes) -> ChangeIntent:
        return ChangeIntent(key, "write", key, None, State.from_value(b"1"), State.from_value(b"2"))

    journal.record_intents(session, [change(b"a")], outcome="refused")
    journal.record_intents(other, [change(b"a"), change(b"b")])
    assert verdict(journal, server, session) == "other_data"
    journal.record_outcome(journal.record_intents(session, [change(b"a")]), "applied")
    assert verdict(journal, server, session) == "same_data"  # one of b and c
    journal.record_intents(session, [change(b"b"), change(b"c")])
    assert verdict(journal, server, session) == "unrecognized"


def test_the_number_of_keys_is_evidence_without_samples(
    data: redis.Redis, server: RedisClient, journal: Journal
) -> None:
    """If all keys have an expiry, a server that lost more than half of them, unexplained by changes, is another one."""
    for number in range(10):
        data.set(f"k{number}", "x", ex=1000)
    fingerprint = replace(fetch_fingerprint(server), replication_id="other")
    session = journal.begin_session(replace(ELSEWHERE, fingerprint=fingerprint))
    assert verdict(journal, server, session) == "unrecognized"
    data.delete(*(f"k{number}" for number in range(6)))
    assert verdict(journal, server, session) == "other_data"
    removal = ChangeIntent(b"k0", "remove", b"k0", None, State.from_value(b"x"), State("absent"))
    journal.record_outcome(journal.record_intents(session, [removal]), "applied")
    assert verdict(journal, server, session) == "unrecognized"


def test_without_a_fingerprint_nothing_is_known(server: RedisClient, journal: Journal) -> None:
    """A session of an older journal is unrecognized after a restart; without run ids a restart is not known."""
    assert verdict(journal, server, journal.begin_session(ELSEWHERE)) == "unrecognized"
    assert verdict(journal, server, journal.begin_session(replace(ELSEWHERE, run_id=""))) == "same_run"


def test_each_run_of_a_server_is_compared(data: redis.Redis, server: RedisClient, journal: Journal) -> None:
    """Changes of several runs: those of the run that seems to be another server are excluded."""
    data.mset({f"k{number}": "x" for number in range(10)})
    fingerprint = replace(fetch_fingerprint(server), replication_id="other")
    alien = replace(fingerprint, sampled_keys=dict.fromkeys(fingerprint.sampled_keys, bytes(32)))
    own = SessionMetadata(ELSEWHERE.server, run_id=server.server_info.run_id)
    sessions = [
        journal.begin_session(replace(ELSEWHERE, fingerprint=alien)),
        journal.begin_session(replace(ELSEWHERE, run_id="earlier", fingerprint=fingerprint)),
        journal.begin_session(own),
    ]
    intent = ChangeIntent(b"j", "write", b"j", None, State("absent"), State.from_value(b"x"))
    for session in sessions:
        journal.record_intents(session, [intent])
    kept, others = exclude_other_servers(journal, server, journal.find_pending_changes())
    assert [change.session_id for change in kept] == sessions[1:]
    assert [(comparison.session_id, comparison.verdict) for comparison in others] == [(sessions[0], "other_data")]


def test_a_recognized_run_stays_recognized(data: redis.Redis, server: RedisClient, journal: Journal) -> None:
    """Once recognized or confirmed, a run is accepted although the keys change; another server is not."""
    data.mset({f"k{number}": "x" for number in range(10)})
    fingerprint = replace(fetch_fingerprint(server), replication_id="other")
    recognized, confirmed, alien = (
        journal.begin_session(replace(ELSEWHERE, run_id=run_id, fingerprint=evidence))
        for run_id, evidence in (
            ("recognized", fingerprint),
            ("confirmed", None),
            ("alien", replace(fingerprint, sampled_keys=dict.fromkeys(fingerprint.sampled_keys, bytes(32)))),
        )
    )
    sessions = (recognized, confirmed, alien)
    comparisons = [compare(journal, server, session) for session in sessions]
    assert [comparison.verdict for comparison in comparisons] == ["same_data", "unrecognized", "other_data"]
    record_recognized(journal, server, comparisons)
    data.flushdb()
    assert [verdict(journal, server, session) for session in sessions] == ["same_data", "same_data", "other_data"]


def test_a_session_recognizes_the_one_before(data: redis.Redis, server: RedisClient, journal: Journal) -> None:
    """A session that starts keeps that the server is that of the newest one, before its own changes touch the keys."""
    data.mset({f"k{number}": "x" for number in range(10)})
    fingerprint = replace(fetch_fingerprint(server), replication_id="other")
    first = journal.begin_session(replace(ELSEWHERE, fingerprint=fingerprint))
    start_session(journal, server, replace(ELSEWHERE, run_id=server.server_info.run_id))
    data.flushdb()
    assert verdict(journal, server, first) == "same_data"


def test_the_run_of_a_change_counts(data: redis.Redis, server: RedisClient, journal: Journal) -> None:
    """A change that was sent to this run of the server belongs here, even if its session began in an earlier one."""
    data.mset({f"k{number}": "x" for number in range(10)})
    alien = ServerFingerprint("other", 10, {b"k1": bytes(32)})
    session = journal.begin_session(replace(ELSEWHERE, fingerprint=alien))
    intent = ChangeIntent(b"j", "write", b"j", None, State("absent"), State.from_value(b"x"))
    for run_id in (server.server_info.run_id, "", "earlier"):
        journal.record_intents(session, [intent], connection_id=f"{run_id}/7")
    comparisons = compare_servers(journal, server, journal.find_pending_changes())
    assert {comparison.run_id: comparison.verdict for comparison in comparisons} == {
        server.server_info.run_id: "same_run",
        ELSEWHERE.run_id: "other_data",
        "earlier": "other_data",
    }
