"""WriteBuffer against the plainest model: a bytearray."""

import io

from hypothesis import given
from hypothesis import strategies as st

from redisfuse.vfs import write_buffer
from redisfuse.vfs.content_types import InlineContent
from redisfuse.vfs.write_buffer import WriteBuffer

small = st.integers(0, 40)
edit_lists = st.lists(
    st.one_of(
        st.tuples(st.just("write"), small, st.binary(max_size=20)),
        st.tuples(st.just("truncate"), small, st.just(b"")),
    ),
    max_size=12,
)


def apply_edits(base: bytes, edits: list[tuple[str, int, bytes]]) -> tuple[WriteBuffer, bytearray]:
    buffer = WriteBuffer(InlineContent(base))
    model = bytearray(base)
    for operation, offset, data in edits:
        if operation == "write":
            buffer.write(offset, data)
            if data:
                model.extend(bytes(max(0, offset - len(model))))
                model[offset : offset + len(data)] = data
        else:
            buffer.truncate(offset)
            del model[offset:]
            model.extend(bytes(offset - len(model)))
    return buffer, model


@given(st.binary(max_size=30), edit_lists)
def test_reads_equal_a_bytearray(base: bytes, edits: list[tuple[str, int, bytes]]) -> None:
    """After any writes and truncates, every read returns what a bytearray returns, and so does a copy."""
    buffer, model = apply_edits(base, edits)
    for same in (buffer, buffer.copy()):
        assert same.size == len(model)
        assert b"".join(same.iter_chunks()) == bytes(model)
        for offset in range(0, 50, 7):
            assert same.read(offset, 9) == bytes(model[offset : offset + 9])


@given(st.binary(max_size=30), edit_lists)
def test_patch_over_base_gives_the_content(base: bytes, edits: list[tuple[str, int, bytes]]) -> None:
    """Writing the dirty range over the base (as SETRANGE does) gives the whole new content."""
    buffer, model = apply_edits(base, edits)
    if buffer.is_modified and (patch := buffer.dirty_range()) is not None:
        offset, size = patch
        result = bytearray(base)
        result.extend(bytes(max(0, offset - len(result))))
        result[offset : offset + size] = b"".join(buffer.iter_chunks(offset, size))
        assert bytes(result) == bytes(model)
    if not buffer.is_modified:
        assert bytes(model) == base


@given(st.binary(max_size=30), edit_lists, st.integers(0, 12))
def test_rebase_over_a_partly_edited_base(base: bytes, edits: list[tuple[str, int, bytes]], applied: int) -> None:
    """The edits give the same content over a base in which the first of them were applied."""
    buffer, model = apply_edits(base, edits)
    _, partly_edited = apply_edits(base, edits[:applied])
    rebased = buffer.rebase(InlineContent(bytes(partly_edited)))
    assert b"".join(rebased.iter_chunks()) == bytes(model)
    assert rebased.size == len(model)


def test_far_writes_do_not_allocate_the_gap() -> None:
    """A write at 400 MiB costs its own bytes, not the gap before it."""
    buffer = WriteBuffer()
    buffer.write(400 * 1024 * 1024, b"end")
    assert not isinstance(buffer._written_file, io.BytesIO)
    assert buffer.read(400 * 1024 * 1024 - 2, 10) == b"\0\0end"
    assert write_buffer.SPOOL_THRESHOLD_BYTES < 400 * 1024 * 1024
    buffer.close()
