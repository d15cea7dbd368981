"""What is kept of files that are read without being opened."""

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
    """Contents by path, what was invalidated, and what the kernel holds."""

    def __init__(self) -> None:
        self.contents: dict[bytes, bytes] = {}
        self.versions: dict[bytes, int] = {}
        self.pushed: list[bytes] = []
        self.trust = math.inf
        self.outdated = 0
        self.recent = False
        self.sure = False
        self.believed: int | None = None
        self.forgotten: set[int] = set()
        self.change_while_loading = False
        self.stored: list[tuple[int, bytes]] = []
        self.files = InodeContentCache(self)

    def load_cached_content(self, path: bytes) -> PinnedContent | None:  # noqa: ARG002 - the protocol's
        return None

    def content_version(self, key: bytes) -> int:
        return self.versions.get(key, 0)

    def is_recently_changed(self, key: bytes) -> bool:  # noqa: ARG002 - the protocol's
        return self.recent

    def max_age(self) -> float:
        return self.trust

    def kernel_size(self, path: bytes, node_id: int) -> int | None:  # noqa: ARG002 - the protocol's
        return self.believed

    def notify_store(self, offset: int, data: bytes) -> None:
        self.stored.append((offset, data))

    def is_inode_cached(self, node_id: int) -> bool:
        return node_id not in self.forgotten

    def load_content(self, path: bytes, expected_size: int | None) -> PinnedContent:  # noqa: ARG002
        content = self.contents[path]
        if path.startswith(b"/stream"):
            pieces = [content[at : at + 1000] for at in range(0, len(content), 1000)]
            return PinnedContent(StreamedContent(pieces), path, 0, 0, is_streamed=True)
        pinned = PinnedContent(InlineContent(content), path, 0, self.versions.get(path, 0))
        if self.change_while_loading:
            self.versions[path] = 7
        return pinned

    def invalidate_paths(self, paths: Collection[bytes]) -> None:
        self.pushed += paths

    def invalidate_size(self) -> None:
        self.outdated += 1

    def read(
        self, node: bytes, size: int = 1 << 20, offset: int = 0, told: int | None = None, number: int = 0
    ) -> bytes:
        return self.files.read(node, number or hash(node), size, offset, told, self.sure, self)


@pytest.fixture
def source() -> Source:
    return Source()


def test_a_retired_node_goes_on_and_the_path_begins_anew(source: Source) -> None:
    """Each retirement keeps what was read; whoever had not read begins with what is there."""
    source.contents[b"/k"] = b"one"
    assert source.read(b"/k", 1) == b"o"
    source.contents[b"/k"] = b"two"
    assert source.read(b"/k", 2, 1) == b"ne"
    source.files.detach(b"/k", b"/k//1")
    assert source.read(b"/k//1", 2, 1) == b"ne"
    source.files.detach(b"/k", b"/k//2")  # nobody had read the new one
    source.contents[b"/k"] = b"three"
    assert source.read(b"/k//2") == b"three"
    assert source.read(b"/k") == b"three"


def test_what_is_crowded_out_is_begun_anew_or_an_error(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that stands is simply read again; of one that has changed, the rest can't be had any more."""
    monkeypatch.setattr(inode_content, "MAX_INLINE_NODES", 2)
    for name in (b"/a", b"/b", b"/c", b"/d"):
        source.contents[name] = name * 10
    assert source.read(b"/a", 5) == b"/a/a/"
    source.files.detach(b"/a", b"/a//1")
    assert source.read(b"/b") == b"/b" * 10
    assert source.read(b"/c") == b"/c" * 10
    assert source.read(b"/d") == b"/d" * 10
    with pytest.raises(ConflictError):
        source.read(b"/a//1", 5, 5)
    assert source.read(b"/b", 5, 5) == b"b/b/b"
    source.files.detach(b"/c", b"/c//2")  # crowded out before it was retired
    with pytest.raises(ConflictError):
        source.read(b"/c//2", 5, 5)


def test_more_is_read_than_can_be_remembered(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then what was retired counts as read: an error, never a mixture."""
    monkeypatch.setattr(inode_content, "MAX_REMEMBERED_NODES", 5)
    monkeypatch.setattr(inode_content, "MAX_INLINE_NODES", 2)
    names = [b"/%d" % number for number in range(12)]
    for number, name in enumerate(names):
        source.contents[name] = name
        assert source.read(name) == name
        source.files.detach(name, name + b"//%d" % (number + 1))
    for number, name in enumerate(names[:8]):
        with pytest.raises(ConflictError):
            source.read(name + b"//%d" % (number + 1))


def test_lengths(source: Source) -> None:
    """Longer than the kernel believes: it is made to ask again; shorter: an error."""
    source.contents[b"/k"] = b"12345"
    assert source.read(b"/k", told=5) == b"12345"
    assert source.outdated == 0
    assert source.read(b"/k", told=3) == b"12345"
    assert source.outdated == 1
    with pytest.raises(ConflictError):
        source.read(b"/k", told=9)
    assert source.files.read_cached(b"/k", 1, 100, 0, 9, True) is None
    assert source.files.read_cached(b"/k", 1, 100, 0, 5, True) == b"12345"


def test_what_has_just_changed_is_as_long_as_the_kernel_says_itself(source: Source) -> None:
    """What it was told last is not enough; if it can't be asked, an error."""
    source.recent = True
    for believed, fits in ((5, True), (3, True), (9, False), (None, False)):
        name = b"/%d" % (believed or 0)
        source.contents[name] = b"12345"
        source.believed = believed
        if fits:
            assert source.read(name, told=5) == b"12345"
            source.believed = None
            assert source.read(name, told=5) == b"12345"  # it is asked once
        else:
            with pytest.raises(ConflictError):
                source.read(name, told=5)
    assert source.outdated == 1
    source.contents[b"/same"], source.sure = b"12345", True  # it was never told another
    assert source.read(b"/same", told=5) == b"12345"


def test_between_a_change_and_the_kernels_knowing(source: Source) -> None:
    """Until it is retired a node is described as it was read; if nobody comes to do it, that ends."""
    source.contents[b"/k"] = b"old"
    source.read(b"/k")
    assert not source.files.has_stale_content(b"/k")
    source.contents[b"/k"] = b"newer"
    source.files.mark_keys_stale([b"/k", b"/other"])
    seen = source.files.get_pinned(b"/k")
    assert seen is not None
    assert seen.content.size == 3
    assert source.files.has_stale_content(b"/k")
    assert source.read(b"/k") == b"old"
    wait_until(lambda: source.files.get_pinned(b"/k") is None)
    assert source.read(b"/k") == b"newer"
    assert not source.files.has_stale_content(b"/k")


def test_what_changed_while_it_was_fetched_is_pushed_again(source: Source) -> None:
    """The kernel may have been told before the first read had found anything."""
    source.contents[b"/k"] = b"x"
    source.change_while_loading = True
    assert source.read(b"/k") == b"x"
    assert source.pushed == [b"k"]


def test_where_nobody_tells_of_changes_the_kernel_soon_looks_again(source: Source) -> None:
    """After the trust of the moment, all that was read meanwhile."""
    source.trust = 0.1
    source.contents.update({b"/a": b"1", b"/b": b"2"})
    source.read(b"/a")
    source.read(b"/b")
    assert source.pushed == []
    wait_until(lambda: sorted(source.pushed) == [b"a", b"b"])
    source.files.close()


def test_what_has_no_length_grows_in_order(source: Source) -> None:
    """By chunks as it is read, to its end if that is asked for; each byte is given to the kernel once."""
    source.contents[b"/stream"] = bytes(range(256)) * 2000
    found = source.files.get_or_load(b"/stream", 9)
    assert source.pushed == [b"stream"]
    readers = [threading.Thread(target=source.files.stream_more, args=(found, source)) for _ in "ab"]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [offset for offset, _ in source.stored] == [0, inode_content.STREAM_CHUNK_BYTES]
    source.files.detach(b"/stream", b"/stream//1")
    assert source.files.get_pinned(b"/stream//1") is found
    source.files.stream_more(found, source, until_end=True)
    assert b"".join(data for _, data in source.stored) == source.contents[b"/stream"]
    assert found.streamed_bytes == len(source.contents[b"/stream"])
    source.files.close()


def test_forgetting(source: Source) -> None:
    """What the kernel has let go is let go here; not if it still knows the node."""
    source.contents[b"/k"] = b"one"
    source.read(b"/k", number=5)
    source.files.detach(b"/k", b"/k//1")
    source.files.drop_forgotten([5, 6], source)
    assert source.files.get_pinned(b"/k//1") is not None
    source.forgotten = {5, 6}
    source.files.drop_forgotten([5, 6], source)
    assert source.files.get_pinned(b"/k//1") is None
    assert not source.files.list_read_paths()
