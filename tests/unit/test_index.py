"""The index, in both of its forms, compared with a plain set of keys."""

import hashlib
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from redisfuse.errors import NotFoundError
from redisfuse.keyspace.index import Child, Index
from redisfuse.paths.grammar import PathCodec
from tests.support.examples import count_examples

BOTH = pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])


MAX_KEY_BYTES = 600


def is_long(key: bytes) -> bool:
    """Return whether a key is too long for `ShortLayout`."""
    return len(key) > MAX_KEY_BYTES


class ShortLayout(PathCodec):
    """A layout in which keys of more than 600 bytes need a digest."""

    def key_needs_digest(self, key: bytes) -> bool:
        return is_long(key)


class UnlimitedLayout(PathCodec):
    """A layout in which no key needs a digest."""

    def key_needs_digest(self, key: bytes) -> bool:  # noqa: ARG002  # the parameter is PathCodec's
        return False


class Model:
    """The expected results of an index, from a plain set."""

    def __init__(self, separator: bytes) -> None:
        self.separator = separator
        self.keys: set[bytes] = set()

    def short(self) -> list[bytes]:
        return [key for key in self.keys if not is_long(key)]

    def children(self, directory: tuple[bytes, ...]) -> set[Child]:
        kinds: dict[bytes, list[bool]] = {}
        for key in self.short():
            components = tuple(key.split(self.separator))
            if len(components) > len(directory) and components[: len(directory)] == directory:
                kind = kinds.setdefault(components[len(directory)], [False, False])
                kind[len(components) > len(directory) + 1] = True
        return {Child(name, *kind) for name, kind in kinds.items()}

    def directories(self) -> set[tuple[bytes, ...]]:
        found: set[tuple[bytes, ...]] = {()}
        for key in self.short():
            components = tuple(key.split(self.separator))
            found.update(components[:depth] for depth in range(1, len(components)))
        return found


def check(index: Index, model: Model, probes: list[bytes]) -> None:
    """Compare all queries."""
    assert len(index) == len(model.keys)
    below = list(index.iter_keys_below(()))
    assert sorted(below) == sorted(model.short())
    assert sorted(index.iter_long_keys()) == sorted(key for key in model.keys if is_long(key))
    directories = model.directories()
    for key in probes:
        assert (key in index) == (key in model.keys)
        components = tuple(key.split(model.separator))
        for depth in range(len(components) + 1):
            directory = components[:depth]
            assert index.is_directory(directory) == (directory in directories)
            if depth:
                expected = {child.component: child for child in model.children(directory[:-1])}
                assert index.get_child(directory[:-1], directory[-1]) == expected.get(directory[-1])
        if is_long(key):
            digest = hashlib.sha256(key).hexdigest()
            assert index.get_long_key(digest) == (key if key in model.keys else None)
    for directory in directories:
        listed = list(index.iter_children(directory))
        assert len(listed) == len(set(listed))
        assert set(listed) == model.children(directory)
        start = model.separator.join([*directory, b""]) if directory else b""
        expected_below = [
            key
            for key in model.short()
            if tuple(key.split(model.separator))[: len(directory)] == directory
            and len(key.split(model.separator)) > len(directory)
        ]
        assert sorted(index.iter_keys_below(directory)) == sorted(expected_below)
        assert all(key.startswith(start) for key in expected_below)


class Machine(RuleBasedStateMachine):
    """Random keys are added and removed in both forms; after every step they equal the set."""

    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.probes: list[bytes] = []

    @initialize(separator=st.sampled_from([b":", b"::", b"/", b"\x00", b"\x01", b"aa"]))
    def start(self, separator: bytes) -> None:
        self.model = Model(separator)
        layout = ShortLayout(separator)
        self.indexes = [Index(layout), Index(layout, on_disk=True), Index(layout)]

    @rule(
        target=keys,
        components=st.lists(
            st.one_of(
                st.sampled_from([b"", b"a", b"b", b"a!", b"\x00", b"\x01", b"\x01\x02", b"\xff", b"aa", b":"]),
                st.binary(max_size=4),
                st.integers(1, 300).map(lambda size: b"x" * size),
            ),
            max_size=6,
        ),
    )
    def key(self, components: list[bytes]) -> bytes:
        key = self.model.separator.join(components)
        self.probes.append(key)
        return key

    @rule(target=keys, key=keys, more=st.sampled_from([b"", b"a", b"b", b"c" * 200]))
    def deeper(self, key: bytes, more: bytes) -> bytes:
        key = key + self.model.separator + more
        self.probes.append(key)
        return key

    @rule(key=keys)
    def add(self, key: bytes) -> None:
        expected = key not in self.model.keys
        self.model.keys.add(key)
        for index in self.indexes:
            assert index.add(key) == expected

    @rule(key=keys, count=st.integers(1, 60))
    def add_row(self, key: bytes, count: int) -> None:
        row = [key + self.model.separator + b"%d" % number for number in range(count)]
        new = len(set(row) - self.model.keys)
        self.model.keys.update(row)
        self.probes += row[:1]
        for index in self.indexes:
            assert index.add_many(row) == new

    @rule(key=keys)
    def discard(self, key: bytes) -> None:
        expected = key in self.model.keys
        self.model.keys.discard(key)
        for index in self.indexes:
            assert index.discard(key) == expected

    @rule(data=st.data())
    def discard_one_of_many(self, data: st.DataObject) -> None:
        if self.model.keys:
            self.discard(data.draw(st.sampled_from(sorted(self.model.keys))))

    @rule()
    def move(self) -> None:
        self.indexes[2].spill_to_disk()

    @invariant()
    def same(self) -> None:
        if hasattr(self, "model"):
            for index in self.indexes:
                check(index, self.model, self.probes[-12:])

    def teardown(self) -> None:
        if hasattr(self, "model"):
            for index in self.indexes:
                for key in list(self.model.keys):
                    assert index.discard(key)
                assert list(index.iter_children(())) == []
                assert index.memory_bytes == 0 or index.on_disk


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=count_examples(40), stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@BOTH
@settings(max_examples=count_examples(60), deadline=None)
@given(keys=st.sets(st.lists(st.sampled_from([b"a", b"b", b"", b"a!"]), min_size=1, max_size=4).map(b":".join)))
def test_a_set_of_keys(on_disk: bool, keys: set[bytes]) -> None:
    """For any set of keys, every key is below exactly the directories in its name."""
    index = Index(on_disk=on_disk)
    index.add_many(sorted(keys))
    model = Model(b":")
    model.keys = set(keys)
    check(index, model, sorted(keys))


@BOTH
def test_a_key_beside_a_directory(on_disk: bool) -> None:
    """A key and a directory can have one name, and each can be removed without the other."""
    index = Index(on_disk=on_disk)
    index.add_many([b"user", b"user:1"])
    assert list(index.iter_children(())) == [Child(b"user", True, True)]
    assert index.discard(b"user")
    assert list(index.iter_children(())) == [Child(b"user", False, True)]
    index.add(b"user")
    assert index.discard(b"user:1")
    assert list(index.iter_children(())) == [Child(b"user", True, False)]
    with pytest.raises(NotFoundError):
        index.iter_children((b"user",))


@BOTH
def test_a_present_key_is_not_new(on_disk: bool) -> None:
    """A key is counted once, also after the key with the name of its directory was removed."""
    index = Index(on_disk=on_disk)
    for _ in range(2):
        index.add_many([b":0"])
    index.add(b"")
    index.discard(b"")
    memory = index.memory_bytes
    assert index.add_many([b":0"]) == 0
    assert len(index) == 1
    assert index.memory_bytes == memory


@BOTH
def test_very_deep_keys(on_disk: bool) -> None:
    """A key of thousands of components is listed, found and removed, regardless of Python's recursion limit."""
    index = Index(UnlimitedLayout(), on_disk=on_disk)
    keys = [b":" * 2500, b":" * 2500 + b"x", b"a:" * 2000 + b"z"]
    assert index.add_many(keys) == 3
    assert sorted(index.iter_keys_below(())) == sorted(keys)
    assert index.get_child((b"a",) * 2000, b"z") == Child(b"z", True, False)
    assert all(index.discard(key) for key in keys)
    assert list(index.iter_children(())) == []


@pytest.mark.parametrize("separator", [b":", b"::"])
def test_large_directories_are_filled_and_emptied(separator: bytes) -> None:
    """Large directories are filled in batches, emptied and filled again; a name may be a directory, too."""
    index = Index(PathCodec(separator=separator))
    empty_bytes = index.memory_bytes
    big = [separator.join([b"a", b"big", b"%d" % number]) for number in range(3000)]
    deep = [separator.join([key, b"below", b"x"]) for key in big[:500]]
    odd = [separator.join(parts) for parts in ([b"a", b"big", b""], [b"a", b"big", b"", b""], [b"", b"", b"1"], [b"a"])]
    large = [separator.join([b"large", b"%d" % number]) for number in range(1500)]
    mixed = [key for pair in zip(big, large, strict=False) for key in pair]
    for _ in range(2):
        for keys in (big[:1000], deep, big[500:2500], large[:1000], mixed + mixed[:500], odd, big[2000:], big):
            before = set(index.iter_keys_below(()))
            assert index.add_many(keys) == len(set(keys) - before)
            assert set(index.iter_keys_below(())) == before | set(keys)
        assert len(index) == len(big) + len(deep) + len(large) + len(odd)
        assert index.get_child((b"a", b"big"), b"7") == Child(b"7", True, True)
        for key in [*big, *deep, *large, *odd]:
            assert index.discard(key)
        assert len(index) == 0
        assert not index.is_directory((b"a",))
    assert abs(index.memory_bytes - empty_bytes) < 20_000


@BOTH
def test_a_large_directory_streams(on_disk: bool) -> None:
    """A directory of 200 000 children lists each once, and holds no lock during the iteration."""
    index = Index(on_disk=on_disk)
    index.add_many([b"big:%d" % number for number in range(200_000)])
    index.add_many([b"big:%d:below" % number for number in range(0, 200_000, 100)])
    listing = index.iter_children((b"big",))
    first = next(listing)
    index.discard(b"big:199999")
    index.add(b"other")
    names = [first, *listing]
    assert len(names) == len({child.component for child in names}) >= 199_999
    assert sum(child.is_directory for child in names) == 2000


def test_changes_while_it_moves_to_disk() -> None:
    """Nothing that is added, removed or read while the index moves to disk is lost or wrong."""
    index = Index(max_memory_bytes=1)
    keys = [b"k:%d:%d" % (number % 50, number) for number in range(60_000)]
    index.add_many(keys)
    assert index.is_full
    mover = threading.Thread(target=index.spill_to_disk)
    mover.start()
    expected = set(keys)
    number = 0
    deadline = time.monotonic() + 30
    while mover.is_alive() or number < 1000:
        assert time.monotonic() < deadline, "the move does not end while keys change"
        index.add(b"new:%d" % number)
        expected.add(b"new:%d" % number)
        index.discard(keys[number % 60_000])
        expected.discard(keys[number % 60_000])
        assert b"new:%d" % number in index
        number += 1
    mover.join(30)
    assert index.on_disk
    assert not index.is_full
    assert set(index.iter_keys_below(())) == expected
    assert len(index) == len(expected)


def test_changes_from_many_threads() -> None:
    """Threads that add, remove and list concurrently leave a correct index."""
    index = Index()
    stop = time.monotonic() + 1.0
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                while time.monotonic() < stop:
                    work()
            except BaseException as error:
                failures.append(error)

        return run

    def churn(name: bytes) -> Callable[[], None]:
        def work() -> None:
            keys = [b"d:%s:%d" % (name, number) for number in range(50)]
            assert index.add_many(keys) == 50
            assert all(index.discard(key) for key in keys)

        return work

    def read() -> None:
        list(index.iter_children(()))
        list(index.iter_keys_below(()))
        index.get_child((b"d",), b"one")

    threads = [threading.Thread(target=guarded(work)) for work in (churn(b"one"), churn(b"two"), read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert failures == []
    assert len(index) == 0


def test_memory_is_counted() -> None:
    """The memory estimate is within a factor of two of a key's real cost."""
    index = Index()
    index.add_many([b"session:%018d" % number for number in range(100_000)])
    assert 80 <= index.memory_bytes / 100_000 <= 160
