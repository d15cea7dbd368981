"""BlockDigests: what is known of a large string, merged into ranges and compared."""

import os

import pytest

from redisfuse.config import CHUNK_BYTES
from redisfuse.transactions.block_digests import BLOCK_BYTES, BlockDigests

SIZE = 2 * CHUNK_BYTES + BLOCK_BYTES + 100
DATA = os.urandom(SIZE)


def known(*ranges: tuple[int, int]) -> BlockDigests:
    """Return the digests of DATA with the blocks of these ranges."""
    blocks = BlockDigests(SIZE)
    for start, end in ranges:
        first, last = blocks.align(start, end)
        assert blocks.record(first, DATA[first:last])
    return blocks


def test_ranges_are_those_of_whole_blocks_up_to_a_chunk() -> None:
    """Neighbours are merged up to 1 MiB; the last block ends with the string."""
    blocks = known((10, 20), (BLOCK_BYTES, BLOCK_BYTES + 1), (SIZE - 1, SIZE))
    assert blocks.known_ranges() == [(0, 2 * BLOCK_BYTES), (2 * CHUNK_BYTES + BLOCK_BYTES, SIZE)]
    assert blocks.unknown_ranges(0, 3 * BLOCK_BYTES) == [(2 * BLOCK_BYTES, 3 * BLOCK_BYTES)]
    assert blocks.unknown_ranges(SIZE, SIZE + 10) == []
    assert not blocks.covers_everything
    assert known((0, SIZE)).known_ranges() == [
        (0, CHUNK_BYTES),
        (CHUNK_BYTES, 2 * CHUNK_BYTES),
        (2 * CHUNK_BYTES, SIZE),
    ]
    assert known((0, SIZE)).covers_everything


@pytest.mark.parametrize("step", [1000, BLOCK_BYTES, BLOCK_BYTES + 1, CHUNK_BYTES, SIZE])
def test_only_known_blocks_are_compared(step: int) -> None:
    """Any division of the bytes into chunks gives the same result."""
    blocks = known((0, 1), (SIZE - 1, SIZE))

    def matches(data: bytes) -> bool:
        return blocks.match(0, (data[start : start + step] for start in range(0, len(data), step)))

    assert matches(DATA)
    assert matches(DATA[:BLOCK_BYTES] + bytes(CHUNK_BYTES) + DATA[BLOCK_BYTES + CHUNK_BYTES :])
    assert not matches(b"!" + DATA[1:])
    assert not matches(DATA[:-1] + b"!")


def test_a_block_that_is_read_twice_must_be_the_same() -> None:
    """The first reading counts; after a difference nothing matches any more."""
    blocks = known((0, CHUNK_BYTES))
    assert blocks.record(BLOCK_BYTES, DATA[BLOCK_BYTES : 2 * BLOCK_BYTES])
    assert not blocks.record(BLOCK_BYTES, bytes(BLOCK_BYTES))
    assert not blocks.match(0, [DATA])


def test_a_save_keeps_what_is_known() -> None:
    """Blocks that a save leaves are copied, others are those that are saved."""
    before, after = known((0, BLOCK_BYTES)), BlockDigests(SIZE)
    after.copy_block(before, 0)
    after.copy_block(before, 1)
    after.record_saved(2, b"x" * BLOCK_BYTES)
    assert after.known_ranges() == [(0, BLOCK_BYTES), (2 * BLOCK_BYTES, 3 * BLOCK_BYTES)]
    assert after.match(0, [DATA[:BLOCK_BYTES], bytes(BLOCK_BYTES), b"x" * BLOCK_BYTES, bytes(SIZE)])
