"""Files that are read without being opened: everybody who reads one node reads the same (paths/stale_names.py).

What is read is what the first read of a node saw, as if that had opened it. When the file changes, the kernel is told
to look again and finds a new node; who has the old one open, which is retired then, goes on with what he began to read.

A node that was read before a change is *superseded* until it is retired, a moment later; so long it is what it was.

Threads: any. The lock is held for bookkeeping only; nothing waits in `retire`, `changed` and `forgotten`.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from redisfuse.errors import ConflictError
from redisfuse.paths.stale_names import is_retired, live, number_of
from redisfuse.vfs.content_types import LargeField, LargeString, Snapshot
from redisfuse.vfs.growing_content import content_of, innermost, present

SMALL_NODES = 10_000  # nodes whose content is in memory, and
SMALL_BYTES = 32 * 1024 * 1024  # all of them
LARGE_NODES = 64  # others: long strings, temporary files, renderings under way
RESTING = 5.0  # seconds after which a long string that nobody reads gives back its memory
IDLE = 60.0  # and a field its temporary file
SUPERSEDED = 0.5  # seconds that the kernel may take to be told of a change
MOST_READ = 400_000  # nodes remembered as read
CHUNK = 128 * 1024  # bytes by which what has no length beforehand grows under its reader


@dataclass(slots=True, eq=False)
class Beginning:
    """What the first read of a node has found."""

    snapshot: Snapshot
    key: bytes
    mtime_ns: int
    version: int  # change count of the key before it was found
    streams: bool = False  # its length is not known beforehand: it is
    so_far: int = 0  # as long as it was read until now, in bytes
    extending: threading.Lock = field(default_factory=threading.Lock)
    node: bytes = b""
    number: int = 0  # the kernel's
    used: float = 0.0  # time.monotonic()
    cost: int = 0  # bytes in memory
    checked: bool = False  # whether the kernel believes that it is as long
    superseded: float = 0.0  # since when, by time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether it was superseded so long ago that nobody can be about to retire it."""
        return bool(self.superseded) and time.monotonic() - self.superseded > SUPERSEDED


class SharedFiles:
    def __init__(
        self,
        begin: Callable[[bytes, int | None], Beginning],
        at_hand: Callable[[bytes], Beginning | None],
        version: Callable[[bytes], int],
        is_recent: Callable[[bytes], bool],
        push: Callable[[Collection[bytes]], None],
        trust: Callable[[], float],
    ) -> None:
        """`begin` finds what is at a path, given the length that the kernel was told, if that is known; `at_hand` the
        same without waiting. `version`: a number that grows with each change of a key; `is_recent`: whether the last
        was just now. `push` makes the kernel look again, and returns at once. `trust`: for how many seconds what was
        read may be believed without being told."""
        self._begin = begin
        self._at_hand = at_hand
        self._version = version
        self._is_recent = is_recent
        self._push = push
        self._trust = trust
        self._lock = threading.Lock()
        self._small: OrderedDict[bytes, Beginning] = OrderedDict()
        self._large: OrderedDict[bytes, Beginning] = OrderedDict()
        self._bytes = 0  # in `_small`
        self._numbers: dict[int, Beginning] = {}
        self._nodes: dict[bytes, set[bytes]] = {}  # key -> its nodes that are not retired
        self._superseded: dict[bytes, Beginning] = {}
        self._read: set[int] = set()  # hashes of nodes that were read, whether or not it is known any more what
        self._unsure = False  # there were more
        self._lost: set[bytes] = set()  # retired nodes that were read, of which nothing is known any more
        self._lost_before = 0  # retirements up to this one may be too
        self._sweep: threading.Timer | None = None
        self._doubtful: list[bytes] = []  # nodes that are to be looked at again soon, as nobody will tell
        self._again: threading.Timer | None = None
        self._closed = False

    # -- reading -----------------------------------------------------------------------------------------------------

    def present(self, node: bytes, number: int, size: int, offset: int, told: int | None, sure: bool) -> bytes | None:
        """As `read`, if it is in memory and as long as the kernel believes; else None."""
        found = self._small.get(node)
        if found is None:
            new = None if is_retired(node) or node in self._large else self._at_hand(node)
            if new is None:
                return None
            found = self._add(node, number, new)
        if found.superseded or (told is not None and found.snapshot.size != told):
            return None
        if not found.checked:
            if not sure and self._is_recent(found.key):
                return None
            found.checked = True
        self._use(found, number)
        return present(found.snapshot, offset, size)

    def read(
        self,
        node: bytes,
        number: int,
        size: int,
        offset: int,
        told: int | None,
        sure: bool,
        believed: Callable[[], int | None],
        outdated: Callable[[], None],
    ) -> bytes:
        """The bytes; short only at the end. `outdated` is called if there are more than `told`; or, if that is not
        `sure`, than are `believed`, which is None if it can't be found out.

        Raises what finding and reading raise; ConflictError if the file has changed so that it can't be gone on with.
        """
        found = self._found(node, number)
        if found is None:
            found = self._add(node, number, self._begin(live(node), told))
            if found.streams and offset:
                raise ConflictError("so many files are read at once that it is not known any more how this one began")
        data = found.snapshot.read(offset, size)
        if not found.checked and not found.streams:
            # While a change is being pushed, the kernel takes not every answer that tells a length.
            if not sure and self._is_recent(found.key) and (told := believed()) is None:
                raise ConflictError("the file is changing")
            found.checked = True
        if not found.streams and told is not None and found.snapshot.size != told:
            if found.snapshot.size < told:
                raise ConflictError("the file has changed since its length was asked for")
            outdated()
        return data

    def _use(self, found: Beginning, number: int) -> None:
        found.used = time.monotonic()
        if not found.number:  # it was prepared
            found.number = number
            self._numbers[number] = found

    def _found(self, node: bytes, number: int) -> Beginning | None:
        with self._lock:
            for table in (self._small, self._large):
                found = table.get(node)
                if found is None:
                    continue
                if found.is_over:
                    self._drop(found)  # nobody came to retire it
                    return None
                table.move_to_end(node)
                self._use(found, number)
                return found
            if is_retired(node) and (node in self._lost or number_of(node) <= self._lost_before):
                raise ConflictError("the file has changed since it was read")
            return None

    def _add(self, node: bytes, number: int, new: Beginning) -> Beginning:
        content = content_of(new.snapshot)
        retired = is_retired(node)
        with self._lock:
            table = self._large if content is None else self._small
            if node in table:
                return table[node]  # somebody else was first
            new.node, new.number, new.used = node, number, time.monotonic()
            new.cost = len(content or b"")
            self._put(new, table)
            again = new.streams  # who opens it next begins anew
            if not retired:
                self._nodes.setdefault(new.key, set()).add(node)
                self._note_read(node)
                if self._version(new.key) != new.version:  # of which the kernel may have been told before this was read
                    self._supersede(new)
                    again = True
            self._tidy()
            if content is None and self._sweep is None:
                self._sweep = self._start(RESTING, self._tidy_large)
        if not retired:
            if again:
                self._push([node[1:]])
            elif not math.isinf(trust := self._trust()):
                self._doubt(node, trust)
        return new

    def _put(self, found: Beginning, table: OrderedDict[bytes, Beginning]) -> None:
        table[found.node] = found
        if found.number:
            self._numbers[found.number] = found
        if table is self._small:
            self._bytes += found.cost

    def _note_read(self, node: bytes) -> None:
        if len(self._read) >= MOST_READ:
            self._read.clear()
            self._unsure = True
        self._read.add(hash(node))

    def prepare(self, node: bytes, new: Beginning) -> Beginning:
        """What a first read of a node that was not read yet shall find; the answer is what it will."""
        return self._add(node, 0, new)

    def begin(self, node: bytes, number: int) -> Beginning:
        """What is read of a node, beginning to read it if nobody has."""
        return self._found(node, number) or self._add(node, number, self._begin(live(node), None))

    def extend(self, found: Beginning, store: Callable[[int, bytes], None], *, to_the_end: bool = False) -> None:
        """Read on, by a chunk, in what has no length beforehand; `store` gives the kernel the bytes.

        Any description of the file that was asked for before it was stored, and says that it ends earlier, the kernel
        then takes for out of date; one that is asked for afterwards must not say so.
        """
        with found.extending:
            while data := found.snapshot.read(end := found.so_far, CHUNK):
                found.so_far = end + len(data)
                store(end, data)
                if not to_the_end:
                    break

    # -- describing --------------------------------------------------------------------------------------------------

    def seen(self, node: bytes) -> Beginning | None:
        """What a node is to be described by, if it was read, so that a length and a content never part."""
        found = self._known(node)
        return None if found is None or found.is_over else found

    def _known(self, node: bytes) -> Beginning | None:
        return self._small.get(node) or self._large.get(node)

    def is_changing(self, key: bytes) -> bool:
        """Whether the kernel may still hold what a key was, and must not be told yet what it is."""
        return bool(self._superseded) and key in self._nodes

    def was_read(self, node: bytes) -> bool:
        """Whether a node that is not retired may have been read."""
        return self._unsure or hash(node) in self._read

    def nodes(self) -> Sequence[bytes]:
        """Those that were read lately and are not retired."""
        with self._lock:
            return [node for nodes in self._nodes.values() for node in nodes]

    # -- changes -----------------------------------------------------------------------------------------------------

    def changed(self, keys: Collection[bytes]) -> None:
        """These keys have changed; the kernel will be told."""
        if not self._nodes:
            return
        with self._lock:
            for key in keys if len(keys) < len(self._nodes) else self._nodes.keys() & set(keys):
                self._supersede_all(self._nodes.get(key, ()))

    def changed_all(self) -> None:
        """Anything may have changed."""
        with self._lock:
            for nodes in self._nodes.values():
                self._supersede_all(nodes)

    def _supersede_all(self, nodes: Iterable[bytes]) -> None:
        for node in nodes:
            found = self._known(node)
            if found is not None:
                self._supersede(found)

    def _supersede(self, found: Beginning) -> None:
        if not found.superseded:
            found.superseded = time.monotonic()
            self._superseded[found.node] = found

    def retire(self, node: bytes, retired: bytes) -> None:
        """What was read as `node` goes on as `retired`."""
        with self._lock:
            for table in (self._small, self._large):
                found = table.get(node)
                if found is not None:
                    self._drop(found)
                    self._read.discard(hash(node))
                    found.node, found.superseded = retired, 0.0
                    self._put(found, table)
                    return
            if self._unsure or hash(node) in self._read:
                self._read.discard(hash(node))
                self._lose(retired)

    def forgotten(self, numbers: Iterable[int], has_node: Callable[[int], bool]) -> None:
        """The kernel may have forgotten these nodes, so that nobody has them open: `has_node` says so."""
        for number in numbers:
            if number in self._numbers and not has_node(number):
                with self._lock:
                    found = self._numbers.get(number)
                    if found is not None:
                        self._drop(found)
                        self._read.discard(hash(found.node))

    # -- room --------------------------------------------------------------------------------------------------------

    def _drop(self, found: Beginning) -> None:
        node = found.node
        if self._small.pop(node, None) is not None:
            self._bytes -= found.cost
        self._large.pop(node, None)
        self._superseded.pop(node, None)
        self._numbers.pop(found.number, None)
        nodes = self._nodes.get(found.key)
        if nodes is not None:
            nodes.discard(node)
            if not nodes:
                del self._nodes[found.key]

    def _tidy(self) -> None:
        while len(self._small) > SMALL_NODES or (self._bytes > SMALL_BYTES and len(self._small) > 1):
            self._crowd_out(self._small)
        while len(self._large) > LARGE_NODES:
            self._crowd_out(self._large)

    def _crowd_out(self, table: OrderedDict[bytes, Beginning]) -> None:
        found = next(iter(table.values()))
        self._drop(found)
        if is_retired(found.node):
            self._lose(found.node)

    def _lose(self, retired: bytes) -> None:
        self._lost.add(retired)
        if len(self._lost) > MOST_READ:
            self._lost_before = max(map(number_of, self._lost))
            self._lost.clear()

    def _tidy_large(self) -> None:
        """Long strings that rest give back their memory; fields their file, which is fetched again if need be."""
        now = time.monotonic()
        resting: list[Snapshot] = []
        with self._lock:
            self._sweep = None
            for found in list(self._large.values()):
                inner = innermost(found.snapshot)
                if isinstance(inner, LargeString) and now - found.used > RESTING:
                    resting.append(inner)
                elif isinstance(inner, LargeField) and now - found.used > IDLE and not is_retired(found.node):
                    self._drop(found)
                    resting.append(inner)
            if self._large:
                self._sweep = self._start(RESTING, self._tidy_large)
        for snapshot in resting:
            snapshot.close()

    # -- where nobody tells of changes -------------------------------------------------------------------------------

    def _doubt(self, node: bytes, seconds: float) -> None:
        with self._lock:
            self._doubtful.append(node[1:])
            if self._again is None:
                self._again = self._start(seconds, self._look_again)

    def _look_again(self) -> None:
        with self._lock:
            doubtful, self._doubtful, self._again = self._doubtful, [], None
        self._push(doubtful)

    # -- its end -----------------------------------------------------------------------------------------------------

    def _start(self, seconds: float, what: Callable[[], None]) -> threading.Timer | None:
        if self._closed:
            return None
        timer = threading.Timer(seconds, what)
        timer.daemon = True
        timer.start()
        return timer

    def close(self) -> None:
        """No timer runs on."""
        with self._lock:
            self._closed = True
            timers = [each for each in (self._sweep, self._again) if each is not None]
        for timer in timers:
            timer.cancel()
