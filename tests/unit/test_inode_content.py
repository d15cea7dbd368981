"""Contents pinned for readers of files that are not opened."""

import math
import threading
from collections.abc import Collection

import pytest

from redisfuse.errors import ConflictError
from redisfuse.vfs import inode_content
from redisfuse.vfs.content_types import InlineContent, StreamedContent
from redisfuse.vfs.inode_content import InodeContentCache, PinnedContent
from tests.support.mounts import wait_until


class Source:
    """A source of contents by path, and the kernel: records what is invalidated and stored."""

    def __init__(self) -> None:
        self.contents: dict[bytes, bytes] = {}
        self.versions: dict[bytes, int] = {}
        self.invalidated_paths: list[bytes] = []
        self.max_age_seconds = math.inf
        self.size_invalidations = 0
        self.recently_changed = False
        self.size_is_exact = False
        self.cached_size: int | None = None
        self.forgotten_ids: set[int] = set()
        self.change_while_loading = False
        self.stored: list[tuple[int, bytes]] = []
        self.cache = InodeContentCache(self)

    def load_cached_content(self, path: bytes) -> PinnedContent | None:  # noqa: ARG002 - the protocol's
        return None

    def content_version(self, key: bytes) -> int:
        return self.versions.get(key, 0)

    def is_recently_changed(self, key: bytes) -> bool:  # noqa: ARG002 - the protocol's
        return self.recently_changed

    def max_age(self) -> float:
        return self.max_age_seconds

    def kernel_size(self, path: bytes, node_id: int) -> int | None:  # noqa: ARG002 - the protocol's
        return self.cached_size

    def notify_store(self, offset: int, data: bytes) -> None:
        self.stored.append((offset, data))

    def is_inode_cached(self, node_id: int) -> bool:
        return node_id not in self.forgotten_ids

    def load_content(self, path: bytes, expected_size: int | None) -> PinnedContent:  # noqa: ARG002
        content = self.contents[path]
        if path.startswith(b"/stream"):
            chunks = [content[start : start + 1000] for start in range(0, len(content), 1000)]
            return PinnedContent(StreamedContent(chunks), path, 0, 0, is_streamed=True)
        pinned = PinnedContent(InlineContent(content), path, 0, self.versions.get(path, 0))
        if self.change_while_loading:
            self.versions[path] = 7
        return pinned

    def invalidate_paths(self, paths: Collection[bytes]) -> None:
        self.invalidated_paths += paths

    def invalidate_size(self) -> None:
        self.size_invalidations += 1

    def read(
        self, node: bytes, size: int = 1 << 20, offset: int = 0, kernel_size: int | None = None, node_id: int = 0
    ) -> bytes:
        return self.cache.read(node, node_id or hash(node), size, offset, kernel_size, self.size_is_exact, self)


@pytest.fixture
def source() -> Source:
    return Source()


def test_a_detached_node_keeps_its_content(source: Source) -> None:
    """A detached node that was read keeps its content; a node that was not read yet loads the current one."""
    source.contents[b"/k"] = b"one"
    assert source.read(b"/k", 1) == b"o"
    source.contents[b"/k"] = b"two"
    assert source.read(b"/k", 2, 1) == b"ne"
    source.cache.detach(b"/k", b"/k//1")
    assert source.read(b"/k//1", 2, 1) == b"ne"
    source.cache.detach(b"/k", b"/k//2")  # the new node was not read
    source.contents[b"/k"] = b"three"
    assert source.read(b"/k//2") == b"three"
    assert source.read(b"/k") == b"three"


def test_evicted_content_is_loaded_again_or_an_error(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evicted content of a current node is loaded again; that of a detached node is lost: an error."""
    monkeypatch.setattr(inode_content, "MAX_INLINE_NODES", 2)
    for name in (b"/a", b"/b", b"/c", b"/d"):
        source.contents[name] = name * 10
    assert source.read(b"/a", 5) == b"/a/a/"
    source.cache.detach(b"/a", b"/a//1")
    assert source.read(b"/b") == b"/b" * 10
    assert source.read(b"/c") == b"/c" * 10
    assert source.read(b"/d") == b"/d" * 10
    with pytest.raises(ConflictError):
        source.read(b"/a//1", 5, 5)
    assert source.read(b"/b", 5, 5) == b"b/b/b"
    source.cache.detach(b"/c", b"/c//2")  # evicted before it was detached
    with pytest.raises(ConflictError):
        source.read(b"/c//2", 5, 5)


def test_more_nodes_are_read_than_can_be_remembered(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then every detached node counts as read: an error, never a mixture."""
    monkeypatch.setattr(inode_content, "MAX_REMEMBERED_NODES", 5)
    monkeypatch.setattr(inode_content, "MAX_INLINE_NODES", 2)
    names = [b"/%d" % number for number in range(12)]
    for number, name in enumerate(names):
        source.contents[name] = name
        assert source.read(name) == name
        source.cache.detach(name, name + b"//%d" % (number + 1))
    for number, name in enumerate(names[:8]):
        with pytest.raises(ConflictError):
            source.read(name + b"//%d" % (number + 1))


def test_sizes_that_differ_from_the_kernels(source: Source) -> None:
    """A longer content makes the kernel fetch the size again; a shorter one is an error."""
    source.contents[b"/k"] = b"12345"
    assert source.read(b"/k", kernel_size=5) == b"12345"
    assert source.size_invalidations == 0
    assert source.read(b"/k", kernel_size=3) == b"12345"
    assert source.size_invalidations == 1
    with pytest.raises(ConflictError):
        source.read(b"/k", kernel_size=9)
    assert source.cache.read_cached(b"/k", 1, 100, 0, 9, True) is None
    assert source.cache.read_cached(b"/k", 1, 100, 0, 5, True) == b"12345"


def test_the_kernels_size_is_queried_after_a_recent_change(source: Source) -> None:
    """The size last reported to the kernel is not enough; if the kernel's can't be found, it is an error."""
    source.recently_changed = True
    for cached_size, fits in ((5, True), (3, True), (9, False), (None, False)):
        name = b"/%d" % (cached_size or 0)
        source.contents[name] = b"12345"
        source.cached_size = cached_size
        if fits:
            assert source.read(name, kernel_size=5) == b"12345"
            source.cached_size = None
            assert source.read(name, kernel_size=5) == b"12345"  # the kernel is queried once
        else:
            with pytest.raises(ConflictError):
                source.read(name, kernel_size=5)
    assert source.size_invalidations == 1
    source.contents[b"/same"], source.size_is_exact = b"12345", True  # no other size was ever reported
    assert source.read(b"/same", kernel_size=5) == b"12345"


def test_a_stale_node_keeps_its_attributes_until_it_is_detached(source: Source) -> None:
    """A stale node has the size that was read; if it is never detached, that ends after a while."""
    source.contents[b"/k"] = b"old"
    source.read(b"/k")
    assert not source.cache.has_stale_content(b"/k")
    source.contents[b"/k"] = b"newer"
    source.cache.mark_keys_stale([b"/k", b"/other"])
    pinned = source.cache.get_pinned(b"/k")
    assert pinned is not None
    assert pinned.content.size == 3
    assert source.cache.has_stale_content(b"/k")
    assert source.read(b"/k") == b"old"
    wait_until(lambda: source.cache.get_pinned(b"/k") is None)
    assert source.read(b"/k") == b"newer"
    assert not source.cache.has_stale_content(b"/k")


def test_a_change_while_loading_is_invalidated_again(source: Source) -> None:
    """The kernel may have processed the invalidation before the first read pinned the content."""
    source.contents[b"/k"] = b"x"
    source.change_while_loading = True
    assert source.read(b"/k") == b"x"
    assert source.invalidated_paths == [b"k"]


def test_contents_are_revalidated_while_changes_are_not_announced(source: Source) -> None:
    """After the maximum age, all paths read meanwhile are invalidated."""
    source.max_age_seconds = 0.1
    source.contents.update({b"/a": b"1", b"/b": b"2"})
    source.read(b"/a")
    source.read(b"/b")
    assert source.invalidated_paths == []
    wait_until(lambda: sorted(source.invalidated_paths) == [b"a", b"b"])
    source.cache.close()


def test_a_stream_grows_in_order(source: Source) -> None:
    """A stream grows by chunks, or to its end on request; each byte is stored in the kernel once."""
    source.contents[b"/stream"] = bytes(range(256)) * 2000
    pinned = source.cache.get_or_load(b"/stream", 9)
    assert source.invalidated_paths == [b"stream"]
    readers = [threading.Thread(target=source.cache.stream_more, args=(pinned, source)) for _ in "ab"]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [offset for offset, _ in source.stored] == [0, inode_content.STREAM_CHUNK_BYTES]
    source.cache.detach(b"/stream", b"/stream//1")
    assert source.cache.get_pinned(b"/stream//1") is pinned
    source.cache.stream_more(pinned, source, until_end=True)
    assert b"".join(data for _, data in source.stored) == source.contents[b"/stream"]
    assert pinned.streamed_bytes == len(source.contents[b"/stream"])
    source.cache.close()


def test_forgotten_inodes_are_dropped(source: Source) -> None:
    """The content of a forgotten inode is dropped, unless the kernel still has the inode."""
    source.contents[b"/k"] = b"one"
    source.read(b"/k", node_id=5)
    source.cache.detach(b"/k", b"/k//1")
    source.cache.drop_forgotten([5, 6], source)
    assert source.cache.get_pinned(b"/k//1") is not None
    source.forgotten_ids = {5, 6}
    source.cache.drop_forgotten([5, 6], source)
    assert source.cache.get_pinned(b"/k//1") is None
    assert not source.cache.list_read_paths()
