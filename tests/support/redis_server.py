"""A private redis-server for a test: on a Unix socket in a temporary directory, or on a free loopback port."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

PROGRAM_VARIABLE = "REDISFUSE_TEST_SERVER"
"""In the environment: the server that the tests start, in place of the redis-server in PATH."""

START_TIMEOUT_SECONDS = 20.0  # on two shared cores


MAX_PORT = 55_535
"""A cluster's node also listens on its port + 10 000, and does not start if that is above 65 535."""


def find_free_port() -> int:
    """Return a loopback TCP port, at most MAX_PORT, that was free a moment ago."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port <= MAX_PORT:
            return port


class RedisServer:
    """One redis-server process.

    `tcp=True` makes it listen on a free loopback port too (`port`; else 0); the Unix socket is always there.
    `arguments` go to the command line (`["--maxmemory", "5mb"]`). With `keep=True` the data outlives stop() and
    kill() (append-only file, every write synced), else the server keeps nothing. `config` is a file that is read first,
    `program` another than the usual one: that of REDISFUSE_TEST_SERVER, else the redis-server in PATH.
    """

    def __init__(
        self,
        *,
        tcp: bool = False,
        persist: bool = False,
        password: str | None = None,
        arguments: Sequence[str] = (),
        config: Path | None = None,
        program: Path | None = None,
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="redisfuse-test-"))
        self.socket_path = str(self.directory / "redis.sock")
        self.port = find_free_port() if tcp else 0
        self.password = password
        self.persist = persist
        self.config = config
        self.program = program
        self.arguments = list(arguments)
        self.process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []

    # -- addresses ----------------------------------------------------------------------------------------------------

    def url(self, db: int = 0) -> str:
        """Return the redis-py URL of the Unix socket (without the password)."""
        return f"unix://{self.socket_path}?db={db}"

    def tcp_url(self, db: int = 0) -> str:
        """Return the redis-py URL of the loopback port."""
        assert self.port, "the server was made without tcp=True"
        return f"redis://127.0.0.1:{self.port}/{db}"

    # -- start and end -------------------------------------------------------------------------------------------------

    def command_line(self) -> list[str]:
        """Return the command line that starts the server."""
        return [
            str(self.program or os.environ.get(PROGRAM_VARIABLE) or shutil.which("redis-server") or "redis-server"),
            *([str(self.config)] if self.config else []),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.socket_path),
            *("--dir", str(self.directory), "--save", "", "--loglevel", "warning", "--logfile", "server.log"),
            *("--appendonly", "yes" if self.persist else "no", "--appendfsync", "always"),
            *(("--requirepass", self.password) if self.password else ()),
            *self.arguments,
        ]

    def start(self, *, wait: bool = True) -> Self:
        """Start the server and wait until it answers (unless `wait` is false)."""
        assert self.process is None, "already started"
        self.process = subprocess.Popen(self.command_line(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        if wait:
            self.wait_until_answering()
        return self

    def wait_until_answering(self, limit: float = START_TIMEOUT_SECONDS) -> None:
        """Wait until the server answers PING; AssertionError after `limit` seconds or if the process ended."""
        deadline = time.monotonic() + limit
        while True:
            try:
                with contextlib.closing(self.client()) as client:
                    client.ping()
                    return
            except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
                assert self.process is not None, "not started"
                assert self.process.poll() is None, f"redis-server ended with status {self.process.returncode}"
                assert time.monotonic() < deadline, "redis-server did not answer in time"
                time.sleep(0.01)

    def wait_until_saved(self, limit: float = START_TIMEOUT_SECONDS) -> None:
        """Wait until the requested rewrite of the append-only file is done."""
        client = self.client()
        deadline = time.monotonic() + limit
        while any(client.info("persistence")[f"aof_rewrite_{state}"] for state in ("in_progress", "scheduled")):
            assert time.monotonic() < deadline, "the append-only file was not rewritten in time"
            time.sleep(0.02)

    def stop(self) -> None:
        """End the server (SIGTERM), if it is running."""
        self._terminate(signal.SIGTERM)

    def kill(self) -> None:
        """End the server at once (SIGKILL)."""
        self._terminate(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it and start it again: with its data if `persist`, else empty."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Stop the process (SIGSTOP): it keeps its connections and does not reply."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume a paused process (SIGCONT)."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the server and remove its directory."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        self._terminate(signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _terminate(self, signal_number: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(signal_number)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket_path)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inspection -----------------------------------------------------------------------------------------------

    def client(self, db: int = 0, **options: object) -> redis.Redis:
        """Return a client for the test itself (replies are bytes); it is closed with the server."""
        settings: dict[str, object] = {"password": self.password, "socket_timeout": 10.0, **options}
        client: redis.Redis = redis.Redis(unix_socket_path=self.socket_path, db=db, **settings)  # type: ignore[arg-type]
        self._clients.append(client)
        return client

    def read_log(self) -> str:
        """Return the server's log (warnings)."""
        path = self.directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""


def fetch_error_stats(client: redis.Redis) -> dict[str, object]:
    """Return the server's `errorstats`: the number of its error replies, by kind."""
    answer = client.info("errorstats")
    assert isinstance(answer, dict)
    return answer


def has_field_expiry(client: redis.Redis) -> bool:
    """Return whether the server's fields can expire: Redis 7.4 and Valkey 9."""
    return b"hpexpireat" in client.execute_command("COMMAND LIST")
