"""A long life of one write mount: random operations by programs on the mount and by other clients of the server.

After each one, the mount, Redis and the journal equal a plain model. At the end the journal, replayed backwards, gives
every earlier state in turn, down to the first, byte for byte, times to live included.
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
from redisfuse.journal.change_rows import ChangeFilter
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change
from redisfuse.transactions.key_writer import KeyWriter
from redisfuse.transactions.rollback import Rollback
from redisfuse.transactions.selection import RollbackSelection, select_groups
from tests.support.expected_state import call_outcome
from tests.support.mounts import MountedServer
from tests.support.redis_server import RedisServer

PATIENCE = 5.0  # seconds for what one operation changes to be everywhere
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
    """What a path means: a key, or a field of one."""

    key: str
    field: bytes | None = None


@dataclass(frozen=True)
class Event:
    """Something that changed Redis: what it was before, and how that comes back."""

    before: Model
    groups: tuple[int, ...]  # of the journal; none: it was somebody else
    give_back: Callable[[], None]


class Life(RuleBasedStateMachine):
    """Everything happens in a folder of its own, which nobody else uses."""

    def __init__(self, mount: MountedServer, server: RedisServer, client: redis.Redis) -> None:
        super().__init__()
        self.server = server
        self.client = client
        self.mount = mount
        self.top = f"life{next(numbers)}"
        self.root = mount.path / self.top
        self.model: Model = {}
        self.made: set[Directory] = set()
        self.whole = False
        self.events: list[Event] = []
        with self.journal() as journal:
            self.last = max((change.id for change in journal.find_changes()), default=0)
        os.mkdir(self.root)
        self.made.add(())
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
        """What a name leads to: a field, or else a key."""
        owner, dot, field = leaf.partition(".")
        held = self.value(self.key(directory, owner))
        if dot and isinstance(held, dict) and field.encode() in held:
            return Place(self.key(directory, owner), field.encode())
        key = self.key(directory, leaf)
        return Place(key) if key in self.model else None

    def made_new(self, directory: Directory, leaf: str) -> Place:
        """What a new file becomes (NAMES.md)."""
        owner, dot, field = leaf.partition(".")
        if dot and isinstance(self.value(self.key(directory, owner)), dict | None):
            return Place(self.key(directory, owner), field.encode())
        return Place(self.key(directory, leaf))

    def get(self, place: Place) -> Any:
        value = self.value(place.key)
        return value if place.field is None else value[place.field]

    def put(self, place: Place, value: bytes) -> None:
        """Give a place new bytes; the key keeps its expiry."""
        held, expires = self.model.get(place.key, (None, -1))
        self.model[place.key] = (value if place.field is None else {**(held or {}), place.field: value}, expires)

    def remove(self, place: Place) -> None:
        """Through the mount: the directory stays."""
        self.forget(place)
        self.keep(tuple(place.key.split(":")[1:-1]))

    def forget(self, place: Place) -> None:
        value, expires = self.model.pop(place.key)
        if place.field is not None and len(value) > 1:
            self.model[place.key] = ({name: data for name, data in value.items() if name != place.field}, expires)

    def keep(self, directory: Directory) -> None:
        if directory not in self.existing():
            self.made.add(directory)

    def below(self, directory: Directory) -> list[str]:
        prefix = self.key(directory, "")
        return [key for key in self.model if key.startswith(prefix)]

    def existing(self) -> set[Directory]:
        """Directories that are there."""
        leaves = {tuple(key.split(":")[1:-1]) for key in self.model} | self.made
        return {directory[:depth] for directory in leaves for depth in range(len(directory) + 1)}

    def in_use(self, directory: Directory) -> bool:
        return any(other[: len(directory)] == directory and other != directory for other in self.existing()) or bool(
            self.below(directory)
        )

    def tree(self) -> dict[str, bytes | None]:
        """What the mount must show: contents of files (a list's rendering too), None for directories."""
        found: dict[str, bytes | None] = {"/".join(each): None for each in self.existing() if each}
        for key, (value, _expires) in self.model.items():
            name = "/".join(key.split(":")[1:])
            if isinstance(value, dict):
                found |= {f"{name}.{field.decode()}": content for field, content in value.items()}
            else:
                found[name] = value if isinstance(value, bytes) else b"".join(each + b"\n" for each in value)
        return found

    # -- what is there -----------------------------------------------------------------------------------------------

    def stored(self) -> Model:
        found: Model = {}
        for key in self.client.keys(f"{self.top}:*"):
            kind = self.client.type(key)
            if kind == b"string":
                value: Any = self.client.get(key)
            else:
                value = self.client.hgetall(key) if kind == b"hash" else self.client.lrange(key, 0, -1)
            found[key.decode()] = (value, self.client.pexpiretime(key))
        return found

    def shown(self) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        for path in sorted(self.root.rglob("*")):
            found[str(path.relative_to(self.root))] = None if path.is_dir() else path.read_bytes()
        return found

    def new_rows(self) -> list[Change]:
        with self.journal() as journal:
            rows = [row for row in journal.find_changes(ChangeFilter(limit=100)) if row.id > self.last]
        return rows[::-1]

    def happened(self, before: Model, groups: int, give_back: Callable[[], None] = lambda: None) -> None:
        """An operation is over: wait until everything is as the model says, and the journal has so many operations."""
        same(self.stored, self.model)
        same(lambda: len({row.group_id for row in self.new_rows()}), groups)
        same(lambda: call_outcome(self.shown), self.tree())
        rows = self.new_rows()
        self.last = max((row.id for row in rows), default=self.last)
        self.events.append(Event(before, tuple(sorted({row.group_id for row in rows})), give_back))

    def changed(self, groups: int = 1) -> None:
        """The mount has changed what the model says by now."""
        self.happened(self.was, groups)

    def begin(self) -> None:
        self.whole = False
        self.was = deepcopy(self.model)

    @invariant()
    def it_went_well(self) -> None:
        self.whole = True

    # -- the beginning -----------------------------------------------------------------------------------------------

    @initialize(
        strings=st.dictionaries(paths.filter(lambda path: "." not in path[1]), small, max_size=4),
        fields=st.dictionaries(
            directories, st.dictionaries(st.sampled_from([b"f", b"g"]), small, min_size=1), max_size=2
        ),
        lists=st.sets(directories, max_size=2),
        expiring=st.booleans(),
    )
    def others_made_keys(
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
        self.was = deepcopy(self.model)
        self.begun = deepcopy(self.model)
        self.happened(self.was, 0)
        self.events.clear()

    # -- what programs do --------------------------------------------------------------------------------------------

    def expected_to_write(self, directory: Directory, leaf: str, *, create: bool) -> str | Place:
        """The errno of opening a file for writing, or what is written to."""
        if directory not in self.existing():
            return "ENOENT"
        place = self.find(directory, leaf)
        if place is None:
            return self.made_new(directory, leaf) if create else "ENOENT"
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
        found = self.find(*path)
        if isinstance(place, Place) and also and found is not None:
            place = "EEXIST"
        if also and found is not None:
            place = "EEXIST"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | also
        got = self.write(*path, flags, lambda fd: os.write(fd, value))
        if isinstance(place, str):
            assert got == place
            self.changed(0)
            return
        assert got is None
        before = self.get(place) if found is not None else None
        self.put(place, value)
        self.changed(0 if before == value == b"" else 1)

    @rule(path=paths, offset=offsets, value=data)
    def patch(self, path: tuple[Directory, str], offset: int, value: bytes) -> None:
        self.begin()
        place = self.expected_to_write(*path, create=False)
        got = self.write(*path, os.O_RDWR, lambda fd: os.pwrite(fd, value, offset))
        if isinstance(place, str):
            assert got == place
            self.changed(0)
            return
        assert got is None
        old = self.get(place)
        if value:
            self.put(place, old[:offset].ljust(offset, b"\0") + value + old[offset + len(value) :])
        self.changed(1 if value else 0)

    @rule(path=paths, values=st.lists(small, min_size=1, max_size=3))
    def append(self, path: tuple[Directory, str], values: list[bytes]) -> None:
        self.begin()
        place = self.expected_to_write(*path, create=True)
        found = self.find(*path)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        got = self.write(*path, flags, lambda fd: [os.write(fd, value) for value in values])
        if isinstance(place, str):
            assert got == place
            self.changed(0)
            return
        assert got is None
        before = self.get(place) if found is not None else b""
        self.put(place, before + b"".join(values))
        self.changed(1 if found is None or any(values) else 0)

    @rule(path=paths, size=offsets)
    def truncate(self, path: tuple[Directory, str], size: int) -> None:
        self.begin()
        place = self.expected_to_write(*path, create=False)
        got = call_outcome(os.truncate, self.path(*path), size)
        if isinstance(place, str):
            assert got == place
            self.changed(0)
            return
        assert got is None
        old = self.get(place)
        self.put(place, old[:size].ljust(size, b"\0"))
        self.changed(0 if len(old) == size else 1)

    @rule(path=paths, value=small, fsync=st.booleans())
    def save_by_temporary(self, path: tuple[Directory, str], value: bytes, fsync: bool) -> None:
        """mkstemp, write, rename over the file: one change of it, and its expiry stays."""
        self.begin()
        if path[0] not in self.existing():
            return
        place = self.expected_to_write(*path, create=True)
        fd, name = tempfile.mkstemp(dir=self.path(path[0]))
        os.write(fd, value)
        if fsync:
            os.fsync(fd)
        os.close(fd)
        got = call_outcome(os.rename, name, self.path(*path))
        if isinstance(place, str):
            assert got == place
            os.unlink(name)
            self.changed(0)
            return
        assert got is None
        self.put(place, value)
        self.changed()

    @rule(path=paths, value=small, how=st.sampled_from(["unlink", "written", "replaced"]), other=small)
    def remove_while_open(self, path: tuple[Directory, str], value: bytes, how: str, other: bytes) -> None:
        """An open file is unlinked, or replaced: its descriptor keeps its bytes, and they go nowhere else."""
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
        self.changed()

    @rule(path=paths)
    def unlink(self, path: tuple[Directory, str]) -> None:
        self.begin()
        place = self.find(*path)
        got = call_outcome(os.unlink, self.path(*path))
        if place is None:
            assert got == "ENOENT"
            self.changed(0)
            return
        assert got is None
        self.remove(place)
        self.changed()

    @rule(old=paths, new=paths)
    def rename(self, old: tuple[Directory, str], new: tuple[Directory, str]) -> None:
        self.begin()
        source = self.find(*old)
        if source is not None and not isinstance(self.get(source), bytes):
            return
        place = self.expected_to_write(*new, create=True)
        got = call_outcome(os.rename, self.path(*old), self.path(*new))
        if source is None:
            assert got == "ENOENT"
            self.changed(0)
            return
        if isinstance(place, str):
            assert got == place
            self.changed(0)
            return
        assert got is None
        if place == source:
            self.changed(0)
            return
        self.move(source, place)
        self.changed()

    def move(self, source: Place, place: Place) -> None:
        """What is replaced leaves its expiry; else a key takes its own along. A hash has its own in any case."""
        value, expires = self.get(source), self.model[source.key][1]
        replaced = place.key in self.model
        self.put(place, value)
        if place.field is None and not replaced and source.field is None:
            self.model[place.key] = (value, expires)
        self.remove(source)

    @rule(old=directories, new=directories, leaf=st.sampled_from(["list", "other"]))
    def move_list(self, old: Directory, new: Directory, leaf: str) -> None:
        """A whole collection gets another name, over another collection too."""
        self.begin()
        source, target = self.key(old, "list"), self.key(new, leaf)
        if source not in self.model or new not in self.existing() or source == target:
            return
        assert call_outcome(os.rename, self.path(old, "list"), self.path(new, leaf)) is None
        value, expires = self.model[source]
        self.model[target] = (value, self.model[target][1] if target in self.model else expires)
        self.remove(Place(source))
        self.changed()

    @rule(directory=directories, leaf=st.sampled_from(["list", "other"]))
    def remove_list(self, directory: Directory, leaf: str) -> None:
        self.begin()
        if self.key(directory, leaf) in self.model:
            assert call_outcome(os.unlink, self.path(directory, leaf)) is None
            self.remove(Place(self.key(directory, leaf)))
            self.changed()

    @rule(directory=directories)
    def make_directory(self, directory: Directory) -> None:
        self.begin()
        there = self.existing()
        got = call_outcome(os.mkdir, self.path(directory))
        if directory in there:
            assert got == "EEXIST"
        elif directory[:-1] not in there:
            assert got == "ENOENT"
        else:
            assert got is None
            self.made.add(directory)
        self.changed(1 if got is None else 0)

    @rule(directory=directories.filter(bool))
    def remove_directory(self, directory: Directory) -> None:
        self.begin()
        there, used = self.existing(), self.in_use(directory)
        got = call_outcome(os.rmdir, self.path(directory))
        if directory not in there:
            assert got == "ENOENT"
        elif used:
            assert got == "ENOTEMPTY"
        else:
            assert got is None
            self.made.discard(directory)
            self.keep(directory[:-1])
        self.changed(1 if got is None else 0)

    @rule(old=directories.filter(bool), new=directories.filter(bool))
    def rename_directory(self, old: Directory, new: Directory) -> None:
        """Every key below it moves, as one operation."""
        self.begin()
        there = self.existing()
        got = call_outcome(os.rename, self.path(old), self.path(new))
        if old not in there or new[:-1] not in there:
            assert got == "ENOENT"
        elif old == new:
            assert got is None
        elif new[: len(old)] == old:
            assert got == "EINVAL"
        elif old[: len(new)] == new or (new in there and self.in_use(new)):
            assert got == "ENOTEMPTY"
        else:
            assert got is None
            keys = self.below(old)
            moved = {directory for directory in self.made if directory[: len(old)] == old} | (set() if keys else {old})
            before, after = self.key(old, ""), self.key(new, "")
            for key in keys:
                self.model[after + key[len(before) :]] = self.model.pop(key)
            self.made = (self.made - moved) | {new + directory[len(old) :] for directory in moved}
            self.keep(old[:-1])
            self.changed(bool(keys) + bool(moved))
            return
        self.changed(0)

    @rule(path=paths, milliseconds=st.one_of(st.just(-1), times))
    def expire(self, path: tuple[Directory, str], milliseconds: int) -> None:
        """user.redis.ttl of a key; this server's fields have none."""
        self.begin()
        place = self.find(*path)
        earliest = int(time.time() * 1000) + milliseconds
        got = call_outcome(os.setxattr, self.path(*path), "user.redis.ttl", b"%d" % milliseconds)
        if place is None:
            assert got == "ENOENT"
            self.changed(0)
            return
        if place.field is not None:
            assert got == "ENOTSUP" or milliseconds == -1
            self.changed(0)
            return
        assert got is None
        value, before = self.model[place.key]
        expires = self.client.pexpiretime(place.key)
        assert (expires == -1) if milliseconds == -1 else earliest <= expires < earliest + 5000
        self.model[place.key] = (value, expires)
        self.changed(0 if expires == before else 1)

    # -- what others do ----------------------------------------------------------------------------------------------

    def by_others(self, key: str, change: Callable[[], Any]) -> None:
        """Somebody else changes a key; at the end the test itself gives back what was there."""
        self.whole = False
        payload, expires = self.client.dump(key), self.client.pexpiretime(key)

        def give_back() -> None:
            self.client.delete(key)
            if payload is not None:
                self.client.restore(key, max(expires, 0), payload, absttl=expires > 0)

        before = deepcopy(self.model)
        change()
        self.model = self.stored()
        self.was = deepcopy(self.model)
        # A directory stays when its last file goes through the mount; whether one is its last, the index must know.
        same(lambda: self.mount.status()["keys"], self.client.dbsize())
        self.happened(before, 0, give_back)

    @rule(path=paths, value=small)
    def others_set(self, path: tuple[Directory, str], value: bytes) -> None:
        place = self.find(*path) or self.made_new(*path)
        if place.field is not None:
            self.by_others(place.key, lambda: self.client.hset(place.key, place.field, value))  # type: ignore[arg-type]
        elif isinstance(self.value(place.key), bytes | None):
            self.by_others(place.key, lambda: self.client.set(place.key, value, keepttl=True))

    @rule(directory=directories, values=st.lists(small.filter(bytes.isalnum), min_size=1, max_size=3))
    def others_push(self, directory: Directory, values: list[bytes]) -> None:
        key = self.key(directory, "list")
        self.by_others(key, lambda: self.client.rpush(key, *values))

    @rule(path=paths, milliseconds=times)
    def others_expire(self, path: tuple[Directory, str], milliseconds: int) -> None:
        place = self.find(*path)
        if place is not None:
            self.by_others(place.key, lambda: self.client.pexpire(place.key, milliseconds))

    @rule(path=paths)
    def others_delete(self, path: tuple[Directory, str]) -> None:
        place = self.find(*path)
        if place is not None:
            self.by_others(place.key, lambda: self.client.delete(place.key))

    @rule(path=paths, value=small.filter(bool), theirs=small.filter(bool), new=st.booleans())
    def conflict(self, path: tuple[Directory, str], value: bytes, theirs: bytes, new: bool) -> None:
        """Somebody changes what a program is editing: ESTALE at its close, their bytes stay, its are journaled."""
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
            same(lambda: [row.outcome for row in self.new_rows()], ["refused"])
            [row] = self.new_rows()
            assert row.new.content is not None
            assert row.new.content.read()[: len(value)] == value
            self.last = row.id

        self.by_others(place.key, change)

    # -- the end -----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Take everything back, newest first: each state on the way is what it was."""
        if not self.whole or not self.events:
            return
        address = Address.parse(self.server.tcp_url())
        server = RedisClient(address, writable=True)
        with self.journal() as journal:
            mine = journal.iter_sessions(1).__next__()[0]
        same(lambda: [row for row in self.rows() if row.outcome == "pending"], [])
        with Journal.open(self.mount.journal) as journal:
            session = journal.begin_session(mine.metadata)
            steps = KeyWriter(server, journal, session).executor
            for event in reversed(self.events):
                if event.groups:
                    with_directories = select_groups(journal, RollbackSelection(ids=event.groups))
                    report = Rollback(steps, mine.metadata.server.name).run(with_directories)
                    assert report.is_clean, report
                else:
                    event.give_back()
                assert self.stored() == event.before
            assert self.stored() == self.begun
            journal.end_session(session)
        server.close()
        self.client.delete(*(self.client.keys(f"{self.top}:*") or ["none"]))

    def rows(self) -> list[Change]:
        with self.journal() as journal:
            return [row for row in journal.find_changes(ChangeFilter(oldest_first=True)) if row.id > self.first]


def same(look: Callable[[], Any], expected: Any) -> None:
    """Wait until something is as expected; else show both."""
    deadline = time.monotonic() + PATIENCE
    while (found := look()) != expected:
        if time.monotonic() > deadline:
            assert brief(found) == brief(expected)
            assert found == expected
        time.sleep(0.005)


def brief(found: Any) -> Any:
    """Without the bytes of large values."""
    if isinstance(found, bytes) and len(found) > 100:
        return found[:40], len(found), hash(found)
    if isinstance(found, dict):
        return {name: brief(value) for name, value in found.items()}
    return tuple(map(brief, found)) if isinstance(found, tuple) else found


LIVES = int(os.environ.get("REDISFUSE_TEST_LIVES", "0"))  # for a long search by hand: other lives each time, shrunk


def test_lives(server: RedisServer, mount: MountedServer) -> None:
    """Whatever is done, the mount, Redis and the journal agree, and the journal leads back to the first state."""
    client = server.client()
    run_state_machine_as_test(
        lambda: Life(mount, server, client),
        settings=settings(
            max_examples=LIVES or 8,
            stateful_step_count=30,
            derandomize=not LIVES,
            phases=[Phase.generate, Phase.shrink] if LIVES else [Phase.generate],
            report_multiple_bugs=False,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
