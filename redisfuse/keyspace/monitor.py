"""Which keys there are, and when they change: the index, the scan and the follower, kept true together.

- The follower listens before the first scan begins. A key that it is told of is looked at (EXISTS), and put right in
  the index in use and in the one that a scan is building (knowledge.py says how the two are reconciled).
- A scan always builds a new index, which takes the old one's place in one step.
- When messages may have been missed (connection lost, database flushed), everything is forgotten first: `on_reset` is
  called, the index in use is dropped, and listings wait for the scan that follows. A lost connection is noticed at
  once, a hung server within the time-out.
- Without a follower (old server, ACL, a server too fast to follow), the keyspace is scanned every now and then;
  `live` is false, and `reason` says why.

Threads: the follower's, which only notes what it is told; one that looks at keys and calls `on_change`; one that scans.
`_lock` guards the few words below it, and is what waiting threads wait on. No callback, and nothing that takes another
lock, is called while it is held.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection

from redisfuse.client.client import Server
from redisfuse.errors import AccessError, RedisFuseError, TryAgainError, UnavailableError
from redisfuse.keyspace.change_times import Changes
from redisfuse.keyspace.drift import SizeWatch
from redisfuse.keyspace.exists import existing
from redisfuse.keyspace.expiry_queue import Deadlines
from redisfuse.keyspace.index import Index
from redisfuse.keyspace.overload import Pace
from redisfuse.keyspace.own_writes import Echoes
from redisfuse.keyspace.reconciler import Batch, Knowledge, SupersededError
from redisfuse.keyspace.scanner import scan
from redisfuse.keyspace.tracking import Census, Follower, Probe
from redisfuse.paths.grammar import Target

log = logging.getLogger(__name__)

_GATHER = 0.02  # seconds that changed keys are let gather before they are looked at
_GATHER_BUSY = 0.1  # the same, while there are more than `_BUSY`
_BUSY = 2_000
_BATCH = 50_000  # keys looked at in one go
_SETTLED = 1_000  # keys put into the index under one hold of its lock
_LATE = 0.01  # seconds after a deadline at which a key is looked at, so that the server too finds it passed
_SAMPLE = 16  # keys that are looked for after a flush, to tell which database was flushed

_FIRST_PAUSE = 0.25  # seconds after which something that failed is tried again; doubled up to the longest
_LONGEST_PAUSE = 5.0
_DENIED_PAUSE = 60.0  # the same where an ACL denies it: each attempt leaves an entry in the server's log
_SCAN_SHARE = 10  # timed scans leave this many times their own duration between them
_MOST_DIFFERENCES = 100_000  # keys that a scan may find changed and tell of one by one

_TOO_FAST = "the server changes faster than this mount can follow"


class Keyspace:
    """The keys of one database, or those of them that start with a prefix.

    `on_touched(keys)` is called as soon as keys are told of: what is cached of them is no longer true.
    `on_change(keys)` follows, within a fraction of a second, when the index is right too. `on_reset()` means: anything
    may have changed; `live` and `ready` may have become false. `on_state()`: they may have become true.
    `on_none_expiring()`: of all keys that were told of by now, none has a time to live.
    """

    def __init__(
        self,
        server: Server,
        *,
        separator: bytes = b":",
        is_long: Callable[[bytes], bool] = lambda _key: False,
        prefix: bytes = b"",
        index_memory: int = 512 * 1024 * 1024,
        rescan_interval: float = 30.0,
        keep_alive: float = 2.0,
        on_change: Callable[[Collection[bytes]], None] = lambda _keys: None,
        on_reset: Callable[[], None] = lambda: None,
        on_touched: Callable[[Collection[bytes]], None] = lambda _keys: None,
        on_state: Callable[[], None] = lambda: None,
        on_none_expiring: Callable[[], None] = lambda: None,
    ) -> None:
        """`is_long`: whether a key's path is too long for a directory. `index_memory`: bytes, beyond which the index
        goes to disk. `rescan_interval`: seconds between scans while there is no follower. `keep_alive`: seconds
        between signs of life.
        """
        self._server = server
        self._separator = separator
        self._prefix = prefix
        self._rescan_interval = rescan_interval
        self._keep_alive = keep_alive
        self._on_change = on_change
        self._on_reset = on_reset
        self._on_touched = on_touched
        self._on_state = on_state
        self._on_none_expiring = on_none_expiring

        self._known = Knowledge(lambda: Index(separator, is_long, memory_limit=index_memory))
        self._changes = Changes()
        self._echoes = Echoes()
        self._deadlines = Deadlines()
        self._pace = Pace()
        self._size = SizeWatch()
        self._follower: Follower | None = None
        self._threads: list[threading.Thread] = []
        self._moving: threading.Thread | None = None
        self._progress = (0, 0)
        self._volatile = True

        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)  # something for the thread that looks at keys
        self._state = threading.Condition(self._lock)  # something for the thread that scans, or for those who wait
        self._closing = False
        self._live = False
        self._reason = "not started"
        self._error: RedisFuseError | None = None  # what keeps the index from being whole
        self._trouble_since: float | None = None
        self._timed = False  # no follower: scan by the clock
        self._resume_at: float | None = None  # when to try to follow again, if `_timed`
        self._next_scan = 0.0
        self._scan_wanted = False
        self._doubtful = False  # the next scan is made because what is known may be wrong
        self._size_doubted = False  # it is made because of the server's count

    # -- for those who ask -------------------------------------------------------------------------------------------

    @property
    def index(self) -> Index:
        """The index in use; empty until `ready`. It may be replaced at any time: take it once for one listing."""
        return self._known.index

    @property
    def ready(self) -> bool:
        """Whether the index is whole."""
        return self._known.ready

    @property
    def live(self) -> bool:
        """Whether every change is told of, so that what is cached may be trusted until then.

        Look at it before fetching what is to be cached: what was fetched before it became true must not be trusted for
        long.
        """
        return self._live

    @property
    def reason(self) -> str:
        """Why it is not live; empty if it is."""
        return "" if self._live else self._reason

    @property
    def scanning(self) -> bool:
        """Whether a scan is under way."""
        return self._known.scanning

    @property
    def progress(self) -> tuple[int, int]:
        """Keys walked over by the scan under way, and how many there are (0: not known)."""
        return self._progress

    @property
    def volatile(self) -> bool:
        """Whether a key of this database may have a time to live."""
        return self._volatile

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the index is whole, up to `timeout` seconds (None: as long as it takes).

        Raises what keeps the scan from being made (UnavailableError, AccessError, NoSpaceError), or TryAgainError when
        the time is up.
        """
        if self._known.ready:
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while not self._known.ready:
                if self._closing:
                    raise UnavailableError("the mount is ending")
                if self._error is not None:
                    raise self._error.with_traceback(None)
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TryAgainError("the keys are still being read")
                self._state.wait(left)

    def changed_at(self, key: bytes) -> int:
        """When the key was last seen to change, in ns since the epoch; at least when this object was made.

        A directory's moment is that of its prefix (`b"user:"`; the root's is `b""`): when a key in it came or went.
        Bounded memory: for a key that changed long ago it may be later than the truth. It never goes backwards.
        """
        return self._changes.at(key)

    def modified_at(self, target: Target) -> int:
        """When a file was last modified, in ns since the epoch: `changed_at`, or what `saved` said of it."""
        return self._changes.shown(target.key, target.field)

    def is_busy(self, key: bytes) -> bool:
        """Whether a key has changed twice within a second, less than a second ago."""
        return self._changes.is_busy(key)

    def is_recent(self, key: bytes) -> bool:
        """Whether a key has changed, as far as is known, less than a second ago."""
        return self._changes.is_recent(key)

    def change_count(self, key: bytes) -> int:
        """A number that grows whenever the key changes or may have changed."""
        return self._changes.at(key)

    # -- for those who know ------------------------------------------------------------------------------------------

    def will_change(self, keys: Collection[bytes]) -> None:
        """The caller is about to change these keys."""
        if self._live:
            self._echoes.expect([key for key in keys if key.startswith(self._prefix)])

    def catch_up(self) -> None:
        """Return when every change that the caller has seen was told of, so that what is told later came later."""
        follower = self._follower
        if self._live and follower is not None:
            follower.catch_up(self._server.limits.timeout)

    def changed(self, key: bytes, exists: bool) -> None:
        """The caller has changed this key, or seen that it is (or is not) there: the index has it right at once."""
        if not key.startswith(self._prefix):
            return
        self._echoes.made(key)
        self._known.change(key, exists)
        self._changes.record(self._prefixes(key))
        self._changes.record_own(key)
        self._tell_looker()

    def saved(self, target: Target, moment: int) -> None:
        """The caller has changed this target, whose file was last written at `moment` (ns since the epoch)."""
        self._changes.saved(target.key, target.field, moment)

    def touched(self, key: bytes) -> None:
        """This key may have changed: look at it."""
        if not key.startswith(self._prefix):
            return
        self._changes.record((key,))
        self._known.note((key,))
        self._tell_looker()

    def expires_at(self, key: bytes, deadline: float) -> bool:
        """The key will expire at this moment of time.monotonic(): it is then treated as changed.

        False if there is no room to remember it: then what is known of the key should not be trusted for long.
        """
        first = self._deadlines.next()
        kept = self._deadlines.add(key, deadline)
        if first is None or deadline < first:
            self._tell_looker()
        return kept

    def refresh(self) -> None:
        """Scan again; until that is done the old index is used. Also tries to follow again where that was given up."""
        with self._lock:
            self._want_scan(doubtful=True)
            if self._timed:
                self._resume_at = time.monotonic()

    def _prefixes(self, key: bytes) -> list[bytes]:
        """The prefixes of the directories that a key is below."""
        prefixes = [b""]
        for component in key.split(self._separator)[:-1]:
            prefixes.append(prefixes[-1] + component + self._separator)
        return prefixes

    # -- beginning and end -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to follow and to scan, in threads (so: after the fork)."""
        self._reason = "connecting"
        self._begin_to_follow()
        for name, work in (("look", self._look), ("scan", self._scan)):
            thread = threading.Thread(target=self._guard, args=(work,), name=f"redisfuse-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """End the threads; whoever waits gets UnavailableError."""
        with self._lock:
            self._closing = True
            self._live = False
            self._reason = "the mount is ending"
            self._state.notify_all()
            self._news.notify_all()
        if self._follower is not None:
            self._follower.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(self._server.limits.timeout + 1)

    def _guard(self, work: Callable[[], None]) -> None:
        """Run a thread's loop, and begin it again should a bug end it: a mount without it would tell lies."""
        while not self._closing:
            try:
                work()
            except Exception:
                log.exception("a thread that keeps the keyspace failed; everything is read again")
                self._drop_everything(UnavailableError("keeping the keyspace failed; it is read again"))
                if self._follower is not None:
                    self._follower.interrupt()
                time.sleep(1)

    def _begin_to_follow(self) -> None:
        self._follower = Follower(self._server, self, prefix=self._prefix, keep_alive=self._keep_alive)
        self._follower.start()

    # -- what the follower says (follow.Listener) --------------------------------------------------------------------

    def following(self) -> None:
        """From now on every change is told: what was cached without that is dropped, and a scan made."""
        self._forget()
        self._on_reset()
        self._pace.connected(time.monotonic())
        with self._lock:
            self._live = True
            self._timed = False
            self._error = None
            self._trouble_since = None
            self._want_scan()
        self._on_state()

    def told(self, keys: list[bytes]) -> None:
        """These keys have changed."""
        echoes = self._echoes.among(keys)
        self._changes.record([key for key in keys if key not in echoes] if echoes else keys)
        self._changes.record_echoes(echoes)
        self._on_touched(keys)
        behind = self._known.note(keys)
        self._echoes.heard(keys)
        self._tell_looker()
        if self._pace.told(len(keys), behind):
            self._give_up(_TOO_FAST)

    def told_everything(self, probe: Probe) -> None:
        """Some database was flushed; if it may have been this one, everything is dropped and read again."""
        if not probe.survivors(self._known.sample(_SAMPLE)):  # else it was another one
            self._read_again()

    def swapped(self) -> None:
        """Two databases were swapped, and nobody says which."""
        self._read_again()

    def _read_again(self) -> None:
        """Drop everything, while messages go on coming, and scan."""
        self._forget()
        self._on_reset()
        with self._lock:
            self._want_scan()

    def alive(self, census: Census, told: int) -> None:
        """The server's counts: should keys and index drift apart, the keys are read again."""
        self._volatile = census.expiring != 0
        if not self._volatile:
            self._on_none_expiring()
        known = self._known
        if not known.ready or known.scanning or self._prefix or census.size is None:
            return
        indexed = len(known.index)
        if self._size.judge(census.size, indexed, told + known.pending, time.monotonic()):
            log.info("the database has %d keys, the index %d: it is read again", census.size, indexed)
            with self._lock:
                self._size_doubted = True
                self._want_scan(doubtful=True)
            self._on_reset()

    def refused(self, reason: str) -> None:
        """There will be no messages: scan by the clock."""
        log.warning("changes by others show after up to %g s: %s", self._rescan_interval, reason)
        with self._lock:
            self._go_timed(reason)
            self._want_scan()
        self._on_state()

    def lost(self, error: RedisFuseError) -> None:
        """The connection was lost: drop everything. Whoever waits goes on waiting for the next attempt."""
        log.warning("following the server was interrupted: %s", error)
        self._drop_everything(error)
        if self._pace.lost(time.monotonic()):
            self._give_up(f"{_TOO_FAST}, and cuts it off again and again")

    def unreachable(self, error: RedisFuseError) -> None:
        """Connecting failed."""
        with self._lock:
            self._reason = str(error)
            self._trouble(error)

    # -- states ------------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Drop all that is known: anything may have changed."""
        self._changes.record_everything()
        self._deadlines.clear()
        self._known.forget()
        self._size.fresh()
        with self._lock:
            self._state.notify_all()

    def _drop_everything(self, error: RedisFuseError) -> None:
        """What is known may be wrong, and there are no messages to put it right."""
        with self._lock:
            self._live = False
            self._reason = str(error)
        self._forget()
        self._on_reset()

    def _go_timed(self, reason: str) -> None:
        """From now on, scan by the clock. The lock is held."""
        self._live = False
        self._timed = True
        self._reason = f"{reason}; the keys are read again every {self._rescan_interval:g} s"

    def _give_up(self, reason: str) -> None:
        """Stop following for a while. What is known now stays in use, and is trusted for a second only."""
        with self._lock:
            if self._timed:
                return
            self._go_timed(reason)
            self._resume_at = time.monotonic() + self._pace.gave_up()
            self._want_scan()
        self._known.drop_pending()
        self._on_reset()
        log.warning("%s", self._reason)
        if self._follower is not None:
            self._follower.close()

    def _trouble(self, error: RedisFuseError) -> None:
        """Tell those who wait of an error; of "not now" only when it lasts. The lock is held."""
        now = time.monotonic()
        if self._trouble_since is None:
            self._trouble_since = now
        if isinstance(error, TryAgainError) and now - self._trouble_since < self._server.limits.timeout:
            return
        self._error = error
        self._state.notify_all()

    def _want_scan(self, *, doubtful: bool = False) -> None:
        """Have a scan made. The lock is held."""
        self._scan_wanted = True
        self._doubtful = self._doubtful or doubtful
        self._state.notify_all()

    def _tell_looker(self) -> None:
        with self._lock:
            self._news.notify()

    # -- the thread that looks at keys -------------------------------------------------------------------------------

    def _look(self) -> None:
        while not self._closing:
            self._wait_for_news()
            time.sleep(_GATHER_BUSY if self._known.pending > _BUSY else _GATHER)
            due = self._deadlines.due(time.monotonic() - _LATE)
            if due:
                self._changes.record(due)
                self._on_touched(due)
                self._known.note(due)
            batch = self._known.take(_BATCH)
            if batch.keys:
                self._look_at(batch)
                now = time.monotonic()
                if self._pace.looked(now - batch.since, now) and self._live:
                    self._give_up(_TOO_FAST)

    def _wait_for_news(self) -> None:
        """Wait for keys to look at, or a deadline."""
        with self._lock:
            while not self._closing and not self._known.pending:
                deadline = self._deadlines.next()
                left = None if deadline is None else deadline + _LATE - time.monotonic()
                if left is not None and left <= 0:
                    return
                self._news.wait(left)

    def _look_at(self, batch: Batch) -> None:
        """Find out whether these keys exist, put the index right, and tell."""
        try:
            found = existing(self._server, batch.keys)
        except RedisFuseError as error:
            log.debug("changed keys could not be looked at: %s", error)
            self._known.put_back(batch)
            self._on_change(batch.keys)  # for what is cached of them elsewhere it is time all the same
            time.sleep(_FIRST_PAUSE)
            return
        for start in range(0, len(found), _SETTLED):
            part = slice(start, start + _SETTLED)
            moved = self._known.settle(batch.keys[part], found[part], batch.epoch)
            if moved is None:
                return
            if moved:
                self._changes.record({prefix for key in moved for prefix in self._prefixes(key)})
        if None in found:
            with self._lock:
                self._state.notify_all()  # timed scans are needed
        self._move_if_full()
        self._on_change(batch.keys)

    def _move_if_full(self) -> None:
        """Let an index in use that has outgrown its memory move to disk, in a thread of its own."""
        index = self._known.index
        if index.is_full and (self._moving is None or not self._moving.is_alive()):
            self._moving = threading.Thread(target=_move, args=(index,), name="redisfuse-move", daemon=True)
            self._moving.start()

    # -- the thread that scans ---------------------------------------------------------------------------------------

    def _scan(self) -> None:
        pause = _FIRST_PAUSE
        while not self._closing:
            if not self._wait_for_scan():
                continue
            try:
                self._scan_once()
                pause = _FIRST_PAUSE
            except SupersededError:
                pass
            except RedisFuseError as error:
                log.warning("reading the keys failed: %s", error)
                self._scan_failed(error)
                with self._lock:
                    if not self._closing and not self._scan_wanted:
                        self._state.wait(_DENIED_PAUSE if isinstance(error, AccessError) else pause)
                    self._want_scan()
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _wait_for_scan(self) -> bool:
        """Wait until something is to be done; True if that is a scan."""
        with self._lock:
            now = time.monotonic()
            resume_at = self._resume_at if self._timed else None
            if resume_at is None or now < resume_at:
                moments = [] if resume_at is None else [resume_at]
                if self._live or self._timed:
                    if self._scan_wanted or not self._known.ready:
                        self._scan_wanted = False
                        return not self._closing
                    if self._timed or self._known.unsure:
                        if now >= self._next_scan:
                            return not self._closing
                        moments.append(self._next_scan)
                if not self._closing:
                    self._state.wait(min(moments) - now if moments else None)
                return False
            self._resume_at = None
        self._begin_to_follow()
        return False

    def _scan_once(self) -> None:
        """One scan into a new index, which then takes the old one's place."""
        began = time.monotonic()
        known = self._known
        with self._lock:
            doubtful, self._doubtful = self._doubtful, False
            by_size, self._size_doubted = self._size_doubted, False
        self._progress = (0, 0)
        scanning = known.begin_scan()
        walked = 0
        try:
            for keys in scan(
                self._server, prefix=self._prefix, before_each=known.before_scan_command, on_total=self._set_total
            ):
                if self._closing:
                    raise SupersededError
                known.digest(scanning, keys)
                # With a prefix fewer keys come than were walked over.
                walked += max(len(keys), self._server.limits.scan_count if self._prefix else 0)
                total = self._progress[1]
                self._progress = (min(walked, total) if total else walked, total)
            old = known.finish(scanning)
        finally:
            known.abandon(scanning)
        self._size.fresh()
        now = time.monotonic()
        with self._lock:
            self._error = None
            self._trouble_since = None
            self._next_scan = now + max(self._rescan_interval, _SCAN_SHARE * (now - began))
            self._state.notify_all()
        self._on_state()
        if old is not None:
            self._compare(old, scanning.index, doubtful=doubtful, by_size=by_size)

    def _set_total(self, total: int) -> None:
        self._progress = (0, total)

    def _compare(self, old: Index, new: Index, *, doubtful: bool, by_size: bool) -> None:
        """Tell what a scan found to be other than what was known."""
        differences = old.differences(new, _MOST_DIFFERENCES)
        if by_size:
            self._size.scanned(differences != set(), time.monotonic())
        if doubtful and differences != set():
            self._changes.record_everything()
        if differences:
            self._changes.record(differences | {prefix for key in differences for prefix in self._prefixes(key)})
            self._on_touched(differences)
            self._on_change(differences)
        if doubtful or differences is None:
            self._on_reset()

    def _scan_failed(self, error: RedisFuseError) -> None:
        with self._lock:
            self._trouble(error)
            timed = self._timed
            if timed:
                self._resume_at = time.monotonic() + self._rescan_interval
        if timed and self._known.ready and isinstance(error, UnavailableError):
            # Nobody else notices that the server is gone.
            self._forget()
            self._on_reset()


def _move(index: Index) -> None:
    """Move an index to disk."""
    try:
        index.move_to_disk()
    except RedisFuseError as error:
        log.error("the index has outgrown --index-memory and stays in memory: %s", error)
