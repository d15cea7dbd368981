"""Contents of open files on a real server: any offset, bounded memory, and errors where the value changed."""

import os
import random
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest
import redis

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.client.limits import Limits
from redisfuse.errors import BadHandleError, ConflictError, NotFoundError, UnavailableError, WrongTypeError
from redisfuse.vfs.content_types import FileContent, InlineContent, RangedContent, SpooledContent, StreamedContent
from tests.support.redis_server import RedisServer

MIB = 1 << 20
BLOCK = 128 << 10  # the kernel's usual read size


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[RedisClient]:
    """Return redisfuse's client of the test's server."""
    server = RedisClient(Address.parse(redis_server.url()), Limits(timeout=20.0))
    yield server
    server.close()


@pytest.fixture
def client(redis_server: RedisServer) -> redis.Redis:
    """Return a client of the test, which may write."""
    return redis_server.client()


def read_all(content: FileContent, block: int = BLOCK) -> bytes:
    """Read a content sequentially to its end."""
    blocks = []
    offset = 0
    while data := content.read(offset, block):
        blocks.append(data)
        offset += len(data)
    return b"".join(blocks)


def test_inline_content_is_its_bytes() -> None:
    """Bytes in memory are read at any offset; past the end there are none."""
    content = InlineContent(b"0123456789")
    assert (content.size, content.read(2, 3), content.read(8, 9), content.read(10, 1)) == (10, b"234", b"89", b"")
    content.close()


def test_a_large_string_is_byte_exact_in_little_memory(server: RedisClient, client: redis.Redis) -> None:
    """64 MiB read forwards are the value, in one GETRANGE a MiB, with a few MiB in memory."""
    value = random.Random(1).randbytes(64 * MIB + 12_345)
    client.set("k", value)
    client.config_resetstat()
    content = RangedContent(server, b"k", len(value))
    tracemalloc.start()
    try:
        offset = 0
        while data := content.read(offset, BLOCK):
            assert data == value[offset : offset + len(data)]
            offset += len(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert offset == len(value)
    assert peak < 16 * MIB
    calls = client.info("commandstats")
    assert calls["cmdstat_getrange"]["calls"] == 65
    content.close()


def test_a_large_string_at_any_offset(server: RedisClient, client: redis.Redis) -> None:
    """Reads at random offsets, of any size and past the end, return the value's bytes."""
    value = random.Random(2).randbytes(9 * MIB + 7)
    client.set("k", value)
    content = RangedContent(server, b"k", len(value))
    numbers = random.Random(3)
    for _ in range(300):
        offset = numbers.choice([numbers.randrange(len(value) + 10), numbers.randrange(9) * MIB])
        size = numbers.choice([1, 4096, BLOCK, MIB, 5 * MIB])
        assert content.read(offset, size) == value[offset : offset + size]


def test_reading_after_a_seek_is_sequential_again(server: RedisClient, client: redis.Redis) -> None:
    """A reader that seeks and then continues gets the right bytes, each MiB about once."""
    value = random.Random(6).randbytes(40 * MIB)
    client.set("k", value)
    content = RangedContent(server, b"k", len(value))
    client.config_resetstat()
    for start in (0, 20, 10):
        for offset in range(start * MIB, (start + 8) * MIB, BLOCK):
            assert content.read(offset, BLOCK) == value[offset : offset + BLOCK]
    content.close()
    assert client.info("commandstats")["cmdstat_getrange"]["calls"] <= 24 + 3 * 5


def test_random_reads_fetch_only_their_bytes(server: RedisClient, client: redis.Redis) -> None:
    """Single small reads far apart do not fetch a MiB each."""
    client.setrange("k", 64 * MIB - 1, b"x")
    content = RangedContent(server, b"k", 64 * MIB)
    server.connect()
    before = server.stats.bytes_received
    for number in range(5, 60, 5):
        assert content.read(number * MIB, 4096) == bytes(4096)
    assert server.stats.bytes_received - before < 11 * 4096 + 2000


def test_a_large_string_from_many_threads(server: RedisClient, client: redis.Redis) -> None:
    """Concurrent readers, out of order, get the right bytes."""
    value = random.Random(4).randbytes(8 * MIB)
    client.set("k", value)
    content = RangedContent(server, b"k", len(value))
    wrong_offsets: list[int] = []

    def reader(first: int) -> None:
        for offset in range(first * BLOCK, len(value), 4 * BLOCK):
            if content.read(offset, BLOCK) != value[offset : offset + BLOCK]:
                wrong_offsets.append(offset)

    threads = [threading.Thread(target=reader, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong_offsets


@pytest.mark.parametrize("length", [0, 5, 4 * MIB - 1, 4 * MIB + 1])
def test_a_string_of_another_length_is_an_error(server: RedisClient, client: redis.Redis, length: int) -> None:
    """A string truncated, extended, replaced or deleted since open raises ConflictError: no zeros, no mixture."""
    client.set("k", b"a" * (4 * MIB))
    content = RangedContent(server, b"k", 4 * MIB)
    assert content.read(0, BLOCK) == b"a" * BLOCK
    client.set("k", b"b" * length)
    if not length:
        client.delete("k")
    with pytest.raises(ConflictError):
        content.read(3 * MIB, BLOCK)


def test_a_string_that_became_a_list_is_an_error(server: RedisClient, client: redis.Redis) -> None:
    """A key of another type than at open raises WrongTypeError."""
    client.rpush("k", "x")
    with pytest.raises(WrongTypeError):
        RangedContent(server, b"k", 4 * MIB).read(0, BLOCK)


def test_a_large_field_is_fetched_once_into_a_file(server: RedisClient, client: redis.Redis) -> None:
    """A field of 16 MiB is one HGET, at the first read, and takes no memory of the process."""
    value = random.Random(5).randbytes(16 * MIB + 3)
    client.hset("k", "f", value)
    content = SpooledContent(server, b"k", b"f", len(value))
    client.config_resetstat()
    tracemalloc.start()
    try:
        assert content.read(0, BLOCK) == value[:BLOCK]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * MIB
    assert read_all(content, MIB) == value
    assert content.read(16 * MIB, 100) == value[-3:]
    assert client.info("commandstats")["cmdstat_hget"]["calls"] == 1
    content.close()
    with pytest.raises(BadHandleError):
        content.read(0, 1)


def test_a_field_of_another_length_is_an_error(server: RedisClient, client: redis.Redis) -> None:
    """A field that was changed or deleted between open and the first read is an error, each time."""
    client.hset("k", "f", b"x" * 100)
    content = SpooledContent(server, b"k", b"f", 101)
    for _ in range(2):
        with pytest.raises(ConflictError):
            content.read(0, 1)
    with pytest.raises(NotFoundError):
        SpooledContent(server, b"k", b"gone", 101).read(0, 1)


def test_a_spooled_field_leaves_no_file_behind(server: RedisClient, client: redis.Redis) -> None:
    """The temporary file of a large field has no name, and its descriptor is closed with the content."""
    client.hset("k", "f", b"x" * MIB)
    before = len(os.listdir("/proc/self/fd"))
    content = SpooledContent(server, b"k", b"f", MIB)
    content.read(0, 1)
    content.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the server's connection may be new


class NumberedText:
    """A text of chunks of one size, in which every 8 bytes are their own offset; counts its iterations."""

    def __init__(self, chunk_bytes: int, chunk_count: int) -> None:
        self.offsets = range(0, chunk_bytes * chunk_count, chunk_bytes)
        self.iterations = 0

    def __iter__(self) -> Iterator[bytes]:
        self.iterations += 1
        for start in self.offsets:
            yield b"".join([b"%08d" % offset for offset in range(start, start + self.offsets.step, 8)])


def test_a_streamed_text_reads_forwards_in_little_memory() -> None:
    """About one of many megabytes stays buffered; `size` is 0, since the length is not known."""
    tracemalloc.start()
    try:
        content = StreamedContent(NumberedText(8000, 800))
        offset = 0
        while data := content.read(offset, BLOCK):
            assert data[:8] == b"%08d" % offset
            offset += len(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (content.size, offset) == (0, 8000 * 800)
    assert peak < 4 * MIB


def test_a_streamed_text_can_be_read_again() -> None:
    """The last MiB can be read again without a restart; a read before it iterates over the text again."""
    text = NumberedText(80_000, 100)
    content = StreamedContent(text)
    for offset in (0, 4_000_000, 3_200_000, 4_800_000):
        assert content.read(offset, 8) == b"%08d" % offset
    assert text.iterations == 1
    for offset in (0, 8, 2_000_000):
        assert content.read(offset, 8) == b"%08d" % offset
    assert text.iterations == 2
    assert content.read(8_000_000, 8) == b""
    assert content.read(7_999_992, 16) == b"07999992"


def test_a_failed_stream_is_not_a_short_file() -> None:
    """After an error, reads of the missing bytes raise it again until the text is restarted; it is no end of file."""

    class FailingOnce:
        has_failed = False

        def __iter__(self) -> Iterator[bytes]:
            yield b"12345678"
            if not self.has_failed:
                self.has_failed = True
                raise NotFoundError("deleted")
            yield b"90"

    content = StreamedContent(FailingOnce())
    assert content.read(0, 4) == b"1234"
    for _ in range(3):
        with pytest.raises(NotFoundError):
            content.read(4, 100)
    assert content.read(4, 4) == b"5678"
    content.close()
    assert not StreamedContent([]).read(0, 10)


def test_a_silent_server_is_an_error_within_the_timeout(own_redis: RedisServer) -> None:
    """Reads of a large string fail within the time-out when the server is silent, and recover with it."""
    client = own_redis.client()
    client.set("k", b"x" * (8 * MIB))
    server = RedisClient(Address.parse(own_redis.url()), Limits(timeout=1.0))
    content = RangedContent(server, b"k", 8 * MIB)
    assert content.read(0, BLOCK) == b"x" * BLOCK
    own_redis.pause()
    start = time.monotonic()
    with pytest.raises(UnavailableError):
        read_all(content)
    assert time.monotonic() - start < 5
    own_redis.resume()
    assert read_all(content) == b"x" * (8 * MIB)
    server.close()
