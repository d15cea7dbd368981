"""The keyspace monitor on real servers: it shows other clients' changes, whatever happens to the connection."""

import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import pytest
import redis

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.client.limits import Limits
from redisfuse.errors import TryAgainError, UnavailableError
from redisfuse.keyspace.change_times import ChangeClock
from redisfuse.keyspace.drift import DriftDetector
from redisfuse.keyspace.exists import exists_many
from redisfuse.keyspace.expiry_queue import ExpiryQueue
from redisfuse.keyspace.index import Child
from redisfuse.keyspace.listener import NullListener
from redisfuse.keyspace.monitor import KeyspaceMonitor
from redisfuse.keyspace.overload import OverloadDetector
from redisfuse.keyspace.scanner import ScanObserver, build_match_pattern, scan_keys
from redisfuse.paths.grammar import PathCodec
from tests.support.redis_server import RedisServer


def until(condition: Callable[[], bool], limit: float = 10.0) -> float:
    """Wait for a condition; return how many seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit, "the condition did not become true in time"
        time.sleep(0.005)
    return time.monotonic() - began


class ShortLayout(PathCodec):
    """A layout in which keys of more than 1000 bytes need a digest."""

    def key_needs_digest(self, key: bytes) -> bool:
        return len(key) > 1000


class CountingObserver(ScanObserver):
    """Counts the commands of a scan."""

    def __init__(self) -> None:
        self.commands = 0
        self.totals: list[int] = []

    def before_scan_command(self) -> None:
        self.commands += 1

    def set_total(self, total: int) -> None:
        self.totals.append(total)


class RecordingListener(NullListener):
    """Records what the keyspace announces."""

    def __init__(self) -> None:
        self.changed: set[bytes] = set()
        self.touched: set[bytes] = set()
        self.on_touched: Callable[[], object] = int
        self.resets = 0

    def keys_changed(self, keys: Collection[bytes]) -> None:
        self.changed.update(keys)

    def keys_touched(self, keys: Collection[bytes]) -> None:
        self.touched.update(keys)
        self.on_touched()

    def all_touched(self) -> None:
        self.on_touched()

    def reset(self) -> None:
        self.resets += 1


@contextmanager
def keyspace_of(
    server: RedisServer, *, db: int = 0, user: str = "", limits: Limits | None = None, **options: object
) -> Iterator[tuple[KeyspaceMonitor, RecordingListener, RedisClient]]:
    """Start a keyspace monitor."""
    url = f"unix://{user}{server.socket_path}?db={db}" if user else server.url(db)
    connection = RedisClient(Address.parse(url), limits or Limits(timeout=2.0))
    listener = RecordingListener()
    keyspace = KeyspaceMonitor(
        connection,
        listener=listener,
        heartbeat_interval=0.2,
        **options,  # type: ignore[arg-type]
    )
    keyspace.start()
    try:
        yield keyspace, listener, connection
    finally:
        keyspace.close()
        connection.close()


def names(keyspace: KeyspaceMonitor) -> set[bytes]:
    """Return all keys of the index in use."""
    return set(keyspace.index.iter_keys_below(()))


# -- parts -----------------------------------------------------------------------------------------------------------


def test_scan_finds_every_key_in_few_commands(redis_server: RedisServer) -> None:
    """A scan of N keys takes at most 1 + N/1000 SCANs and finds them all."""
    client = redis_server.client()
    client.mset({b"k:%d" % number: b"" for number in range(20_500)})
    server = RedisClient(Address.parse(redis_server.url()))
    observer = CountingObserver()
    keys = [key for batch in scan_keys(server, observer=observer) for key in batch]
    server.close()
    assert set(keys) == {b"k:%d" % number for number in range(20_500)}
    assert observer.totals == [20_500]
    assert observer.commands <= 1 + 20_500 // 1000
    assert client.info("commandstats")["cmdstat_scan"]["calls"] == observer.commands


@pytest.mark.parametrize("prefix", [b"a*", b"[x]", b"\\", b"a?b^", b"\xff\x00:", b"-"])
def test_a_prefix_is_literal(redis_server: RedisServer, prefix: bytes) -> None:
    """A prefix with glob characters finds exactly the keys that begin with these bytes."""
    client = redis_server.client()
    client.mset({prefix + b"1": b"", prefix: b"", b"other": b"", b"ab": b"", b"x": b"", b"a1b": b""})
    server = RedisClient(Address.parse(redis_server.url()))
    keys = {key for batch in scan_keys(server, prefix=prefix) for key in batch}
    server.close()
    assert keys == {prefix, prefix + b"1"}
    assert build_match_pattern(b"a*") == b"a\\**"


def test_existence_is_looked_up_in_groups(redis_server: RedisServer) -> None:
    """Looking up existence takes one command for about a hundred keys where all or none of them exist."""
    client = redis_server.client()
    client.mset({b"k%d" % number: b"" for number in range(1000)})
    server = RedisClient(Address.parse(redis_server.url()))
    keys = [b"k%d" % number for number in range(2000)]
    before = server.stats.commands
    assert exists_many(server, keys) == [number < 1000 for number in range(2000)]
    assert server.stats.commands - before <= 25
    assert exists_many(server, [b"k1", b"none", b"k2"]) == [True, False, True]
    server.close()


def test_change_times_never_decrease() -> None:
    """A key's time never decreases, and increases with each change of the key, even after old times are dropped."""
    changes = ChangeClock(capacity=10)
    start = changes.changed_at(b"k0")
    times: dict[bytes, int] = {}
    for turn in range(500):
        key = b"k%d" % (turn * 7 % 100)
        before = changes.changed_at(key)
        changes.record_changes([key])
        assert changes.changed_at(key) > before >= start
        for other, moment in times.items():
            assert changes.changed_at(other) >= moment
            times[other] = changes.changed_at(other)
        times[key] = changes.changed_at(key)
    changes.record_all_changed()
    assert all(changes.changed_at(key) > moment for key, moment in times.items())


def test_expiry_queue() -> None:
    """A key expires once, at the latest deadline that was added for it."""
    queue = ExpiryQueue(capacity=3)
    assert queue.next_deadline() is None
    assert queue.add(b"a", 10.0)
    assert queue.add(b"b", 5.0)
    assert queue.add(b"b", 20.0)
    assert queue.add(b"c", 7.0)
    assert not queue.add(b"d", 1.0)
    assert queue.next_deadline() == 7.0
    assert queue.pop_expired(10.0) == [b"c", b"a"]
    assert queue.pop_expired(19.0) == []
    assert queue.pop_expired(20.0) == [b"b"]
    assert len(queue) == 0


# -- tracking --------------------------------------------------------------------------------------------------------


def test_changes_of_other_clients_show(redis_server: RedisServer) -> None:
    """The index follows keys that other clients create, delete, rename or let expire, within a second."""
    client = redis_server.client()
    client.mset({b"user:%d" % number: b"" for number in range(2500)})
    with keyspace_of(redis_server) as (keyspace, listener, _):
        keyspace.wait_until_ready(10)
        assert keyspace.is_coherent
        assert keyspace.degraded_reason == ""
        assert keyspace.scan_progress == (2500, 2500)
        assert len(keyspace.index) == 2500

        root = keyspace.changed_at(b"")
        client.set(b"new:one", b"")
        until(lambda: b"new:one" in keyspace.index)
        assert keyspace.index.get_child((), b"new") == Child(b"new", False, True)
        assert keyspace.changed_at(b"new:one") > root
        until(lambda: keyspace.changed_at(b"") > root)
        assert b"new:one" in listener.touched
        until(lambda: b"new:one" in listener.changed)

        client.delete(b"new:one")
        until(lambda: b"new:one" not in keyspace.index)
        assert not keyspace.index.is_directory((b"new",))

        client.rename(b"user:1", b"user:renamed")
        until(lambda: b"user:renamed" in keyspace.index and b"user:1" not in keyspace.index)

        client.set(b"brief", b"", px=600)
        until(lambda: b"brief" in keyspace.index)
        until(lambda: b"brief" not in keyspace.index)

        count = keyspace.get_version(b"user:5")
        client.set(b"user:5", b"again")
        until(lambda: keyspace.get_version(b"user:5") > count)
        assert names(keyspace) == set(client.scan_iter(count=1000))


def test_flush_of_this_database(redis_server: RedisServer) -> None:
    """FLUSHDB of the mounted database empties the index and the caches, within a second."""
    client = redis_server.client()
    client.mset({b"k:%d" % number: b"" for number in range(100)})
    with keyspace_of(redis_server) as (keyspace, listener, _):
        keyspace.wait_until_ready(10)
        resets, count = listener.resets, keyspace.get_version(b"k:1")
        client.flushdb()
        client.set(b"after", b"")
        until(lambda: keyspace.is_ready and names(keyspace) == {b"after"})
        assert listener.resets > resets
        assert keyspace.get_version(b"k:1") > count


def test_flush_of_another_database(redis_server: RedisServer) -> None:
    """FLUSHDB of another database changes nothing: surviving keys prove it."""
    client = redis_server.client()
    client.mset({b"k:%d" % number: b"" for number in range(100)})
    with keyspace_of(redis_server) as (keyspace, listener, _):
        keyspace.wait_until_ready(10)
        resets = listener.resets
        other = redis_server.client(db=1)
        for _turn in range(5):
            other.set(b"x", b"")
            other.flushdb()
        client.set(b"after", b"")
        until(lambda: b"after" in keyspace.index)
        assert keyspace.is_ready
        assert listener.resets == resets


def test_keys_of_another_database_do_not_show(redis_server: RedisServer) -> None:
    """A key that is created in another database does not appear, although messages name no database."""
    with keyspace_of(redis_server) as (keyspace, listener, _):
        keyspace.wait_until_ready(10)
        redis_server.client(db=1).set(b"elsewhere", b"")
        until(lambda: b"elsewhere" in listener.changed)
        assert b"elsewhere" not in keyspace.index


def test_swapdb(redis_server: RedisServer) -> None:
    """SWAPDB, which no message announces, is noticed even if both databases have the same keys."""
    client = redis_server.client()
    client.set(b"same", b"zero")
    redis_server.client(db=1).set(b"same", b"one")
    with keyspace_of(redis_server) as (keyspace, listener, _):
        keyspace.wait_until_ready(10)
        time.sleep(0.1)
        resets, count = listener.resets, keyspace.get_version(b"same")
        client.swapdb(0, 1)
        until(lambda: listener.resets > resets)
        until(lambda: keyspace.is_ready)
        assert keyspace.get_version(b"same") > count
        assert names(keyspace) == {b"same"}


@pytest.mark.parametrize("event", ["a change", "FLUSHDB", "SWAPDB", "a lost connection", "a suspect index"])
def test_caches_are_dropped_before_versions_move(redis_server: RedisServer, event: str) -> None:
    """Else a reader in between could take the cached bytes for those of the new version, until the next change."""
    client = redis_server.client()
    client.set(b"k", b"old")
    with keyspace_of(redis_server) as (keyspace, listener, _):
        keyspace.wait_until_ready(10)
        time.sleep(0.5)
        seen = []
        before = keyspace.get_version(b"k")
        listener.on_touched = lambda: seen.append(keyspace.get_version(b"k"))
        if event == "a change":
            client.set(b"k", b"new")
        elif event == "FLUSHDB":
            client.flushdb()
        elif event == "SWAPDB":
            client.swapdb(0, 1)
        elif event == "a lost connection":
            client.client_kill_filter(_type="pubsub")
            client.client_kill_filter(_type="normal", skipme=True)
        else:
            keyspace.index.discard(b"k")
            keyspace.request_rescan()
        until(lambda: keyspace.get_version(b"k") > before)
        assert seen[0] == before


def test_a_wait_for_messages_ends_while_more_arrive(redis_server: RedisServer) -> None:
    """`wait_for_invalidations` waits for the messages so far, however fast others arrive."""
    with keyspace_of(redis_server, limits=Limits(timeout=60.0)) as (keyspace, _, _):
        keyspace.wait_until_ready(10)
        socket_path = str(redis_server.socket_path)
        writers = subprocess.Popen(
            ["redis-benchmark", "-s", socket_path, "-t", "set", "-r", "1000", "-l", "-q"], stdout=subprocess.DEVNULL
        )
        try:
            time.sleep(0.5)
            began = time.monotonic()
            for _ in range(40):
                assert keyspace.wait_for_invalidations()
            assert time.monotonic() - began < 10
        finally:
            writers.kill()
            writers.wait()


def test_prefix(redis_server: RedisServer) -> None:
    """With a prefix, the index contains only keys that begin with it, after the scan and after changes."""
    client = redis_server.client()
    client.mset({b"app*:1": b"", b"app:1": b"", b"other:1": b""})
    with keyspace_of(redis_server, prefix=b"app*") as (keyspace, listener, _):
        keyspace.wait_until_ready(10)
        assert names(keyspace) == {b"app*:1"}
        client.set(b"other:2", b"")
        client.set(b"app*:2", b"")
        until(lambda: names(keyspace) == {b"app*:1", b"app*:2"})
        assert listener.changed == {b"app*:2"}


def test_long_keys(redis_server: RedisServer) -> None:
    """Keys whose path would be too long are found by their digest only, and changes of them are followed."""
    client = redis_server.client()
    long = b"dir:" + b"x" * 2000
    client.set(b"short", b"")
    with keyspace_of(redis_server, layout=ShortLayout()) as (keyspace, _, _):
        keyspace.wait_until_ready(10)
        client.set(long, b"")
        until(lambda: list(keyspace.index.iter_long_keys()) == [long])
        assert names(keyspace) == {b"short"}
        client.delete(long)
        until(lambda: list(keyspace.index.iter_long_keys()) == [])


def test_own_changes_show_at_once(redis_server: RedisServer) -> None:
    """An own change is in the index when `record_key_state` returns, and is corrected if the server disagrees."""
    client = redis_server.client()
    with keyspace_of(redis_server) as (keyspace, listener, _):
        keyspace.wait_until_ready(10)
        client.set(b"mine", b"")
        keyspace.record_key_state(b"mine", True)
        assert b"mine" in keyspace.index
        keyspace.record_key_state(b"wrong", True)
        until(lambda: b"wrong" not in keyspace.index)
        until(lambda: b"mine" in listener.changed)
        assert b"mine" in keyspace.index


def test_a_deadline_is_a_change() -> None:
    """A key is verified at its deadline, even if the server has not deleted it yet."""
    with RedisServer(arguments=["--enable-debug-command", "yes"]) as own:
        client = own.client()
        client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
        with keyspace_of(own) as (keyspace, listener, _):
            client.set(b"brief", b"", px=1000)
            keyspace.wait_until_ready(10)
            until(lambda: b"brief" in keyspace.index)
            assert keyspace.schedule_expiry(b"brief", time.monotonic() + 1.0)
            time.sleep(0.2)
            listener.changed.clear()
            until(lambda: b"brief" in listener.changed)
            assert b"brief" not in keyspace.index


def test_may_expire(redis_server: RedisServer) -> None:
    """`may_expire` follows the server's count of keys with a TTL."""
    client = redis_server.client()
    client.set(b"k", b"")
    with keyspace_of(redis_server) as (keyspace, _, _):
        keyspace.wait_until_ready(10)
        until(lambda: not keyspace.may_expire)
        client.expire(b"k", 100)
        until(lambda: keyspace.may_expire)
        time.sleep(0.5)
        assert keyspace.may_expire


def test_an_idle_keyspace_is_quiet(redis_server: RedisServer) -> None:
    """Without changes, only the heartbeat is sent."""
    client = redis_server.client()
    client.mset({b"k:%d" % number: b"" for number in range(5000)})
    with keyspace_of(redis_server) as (keyspace, _, server):
        keyspace.wait_until_ready(10)
        time.sleep(0.3)
        before, began = server.stats.commands, time.monotonic()
        time.sleep(1.0)
        allowed = 2 * ((time.monotonic() - began) / 0.2 + 1)
        assert server.stats.commands - before <= allowed


def test_a_rescan_replaces_the_index_in_one_step(redis_server: RedisServer) -> None:
    """During a rescan, listings are complete; afterwards the index is another object."""
    client = redis_server.client()
    client.mset({b"k:%d" % number: b"" for number in range(5000)})
    with keyspace_of(redis_server) as (keyspace, _, _):
        keyspace.wait_until_ready(10)
        before = keyspace.index
        keyspace.request_rescan()
        while keyspace.index is before:
            assert len(list(keyspace.index.iter_children((b"k",)))) == 5000
        assert keyspace.is_ready
        assert len(list(keyspace.index.iter_children((b"k",)))) == 5000


def test_changes_during_the_scan(redis_server: RedisServer) -> None:
    """However keys change during a scan, the index has exactly the server's keys in the end."""
    client = redis_server.client()
    client.mset({b"k:%d" % number: b"" for number in range(30_000)})
    stop = threading.Event()

    def churn() -> None:
        writer = redis_server.client()
        turn = 0
        while not stop.is_set():
            pipeline = writer.pipeline(transaction=False)
            for number in range(turn * 50, turn * 50 + 50):
                pipeline.delete(b"k:%d" % (number * 13 % 30_000))
                pipeline.set(b"k:%d" % (number * 29 % 40_000), b"")
            pipeline.execute()
            turn += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        with keyspace_of(redis_server, limits=Limits(timeout=5.0, scan_count=100)) as (keyspace, _, _):
            keyspace.wait_until_ready(30)
            for _turn in range(3):
                keyspace.request_rescan()
                time.sleep(0.2)
            stop.set()
            thread.join(10)
            expected = set(client.scan_iter(count=1000))
            until(lambda: keyspace.is_ready and not keyspace.is_scanning and names(keyspace) == expected, 5.0)
            assert len(keyspace.index) == len(expected)
    finally:
        stop.set()
        thread.join(10)


def test_a_flood_of_messages(redis_server: RedisServer) -> None:
    """100 000 keys are in the index soon after they are written, and removed soon after they are deleted."""
    client = redis_server.client()
    with keyspace_of(redis_server) as (keyspace, listener, _):
        keyspace.wait_until_ready(10)
        client.mset({b"flood:%d:%d" % (number % 100, number): b"" for number in range(100_000)})
        until(lambda: len(keyspace.index) == 100_000, 15.0)
        for number in range(100):
            client.delete(*(b"flood:%d:%d" % (number, key) for key in range(number, 100_000, 100)))
        until(lambda: len(keyspace.index) == 0, 15.0)
        assert keyspace.is_coherent
        assert len(listener.changed) == 100_000


# -- when the connection fails ---------------------------------------------------------------------------------------


def test_a_killed_connection(redis_server: RedisServer) -> None:
    """When the tracking connection is killed, all caches are dropped first, and all is correct soon after."""
    client = redis_server.client()
    client.mset({b"k:%d" % number: b"" for number in range(100)})
    with keyspace_of(redis_server) as (keyspace, listener, _):
        keyspace.wait_until_ready(10)
        for turn in range(4):
            resets = listener.resets
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            client.set(b"meanwhile:%d" % turn, b"")
            until(lambda resets=resets: listener.resets >= resets + 2)  # type: ignore[misc]
            until(lambda: keyspace.is_coherent)
            keyspace.wait_until_ready(5)
            assert b"meanwhile:%d" % turn in keyspace.index


def test_a_restarted_server(own_redis: RedisServer) -> None:
    """While the server is down, a listing fails in time; after its restart with other data, that data shows."""
    client = own_redis.client()
    client.mset({b"old:%d" % number: b"" for number in range(100)})
    with keyspace_of(own_redis) as (keyspace, _, _):
        keyspace.wait_until_ready(10)
        own_redis.kill()
        until(lambda: not keyspace.is_coherent)
        assert not keyspace.is_ready
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            keyspace.wait_until_ready(None)
        assert time.monotonic() - began < 5
        assert keyspace.degraded_reason
        own_redis.start()
        own_redis.client().set(b"new", b"")
        until(lambda: keyspace.is_ready and keyspace.is_coherent, 10.0)
        until(lambda: names(keyspace) == {b"new"})


def test_a_hung_server(own_redis: RedisServer) -> None:
    """A hung server is noticed within the time-out, and tracking resumes when the server continues."""
    own_redis.client().set(b"k", b"")
    with keyspace_of(own_redis, limits=Limits(timeout=1.5)) as (keyspace, _, _):
        keyspace.wait_until_ready(10)
        own_redis.pause()
        try:
            assert until(lambda: not keyspace.is_coherent) <= 4.0
            began = time.monotonic()
            with pytest.raises(UnavailableError):
                keyspace.wait_until_ready(None)
            assert time.monotonic() - began < 5
        finally:
            own_redis.resume()
        until(lambda: keyspace.is_coherent and keyspace.is_ready, 10.0)
        assert names(keyspace) == {b"k"}


def test_a_user_without_tracking(redis_server: RedisServer) -> None:
    """For a user without tracking, the keyspace is scanned periodically, and `degraded_reason` says why."""
    client = redis_server.client()
    client.execute_command(
        "ACL", "SETUSER", "plain", "on", ">pw", "~*", "+@read", "+@connection", "-client|tracking", "+info"
    )
    client.set(b"one", b"")
    with keyspace_of(redis_server, user="plain:pw@", rescan_interval=0.3) as (keyspace, listener, _):
        keyspace.wait_until_ready(10)
        assert not keyspace.is_coherent
        assert "client|tracking" in keyspace.degraded_reason
        client.set(b"two", b"")
        until(lambda: b"two" in keyspace.index)
        until(lambda: b"two" in listener.changed)
        client.delete(b"one")
        until(lambda: b"one" not in keyspace.index)
        client.execute_command("ACL", "SETUSER", "plain", "+client|tracking", "+subscribe", "&*")
        keyspace.request_rescan()
        until(lambda: keyspace.is_coherent)


def test_keys_that_the_acl_hides(redis_server: RedisServer) -> None:
    """A key that the user may not read is listed nevertheless, since SCAN returns it."""
    client = redis_server.client()
    client.execute_command("ACL", "SETUSER", "some", "on", ">pw", "~app:*", "&*", "+@all")
    with keyspace_of(redis_server, user="some:pw@", rescan_interval=0.3) as (keyspace, _, _):
        keyspace.wait_until_ready(10)
        client.set(b"secret", b"")
        client.set(b"app:1", b"")
        until(lambda: names(keyspace) == {b"secret", b"app:1"})
        assert keyspace.is_coherent


def test_too_fast_to_follow(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that changes too fast is scanned periodically, with a reason, and tracked again later."""
    monkeypatch.setattr("redisfuse.keyspace.overload.MAX_PENDING_KEYS", 5_000)
    monkeypatch.setattr("redisfuse.keyspace.overload.MIN_BACKOFF_SECONDS", 1.0)
    client = redis_server.client()
    with keyspace_of(redis_server, rescan_interval=0.3) as (keyspace, listener, _):
        keyspace.wait_until_ready(10)
        resets = listener.resets
        client.mset({b"k:%d" % number: b"" for number in range(20_000)})
        until(lambda: not keyspace.is_coherent)
        assert "can follow" in keyspace.degraded_reason
        until(lambda: listener.resets > resets)
        assert keyspace.is_ready
        until(lambda: len(keyspace.index) == 20_000, 5.0)
        until(lambda: keyspace.is_coherent, 5.0)
        client.set(b"after", b"")
        keyspace.wait_until_ready(5)
        until(lambda: b"after" in keyspace.index)


def test_the_index_moves_to_disk(redis_server: RedisServer) -> None:
    """An index that outgrows its memory moves to disk, at the first scan and later, with equal results."""
    client = redis_server.client()
    client.mset({b"k:%d:%d" % (number % 7, number): b"" for number in range(3000)})
    with keyspace_of(redis_server, index_memory=600_000) as (keyspace, _, _):
        keyspace.wait_until_ready(10)
        assert not keyspace.index.on_disk
        client.mset({b"more:%d" % number: b"" for number in range(10_000)})
        until(lambda: keyspace.index.on_disk and len(keyspace.index) == 13_000, 10.0)
        keyspace.request_rescan()
        before = keyspace.index
        until(lambda: keyspace.index is not before, 10.0)
        assert keyspace.index.on_disk
        assert len(list(keyspace.index.iter_children(()))) == 2
        assert len(names(keyspace)) == 13_000


def test_waits_end(own_redis: RedisServer) -> None:
    """Waiting for the first scan ends with the time-out, or when the monitor is closed."""
    own_redis.pause()
    connection = RedisClient(Address.parse(own_redis.url()), Limits(timeout=3.0))
    keyspace = KeyspaceMonitor(connection)
    keyspace.start()
    with pytest.raises(TryAgainError):
        keyspace.wait_until_ready(0.2)
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            keyspace.wait_until_ready(None)
        except UnavailableError as error:
            raised.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    own_redis.resume()
    connection.close()
    keyspace.close()
    waiter.join(5)
    assert not waiter.is_alive()


def test_two_databases(redis_server: RedisServer) -> None:
    """Each monitor shows its own database."""
    redis_server.client().set(b"zero", b"")
    redis_server.client(db=2).set(b"two", b"")
    with keyspace_of(redis_server) as (zero, _, _), keyspace_of(redis_server, db=2) as (two, _, _):
        zero.wait_until_ready(5)
        two.wait_until_ready(5)
        assert names(zero) == {b"zero"}
        assert names(two) == {b"two"}


def test_the_tracking_connection_is_a_subscriber(redis_server: RedisServer) -> None:
    """The server treats the tracking connection as a subscriber, which it closes if it falls behind; it has a name."""
    with keyspace_of(redis_server) as (keyspace, _, _):
        keyspace.wait_until_ready(5)
        client: redis.Redis = redis_server.client()
        listed = client.execute_command("CLIENT", "LIST", "TYPE", "pubsub")
        text = listed.decode() if isinstance(listed, bytes) else str(listed)
        assert "name=redisfuse" in text
        assert "flags=" in text


# -- detectors -------------------------------------------------------------------------------------------------------


def test_drift_detector() -> None:
    """A lasting difference of counts is a reason to scan, an initial or pending one is not."""
    detector = DriftDetector()
    assert not detector.check_counts(105, 100, 0, 0.0)  # five have expired: the expected difference
    assert not detector.check_counts(103, 100, 0, 2.0)
    assert not detector.check_counts(150, 100, 50, 4.0)  # fifty have just been announced
    assert not detector.check_counts(150, 100, 0, 6.0)
    assert not detector.check_counts(150, 100, 0, 8.0)
    assert detector.check_counts(150, 100, 0, 10.0)
    detector.reset()
    detector.record_scan(False, 10.0)
    assert not detector.check_counts(150, 100, 0, 12.0)
    assert not detector.check_counts(90, 100, 0, 14.0)
    assert not detector.check_counts(90, 100, 0, 16.0)  # the scan found nothing: no further scan so soon
    assert not detector.check_counts(90, 100, 0, 60.0)
    assert detector.check_counts(90, 100, 0, 62.0)


def test_overload_detector() -> None:
    """A backlog, a lasting lag, or repeated loss of a busy connection is an overload; nothing else is."""
    detector = OverloadDetector()
    detector.record_connect(0.0)
    assert not detector.record_invalidations(1000, 1000)
    assert detector.record_invalidations(1000, 1_000_000)
    assert not detector.record_verification(3.0, 10.0)
    assert not detector.record_verification(0.1, 14.0)
    assert not detector.record_verification(3.0, 16.0)
    assert detector.record_verification(3.0, 22.0)
    detector.record_connect(30.0)
    assert not any(detector.record_disconnect(31.0 + second) for second in range(5))  # idle: connections are killed
    for second in (40.0, 42.0):
        detector.record_connect(second)
        detector.record_invalidations(100_000, 0)
        assert not detector.record_disconnect(second + 1)
    detector.record_connect(44.0)
    detector.record_invalidations(100_000, 0)
    assert detector.record_disconnect(45.0)
    assert 2 * detector.start_backoff() == detector.start_backoff()
