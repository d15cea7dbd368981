"""tests/support/proxy.py itself: each fault does what it says, to the command that it names."""

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
    """A proxy on a Unix socket in front of the shared server."""
    with Proxy(redis_server.socket_path) as proxy:
        yield proxy


def through(proxy: Proxy, **options: object) -> redis.Redis:
    """A client that never retries, through the proxy."""
    settings: dict[str, object] = {"socket_timeout": 0.5, "retry": None, "protocol": 2, **options}
    return redis.Redis.from_url(proxy.url(), **settings)  # type: ignore[no-any-return]


def test_without_faults(proxy: Proxy) -> None:
    """Commands, pipelines and big values pass unchanged, and are recorded by name."""
    client = through(proxy, socket_timeout=10)
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
    """On a loopback port it works alike."""
    with Proxy(redis_server.socket_path, tcp=True) as proxy:
        assert through(proxy).ping()


@pytest.mark.parametrize(
    "kind", ["drop", "reset", "lost_reply", "lost_reset", "partial", "garbage", "hang", "hang_reply"]
)
@pytest.mark.parametrize("tcp", [False, True])
def test_broken(redis_server: RedisServer, kind: FaultKind, tcp: bool) -> None:
    """The client gets an error; the command ran exactly where the fault says that it did."""
    runs = kind in ("lost_reply", "lost_reset", "partial", "garbage", "hang_reply")
    with Proxy(redis_server.socket_path, tcp=tcp) as proxy:
        client = through(proxy)
        client.set("key", "abc")
        proxy.inject(kind, "APPEND", times=1)
        with pytest.raises((redis.ConnectionError, redis.TimeoutError, redis.InvalidResponse)):
            client.append("key", "d")
        deadline = time.monotonic() + 2
        direct = redis_server.client()
        while runs and direct.get("key") != b"abcd" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert direct.get("key") == (b"abcd" if runs else b"abc")
        assert client.append("key", "e") == (5 if runs else 4)  # the fault is used up


def test_delay(proxy: Proxy) -> None:
    """A delayed command is answered late, others at once."""
    client = through(proxy)
    proxy.inject("delay", "GET", seconds=0.2)
    start = time.monotonic()
    client.set("a", "1")
    assert time.monotonic() - start < 0.2
    client.get("a")
    assert time.monotonic() - start >= 0.2


def test_error_among_others(proxy: Proxy) -> None:
    """An injected error reply comes in its place in a pipeline; the command did not run."""
    client = through(proxy)
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
    assert through(proxy).get("k") == b"2"


def test_refuse_and_cut(proxy: Proxy) -> None:
    """cut() ends the connections, refuse() keeps new ones out, clear() lets them in again."""
    client = through(proxy)
    assert client.ping()
    proxy.refuse_connections()
    proxy.disconnect_all()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    proxy.clear()
    assert client.ping()


def test_pushes_pass(proxy: Proxy, redis_server: RedisServer) -> None:
    """RESP3 pushes come through, and do not take the place of an answer."""
    with RedisClient(Address.parse(proxy.url())).dedicated_channel(resp3=True) as dialogue:
        dialogue.send([("SUBSCRIBE", "__redis__:invalidate"), ("CLIENT", "TRACKING", "ON", "BCAST")])
        assert dialogue.receive() == b"OK"
        assert dialogue.receive_push(2) == [b"subscribe", b"__redis__:invalidate", 1]
        redis_server.client().set("pushed", "1")
        assert dialogue.receive_push(2) == [b"invalidate", [b"pushed"]]
        assert dialogue.execute([("STRLEN", "pushed")]) == [1]
