"""The inode table: lookup counts, names, versions, and memory."""

from __future__ import annotations

import math
import random
import threading
import time
import tracemalloc

import pytest

from redisfuse.errors import ConflictError
from redisfuse.vfs import inodes as inodes_module
from redisfuse.vfs.inodes import Inode, InodeTable


@pytest.fixture
def table() -> InodeTable:
    return InodeTable()


def add(table: InodeTable, path: bytes, *, is_directory: bool = False) -> Inode:
    """Look up a path, and its directories."""
    *directories, name = path.split(b"/")
    parent = table.root
    for directory in directories:
        parent = table.look_up(parent, directory, is_directory=True)
    return table.look_up(parent, name, is_directory=is_directory)


def test_an_inode_lives_until_all_its_lookups_are_forgotten(table: InodeTable) -> None:
    """Each lookup adds 1; a FORGET of fewer keeps the inode, the last one frees it, and its id is never reused."""
    inode = add(table, b"f")
    assert add(table, b"f") is inode
    assert table.forget([(inode.node_id, 1)]) == []
    assert table.get(inode.node_id) is inode
    assert table.forget([(inode.node_id, 1)]) == [inode]
    with pytest.raises(ConflictError):
        table.get(inode.node_id)
    assert table.find(b"f") is None
    assert add(table, b"f").node_id > inode.node_id
    assert table.forget([(99_999, 1), (table.root.node_id, 10**6)]) == []  # unknown; the root is never forgotten
    assert table.get(table.root.node_id) is table.root


def test_a_rename_moves_all_below(table: InodeTable) -> None:
    """Paths follow the directory; the inode that had the name is detached and keeps its node id."""
    file, replaced = add(table, b"a/b/f"), add(table, b"x", is_directory=True)
    assert file.path == b"a/b/f"
    directory = table.find(b"a/b")
    assert directory is not None
    assert directory.parent is not None
    assert table.rename(directory.parent, b"b", table.root, b"x") is directory
    assert file.path == b"x/f"
    assert table.find(b"x/f") is file
    assert table.find(b"a/b") is None
    assert replaced.is_detached
    assert table.get(replaced.node_id) is replaced
    table.rename(table.root, b"x", table.root, b"x")
    assert table.find(b"x/f") is file


def test_a_detached_inode_does_not_take_the_name_of_its_successor(table: InodeTable) -> None:
    """After an unlink the name is free; the FORGET of the old inode leaves the new one alone."""
    old = add(table, b"f")
    assert table.detach(table.root, b"f") is old
    new = add(table, b"f")
    assert new is not old
    assert table.forget([(old.node_id, 1)]) == [old]
    assert table.find(b"f") is new


def test_a_read_file_that_changed_is_a_new_inode(table: InodeTable) -> None:
    """Without a read, a change keeps the inode; after a read of one version, another version is another inode."""
    first = table.look_up(table.root, b"f", is_directory=False, version=1)
    assert table.look_up(table.root, b"f", is_directory=False, version=2) is first
    first.version = 2
    assert table.look_up(table.root, b"f", is_directory=False, version=2) is first
    second = table.look_up(table.root, b"f", is_directory=False, version=3)
    assert second is not first
    assert table.find(b"f") is second
    assert first.path == second.path == b"f"
    second.version, second.valid_until = 3, time.monotonic() - 1
    assert table.look_up(table.root, b"f", is_directory=False, version=3) is not second
    assert math.isinf(first.valid_until)


def test_a_file_that_became_a_directory_is_a_new_inode(table: InodeTable) -> None:
    """A name keeps its inode only while it is of the same kind."""
    file = add(table, b"n")
    assert add(table, b"n", is_directory=True) is not file


def test_absent_names_are_bounded(table: InodeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of absent names has a limit; a name that appears, or whose directory is forgotten, is not counted."""
    monkeypatch.setattr(inodes_module, "MAX_ABSENT_NAMES", 3)
    directory = add(table, b"d", is_directory=True)
    assert all(table.record_absent(directory, name) for name in (b"1", b"2", b"2"))
    assert table.record_absent(table.root, b"3")
    assert not table.record_absent(table.root, b"4")
    add(table, b"d/1")
    assert table.record_absent(table.root, b"4")
    assert sorted(table.take_absent()) == [(1, b"3"), (1, b"4"), (directory.node_id, b"2")]
    assert table.take_absent() == []
    assert table.record_absent(directory, b"5")
    table.forget([(directory.node_id, 10)])
    assert all(table.record_absent(table.root, name) for name in (b"6", b"7", b"8"))


def test_threads_keep_the_counts_exact(table: InodeTable) -> None:
    """Lookups, renames and FORGETs of four threads leave no inode once all lookups are forgotten."""
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        chance, mine = random.Random(seed), []
        try:
            for _ in range(3000):
                name = b"%d" % chance.randrange(20)
                mine.append(table.look_up(table.root, name, is_directory=False).node_id)
                if chance.random() < 0.2:
                    table.rename(table.root, name, table.root, b"%d" % chance.randrange(20))
                if chance.random() < 0.1:
                    table.detach(table.root, name)
                if len(mine) > 50:
                    table.forget([(mine.pop(chance.randrange(len(mine))), 1)])
            table.forget([(node_id, 1) for node_id in mine])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(table) == 1
    assert not table.root.children


def test_memory_of_an_inode(table: InodeTable) -> None:
    """An inode of a listed file takes at most 450 bytes, which FORGET frees."""
    count = 50_000
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        ids = [add(table, b"d/file%07d" % number).node_id for number in range(count)]
        each = (tracemalloc.get_traced_memory()[0] - before) / count
        print(f"{each:.0f} bytes an inode")
        assert each < 450
        table.forget([(node_id, 1) for node_id in ids])
        del ids
        own = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, inodes_module.__file__)])
        left = sum(trace.size for trace in own.traces)  # without what other threads of the tests allocate
        assert left / count < 120  # empty dictionaries keep their room
    finally:
        tracemalloc.stop()


def test_an_open_does_not_hide_that_another_handle_reads_an_older_version(table: InodeTable) -> None:
    """Two opens, with a change in between, leave the older version: the next look-up of the name sees the change."""
    inode = add(table, b"f")
    older, newer = object(), object()
    table.attach_handle(inode, older)  # type: ignore[arg-type]
    table.set_version(inode, 7)
    table.attach_handle(inode, newer)  # type: ignore[arg-type]
    table.set_version(inode, 8)
    assert inode.is_outdated(8)
    table.detach_handle(inode, older)  # type: ignore[arg-type]
    table.set_version(inode, 8)
    assert not inode.is_outdated(8)
    table.detach_handle(inode, newer)  # type: ignore[arg-type]
    assert inode.version == 0
