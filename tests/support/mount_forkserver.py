"""Mounts that start in a fraction of a second: forked from a process that has imported all modules.

Run as a process: `python -m tests.support.mount_forkserver`. It reads one JSON
object a line: {"words": [...], "environment": {...}, "log": path}, and answers {"pid": ...}; when a mount has ended
it says {"ended": pid, "status": exit status}, negative for a signal. It ends its mounts when its input ends.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MOUNT_TIMEOUT_SECONDS = 40.0  # for a mount to start or end on a busy machine


class ForkedProcess:
    """One mount's process, with those methods of Popen that the tests use."""

    def __init__(self, pid: int, exit_statuses: dict[int, int]) -> None:
        self.pid = pid
        self._exit_statuses = exit_statuses

    def poll(self) -> int | None:
        return self._exit_statuses.get(self.pid)

    def wait(self, timeout: float = MOUNT_TIMEOUT_SECONDS) -> int:
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a mount", timeout)
            time.sleep(0.002)
        return status

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class MountForkserver:
    """A process from which mounts are forked."""

    def __init__(self) -> None:
        self._exit_statuses: dict[int, int] = {}
        self._started_pids: queue.Queue[int] = queue.Queue()

    def start(self) -> None:
        self._forkserver = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "tests.support.mount_forkserver"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        threading.Thread(target=self._read_messages, daemon=True).start()

    def stop(self) -> None:
        """End it and its mounts."""
        assert self._forkserver.stdin is not None
        self._forkserver.stdin.close()
        try:
            self._forkserver.wait(MOUNT_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._forkserver.kill()
            self._forkserver.wait(MOUNT_TIMEOUT_SECONDS)

    def _read_messages(self) -> None:
        assert self._forkserver.stdout is not None
        for line in self._forkserver.stdout:
            message = json.loads(line)
            if "pid" in message:
                self._exit_statuses.pop(message["pid"], None)  # of an earlier process that had this id
                self._started_pids.put(message["pid"])
            else:
                self._exit_statuses[message["ended"]] = message["status"]

    def start_process(self, words: list[str], environment: Mapping[str, str], log: Path) -> ForkedProcess:
        """Start `redisfuse WORDS`, whose output goes to the end of `log`."""
        assert self._forkserver.stdin is not None
        request = {"words": words, "environment": dict(environment), "log": str(log)}
        self._forkserver.stdin.write(json.dumps(request).encode() + b"\n")
        self._forkserver.stdin.flush()
        return ForkedProcess(self._started_pids.get(timeout=3 * MOUNT_TIMEOUT_SECONDS), self._exit_statuses)


@functools.cache
def shared_forkserver() -> MountForkserver:
    """Return the one of this process, which ends with it."""
    forkserver = MountForkserver()
    forkserver.start()
    atexit.register(forkserver.stop)
    return forkserver


# -- the process that mounts are forked from -------------------------------------------------------------------------


def _reap_children() -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            _send_message({"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def _send_message(message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(message).encode() + b"\n")


def _run_mount(request: dict[str, Any]) -> int:
    from redisfuse.cli.main import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, log, log)):
        os.dup2(descriptor, number)
    os.close(log)
    os.close(nothing)
    os.environ.clear()
    os.environ.update(request["environment"])
    try:
        return main(request["words"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _serve_requests() -> None:
    for name in ("redisfuse.cli.mount", "redisfuse.mount.run", "sqlite_utils", "platformdirs.unix", "encodings.idna"):
        importlib.import_module(name)
    from redisfuse.fuse.device import select_device

    select_device(None)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: _reap_children())
    children: list[int] = []
    buffer = b""
    while True:
        piece = os.read(0, 65536)
        if not piece:
            break
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                os._exit(_run_mount(json.loads(line)))
            children.append(pid)
            _send_message({"pid": pid})
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _serve_requests()
