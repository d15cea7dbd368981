"""The faults of a history: of the network, the server and the mounts, in a random order."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from tests.support.mounts import MOUNT_TIMEOUT_SECONDS, MountedServer
from tests.support.proxy import FaultKind, Proxy
from tests.support.redis_server import RedisServer

NETWORK_FAULTS: tuple[FaultKind, ...] = ("drop", "reset", "lost_reply", "lost_reset", "partial", "hang_reply", "late")
REMOUNT_ATTEMPTS = 8
COMMANDS = ("EXEC", "EXEC", "MULTI", "WATCH", "GET", "CLIENT")


class FaultInjector:
    """Injects faults, and ends each before the next."""

    def __init__(
        self,
        server: RedisServer,
        proxies: list[Proxy],
        mounts: list[MountedServer],
        remount: Callable[[int], MountedServer],
        seed: int,
    ) -> None:
        """`proxies` and `mounts` have the same order; `remount` mounts the one of an index again."""
        self.events: list[str] = []  # time and name of each fault
        self._server = server
        self._proxies = proxies
        self._mounts = mounts
        self._remount = remount
        self._random = random.Random(f"{seed} faults")

    def run(self, seconds: float) -> None:
        """Inject faults until the time has passed."""
        deadline = time.monotonic() + seconds
        faults = [
            self._hit_command,
            self._hit_command,
            self._disconnect,
            self._freeze_network,
            self._pause_server,
            self._stop_server,
            self._kill_server,
            self._kill_mount,
            self._kill_mount_while_server_is_paused,
            self._kill_mount_before_late_command,
        ]
        while time.monotonic() < deadline:
            time.sleep(self._random.uniform(0.2, 1.5))
            fault = self._random.choice(faults)
            self.events.append(f"{time.time():.3f} {fault.__name__.strip('_')}")
            fault()

    def _hit_command(self) -> None:
        """Let the network fail at a few commands."""
        proxy = self._random.choice(self._proxies)
        kind, command = self._random.choice(NETWORK_FAULTS), self._random.choice(COMMANDS)
        self.events[-1] += f": {kind} of {command}"
        proxy.inject(
            kind,
            command,
            skip=self._random.randint(0, 3),
            times=self._random.randint(1, 3),
            seconds=self._random.uniform(0.2, 2),
        )
        time.sleep(self._random.uniform(0.2, 1))
        proxy.clear()

    def _disconnect(self) -> None:
        """Cut all connections of a mount, a few times."""
        proxy = self._random.choice(self._proxies)
        for _ in range(self._random.randint(1, 4)):
            proxy.disconnect_all()
            time.sleep(self._random.uniform(0, 0.1))

    def _freeze_network(self) -> None:
        """Let the network of a mount lose everything for a while."""
        proxy = self._random.choice(self._proxies)
        proxy.freeze()
        time.sleep(self._random.uniform(0.1, 2))
        proxy.thaw()

    def _pause_server(self) -> None:
        self._server.pause()
        time.sleep(self._random.uniform(0.1, 2))
        self._server.resume()

    def _stop_server(self) -> None:
        self._server.stop()
        time.sleep(self._random.uniform(0, 1))
        self._server.start()

    def _kill_server(self) -> None:
        self._server.kill()
        time.sleep(self._random.uniform(0, 1))
        self._server.start()

    def _kill_mount(self) -> None:
        """Kill a mount and mount again, which recovers what it left pending."""
        self._kill_and_remount(self._choose_mount())

    def _kill_mount_while_server_is_paused(self) -> None:
        """Kill a mount whose last commands the server executes only after the next mount has begun."""
        self._server.pause()
        timer = threading.Timer(self._random.uniform(0.2, 1.5), self._server.resume)
        timer.start()
        try:
            time.sleep(self._random.uniform(0.05, 0.2))
            self._kill_and_remount(self._choose_mount())
        finally:
            timer.join()

    def _kill_mount_before_late_command(self) -> None:
        """Kill a mount while the network still has one of its commands."""
        index = self._choose_mount()
        fault = self._proxies[index].inject("late", "EXEC", times=1, seconds=self._random.uniform(0.5, 2))
        deadline = time.monotonic() + 2
        while not fault.hits and time.monotonic() < deadline:
            time.sleep(0.01)
        self._kill_and_remount(index)
        self._proxies[index].clear()

    def _choose_mount(self) -> int:
        return self._random.randrange(len(self._mounts))

    def _kill_and_remount(self, index: int) -> None:
        mount = self._mounts[index]
        mount.process.kill()
        mount.process.wait(MOUNT_TIMEOUT_SECONDS)
        time.sleep(self._random.uniform(0, 0.3))
        for attempt in range(REMOUNT_ATTEMPTS):
            try:
                self._mounts[index] = self._remount(index)
                return
            except AssertionError:  # a mount does not start while the server does not answer
                if attempt == REMOUNT_ATTEMPTS - 1:
                    raise
