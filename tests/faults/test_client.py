"""redisfuse/client/ on real servers: failures raise the right error, in time; nothing is sent twice."""

import contextlib
import gc
import io
import os
import resource
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from redisfuse.client.address import Address
from redisfuse.client.allowlist import READ_ALLOWLIST, pack_commands
from redisfuse.client.client import RedisClient
from redisfuse.client.connection import open_connection
from redisfuse.client.limits import Limits
from redisfuse.client.rate_limit import TokenBucket
from redisfuse.client.stats import ClientStats
from redisfuse.errors import (
    AccessError,
    ConnectionLostError,
    ForbiddenCommandError,
    NoSpaceError,
    NotFoundError,
    ReadOnlyError,
    RedisFuseError,
    ServerReplyError,
    TooLargeError,
    TryAgainError,
    UnavailableError,
    UsageError,
    WrongTypeError,
)
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer, fetch_error_stats, find_free_port

SECRET = "hunter2 %&@"
MIB = 1024 * 1024


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[RedisClient]:
    """Create a read-only client."""
    with contextlib.closing(RedisClient(Address.parse(redis_server.url()))) as server:
        yield server


@pytest.fixture
def writing(redis_server: RedisServer) -> Iterator[RedisClient]:
    """Create a writable client."""
    with contextlib.closing(RedisClient(Address.parse(redis_server.url()), writable=True)) as server:
        yield server


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    """Start a proxy in front of the shared server."""
    with Proxy(redis_server.socket_path) as proxy:
        yield proxy


def behind(proxy: Proxy, *, timeout: float = 1.0, writable: bool = False) -> RedisClient:
    """Create a client that connects through the proxy."""
    return RedisClient(Address.parse(proxy.url()), Limits(timeout=timeout), writable=writable)


# -- without faults --------------------------------------------------------------------------------------------------


def test_replies(redis_server: RedisServer, server: RedisClient) -> None:
    """Replies are bytes, integers, lists; error replies are raised, or are values among many."""
    client = redis_server.client()
    client.set("s", "value")
    client.rpush("l", "a", "b")
    assert server.execute("TYPE", "s") == b"string"
    assert server.execute(b"GETRANGE", b"s", 0, -1) == b"value"
    assert server.execute("LRANGE", "l", 0, -1) == [b"a", b"b"]
    assert server.execute("HGET", "none", "f") is None
    with pytest.raises(WrongTypeError):
        server.execute("HGET", "s", "f")
    answers = server.execute_many([("STRLEN", "s"), ("STRLEN", "l"), ("LLEN", "l")])
    assert answers[0] == 5
    assert isinstance(answers[1], WrongTypeError)
    assert answers[2] == 2
    assert server.execute_many([]) == []


def test_more_than_a_batch(redis_server: RedisServer, server: RedisClient) -> None:
    """More commands than a pipeline allows are sent in several, and the replies keep their order."""
    redis_server.client().mset({f"k{number}": "x" * number for number in range(2500)})
    before = server.stats.round_trips
    assert server.execute_many([("STRLEN", f"k{number}") for number in range(2500)]) == list(range(2500))
    assert server.connect() is server.server_info
    assert server.stats.round_trips - before <= 3 + 2  # INFO and SETNAME


def test_a_good_guest(redis_server: RedisServer) -> None:
    """Connections have the client's name, at most four are opened, and no error is left in the server's statistics."""
    observer = redis_server.client(protocol=2, driver_info=None)
    observer.ping()
    observer.config_resetstat()
    with contextlib.closing(RedisClient(Address.parse(redis_server.url(1)), writable=True)) as server:
        server.connect()
        with server.dedicated_channel(resp3=True) as channel:
            assert channel.execute([("PING",)]) == [b"PONG"]
        stop = time.monotonic() + 0.5

        def read() -> None:
            while time.monotonic() < stop:
                server.execute("DBSIZE")

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        named = 0
        while time.monotonic() < stop:
            named = max(named, sum(client["name"] == "redisfuse" for client in observer.client_list()))
        for thread in threads:
            thread.join(10)
        with server.write_channel() as writer:
            writer.execute([("SET", "k", "v")])
        others = [client for client in observer.client_list() if client["name"] == "redisfuse"]
        assert others
        assert all(client["db"] == "1" for client in others)
    assert 1 <= named <= 4
    assert fetch_error_stats(observer) == {}


def test_database_of_the_address(redis_server: RedisServer) -> None:
    """Commands run in the address's database."""
    redis_server.client(db=3).set("only here", "1")
    with contextlib.closing(RedisClient(Address.parse(redis_server.tcp_url(3)))) as server:
        assert server.execute("DBSIZE") == 1


def test_server_info(server: RedisClient) -> None:
    """The first connection detects the server."""
    server_info = server.connect()
    assert server_info.vendor in ("redis", "valkey")
    assert server_info.version >= (6, 0, 0)
    assert server_info.run_id
    assert (server_info.role, server_info.is_cluster) == ("master", False)


def test_a_fork(redis_server: RedisServer) -> None:
    """A client that was used before a fork works in the child, and the parent's connection survives."""
    redis_server.client().set("k", "v")
    with contextlib.closing(RedisClient(Address.parse(redis_server.url()))) as server:
        assert server.execute("STRLEN", "k") == 1
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if server.execute("STRLEN", "k") == 1 else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        connects = server.stats.connects
        assert server.execute("STRLEN", "k") == 1
        assert server.stats.connects == connects


def test_rate(redis_server: RedisServer) -> None:
    """With a rate limit, commands are sent no faster."""
    with contextlib.closing(RedisClient(Address.parse(redis_server.url()), Limits(rate=500))) as server:
        server.connect()
        start = time.monotonic()
        server.execute_many([("PING",)] * 250)
        assert 0.35 < time.monotonic() - start < 10


# -- authentication --------------------------------------------------------------------------------------------------


def one_line(error: BaseException) -> str:
    """Return the error's message, which must be one line without the password."""
    text = str(error)
    assert "\n" not in text
    assert SECRET not in text
    assert "hunter2" not in repr(error)
    return text


def test_password() -> None:
    """The right password is accepted; none, a wrong one and a needless one raise AccessErrors that say what to do."""
    with RedisServer(password=SECRET) as redis_server:
        address = Address.parse(redis_server.url(), password=SECRET)
        assert RedisClient(address).execute("PING") == b"PONG"
        with RedisClient(address).dedicated_channel(resp3=True) as channel:
            assert channel.execute([("PING",)]) == [b"PONG"]
        with pytest.raises(AccessError) as caught:
            RedisClient(Address.parse(redis_server.url())).connect()
        assert "REDISFUSE_PASSWORD" in one_line(caught.value)
        for username in (None, "unknown"):
            wrong = Address.parse(redis_server.url(), username=username, password=SECRET[1:] + SECRET)
            with pytest.raises(AccessError) as caught:
                RedisClient(wrong).connect()
            assert "password" in one_line(caught.value)


def test_needless_password(redis_server: RedisServer) -> None:
    """A password for a server without passwords is an AccessError that says so."""
    with pytest.raises(AccessError) as caught:
        RedisClient(Address.parse(redis_server.url(), password=SECRET)).connect()
    assert "has none" in one_line(caught.value)


def test_acl(own_redis: RedisServer) -> None:
    """A command that the ACL denies is an AccessError with the server's text; INFO and SETNAME may be denied."""
    client = own_redis.client()
    client.execute_command("ACL", "SETUSER", "reader", "on", f">{SECRET}", "~open:*", "+type", "+strlen")
    client.set("open:1", "x")
    client.set("shut:1", "x")
    with contextlib.closing(RedisClient(Address.parse(own_redis.url(), username="reader", password=SECRET))) as server:
        assert server.connect().version >= (7, 0, 0)
        assert server.execute("STRLEN", "open:1") == 1
        with pytest.raises(AccessError) as caught:
            server.execute("STRLEN", "shut:1")
        assert "doctor" in one_line(caught.value)
        with pytest.raises(AccessError):
            server.execute("SCAN", 0)
        answers = server.execute_many([("TYPE", "open:1"), ("TYPE", "shut:1")])
        assert answers[0] == b"string"
        assert isinstance(answers[1], AccessError)


def test_no_such_database(redis_server: RedisServer) -> None:
    """A database that the server does not have is a usage error."""
    with pytest.raises(UsageError):
        RedisClient(Address.parse(redis_server.url(99))).connect()


def test_no_server() -> None:
    """No listener, no such socket, no such host: UnavailableError at once, with the reason."""
    start = time.monotonic()
    for address in (
        Address.from_host_port("127.0.0.1", find_free_port()),
        Address.parse("unix:///nonexistent/redis.sock"),
        Address.parse(f"redis://:{'secret'}@nonexistent.invalid/0"),
    ):
        with pytest.raises(UnavailableError) as caught:
            RedisClient(address, Limits(timeout=2)).connect()
        assert "secret" not in one_line(caught.value)
    assert time.monotonic() - start < 10


def test_not_redis() -> None:
    """A server that does not speak Redis's protocol is UnavailableError."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    with pytest.raises(UnavailableError) as caught:
        RedisClient(Address.from_host_port("127.0.0.1", listener.getsockname()[1]), Limits(timeout=2)).connect()
    one_line(caught.value)
    listener.close()
    thread.join(5)


def test_tls_to_a_plain_port(redis_server: RedisServer) -> None:
    """rediss:// to a plain port fails with a hint, in time."""
    with pytest.raises(UnavailableError) as caught:
        RedisClient(Address.parse(f"rediss://127.0.0.1:{redis_server.port}"), Limits(timeout=2)).connect()
    one_line(caught.value)


def test_one_node_of_a_cluster_is_refused() -> None:
    """A client of one server refuses a node of a cluster (tests/cluster has the client of all nodes)."""
    with (
        RedisServer(tcp=True, arguments=["--cluster-enabled", "yes"]) as node,
        pytest.raises(UnavailableError, match="one node of a cluster"),
    ):
        RedisClient(Address.parse(node.tcp_url())).connect()


def test_max_clients() -> None:
    """A server at its limit of clients refuses new connections with a reason; open ones keep working."""
    with RedisServer() as redis_server:
        server = RedisClient(Address.parse(redis_server.url()))
        server.connect()
        redis_server.client().config_set("maxclients", 1)
        with pytest.raises(UnavailableError, match="maxclients"):
            RedisClient(Address.parse(redis_server.url())).connect()
        assert server.execute("PING") == b"PONG"


# -- Sentinel --------------------------------------------------------------------------------------------------------


def test_sentinel(own_redis: RedisServer) -> None:
    """The Sentinels are queried for the master, in order, again for each new connection."""
    own_redis.client().set("k", "v")
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "sentinel.conf"
        config.write_text(f"sentinel monitor mymaster 127.0.0.1 {own_redis.port} 1\n")
        with RedisServer(tcp=True, arguments=["--sentinel"], config=config) as sentinel:
            closed_port, port = find_free_port(), sentinel.port
            address = Address.parse(f"redis+sentinel://127.0.0.1:{closed_port},127.0.0.1:{port}/mymaster/0")
            with contextlib.closing(RedisClient(address, Limits(timeout=3))) as server:
                assert server.execute("STRLEN", "k") == 1
            with pytest.raises(UnavailableError, match="nosuch"):
                RedisClient(Address.parse(f"redis+sentinel://127.0.0.1:{port}/nosuch/0")).connect()
            with pytest.raises(UnavailableError, match="Sentinel"):
                RedisClient(Address.from_host_port("127.0.0.1", port)).connect()


# -- connection faults -----------------------------------------------------------------------------------------------


def test_hung(own_redis: RedisServer) -> None:
    """A hung server is given up within the time-out, in connect and in execute; later commands work."""
    limits = Limits(timeout=0.6)
    with contextlib.closing(RedisClient(Address.parse(own_redis.url()), limits)) as server:
        server.connect()
        own_redis.pause()
        try:
            for attempt in (server, server, RedisClient(Address.parse(own_redis.tcp_url()), limits)):
                start = time.monotonic()
                with pytest.raises(UnavailableError, match="in time"):
                    attempt.execute("PING")
                assert time.monotonic() - start < 5
        finally:
            own_redis.resume()
        assert server.execute("PING") == b"PONG"


def test_a_slow_reply(redis_server: RedisServer) -> None:
    """A reply that arrives byte by byte is given up within the time-out, which counts for all of it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def send_slowly() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.recv(1000)
            for _ in range(200):
                connection.sendall(b"+")
                time.sleep(0.05)

    thread = threading.Thread(target=send_slowly, daemon=True)
    thread.start()
    start = time.monotonic()
    with pytest.raises(UnavailableError):
        RedisClient(Address.from_host_port("127.0.0.1", listener.getsockname()[1]), Limits(timeout=0.5)).connect()
    assert time.monotonic() - start < 5
    listener.close()
    thread.join(15)
    assert redis_server.client().ping()


def test_a_restarted_server() -> None:
    """While the server is down reads fail at once; after its restart they work again."""
    with RedisServer(persist=True) as redis_server:
        redis_server.client().set("k", "v")
        with contextlib.closing(RedisClient(Address.parse(redis_server.url()), Limits(timeout=20))) as server:
            assert server.execute("STRLEN", "k") == 1
            redis_server.kill()
            start = time.monotonic()
            with pytest.raises(UnavailableError):
                server.execute("STRLEN", "k")
            assert time.monotonic() - start < 10
            redis_server.start()
            assert server.execute("STRLEN", "k") == 1


def test_reads_are_retried_once(proxy: Proxy, redis_server: RedisServer) -> None:
    """A read whose connection or reply is lost is retried once on a new connection, and not again."""
    redis_server.client().set("k", "v")
    with contextlib.closing(behind(proxy)) as server:
        server.connect()
        for kind in ("drop", "lost_reply", "partial"):
            fault = proxy.inject(kind, "STRLEN", times=1)
            assert server.execute("STRLEN", "k") == 1
            assert fault.hits == 1
            fault = proxy.inject(kind, "STRLEN", skip=3, times=1)
            assert server.execute_many([("STRLEN", "k")] * 10) == [1] * 10
        fault = proxy.inject("drop", "STRLEN")
        with pytest.raises(ConnectionLostError):
            server.execute("STRLEN", "k")
        assert fault.hits == 2
        proxy.clear()
        assert server.execute("STRLEN", "k") == 1
        assert server.stats.reconnects >= 7


def test_stale_connections_cost_one_retry(proxy: Proxy) -> None:
    """When all idle connections were closed, the next read still succeeds."""
    with contextlib.closing(behind(proxy)) as server:
        threads = [threading.Thread(target=server.execute, args=("PING",)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        proxy.disconnect_all()
        assert server.execute("PING") == b"PONG"


def test_time_outs_are_not_retried(proxy: Proxy) -> None:
    """A read that timed out is not retried: that would exceed the limit."""
    with contextlib.closing(behind(proxy, timeout=0.5)) as server:
        server.connect()
        fault = proxy.inject("hang_reply", "STRLEN")
        start = time.monotonic()
        with pytest.raises(UnavailableError):
            server.execute("STRLEN", "k")
        assert time.monotonic() - start < 5
        assert fault.hits == 1
        fault = proxy.inject("drop", "LLEN", times=1)
        hang = proxy.inject("hang_reply", "LLEN")
        start = time.monotonic()
        with pytest.raises(UnavailableError):
            server.execute("LLEN", "k")
        assert time.monotonic() - start < 5
        assert hang.hits == 1


def test_an_invalid_reply(proxy: Proxy) -> None:
    """An invalid reply closes the connection; the next command gets its own reply."""
    with contextlib.closing(behind(proxy)) as server:
        server.connect()
        proxy.inject("garbage", "STRLEN", times=1)
        with pytest.raises(UnavailableError, match="invalid reply"):
            server.execute("STRLEN", "k")
        assert server.execute("STRLEN", "k") == 0


def test_no_connection_free(redis_server: RedisServer) -> None:
    """When all connections stay busy, the next caller in line gives up after the time-out."""
    limits = Limits(timeout=0.3, connections=2)
    with contextlib.closing(RedisClient(Address.parse(redis_server.url()), limits, writable=True)) as server:
        with server.write_channel(), pytest.raises(UnavailableError, match="--connections"), server.write_channel():
            pass
        with server.write_channel():
            assert server.execute("PING") == b"PONG"  # a writer never keeps readers out
        with server.dedicated_channel(), server.dedicated_channel():
            assert server.execute("PING") == b"PONG"


def test_close_ends_a_wait(redis_server: RedisServer) -> None:
    """close() in one thread ends a wait for push messages in another, at once."""
    server = RedisClient(Address.parse(redis_server.url()))
    caught: list[BaseException] = []

    def follow() -> None:
        try:
            with server.dedicated_channel(resp3=True) as channel:
                channel.receive_push(30)
        except RedisFuseError as error:
            caught.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    time.sleep(0.2)
    server.close()
    thread.join(3)
    assert not thread.is_alive()
    assert isinstance(caught[0], UnavailableError)
    with pytest.raises(UnavailableError):
        server.execute("PING")


# -- temporary errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["LOADING Redis is loading", "BUSY a script", "MASTERDOWN x", "CLUSTERDOWN x", "TRYAGAIN x"]
)
def test_temporary_errors(proxy: Proxy, redis_server: RedisServer, kind: str) -> None:
    """A temporary error is retried until the command succeeds or the time-out expires; never an empty reply."""
    redis_server.client().set("k", "v")
    with contextlib.closing(behind(proxy)) as server:
        server.connect()
        fault = proxy.inject("error", "STRLEN", times=3, text=kind)
        assert server.execute("STRLEN", "k") == 1
        assert fault.hits == 3
        fault = proxy.inject("error", "STRLEN", times=3, text=kind)
        assert server.execute_many([("TYPE", "k"), ("STRLEN", "k"), ("STRLEN", "k")]) == [b"string", 1, 1]
        assert fault.hits == 3
        proxy.inject("error", "STRLEN", text=kind)
        start = time.monotonic()
        with pytest.raises(TryAgainError):
            server.execute("STRLEN", "k")
        with pytest.raises(TryAgainError):
            server.execute_many([("TYPE", "k"), ("STRLEN", "k")])
        assert 1.2 < time.monotonic() - start < 10


def test_a_loading_server() -> None:
    """A server that is loading its data for longer than the time-out is TryAgainError; afterwards commands succeed."""
    with RedisServer(persist=True) as redis_server:
        redis_server.client().mset({f"k{number}": os.urandom(1500) for number in range(200)})
        redis_server.client().bgrewriteaof()
        redis_server.wait_until_saved()
        redis_server.kill()
        slowly = ["--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024"]  # microseconds a key
        redis_server.arguments = slowly
        redis_server.start(wait=False)
        server = RedisClient(Address.parse(redis_server.url()), Limits(timeout=1.0))
        deadline = time.monotonic() + 10
        while True:
            try:
                loading = server.connect().loading
                break
            except UnavailableError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        assert loading
        with pytest.raises(TryAgainError):
            server.execute("DBSIZE")
        redis_server.wait_until_answering()
        assert server.execute("DBSIZE") == 200


# -- writing ---------------------------------------------------------------------------------------------------------


def test_write_channel(redis_server: RedisServer, writing: RedisClient) -> None:
    """The write channel writes, in transactions, too; a changed key makes EXEC nil; errors inside EXEC are values."""
    with writing.write_channel() as writer:
        assert writer.execute([("WATCH", "k"), ("SET", "k", "1")]) == [b"OK", b"OK"]
        assert writer.execute([("MULTI",), ("APPEND", "k", "2"), ("EXEC",)])[-1] is None
        answers = writer.execute([("MULTI",), ("APPEND", "k", "2"), ("HSET", "k", "f", "v"), ("EXEC",)])
        assert answers[-1][0] == 2
        assert isinstance(answers[-1][1], WrongTypeError)
    assert redis_server.client().get("k") == b"12"


def test_no_write_channel_on_a_read_only_client(server: RedisClient) -> None:
    """A client that is not writable has no write channel."""
    with pytest.raises(ReadOnlyError), server.write_channel():
        pass


def test_writers_leave_no_watch_behind(redis_server: RedisServer, writing: RedisClient) -> None:
    """A WATCH or MULTI that one user of a channel left is reset for the next, on the same connection."""
    client = redis_server.client()
    for left in ([("WATCH", "k")], [("MULTI",)], [("WATCH", "k"), ("MULTI",), ("SET", "k", "left")]):
        with writing.write_channel() as writer:
            writer.execute(left)
        client.set("k", "other")
        with writing.write_channel() as writer:
            assert writer.execute([("MULTI",), ("SET", "k", "mine"), ("EXEC",)])[-1] == [b"OK"]
    with contextlib.suppress(ZeroDivisionError), writing.write_channel() as writer:
        writer.send([("SET", "k", "unread")])
        raise ZeroDivisionError
    with writing.write_channel() as writer:
        assert writer.execute([("STRLEN", "k")]) in ([6], [4])
    assert writing.stats.connects <= 3


def test_a_write_is_never_sent_twice(proxy: Proxy, redis_server: RedisServer) -> None:
    """When the reply to a write is lost, the channel raises and has not sent the write again."""
    client = redis_server.client()
    with contextlib.closing(behind(proxy, timeout=0.5, writable=True)) as server:
        for kind in ("lost_reply", "lost_reset", "partial", "garbage", "hang_reply"):
            client.set("k", "a")
            fault = proxy.inject(kind, "APPEND")
            with pytest.raises(UnavailableError), server.write_channel() as writer:
                writer.execute([("APPEND", "k", "b")])
            assert (client.get("k"), fault.hits) == (b"ab", 1), kind
            fault = proxy.inject(kind, "EXEC")
            with pytest.raises(UnavailableError), server.write_channel() as writer:
                writer.execute([("MULTI",), ("SETRANGE", "k", 0, "xyz"), ("EXEC",)])
            assert (client.get("k"), fault.hits) == (b"xyz", 1), kind
            proxy.clear()


def test_a_closed_write_channel_is_not_reused(proxy: Proxy) -> None:
    """An idle write connection that the server closed is replaced before it is used."""
    with contextlib.closing(behind(proxy, writable=True)) as server:
        with server.write_channel() as writer:
            writer.execute([("SET", "k", "1")])
        proxy.disconnect_all()
        time.sleep(0.1)
        with server.write_channel() as writer:
            assert writer.execute([("SET", "k", "2")]) == [b"OK"]


def test_replica(own_redis: RedisServer) -> None:
    """A write to a replica is ReadOnlyError; reads work."""
    own_redis.client().replicaof("127.0.0.1", str(find_free_port()))
    with contextlib.closing(RedisClient(Address.parse(own_redis.url()), writable=True)) as server:
        assert server.connect().is_replica
        with server.write_channel() as writer:
            assert isinstance(writer.execute([("SET", "k", "v")])[0], ReadOnlyError)
        assert server.execute("DBSIZE") == 0


def test_out_of_memory(own_redis: RedisServer) -> None:
    """A write that exceeds the server's memory is NoSpaceError."""
    own_redis.client().config_set("maxmemory", "100kb")
    with (
        contextlib.closing(RedisClient(Address.parse(own_redis.url()), writable=True)) as server,
        server.write_channel() as writer,
    ):
        assert isinstance(writer.execute([("SET", "k", "v")])[0], NoSpaceError)


# -- large values ----------------------------------------------------------------------------------------------------


def resident() -> int:
    """Return the peak memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_download(redis_server: RedisServer, server: RedisClient) -> None:
    """A hash field of 64 MiB is written to a file as it arrives, with memory for one chunk only."""
    redis_server.client().hset("h", "f", os.urandom(MIB) * 64)
    server.connect()
    gc.collect()
    before = resident()
    with tempfile.TemporaryFile() as file:
        file.write(b"before")
        assert server.download(file, "HGET", "h", "f") == 64 * MIB
        assert resident() - before < 8 * MIB
        assert file.tell() == 6 + 64 * MIB
        file.seek(0)
        assert file.read(6) == b"before"
        first = file.read(MIB)
        assert file.read() == first * 63
    assert server.execute("HGET", "none", "f") is None


def test_download_of_small_and_invalid_replies(redis_server: RedisServer, server: RedisClient) -> None:
    """Empty values, missing ones, error replies and replies that are no bulk string are distinguished."""
    client = redis_server.client()
    client.hset("h", mapping={"empty": "", "crlf": "\r\n\r\n"})
    client.set("s", "x")
    file = io.BytesIO()
    assert server.download(file, "HGET", "h", "empty") == 0
    assert server.download(file, "HGET", "h", "crlf") == 4
    assert file.getvalue() == b"\r\n\r\n"
    with pytest.raises(NotFoundError):
        server.download(file, "HGET", "h", "missing")
    with pytest.raises(WrongTypeError):
        server.download(file, "HGET", "s", "f")
    with pytest.raises(UnavailableError):
        server.download(file, "HLEN", "h")
    assert server.execute("HLEN", "h") == 2


def test_a_download_is_retried_from_the_start(redis_server: RedisServer, proxy: Proxy) -> None:
    """When the connection is lost halfway, the file contains the value once, not one and a half times."""
    value = os.urandom(300_000)
    redis_server.client().hset("h", "f", value)
    with contextlib.closing(behind(proxy, timeout=3)) as server:
        server.connect()
        proxy.inject("partial", "HGET", times=1)
        file = io.BytesIO()
        assert server.download(file, "HGET", "h", "f") == len(value)
        assert file.getvalue() == value


def test_download_to_a_full_disk(redis_server: RedisServer, server: RedisClient) -> None:
    """When the file can't be written, its own error is raised, and the next command gets its own reply."""
    redis_server.client().hset("h", "f", b"x" * MIB)

    class Full(io.BytesIO):
        def write(self, data: object) -> int:  # noqa: ARG002  # the parameter is BytesIO's
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        server.download(Full(), "HGET", "h", "f")
    assert server.execute("HSTRLEN", "h", "f") == MIB


def pieces(size: int) -> Iterator[bytes]:
    """Yield `size` bytes in chunks of at most a MiB."""
    while size > 0:
        yield b"z" * min(size, MIB)
        size -= MIB


def test_send_streamed(redis_server: RedisServer, writing: RedisClient) -> None:
    """A value of 64 MiB is sent as it is generated, with memory for one chunk only; inside MULTI, too."""
    with writing.write_channel() as writer:
        writer.execute([("PING",)])
        before = resident()
        writer.send_streamed(["SET", "big"], 64 * MIB, pieces(64 * MIB))
        assert writer.receive() == b"OK"
        writer.execute([("WATCH", "h"), ("MULTI",)])
        writer.send_streamed([b"HSET", b"h", b"f"], 10 * MIB + 3, pieces(10 * MIB + 3))
        assert writer.receive() == b"QUEUED"
        assert writer.execute([("EXEC",)]) == [[1]]
        writer.send_streamed(["SET", "empty"], 0, [])
        assert writer.receive() == b"OK"
        assert resident() - before < 8 * MIB
    client = redis_server.client()
    assert (client.strlen("big"), client.hstrlen("h", "f"), client.get("empty")) == (64 * MIB, 10 * MIB + 3, b"")


def test_streams_of_the_wrong_size(redis_server: RedisServer, writing: RedisClient) -> None:
    """Chunks that are too few, too many or raise leave the old value; nothing after them is parsed as a command."""
    client = redis_server.client()
    client.set("k", "old")

    def failing() -> Iterator[bytes]:
        yield b"*1\r\n$8\r\nFLUSHALL\r\n"
        raise ZeroDivisionError

    for size, chunks, error in (
        (10, iter([b"short"]), ValueError),
        (3, iter([b"much too long"]), ValueError),
        (100, failing(), ZeroDivisionError),
        (0, iter([b"*1\r\n$8\r\nFLUSHALL\r\n"]), ValueError),
    ):
        with pytest.raises(error), writing.write_channel() as writer:
            writer.send_streamed(["SET", "k"], size, chunks)
    assert client.get("k") == b"old"
    with writing.write_channel() as writer:
        assert writer.execute([("STRLEN", "k")]) == [3]


def test_a_value_over_the_servers_limit(own_redis: RedisServer) -> None:
    """A value over proto-max-bulk-len is TooLargeError, streamed or whole, and the old value stays."""
    client = own_redis.client()
    client.set("k", "old")
    client.config_set("proto-max-bulk-len", MIB)
    for url in (own_redis.url(), own_redis.tcp_url()):
        with contextlib.closing(RedisClient(Address.parse(url), writable=True)) as server:
            with pytest.raises(TooLargeError), server.write_channel() as writer:
                writer.send_streamed(["SET", "k"], 30 * MIB, pieces(30 * MIB))
            with server.write_channel() as writer:
                assert isinstance(writer.execute([("SETRANGE", "k", 2 * MIB, "x")])[0], TooLargeError)
    assert client.get("k") == b"old"


# -- the barrier -----------------------------------------------------------------------------------------------------

FLUSH = b"*1\r\n$8\r\nFLUSHALL\r\n"


def test_no_write_gets_through(redis_server: RedisServer, server: RedisClient) -> None:
    """Every way to send a command that is not on the list is refused before sending, and leaves connections usable."""
    client = redis_server.client()
    client.set("k", "old")
    client.script_load("return 1")
    address = Address.parse(redis_server.url())
    connection = open_connection(address, READ_ALLOWLIST, timeout=2, stats=ClientStats(), token_bucket=TokenBucket(0))
    with server.dedicated_channel() as channel, server.dedicated_channel(resp3=True) as modern:
        attempts = [
            lambda: server.execute("SET", "k", "new"),
            lambda: server.execute("set", "k", "new"),
            lambda: server.execute(b"FlushAll"),
            lambda: server.execute("CONFIG", "SET", "maxmemory", "1"),
            lambda: server.execute("EVAL", "return redis.call('flushall')", 0),
            lambda: server.execute("CLIENT", "KILL", "TYPE", "normal"),
            lambda: server.execute("SUBSCRIBE", "anything"),
            lambda: server.execute_many([("PING",), ("DEL", "k"), ("PING",)]),
            lambda: server.execute_many([["MULTI"], ["SET", "k", "new"], ["EXEC"]]),
            lambda: server.download(io.BytesIO(), "GETSET", "k", "new"),
            lambda: channel.send([("SET", "k", "new")]),
            lambda: channel.execute([("PING",), ("FLUSHALL",)]),
            lambda: modern.send([("FLUSHDB",)]),
            lambda: channel.send_streamed(["SET", "k"], 3, [b"new"]),
            lambda: connection.send_command("SET", "k", "new"),
            lambda: connection.send_command("CONFIG SET", "maxmemory", "1"),
            lambda: connection.send_packed_command(connection.pack_command("FLUSHALL")),
            lambda: connection.send_packed_command(connection.pack_commands([("PING",), ("FLUSHALL",)])),
            lambda: connection.send_packed_command(FLUSH),
            lambda: connection.send_packed_command(bytearray(FLUSH)),
            lambda: connection.send_packed_command(iter([FLUSH[:7], FLUSH[7:]])),
            lambda: connection.send_packed_command([memoryview(FLUSH)]),
            lambda: connection.send_packed_command("FLUSHALL\r\n"),
            lambda: connection.send_packed_command([b"*1\r\n$4\r\nPING\r\n", b"FLUSHALL\r\n"]),
            lambda: connection.send_packed_command(b">2\r\n$4\r\nTYPE\r\n$8\r\nFLUSHALL\r\n"),
            lambda: connection.send_packed_command(pack_commands([("PING",)]) + FLUSH),
        ]
        for attempt in attempts:
            with pytest.raises(ForbiddenCommandError):
                attempt()
        assert channel.execute([("PING",)]) == [b"PONG"]
        assert modern.execute([("PING",)]) == [b"PONG"]
    connection.send_command("PING")
    assert connection.read_response() == b"PONG"
    connection.disconnect()
    assert client.get("k") == b"old"
    sent = {name for name in client.info("commandstats") if name in ("cmdstat_flushall", "cmdstat_eval", "cmdstat_del")}
    assert sent <= {"cmdstat_flushall"}  # the fixture's own, before it resets the statistics
    assert server.execute("STRLEN", "k") == 3


def test_the_write_list(redis_server: RedisServer, writing: RedisClient) -> None:
    """The write connection has a list, too, and a writable client's read connections do not write."""
    redis_server.client().set("k", "old")
    with pytest.raises(ForbiddenCommandError):
        writing.execute("SET", "k", "new")
    for command in (
        ["FLUSHALL"],
        ["CONFIG", "GET", "*"],
        ["EVAL", "x", "0"],
        ["KEYS", "*"],
        ["XGROUP", "DESTROY", "k", "g"],
    ):
        with pytest.raises(ForbiddenCommandError), writing.write_channel() as writer:
            writer.send([command])
    assert writing.stats.connects == 2


# -- special cases ---------------------------------------------------------------------------------------------------


def test_errors_that_are_not_utf8(redis_server: RedisServer, server: RedisClient) -> None:
    """An error reply with bytes that are not UTF-8 is an error like others."""
    redis_server.client().set("k", "1")
    with pytest.raises(ServerReplyError):
        server.execute("GETRANGE", "k", b"\xff\xfe\x00", "1")
    with pytest.raises(ServerReplyError):
        server.execute("OBJECT", "ENCODING")


def test_pushes_between_replies(redis_server: RedisServer, server: RedisClient) -> None:
    """Thousands of changed keys in one message, and messages between replies, all arrive, in order."""
    client = redis_server.client()
    with server.dedicated_channel(resp3=True) as channel:
        channel.send([("SUBSCRIBE", "__redis__:invalidate"), ("CLIENT", "TRACKING", "ON", "BCAST")])
        assert channel.receive() == b"OK"
        push = channel.receive_push(2)
        assert push is not None
        assert push[0] == b"subscribe"
        assert channel.receive_push(0.05) is None
        client.mset({f"key:{number}": "x" for number in range(20_000)})
        client.flushall()
        announced: set[bytes] = set()
        deadline = time.monotonic() + 10
        flushed = False
        while not flushed and time.monotonic() < deadline:
            assert channel.execute([("PING",)]) == [b"PONG"]
            while (push := channel.receive_push(0.2)) is not None:
                if push[1] is None:
                    flushed = True
                else:
                    assert not flushed
                    announced.update(push[1])
        assert flushed
        assert len(announced) == 20_000


def test_a_closed_channel(proxy: Proxy) -> None:
    """After its connection was lost a channel refuses further use; leaving its block is no error."""
    server = behind(proxy, timeout=0.5)
    with server.dedicated_channel() as channel:
        proxy.disconnect_all()
        with pytest.raises(UnavailableError):
            channel.execute([("PING",)])
        assert channel.closed
        with pytest.raises(UnavailableError):
            channel.send([("PING",)])
        with pytest.raises(UnavailableError):
            channel.receive()
