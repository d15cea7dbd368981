"""A small process beside each mount that ends what a killed mount would leave hanging in the kernel.

A notification waits, uninterruptibly, while a request is under way in the same place (notifier.py). Should the mount's
process be killed in that moment, the request is never answered; the thread that notifies never returns, so it keeps
the connection open, and the kernel, which gives a connection up only when it is closed, lets the programs in the mount
hang for good. The guard hears of the death (PR_SET_PDEATHSIG, prctl(2)) and, if a thread is left, aborts the
connection (https://docs.kernel.org/filesystems/fuse/fuse.html#aborting-a-filesystem-connection).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from redisfuse.fuse import mountpoint as mountpoints

_PR_SET_PDEATHSIG = 1
_MNT_FORCE = 1
_MOUNT_POLL_SECONDS = 0.2  # seconds between looks for the mount, until it is there
_EXIT_GRACE_SECONDS = 0.2  # seconds that a dead process's last threads have to go
_CONNECTIONS_DIR = Path("/sys/fs/fuse/connections")


class AbortWatchdog:
    """Watches over this process while in a `with` block. Made before there are threads, in the main one."""

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = mountpoint
        self._watchdog_pid = 0

    def __enter__(self) -> Self:
        guarded = os.getpid()
        self._watchdog_pid = os.fork()
        if self._watchdog_pid == 0:
            try:
                _watch_process(guarded, self._mountpoint)
            finally:
                os._exit(0)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if b"D" in _read_thread_states(os.getpid()).values():
            return  # a thread hangs in the kernel: the guard is needed when this process ends
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._watchdog_pid, signal.SIGKILL)
            os.waitpid(self._watchdog_pid, 0)


def _watch_process(watched_pid: int, mountpoint: Path) -> None:
    """Wait for the end of the process, and see to it that it is one."""
    os.setsid()  # Ctrl-C is not for us
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # nobody waits for the end of a pipe because of us
    os.chdir("/")
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
    device = ""
    while os.getppid() == watched_pid and not signal.sigtimedwait(
        [signal.SIGUSR1], 3600 if device else _MOUNT_POLL_SECONDS
    ):
        device = _find_device(mountpoint)
    deadline = time.monotonic() + _EXIT_GRACE_SECONDS
    while not _has_exited(watched_pid):
        if time.monotonic() > deadline:
            _abort_connection(device or _find_device(mountpoint), mountpoint)
            return
        time.sleep(_EXIT_GRACE_SECONDS / 10)


def _find_device(mountpoint: Path) -> str:
    """Of our mount; empty while there is none."""
    mount = mountpoints.find_mount(mountpoint)
    return mount.device if mount is not None and mount.is_redisfuse else ""


def _read_thread_states(pid: int) -> dict[int, bytes]:
    """The state letter of each thread of a process (proc(5)); empty if it is gone."""
    found: dict[int, bytes] = {}
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found[int(task.name)] = (task / "stat").read_bytes().rpartition(b")")[2].split()[0]
    return found


def _has_exited(pid: int) -> bool:
    """Whether a process is gone, or waits for its parent to notice; not while one of its threads is left."""
    return set(_read_thread_states(pid).values()) <= {b"Z", b"X"}


def _abort_connection(device: str, mountpoint: Path) -> None:
    """End the connection of a mount: all its requests fail, and what waits for them goes on."""
    if not device:
        return
    try:
        (_CONNECTIONS_DIR / device.partition(":")[2] / "abort").write_bytes(b"1")
    except OSError:  # no fusectl here; root can do without
        mount = mountpoints.find_mount(mountpoint)
        if mount is not None and mount.device == device:
            ctypes.CDLL(None).umount2(os.fsencode(mountpoint), _MNT_FORCE)
