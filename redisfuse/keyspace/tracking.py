"""Being told by the server which keys change: the tracking connection, in a thread of its own.

`CLIENT TRACKING ON BCAST` needs no setting of the server. The connection first subscribes to the channel that nobody
publishes on, so that the server counts it among subscribers: one that falls behind is cut off, where it would otherwise
be buffered for without end. A message says that a key changed, not how, and not in which database. A null instead of
keys says that some database was flushed. SWAPDB is not told at all; the server's own count of it is looked at every
now and then. Whatever was told while the connection was away is lost, so every loss is
reported, and whoever hears it must forget all that it knew.

Threads: `TrackingClient` has one thread, from which it calls its listener. No lock is held while it does.
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

from redisfuse.client.client import Channel, RedisClient
from redisfuse.errors import RedisFuseError, ServerReplyError, UnavailableError

_INVALIDATION_CHANNEL = b"__redis__:invalidate"
_REQUIRED_ACL = "+client|tracking +subscribe &__redis__:invalidate"
_MAX_RECONNECT_DELAY_SECONDS = 5.0  # seconds between two attempts to connect
_MIN_RECONNECT_DELAY_SECONDS = 0.05
_MAX_KEYS_PER_EVENT = 20_000  # keys handed on at once
_MAX_PROBE_ATTEMPTS = 20  # times that keys are looked for while something is flushed again and again
_COALESCE_SECONDS = 0.002  # seconds that messages are let gather while they come thick and fast

log = logging.getLogger(__name__)


class TrackingListener(Protocol):
    """Who wants to know. All of it is called from the follower's thread."""

    def on_connect(self) -> None:
        """From now on every change is told."""

    def on_invalidate(self, keys: list[bytes]) -> None:
        """These keys have changed, come or gone; a key may be in it twice."""

    def on_flush(self, probe: "FlushProbe") -> None:
        """This database, or another one of the server, was emptied."""

    def on_swapdb(self) -> None:
        """Two databases of the server were swapped; one of them may be this one."""

    def on_heartbeat(self, counts: "ServerCounts", invalidated_keys: int) -> None:
        """The server answers; `on_invalidate` keys were told of since the last time."""

    def on_unsupported(self, reason: str) -> None:
        """This server or user can't be told of changes; the thread ends."""

    def on_disconnect(self, error: RedisFuseError) -> None:
        """The connection was lost: changes are missed from now on, until `on_connect`."""

    def on_connect_failed(self, error: RedisFuseError) -> None:
        """An attempt to connect, or to connect again, failed; another will follow."""


@dataclass(frozen=True, slots=True)
class ServerCounts:
    """What the server counts. None: this user may not know."""

    key_count: int | None  # keys in the database
    expiring_count: int | None  # those of them that have a time to live
    swapdb_count: int | None  # how often two databases were swapped since the server began to count


class TrackingUnsupportedError(Exception):
    """Tracking is not to be had here."""


class FlushProbe:
    """For `on_flush`: asks on the tracking connection itself, so that the order of what comes tells."""

    def __init__(self, channel: Channel, deferred_keys: list[bytes]) -> None:
        self._channel = channel
        self._deferred_keys = deferred_keys

    def find_survivors(self, keys: Sequence[bytes]) -> set[bytes]:
        """Which of these keys exist, and were not told of since: they were there before, and so were not flushed."""
        left = list(keys)
        for _attempt in range(_MAX_PROBE_ATTEMPTS):
            if not left:
                break
            answers = self._channel.execute([(b"EXISTS", key) for key in left])
            # The message of a change that EXISTS saw comes before the answer to anything that is asked now.
            self._channel.execute([(b"PING",)])
            told, flushed = self._collect_invalidations()
            left = [key for key, answer in zip(left, answers, strict=True) if answer == 1 and key not in told]
            if not flushed:
                return set(left)
        return set()

    def _collect_invalidations(self) -> tuple[set[bytes], bool]:
        """The keys told of so far, all held back for later, and whether something was flushed again."""
        flushed = False
        while (push := self._channel.receive_push(0)) is not None:
            keys = _parse_invalidation(push)
            if keys is None:
                flushed = True
            else:
                self._deferred_keys += keys
        return set(self._deferred_keys), flushed


def _parse_invalidation(push: list[Any]) -> list[bytes] | None:
    """The keys of a push message: None for "everything", none at all for a message of another kind."""
    if len(push) < 2 or push[0] != b"invalidate":
        return []
    return push[1] if isinstance(push[1], list) else None


class TrackingClient:
    """Keeps being told, connecting again by itself, until it is refused or closed."""

    def __init__(
        self, client: RedisClient, listener: TrackingListener, *, prefix: bytes = b"", heartbeat_interval: float = 2.0
    ) -> None:
        """`keep_alive`: seconds between two looks at what the server counts, which also show that it lives."""
        self._client = client
        self._listener = listener
        self._prefix = prefix
        self._heartbeat_interval = heartbeat_interval
        self._may_use_info = True  # may ask for INFO
        self._closing = threading.Event()
        self._waiters: deque[threading.Event] = deque()  # those who wait in `wait_for_invalidations`
        self._wakeup_receiver, self._wakeup_sender = socket.socketpair()
        self._channel: Channel | None = None
        self._thread = threading.Thread(target=self._run, name="redisfuse-follow", daemon=True)

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def disconnect(self) -> None:
        """Hang up; the thread reports a loss and connects again."""
        dialogue = self._channel
        if dialogue is not None:
            dialogue.close()

    def wait_for_invalidations(self, timeout: float) -> None:
        """Return when every change that the caller has seen was told of (or is not going to be), or after `timeout`.

        Not from the follower's own thread.
        """
        caught_up = threading.Event()
        self._waiters.append(caught_up)
        with contextlib.suppress(OSError):  # closed: the thread has ended
            self._wakeup_sender.send(b"\0", socket.MSG_DONTWAIT)
            caught_up.wait(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """End the thread, and wait for that up to `timeout` seconds unless it is the caller's own."""
        self._closing.set()
        self.disconnect()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._connect_loop()
        finally:
            self._wakeup_sender.close()
            self._wakeup_receiver.close()
            self._release_waiters()

    def _release_waiters(self) -> None:
        """Nobody needs to wait for what will not be told."""
        while self._waiters:
            self._waiters.popleft().set()

    def _connect_loop(self) -> None:
        pause = _MIN_RECONNECT_DELAY_SECONDS
        while not self._closing.is_set():
            began = None
            try:
                self._require_tracking()
                with self._client.dedicated_channel(resp3=True) as dialogue:
                    self._channel = dialogue
                    self._enable_tracking(dialogue)
                    began = time.monotonic()
                    self._receive_loop(dialogue)
            except TrackingUnsupportedError as refusal:
                self._listener.on_unsupported(str(refusal))
                return
            except ServerReplyError as error:
                # What it was asked first is HELLO 3.
                self._listener.on_unsupported(f"this server does not speak RESP3: {error}")
                return
            except RedisFuseError as error:
                self._report_failure(error, was_connected=began is not None)
            except Exception:
                log.exception("following the server's changes failed; it begins again")
                self._report_failure(
                    UnavailableError("following the server's changes failed"), was_connected=began is not None
                )
            finally:
                self._channel = None
                self._release_waiters()
            if began is not None and time.monotonic() - began > _MAX_RECONNECT_DELAY_SECONDS:
                pause = _MIN_RECONNECT_DELAY_SECONDS
            self._closing.wait(pause)
            pause = min(2 * pause, _MAX_RECONNECT_DELAY_SECONDS)

    def _report_failure(self, error: RedisFuseError, *, was_connected: bool) -> None:
        if self._closing.is_set():
            return
        if was_connected:
            self._listener.on_disconnect(error)
        else:
            self._listener.on_connect_failed(error)

    def _require_tracking(self) -> None:
        facts = self._client.server_info
        if not facts.has_tracking:
            raise TrackingUnsupportedError(f"{facts.label} can't tell of changes (it takes Redis 6 or later)")

    def _enable_tracking(self, channel: Channel) -> None:
        """Turn tracking on. Raises RefusedError."""
        options: list[bytes] = [b"PREFIX", self._prefix] if self._prefix else []
        channel.send([(b"SUBSCRIBE", _INVALIDATION_CHANNEL)])
        channel.send([(b"CLIENT", b"TRACKING", b"ON", b"BCAST", *options)])
        # SUBSCRIBE is answered by a push, so this is TRACKING's answer, or SUBSCRIBE's error.
        answer = channel.receive()
        if isinstance(answer, UnavailableError):
            raise answer
        if isinstance(answer, RedisFuseError):
            raise TrackingUnsupportedError(
                f"this user or server can't follow changes: {answer} (the user needs {_REQUIRED_ACL})"
            )

    def _receive_loop(self, channel: Channel) -> None:
        """Hand on what is told, and show signs of life, until it fails or is to end."""
        channel.timeout = max(1.0, channel.timeout - self._heartbeat_interval)  # so a hung server is noticed within it
        swaps = self._fetch_counts(channel).swapdb_count
        self._listener.on_connect()
        told = 0
        next_count = 0.0
        while not self._closing.is_set():
            now = time.monotonic()
            if now >= next_count:
                census = self._fetch_counts(channel)
                if census.swapdb_count != swaps:
                    swaps = census.swapdb_count
                    self._listener.on_swapdb()
                self._listener.on_heartbeat(census, told)
                told = 0
                next_count = now + self._heartbeat_interval
            push = channel.receive_push(max(0.001, next_count - now), wakeup_fd=self._wakeup_receiver.fileno())
            if push is not None:
                told += self._deliver_invalidations(channel, push)
            if self._waiters:
                told += self._serve_waiters(channel)

    def _serve_waiters(self, channel: Channel) -> int:
        """Tell those who wait that this has caught up; answer how many keys were told of until then."""
        with contextlib.suppress(BlockingIOError):
            self._wakeup_receiver.recv(4096, socket.MSG_DONTWAIT)
        asking = [self._waiters.popleft() for _ in range(len(self._waiters))]
        try:
            # The message of a change that anybody has seen comes before the answer to anything that is asked now.
            channel.execute([(b"PING",)])
            count = 0
            while (push := channel.receive_push(0)) is not None:
                count += self._deliver_invalidations(channel, push)
            return count
        finally:
            for caught_up in asking:
                caught_up.set()

    def _deliver_invalidations(self, channel: Channel, push: list[Any] | None) -> int:
        """Hand on this message and those that are there already; answer how many keys were told of."""
        count = 0
        keys: list[bytes] = []
        while push is not None:
            more = _parse_invalidation(push)
            if more is None:
                if keys:
                    self._listener.on_invalidate(keys)
                    count += len(keys)
                keys = []
                self._listener.on_flush(FlushProbe(channel, keys))
            else:
                keys += more
            if len(keys) >= _MAX_KEYS_PER_EVENT:
                break
            push = channel.receive_push(0)
        if keys:
            self._listener.on_invalidate(keys)
            count += len(keys)
            time.sleep(_COALESCE_SECONDS)
        return count

    def _fetch_counts(self, channel: Channel) -> ServerCounts:
        """What the server counts: two short INFO, or DBSIZE for a user who may not ask for those."""
        if self._may_use_info:
            keyspace, commands = channel.execute([(b"INFO", b"keyspace"), (b"INFO", b"commandstats")])
            if not isinstance(keyspace, RedisFuseError) and not isinstance(commands, RedisFuseError):
                sizes = _parse_info_numbers(keyspace, b"db%d:" % self._client.address.db)
                return ServerCounts(
                    key_count=sizes.get(b"keys", 0),
                    expiring_count=sizes.get(b"expires", 0),
                    swapdb_count=_parse_info_numbers(commands, b"cmdstat_swapdb:").get(b"calls", 0),
                )
            self._may_use_info = isinstance(keyspace, UnavailableError) or isinstance(commands, UnavailableError)
        size = channel.execute([(b"DBSIZE",)])[0]
        return ServerCounts(size if isinstance(size, int) else None, None, None)


def _parse_info_numbers(info: Any, line_prefix: bytes) -> dict[bytes, int]:
    """The `name=number` pairs of INFO's line that starts so; empty if there is no such line."""
    text = info if isinstance(info, bytes) else str(info).encode()
    for line in text.splitlines():
        if line.startswith(line_prefix):
            pairs = (part.partition(b"=") for part in line[len(line_prefix) :].split(b","))
            return {name: int(value) for name, _, value in pairs if value.isdigit()}
    return {}
