"""Commands and mounts that start in a fraction of a second: forked from a process that has imported all modules.

Run as a process: `python -m tests.support.forkserver`. It reads one JSON object a line: {"words": [...],
"environment": {...}, "directory": path, "stdout": path, "stderr": path}, and answers {"pid": ...}; when a process has
ended it says {"ended": pid, "status": exit status}, negative for a signal. It ends its processes when its input ends.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import pkgutil
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import redisfuse
from redisfuse.cli.main import main
from redisfuse.fuse.device import select_device

ROOT = Path(__file__).parents[2]
MOUNT_TIMEOUT_SECONDS = 40.0  # for a mount to start or end on a busy machine


class ForkedProcess:
    """A process of redisfuse, with those methods of Popen that the tests use."""

    def __init__(self, pid: int, exit_statuses: dict[int, int]) -> None:
        self.pid = pid
        self._exit_statuses = exit_statuses

    def poll(self) -> int | None:
        return self._exit_statuses.get(self.pid)

    def wait(self, timeout: float = MOUNT_TIMEOUT_SECONDS) -> int:
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("redisfuse", timeout)
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


class Forkserver:
    """A process from which others are forked."""

    def __init__(self) -> None:
        self._exit_statuses: dict[int, int] = {}
        self._started_pids: queue.Queue[int] = queue.Queue()

    def start(self) -> None:
        self._forkserver = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "tests.support.forkserver"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        threading.Thread(target=self._read_messages, daemon=True).start()

    def stop(self) -> None:
        """End it and what it has forked."""
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

    def start_process(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        *,
        stdout: Path,
        stderr: Path,
        directory: Path = ROOT,
    ) -> ForkedProcess:
        """Start `redisfuse WORDS` in a directory; its output goes to the ends of two files."""
        assert self._forkserver.stdin is not None
        request = {
            "words": words,
            "environment": dict(environment),
            "directory": str(directory),
            "stdout": str(stdout),
            "stderr": str(stderr),
        }
        self._forkserver.stdin.write(json.dumps(request).encode() + b"\n")
        self._forkserver.stdin.flush()
        return ForkedProcess(self._started_pids.get(timeout=3 * MOUNT_TIMEOUT_SECONDS), self._exit_statuses)


@functools.cache
def shared_forkserver() -> Forkserver:
    """Return the one of this process, which ends with it."""
    forkserver = Forkserver()
    forkserver.start()
    atexit.register(forkserver.stop)
    return forkserver


def run_forked(
    words: Sequence[str], environment: Mapping[str, str], *, directory: Path | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[bytes]:
    """Run `redisfuse WORDS` to its end, in this process's directory by default, without a standard input."""
    with tempfile.TemporaryDirectory(prefix="redisfuse-command-") as output:
        stdout, stderr = Path(output, "stdout"), Path(output, "stderr")
        process = shared_forkserver().start_process(
            words, environment, stdout=stdout, stderr=stderr, directory=directory or Path.cwd()
        )
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(list(words), status, stdout.read_bytes(), stderr.read_bytes())


# -- the process that others are forked from --------------------------------------------------------------------------


def _reap_children(running: set[int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            running.discard(pid)
            _send_message({"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def _send_message(message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(message).encode() + b"\n")


def _run_command(request: dict[str, Any]) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    paths = (os.devnull, request["stdout"], request["stderr"])
    opened = [os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600) for path in paths]
    for number, descriptor in enumerate(opened):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.chdir(request["directory"])
    try:
        return main(request["words"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()


def _import_modules() -> None:
    for module in pkgutil.walk_packages(redisfuse.__path__, "redisfuse."):
        if not module.name.startswith("redisfuse.review"):  # an extra
            importlib.import_module(module.name)
    for name in ("sqlite_utils", "platformdirs.unix", "encodings.idna"):  # which are imported when they are needed
        importlib.import_module(name)
    select_device(None)


def _serve_requests() -> None:
    running: set[int] = set()
    signal.signal(signal.SIGCHLD, lambda _number, _frame: _reap_children(running))
    buffer = b""
    while piece := os.read(0, 65536):
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # until the child is noted
            pid = os.fork()
            if pid:
                running.add(pid)
                _send_message({"pid": pid})
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            if not pid:
                os._exit(_run_command(json.loads(line)))
    for pid in list(running):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _import_modules()
    _serve_requests()
