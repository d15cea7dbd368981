"""Pushes changes into the kernel's caches: notifications written to the connection's descriptor (fuse(4), MEASURED.md).

Threading: `invalidate` and `invalidate_all` may be called by any thread, also from a callback: they only queue. One
thread writes, because the kernel makes a notification wait for a request that is under way in the same place: whoever
writes must hold no lock that a callback takes, and must not be a callback. Tell the caches of this process first, then
the notifier: what the kernel asks again after a notification must be answered with what is new.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from redisfuse.fuse.dcache_probe import ABSENT, ROOT, CachedNodes, Node
from redisfuse.fuse.page_cache import Known
from redisfuse.fuse.wire import EXPIRE_ONLY, NEXT_EPOCH, forget_attributes, forget_name, forget_node

log = logging.getLogger("redisfuse.fuse")

_PIECE = 1000  # paths looked up together before their notifications are written
_MOST_PENDING = 200_000  # paths queued; past it all is invalidated
_MOST_NODES = 20_000  # node ids remembered of names that were invalidated
_PAUSE = 0.2  # seconds between two notifications of one path
_BREATH = 0.005  # seconds that paths are let gather while they come thick and fast
_PATIENCE = 5.0  # seconds that `detach` waits for a notification that waits for a request

_STANDS, _PARENTS = 1, 2  # what is known of a queued path


class Counters(NamedTuple):
    """Since the mount began. `absent`: the kernel had nothing to forget; `failed`: it refused."""

    inodes: int = 0
    entries: int = 0
    epochs: int = 0
    absent: int = 0
    failed: int = 0


class Notifier:
    """One mount's way to tell the kernel. `Binding.run` attaches and detaches it; `start` begins its thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._pending: dict[bytes, int] = {}
        self._everything = False
        self._working = False
        self._ended = False
        self._thread: threading.Thread | None = None
        self._descriptor = -1
        self._nodes: CachedNodes | None = None
        self._known: Known | None = None
        self._remembered: dict[bytes, Node] = {}
        self._found: dict[bytes, tuple[Node, bool]] = {}  # paths that were looked up for what is being written now
        self._pushed: dict[bytes, float] = {}  # when each path was pushed last: time.monotonic()
        self._reason = "not mounted yet"
        self._epoch = False
        self._expire = False
        self._counts = [0] * len(Counters._fields)

    @property
    def supported(self) -> bool:
        """Whether every change reaches the kernel, so that it may believe for long what it was told."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why it does not; empty if it does."""
        if not self._reason and self._known is not None and self._known.top_is_full:
            return "too many names at the top for a kernel that can't forget all at once (Linux 6.16 can)"
        return self._reason

    @property
    def forgets_at_once(self) -> bool:
        """Whether the kernel has INC_EPOCH (Linux 6.16). Without it `invalidate_all` goes name by name at the top."""
        return self._epoch

    @property
    def counters(self) -> Counters:
        return Counters(*self._counts)

    # -- its life ----------------------------------------------------------------------------------------------------

    def attach(self, descriptor: int, mountpoint: Path, known: Known) -> None:
        """The mount is there. Called by the binding, before the first request is answered."""
        self._known = known
        known.ask_again = self.invalidate
        self._descriptor = os.dup(descriptor)
        self._expire = _kernel_version() >= (6, 2)
        try:
            self._nodes = CachedNodes(mountpoint)
            self._epoch = self._write(NEXT_EPOCH) == 0
            if not self._epoch:
                known.top = set()
            self._reason = ""
        except OSError as error:
            self._reason = f"the kernel can't be told of changes: {error.strerror}"
        self._counts = [0] * len(self._counts)

    def start(self) -> None:
        """Begin to notify: after any fork."""
        if self._thread is None and self.supported:
            self._thread = threading.Thread(target=self._run, name="fuse-notifier", daemon=True)
            self._thread.start()

    def detach(self) -> None:
        """The mount ends: nothing is written from now on."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._reason = "not mounted any more"
            self._pending.clear()
            self._news.notify_all()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE)
        if thread is None:
            self._close()

    def close(self) -> None:
        self.detach()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        if self._nodes is not None:
            self._nodes.close()

    # -- from everywhere ---------------------------------------------------------------------------------------------

    def invalidate(self, paths: Iterable[bytes], *, parents_too: bool = False, names_stand: bool = False) -> None:
        """What is at these paths may have changed, come or gone; returns at once.

        For each: attributes, pages and (of a directory) the listing, then the name in its directory, found or not
        found. `names_stand`: the names are as they were and what is there is of the same kind; only the rest has
        changed. A directory whose name stands keeps everything below it. `parents_too`: attributes and listings of
        the directories above as well.
        """
        told = [path.strip(b"/") for path in paths]
        if self._known is None or not told:
            return
        self._known.changed(told)
        what = (_STANDS if names_stand else 0) | (_PARENTS if parents_too else 0)
        with self._lock:
            if self._ended:
                return
            pending = self._pending
            for path in told:
                before = pending.get(path)
                pending[path] = what if before is None else (what & before & _STANDS) | ((what | before) & _PARENTS)
            if len(pending) > _MOST_PENDING:
                self._drop_all()
            self._news.notify_all()

    def invalidate_all(self) -> None:
        """Anything may have changed: every name, attribute, page and listing; returns at once."""
        with self._lock:
            if not self._ended and self._known is not None:
                self._drop_all()
                self._news.notify_all()

    def _drop_all(self) -> None:
        self._pending.clear()
        self._everything = True

    def drain(self, timeout: float) -> bool:
        """Wait until all that was queued is written; False if it was not within `timeout` seconds."""
        with self._lock:
            return self._news.wait_for(
                lambda: self._ended or not (self._pending or self._everything or self._working), timeout
            )

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                with self._lock:
                    self._working = False
                    self._news.notify_all()
                    due = self._wait_for_work()
                    if self._ended:
                        return
                    self._working = True
                    everything, self._everything = self._everything, False
                    pending = {path: self._pending.pop(path) for path in due}
                self._work(everything, list(pending.items()))
                time.sleep(_BREATH)
        except BaseException as error:
            # Without it the kernel would go on believing: say so, so that nobody gives it long time-outs.
            if not self._ended:
                self._reason = f"the notifier failed: {error}"
                log.exception("the notifier failed")
        finally:
            self._close()

    def _wait_for_work(self) -> list[bytes]:
        """The paths to push now: where files are not opened, none again so soon that it would meet a read of what was
        pushed before."""
        while True:
            self._news.wait_for(lambda: self._ended or self._pending or self._everything)
            if self._ended or self._everything or self._known is None or self._known.retire is None:
                return list(self._pending)
            now, pushed = time.monotonic(), self._pushed
            due = [path for path in self._pending if now - pushed.get(path, 0.0) >= _PAUSE]
            if due:
                if len(pushed) > _MOST_NODES:
                    self._pushed = pushed = {path: when for path, when in pushed.items() if now - when < _PAUSE}
                pushed.update(dict.fromkeys(due, now))
                return due
            self._news.wait(_PAUSE / 4)

    def _work(self, everything: bool, pending: list[tuple[bytes, int]]) -> None:
        if everything:
            self._forget_all()
        for start in range(0, len(pending), _PIECE):
            if self._ended:
                return
            self._forget(pending[start : start + _PIECE])

    def _forget(self, pending: list[tuple[bytes, int]]) -> None:
        """All are looked up before anything is written, since each notification makes its directory uncached."""
        assert self._known is not None
        self._found.clear()
        retire = self._known.retire
        inodes: dict[int, bool] = {}
        entries: dict[tuple[int, bytes], int] = {}
        files: list[tuple[int, bytes]] = []
        for path, what in pending:
            node, cached = self._find(path)
            if node.number:
                inodes[node.number] = True
            if path and not (what & _STANDS and node.number and cached):
                parent = self._add_entry(path, node, entries)
                if retire and parent and node.number and not node.directory and self._known.was_read(b"/" + path):
                    files.append((parent, path.rpartition(b"/")[2]))
                    inodes[node.number] = False  # its pages stay
            if what & _PARENTS:
                self._add_parents(path, inodes, entries)
        if retire is not None:
            for parent, name in files:
                retire(parent, name)
        for number, pages in inodes.items():
            self._inode(number, pages=pages)
        for (parent, name), flags in entries.items():
            self._entry(parent, name, flags)

    def _add_entry(self, path: bytes, node: Node, entries: dict[tuple[int, bytes], int]) -> int:
        """The directory's node; 0 if it is not cached."""
        directory, _, name = path.rpartition(b"/")
        parent = self._directory(directory).number
        if parent:
            gentle = self._expire and node.number and not node.directory
            entries[parent, name] = EXPIRE_ONLY if gentle else 0
        return parent

    def _add_parents(
        self,
        path: bytes,
        inodes: dict[int, bool],
        entries: dict[tuple[int, bytes], int],
    ) -> None:
        while path:
            path = path.rpartition(b"/")[0]
            node = self._directory(path)
            if node.number:
                inodes[node.number] = True
            else:
                self._add_entry(path, node, entries)

    def _directory(self, path: bytes) -> Node:
        return self._find(path)[0] if path else Node(ROOT, True)

    def _find(self, path: bytes) -> tuple[Node, bool]:
        """The node of a path, and whether that is what is cached now; else what it was when it was last found."""
        found = self._found.get(path)
        if found is None:
            found = self._found[path] = self._look_up(path)
        return found

    def _look_up(self, path: bytes) -> tuple[Node, bool]:
        assert self._nodes is not None
        node = self._nodes.find(path)
        remembered = self._remembered
        if node is None:
            return remembered.get(path, ABSENT), False
        if node.number:
            remembered.pop(path, None)
            remembered[path] = node
            if len(remembered) > _MOST_NODES:
                for old in list(remembered)[: _MOST_NODES // 10]:
                    del remembered[old]
        return node, True

    def _forget_all(self) -> None:
        assert self._known is not None
        self._found.clear()
        nodes = {self._find(path)[0].number: True for path in self._known.changed_all()}
        nodes.update((node.number, node.directory or self._known.retire is None) for node in self._remembered.values())
        entries: list[tuple[int, bytes]] = []
        if self._known.retire is not None:
            entries = self._retire_all(self._known.retire, self._known.read_nodes(), nodes)
        if self._epoch:
            self._count(2, self._write(NEXT_EPOCH))
        else:
            for name in list(self._known.top or ()):
                self._entry(ROOT, name, 0)  # takes everything below it along, but for what is open
            for parent, name in entries:
                self._entry(parent, name, EXPIRE_ONLY if self._expire else 0)
        for number, pages in {**nodes, ROOT: True}.items():
            if number:
                self._inode(number, pages=pages)

    def _retire_all(
        self, retire: Callable[[int, bytes], None], paths: Iterable[bytes], nodes: dict[int, bool]
    ) -> list[tuple[int, bytes]]:
        """Nobody who opens these files from now on reads what others read. Their names in their directories' nodes."""
        entries: list[tuple[int, bytes]] = []
        for path in paths:
            directory, _, name = path.strip(b"/").rpartition(b"/")
            nodes[self._find(path.strip(b"/"))[0].number] = False  # the pages may stay
            parent = self._directory(directory).number
            if parent:
                retire(parent, name)
                entries.append((parent, name))
        return entries

    # -- notifications -----------------------------------------------------------------------------------------------

    def _inode(self, number: int, *, pages: bool) -> None:
        """Attributes, and all pages (from 0, a length of 0 being to the end)."""
        self._count(0, self._write(forget_node(number) if pages else forget_attributes(number)))

    def _entry(self, parent: int, name: bytes, flags: int) -> None:
        self._count(1, self._write(forget_name(parent, name, flags)))

    def _count(self, kind: int, number: int) -> None:
        if number == 0:
            self._counts[kind] += 1
        elif number == errno.ENOENT:
            self._counts[3] += 1
        else:
            self._counts[4] += 1
            if number in (errno.ENODEV, errno.ENOTCONN, errno.EPERM, errno.EBADF):
                self._ended = True  # unmounted
            else:
                log.warning("the kernel refused a notification: %s", os.strerror(number))

    def _write(self, notice: bytes) -> int:
        """0, or the errno."""
        try:
            os.write(self._descriptor, notice)
        except OSError as error:
            return error.errno or errno.EIO
        return 0


def _kernel_version() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(digit for digit in minor if digit.isdigit()) or 0)
