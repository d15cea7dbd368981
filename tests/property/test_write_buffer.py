"""EditBuffer against the plainest model there is: a bytearray."""

from hypothesis import given
from hypothesis import strategies as st

from redisfuse.vfs import write_buffer
from redisfuse.vfs.write_buffer import WriteBuffer

small = st.integers(0, 40)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), small, st.binary(max_size=20)),
        st.tuples(st.just("truncate"), small, st.just(b"")),
    ),
    max_size=12,
)


def apply_steps(base: bytes, todo: list[tuple[str, int, bytes]]) -> tuple[WriteBuffer, bytearray]:
    buffer = WriteBuffer(len(base), lambda offset, size: base[offset : offset + size])
    model = bytearray(base)
    for what, at, data in todo:
        if what == "write":
            buffer.write(at, data)
            if data:
                model.extend(bytes(max(0, at - len(model))))
                model[at : at + len(data)] = data
        else:
            buffer.truncate(at)
            del model[at:]
            model.extend(bytes(at - len(model)))
    return buffer, model


@given(st.binary(max_size=30), steps)
def test_reads_equal_a_bytearray(base: bytes, todo: list[tuple[str, int, bytes]]) -> None:
    """After any writes and truncates, every read gives what a bytearray would."""
    buffer, model = apply_steps(base, todo)
    assert buffer.size == len(model)
    assert b"".join(buffer.iter_chunks()) == bytes(model)
    for offset in range(0, 50, 7):
        assert buffer.read(offset, 9) == bytes(model[offset : offset + 9])


@given(st.binary(max_size=30), steps)
def test_patch_over_base_gives_the_content(base: bytes, todo: list[tuple[str, int, bytes]]) -> None:
    """Writing the patch range over the base (as SETRANGE does) gives the whole new content."""
    buffer, model = apply_steps(base, todo)
    if buffer.is_modified and (patch := buffer.dirty_range()) is not None:
        offset, size = patch
        result = bytearray(base)
        result.extend(bytes(max(0, offset - len(result))))
        result[offset : offset + size] = b"".join(buffer.iter_chunks(offset, size))
        assert bytes(result) == bytes(model)
    if not buffer.is_modified:
        assert bytes(model) == base


@given(st.binary(max_size=30), steps, st.integers(0, 12))
def test_edits_over_what_some_of_them_made(base: bytes, todo: list[tuple[str, int, bytes]], made: int) -> None:
    """The edits give the same content over a base in which the first of them were made."""
    buffer, model = apply_steps(base, todo)
    _, halfway = apply_steps(base, todo[:made])
    moved = buffer.rebase(len(halfway), lambda offset, size: bytes(halfway[offset : offset + size]))
    assert b"".join(moved.iter_chunks()) == bytes(model)
    assert moved.size == len(model)


def test_far_writes_do_not_allocate_the_gap() -> None:
    """A write at 400 MiB costs its own bytes, not the gap before it."""
    buffer = WriteBuffer(0, lambda _offset, _size: b"")
    buffer.write(400 * 1024 * 1024, b"end")
    assert buffer._written_file._rolled
    assert buffer.read(400 * 1024 * 1024 - 2, 10) == b"\0\0end"
    assert write_buffer.SPOOL_THRESHOLD_BYTES < 400 * 1024 * 1024
    buffer.close()
