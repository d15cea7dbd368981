"""What open files read from, on real servers: any offset, bounded memory, and errors where the value changed."""

import itertools
import os
import random
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest
import redis

from redisfuse.client.address import Address
from redisfuse.client.client import Limits, RedisClient
from redisfuse.errors import BadHandleError, ConflictError, NotFoundError, UnavailableError, WrongTypeError
from redisfuse.vfs.content_types import FileContent, InlineContent, RangedContent, SpooledContent, StreamedContent
from tests.support.redis_server import RedisServer

MIB = 1 << 20
BLOCK = 128 << 10  # what the kernel usually asks for


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[RedisClient]:
    """redisfuse's own reading connection to the test's server."""
    server = RedisClient(Address.parse(redis_server.url()), Limits(timeout=20.0))
    yield server
    server.close()


@pytest.fixture
def client(redis_server: RedisServer) -> redis.Redis:
    """A client of the test's own, which may write."""
    return redis_server.client()


def read_all(snapshot: FileContent, block: int = BLOCK) -> bytes:
    """All of it, forwards."""
    pieces = []
    offset = 0
    while piece := snapshot.read(offset, block):
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


def test_a_small_snapshot_is_its_bytes() -> None:
    """Any offset of bytes in memory, nothing past the end."""
    snapshot = InlineContent(b"0123456789")
    assert (snapshot.size, snapshot.read(2, 3), snapshot.read(8, 9), snapshot.read(10, 1)) == (10, b"234", b"89", b"")
    snapshot.close()


def test_a_large_string_is_byte_exact_in_little_memory(server: RedisClient, client: redis.Redis) -> None:
    """64 MiB read forwards are the value, in one GETRANGE a MiB, with a few MiB in memory."""
    value = random.Random(1).randbytes(64 * MIB + 12_345)
    client.set("k", value)
    client.config_resetstat()
    snapshot = RangedContent(server, b"k", len(value))
    tracemalloc.start()
    try:
        offset = 0
        while piece := snapshot.read(offset, BLOCK):
            assert piece == value[offset : offset + len(piece)]
            offset += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert offset == len(value)
    assert peak < 16 * MIB
    calls = client.info("commandstats")
    assert calls["cmdstat_getrange"]["calls"] == 65
    snapshot.close()


def test_a_large_string_at_any_offset(server: RedisClient, client: redis.Redis) -> None:
    """Reads at random offsets, of any size and over the end, give what is there."""
    value = random.Random(2).randbytes(9 * MIB + 7)
    client.set("k", value)
    snapshot = RangedContent(server, b"k", len(value))
    numbers = random.Random(3)
    for _ in range(300):
        offset = numbers.choice([numbers.randrange(len(value) + 10), numbers.randrange(9) * MIB])
        size = numbers.choice([1, 4096, BLOCK, MIB, 5 * MIB])
        assert snapshot.read(offset, size) == value[offset : offset + size]


def test_reading_on_after_a_jump_is_sequential_again(server: RedisClient, client: redis.Redis) -> None:
    """A reader that jumps, and then reads on, gets the right bytes, each MiB about once."""
    value = random.Random(6).randbytes(40 * MIB)
    client.set("k", value)
    snapshot = RangedContent(server, b"k", len(value))
    client.config_resetstat()
    for start in (0, 20, 10):
        for offset in range(start * MIB, (start + 8) * MIB, BLOCK):
            assert snapshot.read(offset, BLOCK) == value[offset : offset + BLOCK]
    snapshot.close()
    assert client.info("commandstats")["cmdstat_getrange"]["calls"] <= 24 + 3 * 5


def test_reads_elsewhere_fetch_only_what_they_need(server: RedisClient, client: redis.Redis) -> None:
    """Single small reads far apart do not fetch a MiB each."""
    client.setrange("k", 64 * MIB - 1, b"x")
    snapshot = RangedContent(server, b"k", 64 * MIB)
    server.connect()
    before = server.stats.bytes_received
    for number in range(5, 60, 5):
        assert snapshot.read(number * MIB, 4096) == bytes(4096)
    assert server.stats.bytes_received - before < 11 * 4096 + 2000


def test_a_large_string_from_many_threads(server: RedisClient, client: redis.Redis) -> None:
    """The kernel's readers, out of order and at once, get the right bytes."""
    value = random.Random(4).randbytes(8 * MIB)
    client.set("k", value)
    snapshot = RangedContent(server, b"k", len(value))
    wrong: list[int] = []

    def reader(first: int) -> None:
        for offset in range(first * BLOCK, len(value), 4 * BLOCK):
            if snapshot.read(offset, BLOCK) != value[offset : offset + BLOCK]:
                wrong.append(offset)

    threads = [threading.Thread(target=reader, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong


@pytest.mark.parametrize("length", [0, 5, 4 * MIB - 1, 4 * MIB + 1])
def test_a_string_of_another_length_is_an_error(server: RedisClient, client: redis.Redis, length: int) -> None:
    """A string that was cut, lengthened, replaced or deleted since open gives ConflictError, not zeros or a mixture."""
    client.set("k", b"a" * (4 * MIB))
    snapshot = RangedContent(server, b"k", 4 * MIB)
    assert snapshot.read(0, BLOCK) == b"a" * BLOCK
    client.set("k", b"b" * length)
    if not length:
        client.delete("k")
    with pytest.raises(ConflictError):
        snapshot.read(3 * MIB, BLOCK)


def test_a_string_that_became_a_list_is_an_error(server: RedisClient, client: redis.Redis) -> None:
    """A key of another type than at open is WrongTypeError."""
    client.rpush("k", "x")
    with pytest.raises(WrongTypeError):
        RangedContent(server, b"k", 4 * MIB).read(0, BLOCK)


def test_a_large_field_is_fetched_once_and_not_into_memory(server: RedisClient, client: redis.Redis) -> None:
    """A field of 16 MiB is one HGET, at the first read, and takes no memory of the process."""
    value = random.Random(5).randbytes(16 * MIB + 3)
    client.hset("k", "f", value)
    snapshot = SpooledContent(server, b"k", b"f", len(value))
    client.config_resetstat()
    tracemalloc.start()
    try:
        assert snapshot.read(0, BLOCK) == value[:BLOCK]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * MIB
    assert read_all(snapshot, MIB) == value
    assert snapshot.read(16 * MIB, 100) == value[-3:]
    assert client.info("commandstats")["cmdstat_hget"]["calls"] == 1
    snapshot.close()
    with pytest.raises(BadHandleError):
        snapshot.read(0, 1)


def test_a_field_of_another_length_is_an_error(server: RedisClient, client: redis.Redis) -> None:
    """A field that changed or went between open and the first read is an error, each time."""
    client.hset("k", "f", b"x" * 100)
    snapshot = SpooledContent(server, b"k", b"f", 101)
    for _ in range(2):
        with pytest.raises(ConflictError):
            snapshot.read(0, 1)
    with pytest.raises(NotFoundError):
        SpooledContent(server, b"k", b"gone", 101).read(0, 1)


def test_a_file_left_open_leaves_no_file_behind(server: RedisClient, client: redis.Redis) -> None:
    """The temporary file of a large field has no name, and its descriptor is closed with the snapshot."""
    client.hset("k", "f", b"x" * MIB)
    before = len(os.listdir("/proc/self/fd"))
    snapshot = SpooledContent(server, b"k", b"f", MIB)
    snapshot.read(0, 1)
    snapshot.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the server's connection may be new


def numbered(sizes: Iterator[int]) -> Iterator[bytes]:
    """Pieces of these sizes, which tell their position."""
    position = 0
    for size in sizes:
        yield b"".join([b"%08d" % (position + n * 8) for n in range(size // 8)])
        position += size // 8 * 8


def test_a_streamed_text_reads_forwards_in_little_memory() -> None:
    """Megabytes pass through, of which about one stays; `size` is 0, since the length is not known."""
    tracemalloc.start()
    try:
        snapshot = StreamedContent(lambda: numbered(itertools.repeat(8000, 800)))
        offset = 0
        while piece := snapshot.read(offset, BLOCK):
            assert piece[:8] == b"%08d" % offset
            offset += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (snapshot.size, offset) == (0, 8000 * 800)
    assert peak < 4 * MIB


def test_a_streamed_text_can_be_read_again() -> None:
    """The last MiB can be read again without a restart; what lies before begins the text anew, and skips."""
    begun = []

    def begin() -> Iterator[bytes]:
        begun.append(1)
        return numbered(itertools.repeat(80_000, 100))

    snapshot = StreamedContent(begin)
    for offset in (0, 4_000_000, 3_200_000, 4_800_000):
        assert snapshot.read(offset, 8) == b"%08d" % offset
    assert len(begun) == 1
    for offset in (0, 8, 2_000_000):
        assert snapshot.read(offset, 8) == b"%08d" % offset
    assert len(begun) == 2
    assert snapshot.read(8_000_000, 8) == b""
    assert snapshot.read(7_999_992, 16) == b"07999992"


def test_a_streamed_text_that_fails_never_ends() -> None:
    """After an error the missing bytes are that error again, not the end of the file; a new start may do better."""
    failures = [NotFoundError("gone"), None]

    def begin() -> Iterator[bytes]:
        failure = failures.pop(0)
        yield b"12345678"
        if failure:
            raise failure
        yield b"90"

    snapshot = StreamedContent(begin)
    assert snapshot.read(0, 4) == b"1234"
    for _ in range(3):
        with pytest.raises(NotFoundError):
            snapshot.read(4, 100)
    assert snapshot.read(4, 4) == b"5678"
    snapshot.close()
    assert not StreamedContent(lambda: iter([])).read(0, 10)


def test_a_server_that_goes_is_an_error_at_once(own_redis: RedisServer) -> None:
    """Reads of a large string fail within the time-out when the server goes, read-ahead or not, and recover with it."""
    client = own_redis.client()
    client.set("k", b"x" * (8 * MIB))
    server = RedisClient(Address.parse(own_redis.url()), Limits(timeout=1.0))
    snapshot = RangedContent(server, b"k", 8 * MIB)
    assert snapshot.read(0, BLOCK) == b"x" * BLOCK
    own_redis.pause()
    begun = time.monotonic()
    with pytest.raises(UnavailableError):
        read_all(snapshot)
    assert time.monotonic() - begun < 2.5
    own_redis.resume()
    assert read_all(snapshot) == b"x" * (8 * MIB)
    server.close()
