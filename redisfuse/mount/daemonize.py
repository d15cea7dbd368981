"""`--daemon`: fork into the background.

The process in the foreground returns when the mount is ready, or with the mount's error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
from collections.abc import Callable
from typing import Protocol

from redisfuse.config import Config
from redisfuse.errors import MountError, RedisFuseError
from redisfuse.mount.log_file import configure_logging, open_daemon_log
from redisfuse.mount.service_manager import ServiceManager


class StartupReport(Protocol):
    """Where a mount reports that it answers."""

    def ready(self, banner: str) -> None:
        """Report that the mount answers. `banner` is one line for the user."""

    def stopping(self) -> None:
        """Report that the mount has ended, and saves are being completed."""


ServeFunction = Callable[[StartupReport], None]
"""Serves a mount until it is unmounted."""


class ForegroundReport:
    """The report to the terminal, and to a service manager."""

    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager

    def ready(self, banner: str) -> None:
        """Print the banner on standard error."""
        print(banner, file=sys.stderr, flush=True)
        self._manager.ready(banner.partition(";")[0])

    def stopping(self) -> None:
        """Notify the service manager."""
        self._manager.stopping("unmounted; completing saves")


class _PipeReport:
    """The report of a mount in the background.

    One pickled (outcome, value) through a pipe; later ones are dropped.
    """

    def __init__(self, pipe_fd: int) -> None:
        self._pipe_fd: int | None = pipe_fd

    def ready(self, banner: str) -> None:
        self._send("ready", banner)

    def stopping(self) -> None:
        """Do nothing: the process that would report it has ended."""

    def fail(self, error: RedisFuseError) -> None:
        self._send("error", error)

    def _send(self, outcome: str, value: object) -> None:
        if self._pipe_fd is None:
            return
        pipe_fd, self._pipe_fd = self._pipe_fd, None
        with open(pipe_fd, "wb") as pipe, contextlib.suppress(BrokenPipeError):
            pipe.write(pickle.dumps((outcome, value)))


def daemonize(config: Config, serve: ServeFunction) -> None:
    """Run `serve(report)` in a process with a session of its own.

    Returns when that process reports that it is ready. Raises what `serve` raised before, and UsageError if the log
    can't be opened. Must be called before any thread or connection exists.
    """
    log_fd = open_daemon_log(config)
    read_fd, write_fd = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(read_fd)
        os.setsid()
        if os.fork():
            os._exit(0)  # the mount is reparented to init, and can't acquire a controlling terminal
        os._exit(_run_daemon(config, serve, write_fd, log_fd))
    os.close(write_fd)
    os.close(log_fd)
    os.waitpid(child, 0)
    with open(read_fd, "rb") as pipe:
        reply = pipe.read()
    if not reply:
        raise MountError("the background process ended without an error message; run it without --daemon to see why")
    outcome, value = pickle.loads(reply)  # from our own child
    if outcome == "error":
        raise value
    print(value, file=sys.stderr, flush=True)


def _run_daemon(config: Config, serve: ServeFunction, pipe_fd: int, log_fd: int) -> int:
    """Return the exit status of the background process."""
    log = logging.getLogger(__name__)
    report = _PipeReport(pipe_fd)
    try:
        _redirect_stdio(log_fd)
        configure_logging(config)
        serve(report)
    except RedisFuseError as error:
        report.fail(error)
        log.error("%s", error)
        return error.exit_status
    except BaseException as error:
        log.exception("the mount process failed")
        report.fail(MountError(f"unexpected {type(error).__name__}: the traceback is in the log"))
        return 1
    return 0


def _redirect_stdio(log_fd: int) -> None:
    null_fd = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null_fd, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(null_fd)
    os.close(log_fd)
    os.chdir("/")
