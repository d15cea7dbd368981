"""Which keys there are, and when they change: the index, the first scan, and the follower, kept true together.

How it stays true:

- The follower listens before the scan begins. A key that it is told of is looked at (EXISTS) and put right in the index
  in use and in the one that a scan is building. What a scan brings is older than what was looked at since that SCAN was
  sent, so for those keys it is not believed.
- A scan always builds a new index, which takes the old one's place in one step.
- When messages may have been missed (connection lost, database flushed), everything is forgotten first: `on_reset` is
  called, the index in use is dropped, and listings wait for the scan that follows. A lost connection is noticed at
  once, a hung server within the time-out.
- Without a follower (old server, ACL, a server too fast to follow), the keyspace is scanned every now and then;
  `live` is false, and `reason` says why.

Threads: the follower's, which only notes what it is told; one that looks at keys and calls `on_change`; one that scans.
Lock order: Keyspace._lock, then the index's, `Changes`' or `Deadlines`'. No callback is called while any is held.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from redisfuse.errors import RedisFuseError, TryAgainError, UnavailableError
from redisfuse.keyspace.changes import Changes
from redisfuse.keyspace.deadlines import Deadlines
from redisfuse.keyspace.existence import existing
from redisfuse.keyspace.follow import Census, Follower, Probe
from redisfuse.keyspace.index import Index
from redisfuse.keyspace.scan import scan
from redisfuse.server.server import Server

log = logging.getLogger(__name__)

_GATHER = 0.02  # seconds that changed keys are let gather before they are looked at
_GATHER_BUSY = 0.1  # the same, while there are thousands
_BUSY = 2_000  # keys
_BATCH = 50_000  # keys looked at in one go
_APPLIED = 1_000  # keys put into the index under one hold of the lock
_LATE = 0.01  # seconds after a deadline at which a key is looked at, so that the server too finds it passed
_SAMPLE = 16  # keys looked at to tell a swapped or flushed database

_MOST_BEHIND = 500_000  # keys told of and not looked at yet: past it, the server is too fast
_LONGEST_LAG = 2.0  # seconds between being told and having looked, likewise, if it stays so for `_LAG_PATIENCE`
_LAG_PATIENCE = 5.0
_FIRST_BREAK = 60.0  # seconds without following after that; doubled each time
_LONGEST_BREAK = 900.0
_CUT_OFF = 3  # connections lost within `_CUT_OFF_WITHIN` seconds that count as too fast too, if they were busy
_FAST = 5_000  # keys told of a second, from which a connection is busy
_CUT_OFF_WITHIN = 60.0

_SCAN_PAUSE = 0.25  # seconds between a scan that failed and the next; doubled up to the longest
_LONGEST_SCAN_PAUSE = 5.0
_SCAN_SHARE = 10  # timed scans leave this many times their own duration between them
_MOST_DIFFERENCES = 100_000  # keys that a scan may find changed and tell of one by one


class _SupersededError(Exception):
    """The scan under way is of no use any more."""


class Keyspace:
    """The keys of one database, or those of them that start with a prefix.

    `on_touched(keys)` is called as soon as keys are told of: what is cached of them is no longer true.
    `on_change(keys)` follows, within a fraction of a second, when the index is right too. `on_reset()` means: anything
    may have changed.
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
    ) -> None:
        """`is_long`: whether a key's path is too long for a directory. `index_memory`: bytes, beyond which the index
        goes to disk. `rescan_interval`: seconds between scans while there is no follower. `keep_alive`: seconds
        between signs of life.
        """
        self._server = server
        self._separator = separator
        self._is_long = is_long
        self._prefix = prefix
        self._index_memory = index_memory
        self._rescan_interval = rescan_interval
        self._keep_alive = keep_alive
        self._on_change = on_change
        self._on_reset = on_reset
        self._on_touched = on_touched
        self._on_state = on_state

        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)  # something for the thread that looks at keys
        self._state = threading.Condition(self._lock)  # ready, error, or something for the thread that scans
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._follower: Follower | None = None

        self._index = self._new_index()
        self._building: Index | None = None
        self._epoch = 0  # grows when everything known is dropped; what was asked before then is not believed
        self._ready = False
        self._live = False
        self._reason = "not started"
        self._error: RedisFuseError | None = None
        self._trouble_since: float | None = None
        self._scan_wanted = False
        self._scan_doubtful = False  # the next scan is made because everything is in doubt
        self._timed = False  # no follower: scan by the clock
        self._next_scan = 0.0
        self._progress = (0, 0)

        self._changes = Changes()
        self._deadlines = Deadlines()
        self._pending: set[bytes] = set()  # told of, to be looked at
        self._pending_since = 0.0
        self._own: set[bytes] = set()  # changed by ourselves since the last look began
        self._verified: set[bytes] = set()  # looked at since the last SCAN was sent
        self._verified_before: set[bytes] = set()  # looked at between the last SCAN and the one before
        self._unsure = False  # some keys may not be looked at

        self._lag_since: float | None = None
        self._losses: list[float] = []
        self._following_since = 0.0
        self._told_count = 0  # since then
        self._break = _FIRST_BREAK
        self._resume_at: float | None = None  # when to try to follow again
        self._volatile = True
        self._told_before = 0
        self._size_offset: int | None = None  # DBSIZE less the index, when both were known to be right
        self._size_doubts = 0
        self._size_scan = False  # the next scan is made because of it
        self._size_patience = 0.0
        self._size_quiet_until = 0.0

    def _new_index(self) -> Index:
        return Index(self._separator, self._is_long, memory_limit=self._index_memory)

    # -- for those who ask -------------------------------------------------------------------------------------------

    @property
    def index(self) -> Index:
        """The index in use; empty until `ready`. It may be replaced at any time: take it once for one listing."""
        return self._index

    @property
    def ready(self) -> bool:
        """Whether the index is whole."""
        return self._ready

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
        return self._building is not None

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
        if self._ready:
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while not self._ready:
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

    def change_count(self, key: bytes) -> int:
        """A number that grows whenever the key changes or may have changed."""
        return self._changes.at(key)

    # -- for those who know ------------------------------------------------------------------------------------------

    def changed(self, key: bytes, exists: bool) -> None:
        """The caller has changed this key, or seen that it is (or is not) there: the index has it right at once."""
        if not key.startswith(self._prefix):
            return
        with self._lock:
            for index in self._indexes():
                if exists:
                    index.add(key)
                else:
                    index.discard(key)
            self._own.add(key)
            if self._building is not None:
                self._verified.add(key)
            self._note((key,))
        self._changes.record((key, *self._prefixes(key)))

    def touched(self, key: bytes) -> None:
        """This key may have changed: look at it."""
        self._changes.record((key,))
        with self._lock:
            self._note((key,))

    def expires_at(self, key: bytes, deadline: float) -> bool:
        """The key will expire at this moment of time.monotonic(): it is then treated as changed.

        False if there is no room to remember it: then what is known of the key should not be trusted for long.
        """
        first = self._deadlines.next()
        kept = self._deadlines.add(key, deadline)
        if first is None or deadline < first:
            with self._lock:
                self._news.notify()
        return kept

    def refresh(self) -> None:
        """Scan again; until that is done the old index is used. Also tries to follow again where that was given up."""
        with self._lock:
            self._want_scan(doubtful=True)
            if self._timed:
                self._resume_at = time.monotonic()

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

    # -- what the follower says (Listener) ---------------------------------------------------------------------------

    def following(self) -> None:
        """From now on every change is told: what was cached without that is dropped, and a scan made."""
        self._forget()
        self._on_reset()
        with self._lock:
            self._live = True
            self._following_since = time.monotonic()
            self._told_count = 0
            self._timed = False
            self._error = None
            self._trouble_since = None
            self._want_scan()
        self._on_state()

    def told(self, keys: list[bytes]) -> None:
        """These keys have changed."""
        self._volatile = True  # until counted again: any of them may have got a time to live
        self._changes.record(keys)
        self._on_touched(keys)
        self._told_count += len(keys)
        with self._lock:
            self._note(keys)
            behind = len(self._pending)
        if behind > _MOST_BEHIND:
            self._give_up("the server changes more keys than this mount can follow")

    def told_everything(self, probe: Probe) -> None:
        """Some database was flushed; if it may have been this one, everything is dropped and read again."""
        with self._lock:
            index = self._index if self._ready else self._building
            sample = index.sample(4 * _SAMPLE) if index is not None else []
            sample = [key for key in sample if key not in self._pending][:_SAMPLE]
        if not probe.survivors(sample):  # else it was another database
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
        """The server's count of keys, against the index: should they drift apart, the keys are read again."""
        self._volatile = census.expiring != 0
        before, self._told_before = self._told_before, told
        size = census.size
        with self._lock:
            if not self._ready or self._building is not None or self._prefix or size is None:
                self._size_doubts = 0
                return
            offset = size - len(self._index)
            if self._size_offset is None:
                # Keys that have expired and not been removed are counted by the server and not by a scan.
                self._size_offset = offset
            tolerance = told + before + len(self._pending)
            low, high = min(0, self._size_offset), max(0, self._size_offset)
            if low - tolerance <= offset <= high + tolerance or time.monotonic() < self._size_quiet_until:
                self._size_doubts = 0
                return
            self._size_doubts += 1
            if self._size_doubts < 2:
                return
            self._size_doubts = 0
            self._size_scan = True
            self._want_scan(doubtful=True)
        log.info("the database has %d keys, the index %d: it is read again", size, size - offset)
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
        now = time.monotonic()
        if self._told_count < _FAST * (now - self._following_since):
            return
        # It was busy: the server cuts off a follower that falls behind.
        self._losses = [moment for moment in self._losses if now - moment < _CUT_OFF_WITHIN] + [now]
        if len(self._losses) >= _CUT_OFF:
            self._losses = []
            self._give_up("the server changes faster than this mount can follow, and cuts it off again and again")

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
        with self._lock:
            self._epoch += 1
            self._index = self._new_index()
            self._building = None
            self._ready = False
            self._pending.clear()
            self._own.clear()
            self._lag_since = None
            self._size_offset = None
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
            self._pending.clear()
            self._lag_since = None
            self._resume_at = time.monotonic() + self._break
            self._break = min(2 * self._break, _LONGEST_BREAK)
            self._want_scan()
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

    def _indexes(self) -> list[Index]:
        """The indexes that a change goes into. The lock is held."""
        return [index for index in (self._index if self._ready else None, self._building) if index is not None]

    def _prefixes(self, key: bytes) -> list[bytes]:
        """The prefixes of the directories that a key is below."""
        components = key.split(self._separator)[:-1]
        prefixes = [b""]
        for component in components:
            prefixes.append(prefixes[-1] + component + self._separator)
        return prefixes

    # -- looking at the keys that were told of -----------------------------------------------------------------------

    def _note(self, keys: Iterable[bytes]) -> None:
        """Have these keys looked at. The lock is held."""
        if not self._pending:
            self._pending_since = time.monotonic()
        self._pending.update(keys)
        self._news.notify()

    def _look(self) -> None:
        """The loop of the thread that looks at keys."""
        while not self._closing:
            busy = self._wait_for_news()
            time.sleep(_GATHER_BUSY if busy else _GATHER)
            due = self._deadlines.due(time.monotonic() - _LATE)
            if due:
                self._changes.record(due)
                self._on_touched(due)
            with self._lock:
                self._note(due)
                epoch, since = self._epoch, self._pending_since
                if len(self._pending) <= _BATCH:
                    keys, self._pending = list(self._pending), set()
                else:
                    keys = [self._pending.pop() for _ in range(_BATCH)]
                self._own = set()
            if keys:
                self._look_at(keys, epoch)
                self._judge_lag(time.monotonic() - since)

    def _wait_for_news(self) -> bool:
        """Wait for keys or a deadline; answer whether there are many."""
        with self._lock:
            while not self._closing and not self._pending:
                deadline = self._deadlines.next()
                left = None if deadline is None else deadline + _LATE - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._news.wait(left)
            return len(self._pending) > _BUSY

    def _look_at(self, keys: Sequence[bytes], epoch: int) -> None:
        """Find out whether these keys exist, put the index right, and tell."""
        try:
            found = existing(self._server, keys)
        except RedisFuseError as error:
            # Their kernel caches at least are dropped in time; they are looked at again.
            self._on_change(keys)
            log.debug("changed keys could not be looked at: %s", error)
            with self._lock:
                if epoch == self._epoch:
                    self._note(keys)
            time.sleep(_SCAN_PAUSE)
            return
        for start in range(0, len(keys), _APPLIED):
            part = slice(start, start + _APPLIED)
            if not self._apply(keys[part], found[part], epoch):
                return
        self._on_change(keys)

    def _apply(self, keys: Sequence[bytes], found: Sequence[bool | None], epoch: int) -> bool:
        """Put what was found into the indexes; False if it is out of date."""
        present = [key for key, exists in zip(keys, found, strict=True) if exists]
        absent = [key for key, exists in zip(keys, found, strict=True) if exists is False]
        moved: set[bytes] = set()
        with self._lock:
            if epoch != self._epoch:
                return False
            if self._own:  # changed by ourselves since the question was sent: that is newer
                present = [key for key in present if key not in self._own]
                absent = [key for key in absent if key not in self._own]
            for index in self._indexes():
                fresh = index.missing(present)
                index.add_many(fresh)
                moved.update(fresh)
                moved.update(key for key in absent if index.discard(key))
            if self._building is not None:
                self._verified.update(present, absent)
            if None in found and not self._unsure:
                self._unsure = True
                self._state.notify_all()
            full = self._index.is_full
        if moved:
            self._changes.record({prefix for key in moved for prefix in self._prefixes(key)})
        if full:
            threading.Thread(target=self._move, name="redisfuse-move", daemon=True).start()
        return True

    def _move(self) -> None:
        """Move the index in use to disk."""
        try:
            self._index.move_to_disk()
        except RedisFuseError as error:
            log.error("the index has outgrown --index-memory and stays in memory: %s", error)

    def _judge_lag(self, lag: float) -> None:
        """Give up following if it is too slow for too long."""
        now = time.monotonic()
        if lag < _LONGEST_LAG:
            self._lag_since = None
        elif self._lag_since is None:
            self._lag_since = now
        elif now - self._lag_since > _LAG_PATIENCE and self._live:
            self._give_up("the server changes faster than this mount can follow")

    # -- scanning ----------------------------------------------------------------------------------------------------

    def _want_scan(self, *, doubtful: bool = False) -> None:
        """Have a scan made. The lock is held."""
        self._scan_wanted = True
        self._scan_doubtful = self._scan_doubtful or doubtful
        self._state.notify_all()

    def _scan(self) -> None:
        """The loop of the thread that scans."""
        pause = _SCAN_PAUSE
        while not self._closing:
            if not self._wait_for_scan():
                continue
            try:
                self._scan_once()
                pause = _SCAN_PAUSE
            except _SupersededError:
                pass
            except RedisFuseError as error:
                log.warning("reading the keys failed: %s", error)
                self._scan_failed(error)
                with self._lock:
                    if not self._closing and not self._scan_wanted:
                        self._state.wait(pause)
                    self._want_scan()
                pause = min(2 * pause, _LONGEST_SCAN_PAUSE)

    def _wait_for_scan(self) -> bool:
        """Wait until a scan is to be made; True if it is."""
        with self._lock:
            now = time.monotonic()
            resume = self._timed and self._resume_at is not None and now >= self._resume_at
            if resume:
                self._resume_at = None
            else:
                by_clock = self._timed or self._unsure
                missing = not self._ready and (self._live or self._timed)
                if self._scan_wanted or missing or (by_clock and now >= self._next_scan):
                    self._scan_wanted = False
                    return not self._closing
                moments = [self._next_scan] if by_clock else []
                if self._timed and self._resume_at is not None:
                    moments.append(self._resume_at)
                self._state.wait(min(moments) - now if moments else None)
                return False
        self._begin_to_follow()
        return False

    def _scan_once(self) -> None:
        """One scan into a new index, which then takes the old one's place."""
        began = time.monotonic()
        with self._lock:
            epoch = self._epoch
            doubtful, self._scan_doubtful = self._scan_doubtful, False
            self._unsure = False
            self._building = building = self._new_index()
            self._verified, self._verified_before = set(), set()
            self._progress = (0, 0)
        walked = 0
        try:
            for keys in scan(
                self._server, prefix=self._prefix, before_each=self._next_generation, on_total=self._set_total
            ):
                # With a prefix fewer keys come than were walked over.
                walked += max(len(keys), self._server.limits.scan_count if self._prefix else 0)
                self._digest(keys, building, epoch, walked)
            old = self._take(building, epoch, began)
            self._on_state()
        finally:
            with self._lock:
                if self._building is building:
                    self._building = None
        if old is not None:
            self._compare(old, building, doubtful)

    def _set_total(self, total: int) -> None:
        self._progress = (0, total)

    def _next_generation(self) -> None:
        """A SCAN is about to be sent."""
        with self._lock:
            self._verified_before, self._verified = self._verified, set()

    def _digest(self, keys: list[bytes], building: Index, epoch: int, walked: int) -> None:
        """Put a piece of the scan into the new index."""
        with self._lock:
            if self._closing or epoch != self._epoch:
                raise _SupersededError
            newer = self._verified | self._verified_before
            if newer:
                keys = [key for key in keys if key not in newer]
            building.add_many(keys)
            total = self._progress[1]
            self._progress = (min(walked, total) if total else walked, total)
        if building.is_full:
            building.move_to_disk()

    def _take(self, building: Index, epoch: int, began: float) -> Index | None:
        """Use the new index; answer the one it replaced, if that was in use."""
        with self._lock:
            if epoch != self._epoch:
                raise _SupersededError
            old = self._index if self._ready else None
            self._index = building
            self._building = None
            self._ready = True
            self._error = None
            self._trouble_since = None
            self._size_offset = None
            now = time.monotonic()
            self._next_scan = now + max(self._rescan_interval, _SCAN_SHARE * (now - began))
            self._state.notify_all()
        return old

    def _compare(self, old: Index, new: Index, doubtful: bool) -> None:
        """Tell what a scan found to be other than what was known."""
        differences = old.differences(new, _MOST_DIFFERENCES)
        with self._lock:
            by_size, self._size_scan = self._size_scan, False
        if by_size:  # not again so soon if it was for nothing
            self._size_patience = min(2 * self._size_patience + 30, 3600) if differences == set() else 0.0
            self._size_quiet_until = time.monotonic() + self._size_patience
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
            timed, ready = self._timed, self._ready
            if timed:
                self._resume_at = time.monotonic() + self._rescan_interval
        if timed and ready and isinstance(error, UnavailableError):
            # Nobody else notices that the server is gone.
            self._forget()
            self._on_reset()
