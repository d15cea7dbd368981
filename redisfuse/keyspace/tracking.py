"""Being told by the server which keys change: the tracking connection, in a thread of its own.

`CLIENT TRACKING ON BCAST` needs no setting of the server. The connection first subscribes to the channel that nobody
publishes on, so that the server counts it among subscribers: one that falls behind is cut off, where it would otherwise
be buffered for without end. A message says that a key changed, not how, and not in which database. A null instead of
keys says that some database was flushed. SWAPDB is not told at all; the server's own count of it is looked at every
now and then. Whatever was told while the connection was away is lost, so every loss is
reported, and whoever hears it must forget all that it knew.

Threads: `Follower` has one thread, from which it calls its listener. No lock is held while it does.
"""

import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from redisfuse.client.client import Dialogue, Server
from redisfuse.errors import RedisFuseError, ServerReplyError, UnavailableError

_CHANNEL = b"__redis__:invalidate"
_RIGHTS = "+client|tracking +subscribe &__redis__:invalidate"
_LONGEST_PAUSE = 5.0  # seconds between two attempts to connect
_FIRST_PAUSE = 0.05
_BURST = 20_000  # keys handed on at once
_PROBES = 20  # times that keys are looked for while something is flushed again and again
_BREATH = 0.002  # seconds that messages are let gather while they come thick and fast

log = logging.getLogger(__name__)


class Listener(Protocol):
    """Who wants to know. All of it is called from the follower's thread."""

    def following(self) -> None:
        """From now on every change is told."""

    def told(self, keys: list[bytes]) -> None:
        """These keys have changed, come or gone; a key may be in it twice."""

    def told_everything(self, probe: "Probe") -> None:
        """This database, or another one of the server, was emptied."""

    def swapped(self) -> None:
        """Two databases of the server were swapped; one of them may be this one."""

    def alive(self, census: "Census", told: int) -> None:
        """The server answers; `told` keys were told of since the last time."""

    def refused(self, reason: str) -> None:
        """This server or user can't be told of changes; the thread ends."""

    def lost(self, error: RedisFuseError) -> None:
        """The connection was lost: changes are missed from now on, until `following`."""

    def unreachable(self, error: RedisFuseError) -> None:
        """An attempt to connect, or to connect again, failed; another will follow."""


@dataclass(frozen=True, slots=True)
class Census:
    """What the server counts. None: this user may not know."""

    size: int | None  # keys in the database
    expiring: int | None  # those of them that have a time to live
    swaps: int | None  # how often two databases were swapped since the server began to count


class RefusedError(Exception):
    """Tracking is not to be had here."""


class Probe:
    """For `told_everything`: asks on the tracking connection itself, so that the order of what comes tells."""

    def __init__(self, dialogue: Dialogue, held_back: list[bytes]) -> None:
        self._dialogue = dialogue
        self._held_back = held_back

    def survivors(self, keys: Sequence[bytes]) -> set[bytes]:
        """Which of these keys exist, and were not told of since: they were there before, and so were not flushed."""
        left = list(keys)
        for _attempt in range(_PROBES):
            if not left:
                break
            answers = self._dialogue.exchange([(b"EXISTS", key) for key in left])
            # The message of a change that EXISTS saw comes before the answer to anything that is asked now.
            self._dialogue.exchange([(b"PING",)])
            told, flushed = self._gather()
            left = [key for key, answer in zip(left, answers, strict=True) if answer == 1 and key not in told]
            if not flushed:
                return set(left)
        return set()

    def _gather(self) -> tuple[set[bytes], bool]:
        """The keys told of so far, all held back for later, and whether something was flushed again."""
        flushed = False
        while (push := self._dialogue.receive_push(0)) is not None:
            keys = _keys(push)
            if keys is None:
                flushed = True
            else:
                self._held_back += keys
        return set(self._held_back), flushed


def _keys(push: list[Any]) -> list[bytes] | None:
    """The keys of a push message: None for "everything", none at all for a message of another kind."""
    if len(push) < 2 or push[0] != b"invalidate":
        return []
    return push[1] if isinstance(push[1], list) else None


class Follower:
    """Keeps being told, connecting again by itself, until it is refused or closed."""

    def __init__(self, server: Server, listener: Listener, *, prefix: bytes = b"", keep_alive: float = 2.0) -> None:
        """`keep_alive`: seconds between two looks at what the server counts, which also show that it lives."""
        self._server = server
        self._listener = listener
        self._prefix = prefix
        self._keep_alive = keep_alive
        self._may_count = True  # may ask for INFO
        self._ending = threading.Event()
        self._asking: deque[threading.Event] = deque()  # those who wait in `catch_up`
        self._wakeup, self._wake = socket.socketpair()
        self._dialogue: Dialogue | None = None
        self._thread = threading.Thread(target=self._run, name="redisfuse-follow", daemon=True)

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def interrupt(self) -> None:
        """Hang up; the thread reports a loss and connects again."""
        dialogue = self._dialogue
        if dialogue is not None:
            dialogue.close()

    def catch_up(self, timeout: float) -> None:
        """Return when every change that the caller has seen was told of (or is not going to be), or after `timeout`.

        Not from the follower's own thread.
        """
        caught_up = threading.Event()
        self._asking.append(caught_up)
        with contextlib.suppress(OSError):  # closed: the thread has ended
            self._wake.send(b"\0", socket.MSG_DONTWAIT)
            caught_up.wait(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """End the thread, and wait for that up to `timeout` seconds unless it is the caller's own."""
        self._ending.set()
        self.interrupt()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._follow()
        finally:
            self._wake.close()
            self._wakeup.close()
            self._give_up_asking()

    def _give_up_asking(self) -> None:
        """Nobody needs to wait for what will not be told."""
        while self._asking:
            self._asking.popleft().set()

    def _follow(self) -> None:
        pause = _FIRST_PAUSE
        while not self._ending.is_set():
            began = None
            try:
                self._require_tracking()
                with self._server.dialogue(resp3=True) as dialogue:
                    self._dialogue = dialogue
                    self._begin(dialogue)
                    began = time.monotonic()
                    self._listen(dialogue)
            except RefusedError as refusal:
                self._listener.refused(str(refusal))
                return
            except ServerReplyError as error:
                # What it was asked first is HELLO 3.
                self._listener.refused(f"this server does not speak RESP3: {error}")
                return
            except RedisFuseError as error:
                self._report(error, was_following=began is not None)
            except Exception:
                log.exception("following the server's changes failed; it begins again")
                self._report(UnavailableError("following the server's changes failed"), was_following=began is not None)
            finally:
                self._dialogue = None
                self._give_up_asking()
            if began is not None and time.monotonic() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            self._ending.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _report(self, error: RedisFuseError, *, was_following: bool) -> None:
        if self._ending.is_set():
            return
        if was_following:
            self._listener.lost(error)
        else:
            self._listener.unreachable(error)

    def _require_tracking(self) -> None:
        facts = self._server.facts
        if not facts.has_tracking:
            raise RefusedError(f"{facts.label} can't tell of changes (it takes Redis 6 or later)")

    def _begin(self, dialogue: Dialogue) -> None:
        """Turn tracking on. Raises RefusedError."""
        options: list[bytes] = [b"PREFIX", self._prefix] if self._prefix else []
        dialogue.send([(b"SUBSCRIBE", _CHANNEL)])
        dialogue.send([(b"CLIENT", b"TRACKING", b"ON", b"BCAST", *options)])
        # SUBSCRIBE is answered by a push, so this is TRACKING's answer, or SUBSCRIBE's error.
        answer = dialogue.receive()
        if isinstance(answer, UnavailableError):
            raise answer
        if isinstance(answer, RedisFuseError):
            raise RefusedError(f"this user or server can't follow changes: {answer} (the user needs {_RIGHTS})")

    def _listen(self, dialogue: Dialogue) -> None:
        """Hand on what is told, and show signs of life, until it fails or is to end."""
        dialogue.timeout = max(1.0, dialogue.timeout - self._keep_alive)  # so a hung server is noticed within it
        swaps = self._count(dialogue).swaps
        self._listener.following()
        told = 0
        next_count = 0.0
        while not self._ending.is_set():
            now = time.monotonic()
            if now >= next_count:
                census = self._count(dialogue)
                if census.swaps != swaps:
                    swaps = census.swaps
                    self._listener.swapped()
                self._listener.alive(census, told)
                told = 0
                next_count = now + self._keep_alive
            push = dialogue.receive_push(max(0.001, next_count - now), unless=self._wakeup.fileno())
            if push is not None:
                told += self._hand_on(dialogue, push)
            if self._asking:
                told += self._answer(dialogue)

    def _answer(self, dialogue: Dialogue) -> int:
        """Tell those who wait that this has caught up; answer how many keys were told of until then."""
        with contextlib.suppress(BlockingIOError):
            self._wakeup.recv(4096, socket.MSG_DONTWAIT)
        asking = [self._asking.popleft() for _ in range(len(self._asking))]
        try:
            # The message of a change that anybody has seen comes before the answer to anything that is asked now.
            dialogue.exchange([(b"PING",)])
            count = 0
            while (push := dialogue.receive_push(0)) is not None:
                count += self._hand_on(dialogue, push)
            return count
        finally:
            for caught_up in asking:
                caught_up.set()

    def _hand_on(self, dialogue: Dialogue, push: list[Any] | None) -> int:
        """Hand on this message and those that are there already; answer how many keys were told of."""
        count = 0
        keys: list[bytes] = []
        while push is not None:
            more = _keys(push)
            if more is None:
                if keys:
                    self._listener.told(keys)
                    count += len(keys)
                keys = []
                self._listener.told_everything(Probe(dialogue, keys))
            else:
                keys += more
            if len(keys) >= _BURST:
                break
            push = dialogue.receive_push(0)
        if keys:
            self._listener.told(keys)
            count += len(keys)
            time.sleep(_BREATH)
        return count

    def _count(self, dialogue: Dialogue) -> Census:
        """What the server counts: two short INFO, or DBSIZE for a user who may not ask for those."""
        if self._may_count:
            keyspace, commands = dialogue.exchange([(b"INFO", b"keyspace"), (b"INFO", b"commandstats")])
            if not isinstance(keyspace, RedisFuseError) and not isinstance(commands, RedisFuseError):
                sizes = _numbers(keyspace, b"db%d:" % self._server.address.db)
                return Census(
                    size=sizes.get(b"keys", 0),
                    expiring=sizes.get(b"expires", 0),
                    swaps=_numbers(commands, b"cmdstat_swapdb:").get(b"calls", 0),
                )
            self._may_count = isinstance(keyspace, UnavailableError) or isinstance(commands, UnavailableError)
        size = dialogue.exchange([(b"DBSIZE",)])[0]
        return Census(size if isinstance(size, int) else None, None, None)


def _numbers(info: Any, start: bytes) -> dict[bytes, int]:
    """The `name=number` pairs of INFO's line that starts so; empty if there is no such line."""
    text = info if isinstance(info, bytes) else str(info).encode()
    for line in text.splitlines():
        if line.startswith(start):
            pairs = (part.partition(b"=") for part in line[len(start) :].split(b","))
            return {name: int(value) for name, _, value in pairs if value.isdigit()}
    return {}
