"""The keyspace under faults: it always ends with the server's keys, and never shows a mixture meanwhile."""

import contextlib
import random
import threading
import time

import pytest
import redis

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.client.limits import Limits
from redisfuse.errors import AccessError, RedisFuseError, UnavailableError
from redisfuse.keyspace.monitor import KeyspaceMonitor
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.unit.test_monitor import keyspace_of, names, until


def started(url: str, **options: object) -> tuple[RedisClient, KeyspaceMonitor]:
    """Start a keyspace monitor of a server behind a proxy."""
    server = RedisClient(Address.parse(url), Limits(timeout=1.5))
    keyspace = KeyspaceMonitor(server, heartbeat_interval=0.2, **options)  # type: ignore[arg-type]
    keyspace.start()
    return server, keyspace


@pytest.mark.parametrize("kind", ["drop", "garbage", "partial", "hang_reply"])
@pytest.mark.parametrize("command", ["SCAN", "INFO", "CLIENT", "SUBSCRIBE", "EXISTS"])
def test_a_fault_is_survived(redis_server: RedisServer, kind: str, command: str) -> None:
    """Whichever reply fails, to tracking, scan or look-up, and in whichever way: the keyspace recovers."""
    client = redis_server.client()
    client.mset({b"k:%d" % number: b"" for number in range(3000)})
    with Proxy(redis_server.socket_path) as proxy:
        proxy.inject(kind, command, skip=1, times=1)  # type: ignore[arg-type]
        server, keyspace = started(proxy.url())
        try:
            client.set(b"one", b"")
            until(lambda: keyspace.is_ready, 8.0)
            client.set(b"two", b"")
            client.delete(b"k:0")
            expected = {*(b"k:%d" % number for number in range(1, 3000)), b"one", b"two"}
            until(lambda: keyspace.is_ready and names(keyspace) == expected, 8.0)
        finally:
            keyspace.close()
            server.close()


def test_a_scan_is_never_shown_in_part(redis_server: RedisServer) -> None:
    """While a scan fails repeatedly, no part of it shows: waiting callers get an error."""
    client = redis_server.client()
    client.mset({b"k:%d" % number: b"" for number in range(3000)})
    with Proxy(redis_server.socket_path) as proxy:
        proxy.inject("drop", "SCAN", skip=2)
        server, keyspace = started(proxy.url())
        try:
            with pytest.raises(UnavailableError):
                keyspace.wait_until_ready(5)
            assert len(keyspace.index) == 0
            assert not keyspace.is_ready
            proxy.clear()
            until(lambda: keyspace.is_ready, 8.0)
            assert len(keyspace.index) == 3000
        finally:
            keyspace.close()
            server.close()


def test_loading_is_waited_for(redis_server: RedisServer) -> None:
    """The monitor waits for a server that is loading its data, up to the time-out."""
    redis_server.client().set(b"k", b"")
    with Proxy(redis_server.socket_path) as proxy:
        proxy.inject("error", "SCAN", times=2, text="LOADING Redis is loading the dataset in memory")
        server, keyspace = started(proxy.url())
        try:
            keyspace.wait_until_ready(5)
            assert names(keyspace) == {b"k"}
        finally:
            keyspace.close()
            server.close()


def test_a_user_who_may_not_scan(redis_server: RedisServer) -> None:
    """A user without SCAN gets a clear error at once, and the server's ACL LOG is not filled with attempts."""
    client = redis_server.client()
    client.execute_command("ACL", "SETUSER", "noscan", "on", ">pw", "~*", "&*", "+@all", "-scan")
    client.execute_command("ACL", "LOG", "RESET")
    with keyspace_of(redis_server, user="noscan:pw@") as (keyspace, _, _):
        with pytest.raises(AccessError):
            keyspace.wait_until_ready(5)
        time.sleep(1.0)
        entries = client.execute_command("ACL", "LOG")
        assert sum(entry[b"count"] if isinstance(entry, dict) else entry[1] for entry in entries) == 1


def test_no_errors_in_the_servers_statistics(redis_server: RedisServer) -> None:
    """Tracking, scanning and verifying cause no error replies of the server."""
    client = redis_server.client()
    client.ping()
    client.config_resetstat()  # redis-py's own greeting leaves some
    with keyspace_of(redis_server) as (keyspace, _, _):
        keyspace.wait_until_ready(5)
        client.mset({b"k:%d" % number: b"" for number in range(500)})
        until(lambda: len(keyspace.index) == 500)
        time.sleep(0.5)
    assert client.info("errorstats") == {}


def test_random_changes(own_redis: RedisServer) -> None:
    """After random changes, flushes, swaps and lost connections the index soon has exactly the server's keys again."""
    chance = random.Random(20240607)
    client = own_redis.client()
    client.mset({b"k:%d" % number: b"" for number in range(2000)})
    mixed: list[set[bytes]] = []
    stop = threading.Event()

    with keyspace_of(own_redis) as (keyspace, _, _):
        keyspace.wait_until_ready(10)

        def look() -> None:
            """List keys; no listing may contain keys from before and after a flush."""
            while not stop.is_set():
                try:
                    keyspace.wait_until_ready(1.0)
                except RedisFuseError:
                    continue
                lives = {key.split(b":")[1] for key in keyspace.index.iter_keys_below((b"life",))}
                if len(lives) > 1:
                    mixed.append(lives)

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            for turn in range(16):
                for _step in range(200):
                    change(client, chance, turn)
                kind = chance.choice(["nothing", "flush", "flush", "flush other", "swap", "kill", "refresh"])
                if kind == "flush":
                    life = {b"life:%d:%d" % (turn, number): b"" for number in range(100)}
                    client.pipeline(transaction=True).flushdb().mset(life).execute()
                elif kind == "flush other":
                    own_redis.client(db=3).flushdb()
                elif kind == "swap":
                    client.swapdb(0, 1)
                elif kind == "kill":
                    client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                elif kind == "refresh":
                    keyspace.request_rescan()
                limit = 4.0 if kind in ("swap", "kill") else 1.5
                until(lambda: keyspace.is_ready and names(keyspace) == set(client.scan_iter(count=1000)), limit)
        finally:
            stop.set()
            watcher.join(5)
    assert not mixed


def change(client: redis.Redis, chance: random.Random, turn: int) -> None:
    """Make one random change."""
    key = b"k:%d" % chance.randrange(3000)
    kind = chance.randrange(8)
    if kind < 3:
        client.set(key, b"")
    elif kind < 5:
        client.delete(key)
    elif kind == 5:
        client.set(key, b"", px=chance.randrange(1, 300))
    elif kind == 6 and client.exists(key):
        with contextlib.suppress(redis.ResponseError):  # it may expire just then
            client.rename(key, b"moved:%d" % chance.randrange(1000))
    else:
        client.rpush(b"queue:%d:%d" % (turn % 5, chance.randrange(10)), b"x")
