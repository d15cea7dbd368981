"""The end of tests that hang beyond the reach of pytest-timeout, with a report of the place.

A program that waits for a mount can't be interrupted once the mount has read its request: a mount that hangs would
block the whole suite. pytest-timeout fires once for each test, so a hanging teardown would never end. Therefore a
thread watches each phase of each test. When a phase is overdue, the thread prints the stacks of all threads, here and
in the mounts, and kills the mounts. If the phase still does not end, the thread kills all processes that this one
started, and this process itself, which xdist replaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

LEEWAY_SECONDS = 60.0  # past a test's time-out, for each of its phases
SHRINK_SECONDS = 300.0  # Hypothesis' limit for shrinking a failing example
TRACEBACK_DUMP_SECONDS = 10.0  # for a mount to print the stacks of its threads
EXIT_STATUS = 70  # of a process that still hangs (EX_SOFTWARE of sysexits.h)
MAX_LOG_CHARACTERS = 20_000  # at the end of a mount's log
_MNT_FORCE, _MNT_DETACH = 1, 2  # flags of umount2(2)


class SuiteWatchdog:
    """A plugin of pytest, to be registered in `pytest_configure`, before pytest captures descriptor 2."""

    def __init__(self, config: pytest.Config, leeway: float = LEEWAY_SECONDS) -> None:
        self._limit = float(config.getini("timeout") or 0)
        self._leeway = leeway
        self._stderr_fd = os.dup(2)
        self._folder = ""  # of the files of this process's tests
        self._phase_changed = threading.Condition()
        self._phase = ""  # the phase that runs now
        self._phase_number = 0  # counts the phases
        self._deadline = 0.0
        self._thread: threading.Thread | None = None

    # -- of pytest ---------------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        with self._watch_phase(item, "its setup"):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        with self._watch_phase(item, "the test"):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        with self._watch_phase(item, "its teardown"):
            return (yield)

    @contextlib.contextmanager
    def _watch_phase(self, item: pytest.Item, phase: str) -> Iterator[None]:
        mark = item.get_closest_marker("timeout")
        limit = (float(mark.args[0]) if mark else self._limit) + self._leeway
        limit += SHRINK_SECONDS if item.get_closest_marker("hypothesis") else 0.0
        if self._thread is None:
            self._folder = str(item.config._tmp_path_factory.getbasetemp())  # type: ignore[attr-defined]
            self._thread = threading.Thread(target=self._watch_loop, name="watchdog", daemon=True)
            self._thread.start()
        with self._phase_changed:
            self._phase, self._deadline = f"{item.nodeid}, {phase}", time.monotonic() + limit
            self._phase_number += 1
            self._phase_changed.notify()
        try:
            yield
        finally:
            with self._phase_changed:
                self._phase = ""

    # -- the thread --------------------------------------------------------------------------------------------------

    def _watch_loop(self) -> None:
        while True:
            with self._phase_changed:
                self._phase_changed.wait_for(lambda: self._phase)
                phase, number, left = self._phase, self._phase_number, self._deadline - time.monotonic()
            if left > 0:
                time.sleep(min(left, 1.0))
            else:
                self._handle_hang(phase, number)

    def _handle_hang(self, phase: str, number: int) -> None:
        self._write(f"\n=== hangs: {phase}\n")
        faulthandler.dump_traceback(self._stderr_fd)
        started = [process for process in psutil.process_iter() if self._is_test_process(process)]
        for process in started:
            self._write(_describe_process(process))
        self._end_mounts([process.pid for process in started if _is_fuse_server(process.pid)])
        deadline = time.monotonic() + self._leeway
        while time.monotonic() < deadline:
            if not self._phase or self._phase_number != number:
                return
            time.sleep(0.05)
        self._write(f"=== still hangs: {phase}; process {os.getpid()} ends\n")
        for process in started:
            with contextlib.suppress(psutil.Error):
                process.kill()
        os._exit(EXIT_STATUS)

    def _end_mounts(self, mounts: list[int]) -> None:
        for pid in mounts:
            with contextlib.suppress(OSError):
                log = os.readlink(f"/proc/{pid}/fd/2")
                os.kill(pid, signal.SIGABRT)  # faulthandler prints the stacks
                os.kill(pid, signal.SIGCONT)
                _wait_for_end(pid, TRACEBACK_DUMP_SECONDS)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self._write(
                    f"--- the log of mount {pid}\n{Path(log).read_text(errors='replace')[-MAX_LOG_CHARACTERS:]}\n"
                )
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            path, rest = line.split()[4], line.partition(" - ")[2]
            if rest.startswith("fuse") and path.startswith(self._folder):
                ctypes.CDLL(None).umount2(os.fsencode(path), _MNT_FORCE)  # aborts all requests
                ctypes.CDLL(None).umount2(os.fsencode(path), _MNT_DETACH)

    def _is_test_process(self, process: psutil.Process) -> bool:
        """Return whether a process is a descendant, or names the tests' folder (a mount in the background)."""
        with contextlib.suppress(psutil.Error):
            above = {parent.pid for parent in process.parents()}
            return os.getpid() in above or any(self._folder in word for word in process.cmdline())
        return False

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._stderr_fd, text.encode())


def _wait_for_end(pid: int, seconds: float) -> None:
    """Wait until a process has ended, whether its parent has noticed or not."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(psutil.Error):
        while time.monotonic() < deadline and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)


def _is_fuse_server(pid: int) -> bool:
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}") == "/dev/fuse":
                    return True
    return False


def _describe_process(process: psutil.Process) -> str:
    """Describe a process and the kernel stack of each of its threads (proc(5))."""
    description = f"--- {process.pid}: "
    with contextlib.suppress(psutil.Error):
        description += " ".join(process.cmdline())
    for task in sorted(Path(f"/proc/{process.pid}/task").glob("*")):
        with contextlib.suppress(OSError):
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
            stack = (task / "stack").read_text().split("\n") if os.geteuid() == 0 else []
            calls = " < ".join(line.partition(" ")[2] for line in stack if line)
            description += f"\n    {task.name} {name} {rest.split()[0]} {calls}"
    return description + "\n"
