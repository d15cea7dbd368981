"""tests/support/proxy.py: each fault has its effect, on the named command only."""

import time
from collections.abc import Iterator

import pytest
import redis

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from tests.support.proxy import FaultKind, Proxy
from tests.support.redis_server import RedisServer


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    """Return a proxy on a Unix socket in front of the shared server."""
    with Proxy(redis_server.socket_path) as proxy:
        yield proxy


def connect_through(proxy: Proxy, **options: object) -> redis.Redis:
    """Return a client that connects through the proxy and never retries."""
    settings: dict[str, object] = {"socket_timeout": 0.5, "retry": None, "protocol": 2, **options}
    return redis.Redis.from_url(proxy.url(), **settings)  # type: ignore[no-any-return]


def test_without_faults(proxy: Proxy) -> None:
    """Commands, pipelines and large values pass unchanged, and are recorded by name."""
    client = connect_through(proxy, socket_timeout=10)
    big = bytes(range(256)) * 8192
    client.set("big", big)
    assert client.get("big") == big
    pipeline = client.pipeline(transaction=True)
    for number in range(500):
        pipeline.set(f"k{number}", number)
    pipeline.mget([f"k{number}" for number in range(500)])
    assert pipeline.execute()[-1] == [b"%d" % number for number in range(500)]
    assert proxy.commands.count("SET") == 501
    assert proxy.commands.count("EXEC") == 1


def test_over_tcp(redis_server: RedisServer) -> None:
    """A proxy on a loopback port works, too."""
    with Proxy(redis_server.socket_path, tcp=True) as proxy:
        assert connect_through(proxy).ping()


@pytest.mark.parametrize(
    "kind", ["drop", "reset", "lost_reply", "lost_reset", "partial", "garbage", "hang", "hang_reply"]
)
@pytest.mark.parametrize("tcp", [False, True])
def test_faults_that_break_the_connection(redis_server: RedisServer, kind: FaultKind, tcp: bool) -> None:
    """The client gets an error, and the command is executed only by faults that come after it."""
    is_executed = kind in ("lost_reply", "lost_reset", "partial", "garbage", "hang_reply")
    with Proxy(redis_server.socket_path, tcp=tcp) as proxy:
        client = connect_through(proxy)
        client.set("key", "abc")
        proxy.inject(kind, "APPEND", times=1)
        with pytest.raises((redis.ConnectionError, redis.TimeoutError, redis.InvalidResponse)):
            client.append("key", "d")
        deadline = time.monotonic() + 2
        direct = redis_server.client()
        while is_executed and direct.get("key") != b"abcd" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert direct.get("key") == (b"abcd" if is_executed else b"abc")
        assert client.append("key", "e") == (5 if is_executed else 4)  # the fault was injected once


def test_delay(proxy: Proxy) -> None:
    """The reply to a delayed command comes late, other replies come at once."""
    client = connect_through(proxy, socket_timeout=10)
    proxy.inject("delay", "GET", seconds=1.0)
    start = time.monotonic()
    client.set("a", "1")
    assert time.monotonic() - start < 1.0
    client.get("a")
    assert time.monotonic() - start >= 1.0


def test_an_error_in_a_pipeline(proxy: Proxy) -> None:
    """An injected error takes the place of the reply in a pipeline; the command is not executed."""
    client = connect_through(proxy)
    client.set("k", "1")
    fault = proxy.inject("error", "INCRBY", skip=1, times=1, text="LOADING Redis is loading")
    pipeline = client.pipeline(transaction=False)
    pipeline.incr("k")
    pipeline.strlen("k")
    pipeline.incr("k")
    pipeline.get("k")
    with pytest.raises(redis.exceptions.BusyLoadingError):
        pipeline.execute()
    assert fault.hits == 1
    assert connect_through(proxy).get("k") == b"2"


def test_refuse_and_disconnect(proxy: Proxy) -> None:
    """disconnect_all() closes the connections, refuse_connections() rejects new ones, clear() accepts them again."""
    client = connect_through(proxy)
    assert client.ping()
    proxy.refuse_connections()
    proxy.disconnect_all()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    proxy.clear()
    assert client.ping()


def test_pushes_pass(proxy: Proxy, redis_server: RedisServer) -> None:
    """RESP3 pushes pass, and don't take the place of a reply."""
    with RedisClient(Address.parse(proxy.url())).dedicated_channel(resp3=True) as channel:
        channel.send([("SUBSCRIBE", "__redis__:invalidate"), ("CLIENT", "TRACKING", "ON", "BCAST")])
        assert channel.receive() == b"OK"
        assert channel.receive_push(2) == [b"subscribe", b"__redis__:invalidate", 1]
        redis_server.client().set("pushed", "1")
        assert channel.receive_push(2) == [b"invalidate", [b"pushed"]]
        assert channel.execute([("STRLEN", "pushed")]) == [1]
