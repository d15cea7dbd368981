"""`--daemon`: go into the background, and let the foreground return only when the mount answers, or with the error."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

from redisfuse.config import Config
from redisfuse.errors import MountError, RedisFuseError
from redisfuse.text import TerminalFormatter


def daemonize(config: Config, serve: Callable[[Callable[[str], None]], None]) -> None:
    """Run `serve(ready)` in a process of its own session; return when it calls `ready`, raise what it raises before.

    Must be called before any thread or connection is made.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        if os.fork():
            os._exit(0)  # so that the mount is nobody's child and can never be a session leader
        os._exit(_run_daemon(config, serve, writing))
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    if not answer:
        raise MountError("the background process died without a word; run it without --daemon to see why")
    kind, value = pickle.loads(answer)  # from our own child
    if kind == "error":
        raise value
    print(value, file=sys.stderr, flush=True)


def _run_daemon(config: Config, serve: Callable[[Callable[[str], None]], None], pipe_fd: int) -> int:
    told = False

    def report_outcome(outcome: str, value: object) -> None:
        nonlocal told
        if not told:
            told = True
            with open(pipe_fd, "wb") as pipe, contextlib.suppress(BrokenPipeError):
                pipe.write(pickle.dumps((outcome, value)))

    try:
        _redirect_stdio(config)
        serve(lambda text: report_outcome("ready", text))
    except RedisFuseError as error:
        report_outcome("error", error)
        logging.getLogger(__name__).error("%s", error)
        return error.exit_status
    except BaseException as error:
        logging.getLogger(__name__).exception("the mount died")
        report_outcome("error", MountError(f"unexpected {type(error).__name__}: the traceback is in the log"))
        return 1
    return 0


def _redirect_stdio(config: Config) -> None:
    path = config.log_file or default_log_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(empty)
    os.close(log)
    os.chdir("/")
    configure_logging(config)


def configure_logging(config: Config) -> None:
    """Log to the terminal (or what stands for it), or to the file that was asked for; escaped, as keys are in it."""
    to_file = config.log_file is not None and not config.daemon  # a daemon's standard error is its log file
    handler = logging.FileHandler(config.log_file) if to_file and config.log_file else logging.StreamHandler()
    dated = config.daemon or to_file
    handler.setFormatter(
        TerminalFormatter("%(asctime)s %(levelname)s %(message)s" if dated else "redisfuse: %(message)s")
    )
    logging.basicConfig(level=logging.DEBUG if config.debug else logging.INFO, handlers=[handler])


def default_log_path() -> Path:
    """`redisfuse.log` in the platform's state folder."""
    from platformdirs import user_state_path

    return user_state_path("redisfuse", appauthor=False) / "redisfuse.log"
