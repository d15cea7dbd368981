"""The tracking connection of client-side caching, in a thread of its own.

It receives the server's invalidation messages. `CLIENT TRACKING ON BCAST` needs no server configuration. The connection
first subscribes to a channel without publishers, so that the server treats it as a subscriber: it closes a subscriber
that falls behind, instead of buffering without limit. A message says that a key changed, not how, and not in which
database. A null instead of keys says that some database was flushed, or that a replica has begun a full resync, after
which it sends no message about what is different. SWAPDB sends no message; the server's count of SWAPDB calls is
queried periodically. Messages are lost while the connection is down, so the listener must drop its
caches whenever the connection is lost.

Threads: `TrackingClient` has one thread, which calls the listener. There is no lock.
"""

import contextlib
import itertools
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from redisfuse.client.acl import TRACKING_RULES
from redisfuse.client.allowlist import INVALIDATION_CHANNEL
from redisfuse.client.capabilities import parse_hello
from redisfuse.client.channel import Channel
from redisfuse.client.client import RedisClient
from redisfuse.errors import RedisFuseError, ServerReplyError, UnavailableError
from redisfuse.keyspace.heartbeat import Heartbeat, HeartbeatQuery
from redisfuse.keyspace.liveness import PING_INTERVAL_SECONDS, LiveChannel, SilenceListener

_MIN_RECONNECT_DELAY_SECONDS = 0.05  # between two attempts to connect; doubled up to the maximum
_MAX_RECONNECT_DELAY_SECONDS = 5.0
_MAX_FAILOVER_DELAY_SECONDS = 0.5  # the same where Sentinels name the server, which another may replace at any time
_MAX_KEYS_PER_EVENT = 20_000  # keys of one `on_invalidate`
_MAX_PROBE_ATTEMPTS = 20  # look-ups of surviving keys while databases are flushed repeatedly
_MAX_MESSAGES_PER_TURN = 20_000  # before the next heartbeat
_COALESCE_SECONDS = 0.002  # how long messages are collected after others have arrived

log = logging.getLogger(__name__)


class TrackingListener(SilenceListener, Protocol):
    """Receives the events; all methods are called by the tracking thread."""

    def on_connect(self) -> None:
        """Start: every change is announced from now on."""

    def on_invalidate(self, keys: list[bytes]) -> None:
        """Handle keys that were changed, created or deleted; a key may occur twice."""

    def on_flush(self, probe: "FlushProbe") -> None:
        """Handle a flush of this or another database, or a full resync of a replica."""

    def on_swapdb(self) -> None:
        """Handle a swap of two databases of the server; one of them may be this one."""

    def on_heartbeat(self, heartbeat: Heartbeat, invalidated_keys: int) -> None:
        """Handle a periodic report of the server.

        `invalidated_keys` keys were announced since the previous one.
        """

    def on_unsupported(self, reason: str) -> None:
        """Handle a server or user that can't use tracking; the thread ends."""

    def on_disconnect(self, error: RedisFuseError) -> None:
        """Handle the loss of the connection: changes are missed until `on_connect`."""

    def on_connect_failed(self, error: RedisFuseError) -> None:
        """Handle a failed attempt to connect; another one follows."""


class TrackingUnsupportedError(Exception):
    """Raised for a server or user that can't use tracking."""


class FlushProbe:
    """Look-ups for `on_flush`, on the tracking connection.

    There, replies and messages have one order.
    """

    def __init__(self, channel: LiveChannel, deferred_keys: list[bytes]) -> None:
        self._channel = channel
        self._deferred_keys = deferred_keys

    def is_replica(self) -> bool:
        """Return whether the server is a replica; True if that is unknown.

        On a replica, the flush may be a full resync, which keeps some keys.
        """
        reply = self._channel.execute([(b"HELLO",)])[0]  # no ACL can forbid it
        return isinstance(reply, RedisFuseError) or parse_hello(reply).role != "master"

    def find_survivors(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return those of these keys that survived the flush.

        They exist, and were not announced since.
        """
        remaining = list(keys)
        for _attempt in range(_MAX_PROBE_ATTEMPTS):
            if not remaining:
                break
            replies = self._channel.execute([(b"EXISTS", key) for key in remaining])
            # The message of a change that EXISTS saw arrives before the reply to any later command.
            self._channel.execute([(b"PING",)])
            announced, was_flushed = self._collect_invalidations()
            remaining = [
                key for key, reply in zip(remaining, replies, strict=True) if reply == 1 and key not in announced
            ]
            if not was_flushed:
                return set(remaining)
        return set()

    def _collect_invalidations(self) -> tuple[set[bytes], bool]:
        """Return the keys announced since the flush, and whether there was another.

        The keys are all deferred.
        """
        was_flushed = False
        for push in iter(self._channel.take_push, None):
            keys = _parse_invalidation(push)
            if keys is None:
                was_flushed = True
            else:
                self._deferred_keys += keys
        return set(self._deferred_keys), was_flushed


def _parse_invalidation(push: list[Any]) -> list[bytes] | None:
    """Return the keys of a push message; None for a flush.

    Returns an empty list for a message of another kind. Raises UnavailableError for an invalid one.
    """
    if len(push) < 2 or push[0] != b"invalidate":
        return []
    keys = push[1]
    if keys is not None and not (isinstance(keys, list) and set(map(type, keys)) <= {bytes}):
        raise UnavailableError("the server sent an invalid message about changed keys")
    return keys


class _Waiter:
    """A thread in `wait_for_invalidations`."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.has_caught_up = False  # set before `ended`


class TrackingClient:
    """A tracking connection that reconnects until it is refused or closed."""

    def __init__(
        self, client: RedisClient, listener: TrackingListener, *, prefix: bytes = b"", heartbeat_interval: float = 2.0
    ) -> None:
        """Create a client.

        `heartbeat_interval`: seconds between queries of the server's counts.
        """
        self._client = client
        self._listener = listener
        self._prefix = prefix
        self._heartbeat_interval = heartbeat_interval
        self._heartbeat_query = HeartbeatQuery(client.address.db)
        self._closing = threading.Event()
        self._waiters: deque[_Waiter] = deque()  # threads in `wait_for_invalidations`
        self._wakeup_receiver, self._wakeup_sender = socket.socketpair()
        self._channel: Channel | None = None
        self._thread = threading.Thread(target=self._run, name="redisfuse-follow", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def disconnect(self) -> None:
        """Close the connection; the thread reports its loss and reconnects."""
        channel = self._channel
        if channel is not None:
            channel.close()

    def wait_for_invalidations(self, timeout: float) -> bool:
        """Block until all changes that the caller has observed are delivered.

        Waits up to `timeout` seconds. Returns False at once if no message can arrive any more. Not for the tracking
        thread itself.
        """
        waiter = _Waiter()
        self._waiters.append(waiter)
        with contextlib.suppress(OSError):  # closed: the thread has ended
            self._wakeup_sender.send(b"\0", socket.MSG_DONTWAIT)
            waiter.ended.wait(timeout)
        return waiter.has_caught_up

    def close(self, timeout: float = 5.0) -> None:
        """End the thread.

        Waits for its end up to `timeout` seconds, unless it is the caller's own.
        """
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
        """Wake the waiting threads: no message will arrive on this connection."""
        while self._waiters:
            self._waiters.popleft().ended.set()

    def _connect_loop(self) -> None:
        delay = _MIN_RECONNECT_DELAY_SECONDS
        while not self._closing.is_set():
            connected_at = None
            try:
                self._require_tracking()
                with self._client.dedicated_channel(resp3=True) as channel:
                    self._channel = channel
                    self._enable_tracking(channel)
                    connected_at = time.monotonic()
                    channel.timeout = max(PING_INTERVAL_SECONDS, channel.timeout)
                    self._receive_loop(LiveChannel(channel, self._listener))
            except TrackingUnsupportedError as error:
                self._listener.on_unsupported(str(error))
                return
            except ServerReplyError as error:
                # The first command is HELLO 3.
                self._listener.on_unsupported(f"this server does not speak RESP3: {error}")
                return
            except RedisFuseError as error:
                self._report_failure(error, was_connected=connected_at is not None)
            except Exception:
                log.exception("tracking the server's changes failed; it is restarted")
                self._report_failure(
                    UnavailableError("tracking the server's changes failed"), was_connected=connected_at is not None
                )
            finally:
                self._channel = None
                self._release_waiters()
            if connected_at is not None and time.monotonic() - connected_at > _MAX_RECONNECT_DELAY_SECONDS:
                delay = _MIN_RECONNECT_DELAY_SECONDS
            self._closing.wait(delay)
            has_failover = self._client.sentinels is not None
            delay = min(2 * delay, _MAX_FAILOVER_DELAY_SECONDS if has_failover else _MAX_RECONNECT_DELAY_SECONDS)

    def _report_failure(self, error: RedisFuseError, *, was_connected: bool) -> None:
        if self._closing.is_set():
            return
        if was_connected:
            self._listener.on_disconnect(error)
        else:
            self._listener.on_connect_failed(error)

    def _require_tracking(self) -> None:
        server_info = self._client.server_info
        if not server_info.has_tracking:
            raise TrackingUnsupportedError(f"{server_info.label} can't announce changes (Redis 6 or later can)")

    def _enable_tracking(self, channel: Channel) -> None:
        """Enable tracking. Raises TrackingUnsupportedError."""
        options: list[bytes] = [b"PREFIX", self._prefix] if self._prefix else []
        channel.send([(b"SUBSCRIBE", INVALIDATION_CHANNEL)])
        channel.send([(b"CLIENT", b"TRACKING", b"ON", b"BCAST", *options)])
        # The reply to SUBSCRIBE is a push message, so this is TRACKING's reply, or SUBSCRIBE's error.
        reply = channel.receive()
        if isinstance(reply, UnavailableError):
            raise reply
        if isinstance(reply, RedisFuseError):
            raise TrackingUnsupportedError(
                f"this user or server can't track changes: {reply} (the user needs {' '.join(TRACKING_RULES)})"
            )

    def _receive_loop(self, channel: LiveChannel) -> None:
        """Deliver messages and query counts, until the connection fails or is closed."""
        server_info = self._client.server_info
        swapdb_count = self._heartbeat_query.fetch(channel, server_info).swapdb_count
        self._listener.on_connect()
        invalidated_keys = 0
        next_ping_at = next_heartbeat_at = 0.0
        while not self._closing.is_set():
            now = time.monotonic()
            if now >= next_heartbeat_at:
                heartbeat = self._heartbeat_query.fetch(channel, server_info)
                if heartbeat.swapdb_count != swapdb_count:
                    swapdb_count = heartbeat.swapdb_count
                    self._listener.on_swapdb()
                self._listener.on_heartbeat(heartbeat, invalidated_keys)
                invalidated_keys = 0
                next_heartbeat_at = now + self._heartbeat_interval
                next_ping_at = now + PING_INTERVAL_SECONDS
            elif now >= next_ping_at:
                channel.execute([(b"PING",)])
                next_ping_at = now + PING_INTERVAL_SECONDS
            if channel.is_silent:  # and has answered now
                invalidated_keys += self._deliver_invalidations(channel, iter(channel.take_push, None))
                channel.end_silence()
            timeout = max(0.001, min(next_ping_at, next_heartbeat_at) - time.monotonic())
            push = channel.receive_push(timeout, wakeup_fd=self._wakeup_receiver.fileno())
            if push is not None:
                # Messages may arrive as fast as they are delivered, so threads that wait have their turn.
                arriving = iter(lambda: None if self._waiters else channel.receive_push(0), None)
                messages = itertools.chain([push], itertools.islice(arriving, _MAX_MESSAGES_PER_TURN))
                invalidated_keys += self._deliver_invalidations(channel, messages)
                time.sleep(_COALESCE_SECONDS)
            if self._waiters:
                invalidated_keys += self._serve_waiters(channel)

    def _serve_waiters(self, channel: LiveChannel) -> int:
        """Deliver all messages so far and wake the waiting threads.

        Messages that keep arriving are delivered later. Returns how many keys were announced.
        """
        with contextlib.suppress(BlockingIOError):
            self._wakeup_receiver.recv(4096, socket.MSG_DONTWAIT)
        waiters = [self._waiters.popleft() for _ in range(len(self._waiters))]
        try:
            # The message of a change that any client has observed arrives before the reply to any later command.
            channel.execute([(b"PING",)])
            count = self._deliver_invalidations(channel, iter(channel.take_push, None))
            for waiter in waiters:
                waiter.has_caught_up = True
            return count
        finally:
            for waiter in waiters:
                waiter.ended.set()

    def _deliver_invalidations(self, channel: LiveChannel, messages: Iterable[list[Any]]) -> int:
        """Deliver these messages.

        Returns how many keys were announced.
        """
        count = 0
        keys: list[bytes] = []
        for message in messages:
            more = _parse_invalidation(message)
            if more is not None:
                keys += more
            if keys and (more is None or len(keys) >= _MAX_KEYS_PER_EVENT):
                self._listener.on_invalidate(keys)
                count += len(keys)
                keys = []
            if more is None:
                self._listener.on_flush(FlushProbe(channel, keys))
        if keys:
            self._listener.on_invalidate(keys)
            count += len(keys)
        return count
