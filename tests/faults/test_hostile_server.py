"""A server that replies nonsense, or without end, costs bounded memory and time: EIO, and no traceback."""

import contextlib
import gc
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from redisfuse.client import reply_bounds
from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.client.limits import Limits
from redisfuse.errors import ReplyTooLargeError, TryAgainError, UnavailableError
from redisfuse.keyspace.listener import NullListener
from redisfuse.keyspace.metadata import MetadataStore
from redisfuse.keyspace.monitor import KeyspaceMonitor
from redisfuse.rendering.registry import render_text
from tests.support.hostile_server import HostileServer, Reply, array, bulk, endless_cursors, flood
from tests.support.mount_logs import INTERRUPTED
from tests.support.mounts import mount_server
from tests.support.redis_server import RedisServer

MIB = 1 << 20
TIMEOUT = 1.0  # seconds


@contextmanager
def client_of(server: HostileServer, timeout: float = TIMEOUT) -> Iterator[RedisClient]:
    client = RedisClient(server.address, Limits(timeout=timeout))
    with contextlib.closing(client):
        yield client


@contextmanager
def at_most(seconds: float, mebibytes: int) -> Iterator[None]:
    """Check that the body takes so much time and memory at most."""
    gc.collect()
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert time.monotonic() - start < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < mebibytes << 10


# -- replies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        *(("TYPE", "k"), ("STRLEN", "k"), ("PTTL", "k"), ("INFO",), ("DBSIZE",), ("OBJECT", "ENCODING", "k")),
        *(("GETRANGE", "k", 0, 3), ("GETRANGE", "k", 0, MIB), ("SCAN", "0", "COUNT", 1000)),
    ],
)
@pytest.mark.parametrize("head", [b"$99999999999\r\n", b"+", b"*4000000000\r\n", b"*1\r\n$99999999999\r\n", b"-ERR "])
def test_endless_replies(command: tuple[str | int, ...], head: bytes) -> None:
    """A reply without end ends the connection when it is longer than any reply to its command."""
    name = str(command[0]).encode()
    with HostileServer() as server, client_of(server) as client:
        client.connect()
        server.replies[name] = flood(head)
        with at_most(seconds=3.0, mebibytes=256), pytest.raises(UnavailableError):
            client.execute(*command)


def test_a_kept_error_holds_no_part_of_a_reply() -> None:
    """An endless reply takes no memory after its error, although the error lives on, as in a record of a log."""
    errors = []
    with HostileServer({b"GETRANGE": flood(b"$99999999999\r\n")}) as server:
        client = RedisClient(server.address, Limits(timeout=10))
        with contextlib.closing(client), at_most(seconds=60.0, mebibytes=160):
            for _ in range(8):
                with pytest.raises(UnavailableError) as caught:
                    client.execute("GETRANGE", "k", 0, 32 * MIB)
                errors.append(caught.value)
    assert len(errors) == 8


@pytest.mark.parametrize("head", [b"$99999999999\r\n", b"+", b"%4000000000\r\n"])
def test_an_endless_greeting(head: bytes) -> None:
    """The same holds while the connection is being established."""
    with HostileServer({b"HELLO": flood(head), b"INFO": flood(head)}) as server, client_of(server) as client:
        with at_most(seconds=3.0, mebibytes=32), pytest.raises(UnavailableError):
            client.connect()
        with at_most(seconds=3.0, mebibytes=32), pytest.raises(UnavailableError):
            client.dedicated_channel(resp3=True).__enter__()


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        (("TYPE", "k"), b":3\r\n"),
        (("TYPE", "k"), b"*0\r\n"),
        (("TYPE", "k"), b"$-1\r\n"),
        (("STRLEN", "k"), b":-5\r\n"),
        (("STRLEN", "k"), b"+3\r\n"),
        (("HLEN", "k"), b"$-1\r\n"),
        (("PTTL", "k"), bulk(b"3")),
        (("GETRANGE", "k", 0, 9), b":3\r\n"),
        (("GETRANGE", "k", 0, 9), array(bulk(b"3"))),
        (("HGET", "k", "f"), b":3\r\n"),
        (("SCAN", "0"), array(bulk(b"0"))),
        (("SCAN", "0"), array(bulk(b"x"), array())),
        (("SCAN", "0"), array(bulk(b"0"), array(b":1\r\n"))),
        (("SCAN", "0"), array(bulk(b"0"), bulk(b"k"))),
        (("HSCAN", "k", "0"), array(bulk(b"0"), array(array()))),
        (("LRANGE", "k", 0, 9), array(b"$-1\r\n")),
        (("LRANGE", "k", 0, 9), array(b"-ERR x\r\n")),
        (("XRANGE", "k", "-", "+"), array(array(bulk(b"soon"), array()))),
        (("XRANGE", "k", "-", "+"), array(array(bulk(b"1-1"), array(bulk(b"f"))))),
        (("XINFO", "GROUPS", "k"), bulk(b"name")),
        (("XINFO", "GROUPS", "k"), array(array(bulk(b"name")))),
        (("XINFO", "GROUPS", "k"), array(array(bulk(b"pending"), b":1\r\n"))),
        (("TIME",), array(bulk(b"now"), bulk(b"0"))),
        (("INFO",), b":1\r\n"),
        (("HELLO",), b"+OK\r\n"),
        (("HELLO",), array(array(), bulk(b"redis"))),
        (("STRLEN", "k"), b"%1\r\n*0\r\n:1\r\n"),
        (("STRLEN", "k"), b"*4294967295\r\n"),
        (("STRLEN", "k"), b":1\r\n:2\r\n"),
    ],
)
def test_replies_of_another_form(command: tuple[str | int, ...], reply: bytes) -> None:
    """A reply that the command never returns ends the connection, and the next command has its own reply."""
    with HostileServer() as server, client_of(server) as client:
        client.connect()
        sane = server.replies.get(name := str(command[0]).encode(), b"+OK\r\n")
        server.replies[name] = reply
        with pytest.raises(UnavailableError, match="invalid reply"):
            client.execute_many([command])
        server.replies[name] = sane
        assert client.execute("TYPE", "k") == b"string"


def test_replies_in_a_transaction_have_no_form(redis_server: RedisServer) -> None:
    """A command between MULTI and EXEC replies QUEUED, whatever its reply would be."""
    redis_server.client().set("k", "value")
    client = RedisClient(Address.parse(redis_server.url()), Limits(timeout=TIMEOUT))
    with contextlib.closing(client), client.dedicated_channel() as channel:
        commands = [("WATCH", "k"), ("MULTI",), ("STRLEN", "k"), ("GETRANGE", "k", 0, 1), ("EXEC",), ("STRLEN", "k")]
        assert channel.execute(commands)[-2:] == [[5, b"va"], 5]
        assert channel.execute([("MULTI",)]) == [b"OK"]
        assert channel.execute([("STRLEN", "k")]) == [b"QUEUED"]
        assert channel.execute([("EXEC",)]) == [[5]]
        assert channel.is_idle


def test_a_download_has_a_limit() -> None:
    """A value that is longer than expected is refused at its header, before anything is written to the file."""
    reply = flood(b"$99999999999\r\n")
    with HostileServer({b"HGET": reply}) as server, client_of(server) as client, tempfile.TemporaryFile() as file:
        with pytest.raises(ReplyTooLargeError):
            client.download(file, "HGET", "k", "f", max_bytes=5 * MIB)
        assert file.tell() == 0


def test_large_elements_are_fetched_one_by_one(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements that together exceed the limit of a reply are all rendered."""
    monkeypatch.setattr(reply_bounds, "MAX_BATCH_BYTES", MIB)
    element = b"x" * (MIB // 4)
    other = redis_server.client()
    for number in range(8):
        other.rpush("list", element + b"%d" % number)
        other.sadd("set", element + b"%d" % number)
        other.zadd("zset", {element + b"%d" % number: number})
        other.hset("hash", str(number), element)
        other.xadd("stream", {"field": element}, id=f"{number}-1")
    client = RedisClient(Address.parse(redis_server.url()), Limits(timeout=10))
    with contextlib.closing(client):
        for kind in ("list", "set", "zset", "hash", "stream"):
            text = b"".join(render_text(client, kind.encode(), kind.encode()))
            assert text.count(element) == 8
            assert text.count(b"\n") == 8


# -- the keyspace ----------------------------------------------------------------------------------------------------


@contextmanager
def keyspace_of(server: HostileServer, timeout: float = TIMEOUT) -> Iterator[KeyspaceMonitor]:
    with client_of(server, timeout) as client:
        keyspace = KeyspaceMonitor(client, heartbeat_interval=0.2)
        keyspace.start()
        try:
            yield keyspace
        finally:
            keyspace.close()


@pytest.mark.parametrize(
    "reply",
    [
        array(bulk(b"7"), array(bulk(b"k1"))),
        array(bulk(b"7"), array()),
        endless_cursors(bulk(b"k1")),
        endless_cursors(),
        array(bulk(b"0"), bulk(b"k1")),
    ],
    ids=["same cursor", "same cursor, no keys", "same key", "no keys", "no list"],
)
def test_a_scan_that_never_ends(reply: Reply) -> None:
    """A caller that waits for the index gets an error after a few time-outs."""
    with HostileServer({b"SCAN": reply}) as server, keyspace_of(server) as keyspace, at_most(8.0, 32):
        with pytest.raises(UnavailableError) as caught:
            keyspace.wait_until_ready(20.0)
        assert not isinstance(caught.value, TryAgainError)


def test_a_scan_of_more_keys_than_there_are() -> None:
    """The same holds for new keys without end, if DBSIZE does not explain them."""
    numbers = iter(range(1, 1 << 62))

    def scan(connection: socket.socket, _command: list[bytes]) -> None:
        number = next(numbers)
        connection.sendall(array(bulk(b"%d" % number), array(bulk(b"key:%d" % number))))

    with (
        HostileServer({b"SCAN": scan}) as server,
        keyspace_of(server) as keyspace,
        at_most(8.0, 32),
        pytest.raises(UnavailableError),
    ):
        keyspace.wait_until_ready(20.0)


def test_a_scan_of_a_sparse_table() -> None:
    """Thousands of replies without keys are no error while they arrive fast: the table has lost its elements."""
    cursors = iter(range(1, 3000))

    def scan(connection: socket.socket, _command: list[bytes]) -> None:
        connection.sendall(array(bulk(b"%d" % next(cursors, 0)), array()))

    with HostileServer({b"SCAN": scan}) as server, keyspace_of(server, timeout=10.0) as keyspace:
        keyspace.wait_until_ready(20.0)


PUSHES: dict[str, Reply] = {
    "endless key": flood(b"+OK\r\n>2\r\n$10\r\ninvalidate\r\n*1\r\n$99999999999\r\n"),
    "half a message": b"+OK\r\n>2\r\n$10\r\ninvalidate\r\n*1\r\n$10\r\nx",
    "keys that are no strings": b"+OK\r\n>2\r\n$10\r\ninvalidate\r\n*2\r\n:1\r\n*0\r\n",
    "no list of keys": b"+OK\r\n>2\r\n$10\r\ninvalidate\r\n:1\r\n",
}


@pytest.mark.parametrize("push", PUSHES.values(), ids=PUSHES)
def test_invalid_messages_about_changes(push: Reply, caplog: pytest.LogCaptureFixture) -> None:
    """A caller that waits for the index gets it, or an error if no connection lasts until it is complete."""
    with (
        HostileServer({b"CLIENT TRACKING": push}) as server,
        keyspace_of(server) as keyspace,
        at_most(10.0, 512),  # the follower and the next one: each has a push, and the parser twice as much for a moment
        contextlib.suppress(UnavailableError),
    ):
        keyspace.wait_until_ready(20.0)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("type_name", [b"hash", b"set"])
@pytest.mark.parametrize("cursor", ["same", "other"])
def test_a_collection_that_never_ends(type_name: bytes, cursor: str) -> None:
    """Rendering a collection, and listing the fields of a hash, end with an error."""
    items = (bulk(b"a"), bulk(b"b"))
    reply = array(bulk(b"7"), array(*items)) if cursor == "same" else endless_cursors(*items)
    replies: dict[bytes, Reply] = {
        **dict.fromkeys((b"HSCAN", b"SSCAN"), reply),
        b"TYPE": bulk(type_name),
        b"HRANDFIELD": b"-ERR unknown command\r\n",
        b"OBJECT": bulk(b"listpack"),
    }
    with HostileServer(replies) as server, client_of(server) as client, at_most(8.0, 32):
        with pytest.raises(UnavailableError):
            list(render_text(client, b"k", type_name))
        if type_name == b"hash":
            with pytest.raises(UnavailableError):
                MetadataStore(client, freshness=NullListener()).list_fields(b"k", 1000)


# -- whole mounts ----------------------------------------------------------------------------------------------------

HOSTILE_REPLIES: dict[str, dict[bytes, Reply]] = {
    "huge value": dict.fromkeys((b"GETRANGE", b"GET"), flood(b"$99999999999\r\n")),
    "endless line": dict.fromkeys((b"GETRANGE", b"GET"), flood(b"+")),
    "huge type": {b"TYPE": flood(b"$99999999999\r\n")},
    "half push": {b"CLIENT TRACKING": PUSHES["endless key"]},
    "same cursor": {b"SCAN": array(bulk(b"7"), array(bulk(b"k1")))},
    "endless scan": {b"SCAN": endless_cursors(bulk(b"k1"))},
    "types that are numbers": {b"TYPE": b":1\r\n"},
    "lengths that are text": {b"STRLEN": b"+many\r\n"},
    "negative lengths": {b"STRLEN": b":-9\r\n"},
    "far expiries": {b"PTTL": b":9223372036854775807\r\n", b"INFO": bulk(b"redis_version:7.0.15\r\n")},
    "lists without end": {b"TYPE": b"+list\r\n", b"LRANGE": flood(array(bulk(b"x")) * 10)},
    "an empty INFO": {b"INFO": bulk(b"")},
    "numbers of any length": {
        b"INFO": bulk(b"redis_version:%b\r\nused_memory:%b\r\ndb0:keys=%b" % (b"9" * 5000, b"9" * 5000, b"9" * 5000))
    },
}


@pytest.mark.possible_log(INTERRUPTED, "scanning the keys failed", "changes by other clients appear")
@pytest.mark.parametrize("replies", HOSTILE_REPLIES.values(), ids=HOSTILE_REPLIES)
def test_a_mount_of_a_hostile_server(tmp_path: Path, replies: dict[bytes, Reply]) -> None:
    """`cat` and `ls` end in time, with EIO or with what the server said, and the mount works on."""
    with (
        HostileServer(replies) as server,
        mount_server(tmp_path, server.url, "--timeout", str(TIMEOUT), wait=False) as mount,
    ):
        process = psutil.Process(mount.process.pid)
        rest = peak = process.memory_info().rss
        start = time.monotonic()
        command = f"cat {mount.path}/k1; ls -l {mount.path}; stat {mount.path}/k2"
        child = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while child.poll() is None:
            assert time.monotonic() - start < 12
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.02)
        assert peak - rest < 200 * MIB
        assert mount.process.poll() is None
        _out, errors = child.communicate()
        assert all(line.endswith(("Input/output error", "No such file or directory")) for line in errors.splitlines())
