"""A silent network: nothing old is shown as current, and nothing is lost when it speaks again."""

import subprocess
import time
from pathlib import Path

import pytest

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.client.limits import Limits
from redisfuse.errors import TryAgainError, UnavailableError
from redisfuse.keyspace.monitor import KeyspaceMonitor
from tests.support.bindings import BINDINGS
from tests.support.mounts import mount_server, wait_until
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.unit.test_monitor import RecordingListener, names, until

SILENCE = "has not answered for 2 s"
NOTICED_SECONDS = 2.5  # two seconds, and some for a busy machine


def start_keyspace(proxy: Proxy, timeout: float) -> tuple[KeyspaceMonitor, RecordingListener, RedisClient]:
    client, listener = RedisClient(Address.parse(proxy.url()), Limits(timeout=timeout)), RecordingListener()
    keyspace = KeyspaceMonitor(client, listener=listener)
    keyspace.start()
    keyspace.wait_until_ready(10)
    return keyspace, listener, client


def test_a_silence_within_the_time_out(redis_server: RedisServer) -> None:
    """Caches are dropped and listings wait, but the index is kept, and no change is missed."""
    other = redis_server.client()
    other.mset({b"k:%d" % number: b"" for number in range(100)})
    with Proxy(redis_server.socket_path) as proxy:
        keyspace, listener, client = start_keyspace(proxy, timeout=20)
        try:
            index, resets = keyspace.index, listener.resets
            proxy.freeze()
            other.set(b"new", b"")
            other.delete(b"k:0")
            assert until(lambda: not keyspace.is_coherent, 5.0) < NOTICED_SECONDS
            assert SILENCE in keyspace.degraded_reason
            assert listener.resets == resets + 1
            with pytest.raises(TryAgainError, match=SILENCE):
                keyspace.wait_until_ready(0.2)
            time.sleep(1.5)
            proxy.thaw()
            until(lambda: keyspace.is_coherent, 5.0)
            until(lambda: {b"new", b"k:0"} <= listener.changed, 5.0)
            keyspace.wait_until_ready(0)
            assert keyspace.index is index
            assert names(keyspace) == {*(b"k:%d" % number for number in range(1, 100)), b"new"}
            assert client.stats.connects <= 4
        finally:
            keyspace.close()
            client.close()


def test_a_silence_beyond_the_time_out(redis_server: RedisServer) -> None:
    """The connection is lost then: waiting callers get an error, and all keys are scanned when the server answers."""
    other = redis_server.client()
    other.set(b"old", b"")
    with Proxy(redis_server.socket_path) as proxy:
        keyspace, _, client = start_keyspace(proxy, timeout=3)
        try:
            proxy.freeze()
            until(lambda: not keyspace.is_coherent, 5.0)
            began = time.monotonic()
            with pytest.raises(UnavailableError) as caught:
                keyspace.wait_until_ready(None)
            assert not isinstance(caught.value, TryAgainError)
            assert time.monotonic() - began < 3.5
            other.rename(b"old", b"new")
            proxy.thaw()
            until(lambda: keyspace.is_coherent and keyspace.is_ready, 10.0)
            assert names(keyspace) == {b"new"}
        finally:
            keyspace.close()
            client.close()


def test_a_server_that_is_slow_for_a_second(own_redis: RedisServer) -> None:
    """A server that is busy for a second is not taken for a silent one."""
    own_redis.client().set(b"k", b"")
    with Proxy(own_redis.socket_path) as proxy:
        keyspace, listener, client = start_keyspace(proxy, timeout=20)
        try:
            resets = listener.resets
            for _ in range(3):
                own_redis.pause()
                time.sleep(0.9)
                own_redis.resume()
                time.sleep(0.3)
            assert keyspace.is_coherent
            assert listener.resets == resets
        finally:
            keyspace.close()
            client.close()


@pytest.mark.expected_log(SILENCE)
@pytest.mark.possible_log("the server answers again")
@pytest.mark.parametrize("binding", BINDINGS)
def test_a_mount_on_a_silent_network(redis_server: RedisServer, tmp_path: Path, binding: str) -> None:
    """Values that the kernel has cached are no longer shown after two seconds, whatever the time-out is."""
    other = redis_server.client()
    other.mset({"k": "old", "d:k": "old"})
    with (
        Proxy(redis_server.socket_path, tcp=True) as proxy,
        mount_server(tmp_path, proxy.url(), "--timeout", "20", "--binding", binding, write=True) as mount,
    ):
        mount.wait_coherent()
        for _ in range(2):
            assert (mount.path / "k").read_bytes() == b"old"
            assert (mount.path / "d" / "k").read_bytes() == b"old"
        proxy.freeze()
        other.mset({"k": "new", "d:k": "new", "d:more": "new"})
        time.sleep(NOTICED_SECONDS)
        commands = [["cat", mount.path / "k"], ["cat", mount.path / "d" / "k"], ["ls", mount.path / "d"]]
        readers = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
        time.sleep(2)
        assert [reader.poll() for reader in readers] == [None] * 3
        status = mount.status()
        assert not status["live"]
        assert not status["kernel_cache"]
        assert SILENCE in status["reason"]
        assert SILENCE in mount.read_log()
        proxy.thaw()
        assert [reader.communicate()[0] for reader in readers] == [b"new", b"new", b"k\nmore\n"]
        wait_until(lambda: mount.status()["live"])
        assert (mount.path / "k").read_bytes() == b"new"
