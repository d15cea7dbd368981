"""Follows the Sentinels of one service, and their fail-overs.

Each Sentinel is polled every second on a connection of its own, which is also subscribed to the events of fail-overs:
an event causes a poll at once. Sentinels that only the others name are polled, too. Sentinels may disagree for a
moment; the report with the highest configuration epoch is the valid one.

A fail-over is in progress while a Sentinel leads one and has not promoted a replica yet, or reports the master as
objectively down. The old master accepts writes all that time and later drops them, so `check_writable` refuses to begin
a write, and `confirm` shows that none had begun when a write was acknowledged (docs/connecting.md).

With `replicas`, the server is one of the master's replicas in place of the master, and changes when that replica is
promoted or disappears.

Threads: `redisfuse-sentinel`, one for each Sentinel. The condition's lock is a leaf; `on_switch` is called without it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from redisfuse.client.address import Address, format_host_port
from redisfuse.client.address_map import AddressMap
from redisfuse.client.allowlist import SENTINEL_ALLOWLIST, SENTINEL_EVENTS
from redisfuse.client.channel import Channel
from redisfuse.client.connection import open_connection
from redisfuse.client.rate_limit import TokenBucket
from redisfuse.client.sentinel_report import Endpoint, ReplicaReport, SentinelReport, parse_report, poll_commands
from redisfuse.client.stats import ClientStats
from redisfuse.client.wakeup import Wakeup
from redisfuse.errors import RedisFuseError, ServerReplyError, TryAgainError, UnavailableError

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Between two polls of one Sentinel."""

MAX_SILENCE_SECONDS = 3.0
"""A Sentinel that has not answered for this long does not count."""

SwitchHook = Callable[[], None]
"""Is called when another server replaces the one to which connections lead."""

_MAX_REPLY_SECONDS = 1.5  # of one Sentinel; then its connection is closed
_GATHER_SECONDS = 0.3  # how long the first resolution waits for the other Sentinels after the first answer
_AVOID_SECONDS = 5.0  # how long a replica that failed is chosen last


class SentinelWatcher:
    """The Sentinels of one service. Threads are started by the first `resolve`."""

    def __init__(
        self,
        address: Address,
        address_map: AddressMap,
        *,
        timeout: float,
        replicas: bool,
        on_switch: SwitchHook,
    ) -> None:
        """Create a watcher of `address`, whose kind is sentinel.

        `on_switch` is called in a thread of the watcher when `resolve` returns another address than before.
        """
        self.service = address.service_name
        self._template = replace(
            address,
            kind="tcp",
            sentinels=(),
            service_name="",
            db=0,
            username=address.sentinel_username,
            password=address.sentinel_password,
        )
        self._address_map = address_map
        self._timeout = timeout
        self._wants_replica = replicas
        self._on_switch = on_switch

        self.poll_commands = poll_commands(self.service, with_replicas=replicas)

        self._condition = threading.Condition()  # guards what is below; notified after each poll
        self._pollers = [_SentinelPoller(self, endpoint) for endpoint in address.sentinels]
        self._is_started = False
        self._is_closed = False
        self._first_answer_at: float | None = None
        self._current: Endpoint | None = None  # returned by `resolve`
        self.generation = 0  # grows whenever another server replaces that one
        self._avoided: dict[Endpoint, float] = {}  # replicas that failed, and until when they are chosen last

    # -- for the client -----------------------------------------------------------------------------------------------

    def resolve(self, timeout: float) -> Endpoint:
        """Return the server to connect to.

        It is the master, or with `replicas` one of its replicas. Raises UnavailableError if no Sentinel answers within
        `timeout` seconds, or if there is no such server.
        """
        deadline = time.monotonic() + timeout
        self._start()
        with self._condition:
            while not self._is_closed:
                if self._current is not None:
                    return self._current
                reports = self._get_reports()
                remaining = deadline - time.monotonic()
                if remaining <= 0 or (not reports and all(poller.error is not None for poller in self._pollers)):
                    break
                self._condition.wait(min(remaining, 0.05) if reports else remaining)
                self._choose_server()
            raise UnavailableError(self._explain_failure())

    def check_writable(self, timeout: float) -> None:
        """Wait until no fail-over is in progress, and most of the Sentinels answer.

        Raises TryAgainError after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        self._start()
        with self._condition:
            while (obstacle := self._find_obstacle(0.0)) is not None:
                remaining = deadline - time.monotonic()
                if remaining <= 0 or self._is_closed:
                    raise TryAgainError(f"{obstacle}; try again later")
                self._condition.wait(min(remaining, POLL_SECONDS))

    def confirm(self, server: Endpoint, timeout: float) -> None:
        """Wait until the Sentinels have confirmed that this server is the master.

        A write that it acknowledged before the call came before any fail-over. Raises TryAgainError.
        """
        began = time.monotonic()
        with self._condition:
            pollers = list(self._pollers)
        for poller in pollers:
            poller.poll_now()
        with self._condition:
            while True:
                if self._current != server:
                    raise TryAgainError(f"a fail-over has replaced the master {format_host_port(*server)}")
                is_complete = all(poller.has_answered_since(began) for poller in pollers)
                if is_complete or self._is_failing_over(began):
                    obstacle = self._find_obstacle(began)
                    if obstacle is None:
                        return
                    raise TryAgainError(obstacle)
                remaining = began + timeout - time.monotonic()
                if remaining <= 0 or self._is_closed:
                    raise TryAgainError(f"the Sentinels of {self.service} did not answer in time")
                self._condition.wait(remaining)

    def avoid(self, server: Endpoint) -> None:
        """Choose another replica, if there is one: connecting to this one failed."""
        if not self._wants_replica:
            return
        with self._condition:
            self._avoided[server] = time.monotonic() + _AVOID_SECONDS
            has_switched = self._choose_server()
        if has_switched:
            self._on_switch()

    def count_sentinels(self) -> tuple[int, int]:
        """Return the number of Sentinels that answer, and of all that are known."""
        with self._condition:
            return self._count_sentinels(0.0)

    def survey(self, timeout: float) -> list[tuple[Endpoint, SentinelReport | None, RedisFuseError | None]]:
        """Return the last report or error of each known Sentinel, once all have either."""
        self._start()
        with self._condition:
            self._condition.wait_for(lambda: all(each.report or each.error for each in self._pollers), timeout)
            return [(each.endpoint, each.report, each.error) for each in self._pollers]

    def close(self) -> None:
        """End the threads."""
        with self._condition:
            self._is_closed = True
            pollers = list(self._pollers)
            self._condition.notify_all()
        for poller in pollers:
            poller.close()

    # -- for the pollers ----------------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether the threads should end."""
        return self._is_closed

    def record(self, poller: _SentinelPoller, report: SentinelReport | None, error: RedisFuseError | None) -> None:
        """Take over the answer of one Sentinel, or why there is none."""
        with self._condition:
            was_failing_over = self._is_failing_over(0.0)
            if report is not None:
                poller.report, poller.error = report, None
                self._add_peers(report)
            else:
                poller.error = error
            has_switched = self._choose_server()
            is_failing_over = self._is_failing_over(0.0)
            self._condition.notify_all()
        if is_failing_over != was_failing_over:
            log.warning("a fail-over of %s %s", self.service, "is in progress" if is_failing_over else "has ended")
        if has_switched:
            self._on_switch()

    def open_channel(self, endpoint: Endpoint, *, resp3: bool) -> Channel:
        """Open a channel to a Sentinel."""
        address = self._address_map.apply(replace(self._template, host=endpoint[0], port=endpoint[1]))
        timeout = min(self._timeout, _MAX_REPLY_SECONDS)
        connection = open_connection(
            address, SENTINEL_ALLOWLIST, timeout=timeout, stats=ClientStats(), token_bucket=TokenBucket(0), resp3=resp3
        )
        return Channel(connection, address, timeout, resp3=resp3)

    # -- under the lock -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._is_started:
            return
        with self._condition:
            if not self._is_started and not self._is_closed:
                self._is_started = True
                for poller in self._pollers:
                    poller.start()

    def _add_peers(self, report: SentinelReport) -> None:
        """Poll the Sentinels that only another one names."""
        known_ids = {poller.id for poller in self._pollers}
        known_endpoints = {poller.endpoint for poller in self._pollers}
        if None in known_ids and len(self._pollers) >= report.sentinel_count:
            return  # one without an answer yet is probably that one, by another name
        for id, endpoint in report.peers.items():
            if id not in known_ids and endpoint not in known_endpoints:
                poller = _SentinelPoller(self, endpoint, id=id)
                self._pollers.append(poller)
                poller.start()

    def _get_reports(self) -> list[SentinelReport]:
        """Return the current report of each Sentinel; if none is current, the last ones."""
        reports = {poller.id or poller.endpoint: poller.report for poller in self._pollers if poller.report is not None}
        oldest = time.monotonic() - MAX_SILENCE_SECONDS
        return [each for each in reports.values() if each.answered_at >= oldest] or list(reports.values())

    def _count_sentinels(self, since: float) -> tuple[int, int]:
        """Return how many Sentinels have answered since then, and how many are known."""
        oldest = time.monotonic() - MAX_SILENCE_SECONDS
        reports = {poller.id or poller.endpoint: poller.report for poller in self._pollers if poller.report is not None}
        answering = sum(1 for each in reports.values() if each.answered_at >= oldest and each.polled_at >= since)
        known = max((each.sentinel_count for each in reports.values()), default=len(self._pollers))
        return answering, max(known, 1)

    def _is_failing_over(self, since: float) -> bool:
        return any(report.is_failing_over and report.polled_at >= since for report in self._get_reports())

    def _find_obstacle(self, since: float) -> str | None:
        """Return why a write may be lost, as polls since then show; None if it can't be."""
        if self._is_failing_over(since):
            return f"a fail-over of {self.service} is in progress: what is written now could be lost"
        answering, known = self._count_sentinels(since)
        if 2 * answering <= known:
            return (
                f"only {answering} of {known} Sentinels answer, so a fail-over could pass unnoticed "
                "(--cluster-map maps addresses that are not reachable from here)"
            )
        return None

    def _choose_server(self) -> bool:
        """Choose the server; return whether it has replaced another one."""
        reports = self._get_reports()
        if not reports:
            return False
        now = time.monotonic()
        if self._first_answer_at is None:
            self._first_answer_at = now
        if (
            self._current is None
            and now - self._first_answer_at < _GATHER_SECONDS
            and any(poller.report is None and poller.error is None for poller in self._pollers)
        ):
            return False
        best = max(reports, key=lambda report: (report.config_epoch, report.answered_at))
        chosen = self._choose_replica(best, now) if self._wants_replica else best.master
        if chosen is None or chosen == self._current:
            return False
        previous, self._current = self._current, chosen
        if previous is not None:
            self.generation += 1
            log.warning(
                "%s has a new %s: %s in place of %s",
                self.service,
                "replica" if self._wants_replica else "master",
                format_host_port(*chosen),
                format_host_port(*previous),
            )
        return previous is not None

    def _choose_replica(self, report: SentinelReport, now: float) -> Endpoint | None:
        """Return the replica in use as long as it works, else the best one."""
        candidates = [each for each in report.replicas if each.endpoint != report.master]

        def rank(replica: ReplicaReport) -> tuple[bool, bool, bool, bool]:
            is_avoided = self._avoided.get(replica.endpoint, 0.0) > now
            return (is_avoided, replica.is_down, not replica.is_linked, replica.endpoint != self._current)

        current = next((each for each in candidates if each.endpoint == self._current), None)
        if current is not None and not current.is_down and self._avoided.get(current.endpoint, 0.0) <= now:
            return current.endpoint
        return min(candidates, key=rank).endpoint if candidates else None

    def _explain_failure(self) -> str:
        if self._is_closed:
            return "the connections are closed: the mount is ending"
        if self._wants_replica and any(poller.report is not None for poller in self._pollers):
            return f"the Sentinels know no replica of {self.service}; without --replicas the master is read"
        reasons = [
            f"{format_host_port(*poller.endpoint)}: {poller.error or 'no answer in time'}" for poller in self._pollers
        ]
        return f"no Sentinel returned the address of the master {self.service}: {'; '.join(reasons)}"


class _SentinelPoller:
    """The connection to one Sentinel, in a thread of its own."""

    def __init__(self, watcher: SentinelWatcher, endpoint: Endpoint, *, id: str | None = None) -> None:
        self._watcher = watcher
        self.endpoint = endpoint
        self.id = id  # of the Sentinel; None until it has answered, or if it is too old to have one
        self.report: SentinelReport | None = None
        self.error: RedisFuseError | None = None  # of the last attempt
        self._channel: Channel | None = None
        self._wakeup = Wakeup()
        self._speaks_resp3 = True
        self._thread = threading.Thread(target=self._run, name="redisfuse-sentinel", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def has_answered_since(self, moment: float) -> bool:
        """Return whether it has answered a poll that was sent after `moment`.

        Also true if it does not answer at all. The watcher's lock is held.
        """
        return self.error is not None or self.report is None or self.report.polled_at >= moment

    def poll_now(self) -> None:
        """Poll without delay."""
        self._wakeup.set()

    def close(self) -> None:
        """End the thread."""
        self._wakeup.set()
        channel = self._channel
        if channel is not None:
            channel.close()

    def _run(self) -> None:
        while not self._watcher.is_closed:
            try:
                self._poll_repeatedly()
            except ServerReplyError as error:
                self._speaks_resp3 = False  # a Sentinel before Redis 6: polls alone
                self._watcher.record(self, None, error)
            except RedisFuseError as error:
                self._watcher.record(self, None, error)
            except Exception:
                log.exception("polling the Sentinel %s failed", format_host_port(*self.endpoint))
                self._watcher.record(self, None, UnavailableError("polling it failed"))
            finally:
                if self._channel is not None:
                    self._channel.close()
                self._channel = None
            if not self._watcher.is_closed:
                time.sleep(0.05)
                self._wakeup.wait(POLL_SECONDS)

    def _poll_repeatedly(self) -> None:
        """Poll until the connection fails or the watcher is closed."""
        channel = self._channel = self._watcher.open_channel(self.endpoint, resp3=self._speaks_resp3)
        if self._speaks_resp3:
            channel.send([(b"SUBSCRIBE", event) for event in SENTINEL_EVENTS])
        id_reply = channel.execute([(b"SENTINEL", b"MYID")])[0]
        if isinstance(id_reply, bytes):
            self.id = id_reply.decode()
        while not self._watcher.is_closed:
            self._wakeup.clear()
            polled_at = time.monotonic()
            replies = channel.execute(self._watcher.poll_commands)
            self._watcher.record(self, parse_report(replies, self._watcher.service, polled_at), None)
            while channel.receive_push(0) is not None:
                polled_at = 0.0  # an event that arrived with the replies: poll again
            if polled_at:
                channel.receive_push(POLL_SECONDS, wakeup_fd=self._wakeup.fileno())
