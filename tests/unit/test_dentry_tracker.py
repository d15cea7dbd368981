"""vfs/dentry_tracker.py: a reply is cached only if no tracked name was invalidated meanwhile."""

import pytest

from redisfuse.keyspace.index import Index
from redisfuse.paths.grammar import KeyRef, PathCodec
from redisfuse.vfs.dentry_tracker import DentryTracker
from redisfuse.vfs.nodes import KeyNode


class Keyspace:
    """The index and the times of a keyspace."""

    def __init__(self) -> None:
        self.index = Index(PathCodec(b":"))
        self.time = 1

    def changed_at(self, _prefix: bytes) -> int:
        return self.time


class Kernel:
    """Records which paths are invalidated."""

    def __init__(self) -> None:
        self.paths: set[bytes] = set()
        self.resets = 0

    def invalidate(self, paths: set[bytes], **_options: bool) -> None:
        self.paths |= paths

    def invalidate_all(self) -> None:
        self.resets += 1


@pytest.fixture
def keyspace() -> Keyspace:
    return Keyspace()


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def tracker(keyspace: Keyspace, kernel: Kernel) -> DentryTracker:
    return DentryTracker(PathCodec(b":"), keyspace, kernel)  # type: ignore[arg-type]


def listed(key: bytes) -> KeyNode:
    return KeyNode(KeyRef(key), b"string", 1, None, 1, 1)


@pytest.mark.parametrize(
    ("path", "key"),
    [(b"d/k", b"d:k"), (b"d", b"d:k"), (b"d/h.f", b"d:h"), (b"d/" + b"M" * 250 + b"%+", b"d:" + b"M" * 300)],
)
def test_a_change_during_a_look_up(tracker: DentryTracker, keyspace: Keyspace, path: bytes, key: bytes) -> None:
    """A look-up that began before a change is not current, also if the name is tracked again meanwhile."""
    token = tracker.track_path(path)
    assert tracker.is_current(token)
    keyspace.index.add(key)
    tracker.invalidate_keys([key])
    tracker.track_path(path)
    tracker.track_path(b"d/" + b"N" * 250 + b"%+")
    assert not tracker.is_current(token)


def test_changes_of_other_keys(tracker: DentryTracker, keyspace: Keyspace) -> None:
    """A change of a key that is not tracked does not concern a look-up."""
    keyspace.index.add(b"d:k")
    token = tracker.track_path(b"d/k")
    keyspace.index.add(b"e:other")
    tracker.invalidate_keys([b"e:other"])
    assert tracker.is_current(token)


def test_listed_names_that_lead_elsewhere(tracker: DentryTracker, keyspace: Keyspace, kernel: Kernel) -> None:
    """A name that leads to a directory or may lead to a field by now is not cached, and a later change is noticed."""
    for key in (b"d:a", b"d:b", b"d:h.f", b"d:h.g", b"d:i.f"):
        keyspace.index.add(key)
    nodes = [listed(key) for key in (b"d:a", b"d:b", b"d:h.f", b"d:h.g", b"d:i.f")]
    assert tracker.track_listed(nodes) == [True] * 5
    keyspace.index.add_many([b"d:a:below", b"d:h"])
    keyspace.time += 1
    assert tracker.track_listed(nodes) == [False, True, False, False, True]
    assert not kernel.paths
    tracker.invalidate_keys([b"d:a:below"])
    assert b"d/a" in kernel.paths
    assert not kernel.resets
    tracker.invalidate_keys([b"d:h"])
    assert kernel.resets == 1
