"""A master, its replicas and three Sentinels: real processes on free loopback ports below 22000."""

from __future__ import annotations

import contextlib
import random
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.mounts import wait_until
from tests.support.redis_server import RedisServer

SERVICE = "mymaster"
DOWN_AFTER_SECONDS = 1.0


def find_low_port() -> int:
    """Return a loopback port below 22000 that was free a moment ago.

    The kernel gives none of these to outgoing connections, so the port is free again after a restart.
    """
    while True:
        port = random.randrange(12_000, 22_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class SentinelService:
    """One service: `servers[0]` is its first master, `sentinels` are its Sentinels."""

    def __init__(self, *, replicas: int = 1, sentinels: int = 3, failover_seconds: float = 10.0) -> None:
        self._stack = contextlib.ExitStack()
        self._failover_seconds = failover_seconds
        self.servers = [self._create(["--repl-diskless-sync-delay", "0"]) for _ in range(replicas + 1)]
        self._sentinel_count = sentinels
        self.sentinels: list[RedisServer] = []

    def _create(self, arguments: list[str], config: Path | None = None) -> RedisServer:
        server = RedisServer(tcp=True, arguments=arguments, config=config)
        server.port = find_low_port()
        self._stack.callback(server.close)
        return server

    @property
    def url(self) -> str:
        """The URL that names all Sentinels."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    def master_port(self, sentinel: int = 0) -> int:
        """Return the port of the master that a Sentinel names."""
        return int(self.query(sentinel)[b"port"])

    def query(self, sentinel: int) -> dict[bytes, bytes]:
        """Return the state of the master, as a Sentinel reports it."""
        state: dict[bytes, bytes] = self.sentinels[sentinel].client().execute_command("SENTINEL", "MASTER", SERVICE)
        return state

    def server_at(self, port: int) -> RedisServer:
        """Return the server that listens on a port."""
        return next(server for server in self.servers if server.port == port)

    @property
    def master(self) -> RedisServer:
        """The present master, as the first Sentinel names it."""
        return self.server_at(self.master_port())

    def fail_over(self) -> None:
        """Begin a planned fail-over, led by the first Sentinel."""
        self.sentinels[0].client().execute_command("SENTINEL", "FAILOVER", SERVICE)

    def wait_switched(self, old: RedisServer, seconds: float = 30.0) -> RedisServer:
        """Wait until all running Sentinels name another master, and return it."""
        running = [number for number, sentinel in enumerate(self.sentinels) if sentinel.process is not None]
        wait_until(lambda: all(self.master_port(number) != old.port for number in running), seconds)
        return self.server_at(self.master_port(running[0]))

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _start(self) -> None:
        master, *replicas = self.servers
        master.start()
        for replica in replicas:
            replica.start().client().replicaof("127.0.0.1", master.port)
        for replica in replicas:
            wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up")  # noqa: B023
        quorum = self._sentinel_count // 2 + 1
        for _ in range(self._sentinel_count):
            directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="redisfuse-sentinel-")))
            config = directory / "sentinel.conf"
            config.write_text(
                f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} {quorum}\n"
                f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_SECONDS * 1000:.0f}\n"
                f"sentinel failover-timeout {SERVICE} {self._failover_seconds * 1000:.0f}\n"
            )
            self.sentinels.append(self._create(["--sentinel"], config).start())
        wait_until(lambda: all(self._is_complete(number) for number in range(self._sentinel_count)))

    def _is_complete(self, sentinel: int) -> bool:
        """Return whether a Sentinel knows the others, and that the replicas can be promoted."""
        state = self.query(sentinel)
        replicas = self.sentinels[sentinel].client().execute_command("SENTINEL", "REPLICAS", SERVICE)
        usable = [each for each in replicas if each[b"flags"] == b"slave" and each[b"master-link-status"] == b"ok"]
        others = int(state[b"num-other-sentinels"])
        return others == self._sentinel_count - 1 and len(usable) == len(self.servers) - 1

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
