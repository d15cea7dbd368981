"""Random operations on one write mount, by programs on the mount and by other clients of the server.

After each operation, the mount, Redis and the journal equal a plain model. At the end the journal is rolled back, and
restores each earlier state in turn, up to the first, byte for byte, times to live included.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.journal.change_filter import ChangeFilter
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change
from redisfuse.transactions.key_writer import KeyWriter
from redisfuse.transactions.rollback import Rollback
from tests.support.edit_bench import select_for_rollback
from tests.support.expected_state import call_outcome
from tests.support.mounts import MountedServer
from tests.support.redis_server import RedisServer, has_field_expiry

PATIENCE = 5.0  # seconds until an operation's change is in Redis, in the journal and on the mount
HOUR = 3_600_000  # milliseconds

Directory = tuple[str, ...]
Model = dict[str, tuple[Any, int]]  # key → its value (bytes, dict or list) and its absolute expiry in ms (-1: none)

DIRECTORIES: list[Directory] = [(), ("d",), ("d", "s"), ("e",)]
LEAVES = ["a", "b", "b.x", "h.f", "h.g"]

directories = st.sampled_from(DIRECTORIES)
paths = st.tuples(directories, st.sampled_from(LEAVES))
small = st.binary(max_size=12)
data = st.one_of(small, small, small, st.builds(lambda seed: bytes([seed]) * 1_200_000, st.integers(0, 255)))
offsets = st.sampled_from([0, 1, 5, 30, 1_100_000])
hashes = st.dictionaries(st.sampled_from([b"f", b"g"]), small, min_size=1)
times = st.integers(1, 5).map(lambda hours: hours * HOUR)

numbers = count()


@dataclass(frozen=True)
class Place:
    """A key, or a field of a key, to which a path leads."""

    key: str
    field: bytes | None = None


@dataclass(frozen=True)
class Event:
    """A change of Redis: the state before it, and how to restore that state."""

    before: Model
    groups: tuple[int, ...]  # of the journal; empty for a change by another client
    restore: Callable[[], None]


class Life(RuleBasedStateMachine):
    """The operations, in a folder that only this machine uses."""

    def __init__(self, mount: MountedServer, server: RedisServer, client: redis.Redis) -> None:
        super().__init__()
        self.server = server
        self.client = client
        self.mount = mount
        self.top = f"life{next(numbers)}"
        self.root = mount.path / self.top
        self.model: Model = {}
        self.made_directories: set[Directory] = set()
        self.succeeded = False
        self.events: list[Event] = []
        with self.journal() as journal:
            self.last = max((change.id for change in journal.find_changes()), default=0)
        os.mkdir(self.root)
        self.made_directories.add(())
        self.last += 1
        self.first = self.last

    def journal(self) -> Journal:
        return Journal.open(self.mount.journal)

    # -- the model ---------------------------------------------------------------------------------------------------

    def key(self, directory: Directory, leaf: str) -> str:
        return ":".join((self.top, *directory, leaf))

    def path(self, directory: Directory, leaf: str = "") -> Path:
        return self.root.joinpath(*directory, leaf)

    def value(self, key: str) -> Any:
        return self.model[key][0] if key in self.model else None

    def find(self, directory: Directory, leaf: str) -> Place | None:
        """Return the field, or else the key, that a name leads to."""
        owner, dot, field = leaf.partition(".")
        value = self.value(self.key(directory, owner))
        if dot and isinstance(value, dict) and field.encode() in value:
            return Place(self.key(directory, owner), field.encode())
        key = self.key(directory, leaf)
        return Place(key) if key in self.model else None

    def place_of_new_file(self, directory: Directory, leaf: str) -> Place:
        """Return the key or field that a new file is (docs/names.md)."""
        owner, dot, field = leaf.partition(".")
        if dot and isinstance(self.value(self.key(directory, owner)), dict | None):
            return Place(self.key(directory, owner), field.encode())
        return Place(self.key(directory, leaf))

    def get(self, place: Place) -> Any:
        value = self.value(place.key)
        return value if place.field is None else value[place.field]

    def put(self, place: Place, value: bytes) -> None:
        """Give a place new bytes; the key keeps its expiry."""
        old, expires = self.model.get(place.key, (None, -1))
        self.model[place.key] = (value if place.field is None else {**(old or {}), place.field: value}, expires)

    def remove(self, place: Place) -> None:
        """Remove a file through the mount, which keeps its directory."""
        self.forget(place)
        self.keep(tuple(place.key.split(":")[1:-1]))

    def forget(self, place: Place) -> None:
        value, expires = self.model.pop(place.key)
        if place.field is not None and len(value) > 1:
            self.model[place.key] = ({name: data for name, data in value.items() if name != place.field}, expires)

    def keep(self, directory: Directory) -> None:
        if directory not in self.existing():
            self.made_directories.add(directory)

    def below(self, directory: Directory) -> list[str]:
        prefix = self.key(directory, "")
        return [key for key in self.model if key.startswith(prefix)]

    def existing(self) -> set[Directory]:
        """Return the directories that exist."""
        leaves = {tuple(key.split(":")[1:-1]) for key in self.model} | self.made_directories
        return {directory[:depth] for directory in leaves for depth in range(len(directory) + 1)}

    def in_use(self, directory: Directory) -> bool:
        return any(other[: len(directory)] == directory and other != directory for other in self.existing()) or bool(
            self.below(directory)
        )

    def tree(self) -> dict[str, bytes | None]:
        """Return the expected tree of the mount.

        Its values are contents of files (of a list, its rendering), and None for directories.
        """
        tree: dict[str, bytes | None] = {"/".join(directory): None for directory in self.existing() if directory}
        for key, (value, _expires) in self.model.items():
            name = "/".join(key.split(":")[1:])
            if isinstance(value, dict):
                tree |= {f"{name}.{field.decode()}": content for field, content in value.items()}
            else:
                tree[name] = value if isinstance(value, bytes) else b"".join(element + b"\n" for element in value)
        return tree

    # -- the actual state --------------------------------------------------------------------------------------------

    def stored(self) -> Model:
        stored: Model = {}
        for key in self.client.keys(f"{self.top}:*"):
            kind = self.client.type(key)
            if kind == b"string":
                value: Any = self.client.get(key)
            else:
                value = self.client.hgetall(key) if kind == b"hash" else self.client.lrange(key, 0, -1)
            stored[key.decode()] = (value, self.client.pexpiretime(key))
        return stored

    def shown(self) -> dict[str, bytes | None]:
        shown: dict[str, bytes | None] = {}
        for path in sorted(self.root.rglob("*")):
            shown[str(path.relative_to(self.root))] = None if path.is_dir() else path.read_bytes()
        return shown

    def new_rows(self) -> list[Change]:
        with self.journal() as journal:
            rows = [row for row in journal.find_changes(ChangeFilter(limit=100)) if row.id > self.last]
        return rows[::-1]

    def end(self, before: Model, groups: int, restore: Callable[[], None] = lambda: None) -> None:
        """End an operation: wait until all is as in the model and the journal has `groups` more operations."""
        wait_until_equal(self.stored, self.model)
        wait_until_equal(lambda: len({row.group_id for row in self.new_rows()}), groups)
        wait_until_equal(lambda: call_outcome(self.shown), self.tree())
        rows = self.new_rows()
        self.last = max((row.id for row in rows), default=self.last)
        self.events.append(Event(before, tuple(sorted({row.group_id for row in rows})), restore))

    def end_change(self, groups: int = 1) -> None:
        """End an operation of a program on the mount, for which the model is already changed."""
        self.end(self.before, groups)

    def begin(self) -> None:
        self.succeeded = False
        self.before = deepcopy(self.model)

    @invariant()
    def record_success(self) -> None:
        self.succeeded = True

    # -- the initial keys --------------------------------------------------------------------------------------------

    @initialize(
        strings=st.dictionaries(paths.filter(lambda path: "." not in path[1]), small, max_size=4),
        fields=st.dictionaries(
            directories, st.dictionaries(st.sampled_from([b"f", b"g"]), small, min_size=1), max_size=2
        ),
        lists=st.sets(directories, max_size=2),
        expiring=st.booleans(),
    )
    def create_keys_as_another_client(
        self,
        strings: dict[tuple[Directory, str], bytes],
        fields: dict[Directory, dict[bytes, bytes]],
        lists: set[Directory],
        expiring: bool,
    ) -> None:
        self.begin()
        for (directory, leaf), value in strings.items():
            self.client.set(self.key(directory, leaf), value)
        for directory, values in fields.items():
            self.client.hset(self.key(directory, "h"), mapping=values)
        for directory in lists:
            self.client.rpush(self.key(directory, "list"), "one", "two")
        if expiring:
            for key in self.client.keys(f"{self.top}:*"):
                self.client.pexpireat(key, int(time.time() * 1000) + HOUR)
        self.model = self.stored()
        self.before = deepcopy(self.model)
        self.initial = deepcopy(self.model)
        self.end(self.before, 0)
        self.events.clear()

    # -- operations of programs on the mount -------------------------------------------------------------------------

    def expected_to_write(self, directory: Directory, leaf: str, *, create: bool) -> str | Place:
        """Return the key or field that an open for writing leads to, or the name of its errno."""
        if directory not in self.existing():
            return "ENOENT"
        place = self.find(directory, leaf)
        if place is None:
            return self.place_of_new_file(directory, leaf) if create else "ENOENT"
        return place if isinstance(self.get(place), bytes) else "EACCES"

    def write(self, directory: Directory, leaf: str, flags: int, write: Callable[[int], Any]) -> Any:
        fd = call_outcome(os.open, self.path(directory, leaf), flags, 0o644)
        if isinstance(fd, str):
            return fd
        write(fd)
        return call_outcome(os.close, fd)

    @rule(path=paths, value=data, also=st.sampled_from([0, os.O_EXCL]))
    def save(self, path: tuple[Directory, str], value: bytes, also: int) -> None:
        """Open with O_CREAT and O_TRUNC, write, close."""
        self.begin()
        place = self.expected_to_write(*path, create=True)
        existing = self.find(*path)
        if also and existing is not None:
            place = "EEXIST"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | also
        outcome = self.write(*path, flags, lambda fd: os.write(fd, value))
        if isinstance(place, str):
            assert outcome == place
            self.end_change(0)
            return
        assert outcome is None
        before = self.get(place) if existing is not None else None
        self.put(place, value)
        self.end_change(0 if before == value == b"" else 1)

    @rule(path=paths, offset=offsets, value=data)
    def patch(self, path: tuple[Directory, str], offset: int, value: bytes) -> None:
        self.begin()
        place = self.expected_to_write(*path, create=False)
        outcome = self.write(*path, os.O_RDWR, lambda fd: os.pwrite(fd, value, offset))
        if isinstance(place, str):
            assert outcome == place
            self.end_change(0)
            return
        assert outcome is None
        old = self.get(place)
        if value:
            self.put(place, old[:offset].ljust(offset, b"\0") + value + old[offset + len(value) :])
        self.end_change(1 if value else 0)

    @rule(path=paths, values=st.lists(small, min_size=1, max_size=3))
    def append(self, path: tuple[Directory, str], values: list[bytes]) -> None:
        self.begin()
        place = self.expected_to_write(*path, create=True)
        existing = self.find(*path)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        outcome = self.write(*path, flags, lambda fd: [os.write(fd, value) for value in values])
        if isinstance(place, str):
            assert outcome == place
            self.end_change(0)
            return
        assert outcome is None
        before = self.get(place) if existing is not None else b""
        self.put(place, before + b"".join(values))
        self.end_change(1 if existing is None or any(values) else 0)

    @rule(path=paths, size=offsets)
    def truncate(self, path: tuple[Directory, str], size: int) -> None:
        self.begin()
        place = self.expected_to_write(*path, create=False)
        outcome = call_outcome(os.truncate, self.path(*path), size)
        if isinstance(place, str):
            assert outcome == place
            self.end_change(0)
            return
        assert outcome is None
        old = self.get(place)
        self.put(place, old[:size].ljust(size, b"\0"))
        self.end_change(0 if len(old) == size else 1)

    @rule(path=paths, value=small, fsync=st.booleans())
    def save_by_temporary(self, path: tuple[Directory, str], value: bytes, fsync: bool) -> None:
        """Write a temporary file (mkstemp) and rename it over the file: one change, which keeps the expiry."""
        self.begin()
        if path[0] not in self.existing():
            return
        place = self.expected_to_write(*path, create=True)
        fd, name = tempfile.mkstemp(dir=self.path(path[0]))
        os.write(fd, value)
        if fsync:
            os.fsync(fd)
        os.close(fd)
        outcome = call_outcome(os.rename, name, self.path(*path))
        if isinstance(place, str):
            assert outcome == place
            os.unlink(name)
            self.end_change(0)
            return
        assert outcome is None
        self.put(place, value)
        self.end_change()

    @rule(path=paths, value=small, how=st.sampled_from(["unlink", "written", "replaced"]), other=small)
    def remove_while_open(self, path: tuple[Directory, str], value: bytes, how: str, other: bytes) -> None:
        """Unlink or replace an open file: its descriptor keeps its bytes, which are saved nowhere."""
        self.begin()
        place = self.expected_to_write(*path, create=False)
        if isinstance(place, str):
            return
        fd = os.open(self.path(*path), os.O_RDWR)
        expected = self.get(place)
        if how == "written":
            os.pwrite(fd, value, 0)
            expected = value + expected[len(value) :]
        if how == "replaced":
            temporary, name = tempfile.mkstemp(dir=self.path(path[0]))
            os.write(temporary, other)
            os.close(temporary)
            os.replace(name, self.path(*path))
            self.put(place, other)
        else:
            os.unlink(self.path(*path))
            self.remove(place)
        assert os.pread(fd, len(expected) + 10, 0) == expected
        os.write(fd, b"lost")
        assert call_outcome(os.close, fd) is None
        self.end_change()

    @rule(path=paths)
    def unlink(self, path: tuple[Directory, str]) -> None:
        self.begin()
        place = self.find(*path)
        outcome = call_outcome(os.unlink, self.path(*path))
        if place is None:
            assert outcome == "ENOENT"
            self.end_change(0)
            return
        assert outcome is None
        self.remove(place)
        self.end_change()

    @rule(old=paths, new=paths)
    def rename(self, old: tuple[Directory, str], new: tuple[Directory, str]) -> None:
        self.begin()
        source = self.find(*old)
        if source is not None and not isinstance(self.get(source), bytes):
            return
        place = self.expected_to_write(*new, create=True)
        outcome = call_outcome(os.rename, self.path(*old), self.path(*new))
        if source is None:
            assert outcome == "ENOENT"
            self.end_change(0)
            return
        if isinstance(place, str):
            assert outcome == place
            self.end_change(0)
            return
        assert outcome is None
        if place == source:
            self.end_change(0)
            return
        self.move(source, place)
        self.end_change()

    def move(self, source: Place, place: Place) -> None:
        """Move a value in the model.

        A replaced key keeps its expiry, otherwise a key takes its own with it. A hash always keeps its own.
        """
        value, expires = self.get(source), self.model[source.key][1]
        replaced = place.key in self.model
        self.put(place, value)
        if place.field is None and not replaced and source.field is None:
            self.model[place.key] = (value, expires)
        self.remove(source)

    @rule(old=directories, new=directories, leaf=st.sampled_from(["list", "other"]))
    def move_list(self, old: Directory, new: Directory, leaf: str) -> None:
        """Rename a whole collection, also over another collection."""
        self.begin()
        source, target = self.key(old, "list"), self.key(new, leaf)
        if source not in self.model or new not in self.existing() or source == target:
            return
        assert call_outcome(os.rename, self.path(old, "list"), self.path(new, leaf)) is None
        value, expires = self.model[source]
        self.model[target] = (value, self.model[target][1] if target in self.model else expires)
        self.remove(Place(source))
        self.end_change()

    @rule(directory=directories, leaf=st.sampled_from(["list", "other"]))
    def remove_list(self, directory: Directory, leaf: str) -> None:
        self.begin()
        if self.key(directory, leaf) in self.model:
            assert call_outcome(os.unlink, self.path(directory, leaf)) is None
            self.remove(Place(self.key(directory, leaf)))
            self.end_change()

    @rule(directory=directories)
    def make_directory(self, directory: Directory) -> None:
        self.begin()
        existing = self.existing()
        outcome = call_outcome(os.mkdir, self.path(directory))
        if directory in existing:
            assert outcome == "EEXIST"
        elif directory[:-1] not in existing:
            assert outcome == "ENOENT"
        else:
            assert outcome is None
            self.made_directories.add(directory)
        self.end_change(1 if outcome is None else 0)

    @rule(directory=directories.filter(bool))
    def remove_directory(self, directory: Directory) -> None:
        self.begin()
        existing, used = self.existing(), self.in_use(directory)
        outcome = call_outcome(os.rmdir, self.path(directory))
        if directory not in existing:
            assert outcome == "ENOENT"
        elif used:
            assert outcome == "ENOTEMPTY"
        else:
            assert outcome is None
            self.made_directories.discard(directory)
            self.keep(directory[:-1])
        self.end_change(1 if outcome is None else 0)

    @rule(old=directories.filter(bool), new=directories.filter(bool))
    def rename_directory(self, old: Directory, new: Directory) -> None:
        """Rename a directory: every key below it moves, as one operation."""
        self.begin()
        existing = self.existing()
        outcome = call_outcome(os.rename, self.path(old), self.path(new))
        if old not in existing or new[:-1] not in existing:
            assert outcome == "ENOENT"
        elif old == new:
            assert outcome is None
        elif new[: len(old)] == old:
            assert outcome == "EINVAL"
        elif old[: len(new)] == new or (new in existing and self.in_use(new)):
            assert outcome == "ENOTEMPTY"
        else:
            assert outcome is None
            keys = self.below(old)
            moved = {directory for directory in self.made_directories if directory[: len(old)] == old} | (
                set() if keys else {old}
            )
            before, after = self.key(old, ""), self.key(new, "")
            for key in keys:
                self.model[after + key[len(before) :]] = self.model.pop(key)
            self.made_directories = (self.made_directories - moved) | {
                new + directory[len(old) :] for directory in moved
            }
            self.keep(old[:-1])
            self.end_change(bool(keys) + bool(moved))
            return
        self.end_change(0)

    @rule(path=paths, milliseconds=st.one_of(st.just(-1), times))
    def expire(self, path: tuple[Directory, str], milliseconds: int) -> None:
        """Set user.redis.ttl of a key; the model has no fields that expire."""
        self.begin()
        place = self.find(*path)
        if place is not None and place.field is not None and has_field_expiry(self.client):
            milliseconds = -1
        earliest = int(time.time() * 1000) + milliseconds
        outcome = call_outcome(os.setxattr, self.path(*path), "user.redis.ttl", b"%d" % milliseconds)
        if place is None:
            assert outcome == "ENOENT"
            self.end_change(0)
            return
        if place.field is not None:
            assert outcome == "ENOTSUP" or milliseconds == -1
            self.end_change(0)
            return
        assert outcome is None
        value, before = self.model[place.key]
        expires = self.client.pexpiretime(place.key)
        assert (expires == -1) if milliseconds == -1 else earliest <= expires < earliest + 5000
        self.model[place.key] = (value, expires)
        self.end_change(0 if expires == before else 1)

    # -- operations of other clients ---------------------------------------------------------------------------------

    def change_as_another_client(self, key: str, change: Callable[[], Any]) -> None:
        """Change a key as another client; at the end the test itself restores the key."""
        self.succeeded = False
        payload, expires = self.client.dump(key), self.client.pexpiretime(key)

        def restore() -> None:
            self.client.delete(key)
            if payload is not None:
                self.client.restore(key, max(expires, 0), payload, absttl=expires > 0)

        before = deepcopy(self.model)
        change()
        self.model = self.stored()
        self.before = deepcopy(self.model)
        # The mount keeps the directory of a removed file if the file was its last; for that the index must be complete.
        wait_until_equal(lambda: self.mount.status()["keys"], self.client.dbsize())
        self.end(before, 0, restore)

    @rule(path=paths, value=small)
    def set_as_another_client(self, path: tuple[Directory, str], value: bytes) -> None:
        place = self.find(*path) or self.place_of_new_file(*path)
        if place.field is not None:
            self.change_as_another_client(place.key, lambda: self.client.hset(place.key, place.field, value))  # type: ignore[arg-type]
        elif isinstance(self.value(place.key), bytes | None):
            self.change_as_another_client(place.key, lambda: self.client.set(place.key, value, keepttl=True))

    @rule(directory=directories, values=st.lists(small.filter(bytes.isalnum), min_size=1, max_size=3))
    def push_as_another_client(self, directory: Directory, values: list[bytes]) -> None:
        key = self.key(directory, "list")
        self.change_as_another_client(key, lambda: self.client.rpush(key, *values))

    @rule(path=paths, milliseconds=times)
    def expire_as_another_client(self, path: tuple[Directory, str], milliseconds: int) -> None:
        place = self.find(*path)
        if place is not None:
            self.change_as_another_client(place.key, lambda: self.client.pexpire(place.key, milliseconds))

    @rule(path=paths)
    def delete_as_another_client(self, path: tuple[Directory, str]) -> None:
        place = self.find(*path)
        if place is not None:
            self.change_as_another_client(place.key, lambda: self.client.delete(place.key))

    @rule(path=paths, value=small.filter(bool), theirs=small.filter(bool), new=st.booleans())
    def conflict(self, path: tuple[Directory, str], value: bytes, theirs: bytes, new: bool) -> None:
        """Change a key or field that a program is editing.

        The program's close is ESTALE, the other client's bytes are kept, and the program's are journaled.
        """
        place = self.expected_to_write(*path, create=True)
        if isinstance(place, str) or (self.find(*path) is None) != new:
            return
        if not new and self.get(place) == theirs:
            return
        fd = os.open(self.path(*path), os.O_RDWR | os.O_CREAT, 0o644)
        os.pwrite(fd, value, 0)

        def change() -> None:
            if place.field is not None:
                self.client.hset(place.key, place.field, theirs)  # type: ignore[arg-type]
            else:
                self.client.set(place.key, theirs, keepttl=True)
            assert call_outcome(os.close, fd) == "ESTALE"
            wait_until_equal(lambda: [row.outcome for row in self.new_rows()], ["refused"])
            [row] = self.new_rows()
            assert row.new.content is not None
            assert row.new.content.read()[: len(value)] == value
            self.last = row.id

        self.change_as_another_client(place.key, change)

    # -- rollback ----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Roll all operations back, newest first, and compare each state with the one before the operation."""
        if not self.succeeded or not self.events:
            return
        address = Address.parse(self.server.tcp_url())
        client = RedisClient(address, writable=True)
        with self.journal() as journal:
            mount_session = next(journal.iter_sessions(1))[0]
        wait_until_equal(lambda: [row for row in self.rows() if row.outcome == "pending"], [])
        with Journal.open(self.mount.journal) as journal:
            session = journal.begin_session(mount_session.metadata)
            executor = KeyWriter(client, journal, session).executor
            for event in reversed(self.events):
                if event.groups:
                    selected = select_for_rollback(journal, *event.groups)
                    report = Rollback(executor, mount_session.metadata.server.name).run(selected.groups, selected.ids)
                    assert report.is_clean, report
                else:
                    event.restore()
                assert self.stored() == event.before
            assert self.stored() == self.initial
            journal.end_session(session)
        client.close()
        self.client.delete(*(self.client.keys(f"{self.top}:*") or ["none"]))

    def rows(self) -> list[Change]:
        with self.journal() as journal:
            return [row for row in journal.find_changes(ChangeFilter(oldest_first=True)) if row.id > self.first]


def wait_until_equal(read: Callable[[], Any], expected: Any) -> None:
    """Wait until `read` returns the expected value; otherwise fail and show both."""
    deadline = time.monotonic() + PATIENCE
    while (actual := read()) != expected:
        if time.monotonic() > deadline:
            assert brief(actual) == brief(expected)
            assert actual == expected
        time.sleep(0.005)


def brief(value: Any) -> Any:
    """Return a value with each large byte string replaced by its beginning, size and hash."""
    if isinstance(value, bytes) and len(value) > 100:
        return value[:40], len(value), hash(value)
    if isinstance(value, dict):
        return {name: brief(part) for name, part in value.items()}
    return tuple(map(brief, value)) if isinstance(value, tuple) else value


LIVES = int(os.environ.get("REDISFUSE_TEST_LIVES", "0"))  # for a long manual search: new random lives, shrunk


def test_lives(server: RedisServer, mount: MountedServer) -> None:
    """The mount, Redis and the journal agree after each random operation, and a rollback restores the first state."""
    client = server.client()
    run_state_machine_as_test(
        lambda: Life(mount, server, client),
        settings=settings(
            max_examples=LIVES or 6,
            stateful_step_count=30,
            derandomize=not LIVES,
            phases=[Phase.generate, Phase.shrink] if LIVES else [Phase.generate],
            report_multiple_bugs=False,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
