"""A process beside each mount that aborts the connection of a killed mount.

A notification waits, uninterruptibly, for a request under way on the same inode (notify.py). If the mount's process is
killed at that moment, the request is never answered and the notifying thread never returns. It keeps the connection
open, and because the kernel ends a connection only when it is closed, programs in the mount would hang forever. The
watchdog is signalled when its parent dies (PR_SET_PDEATHSIG, prctl(2)) and, if a thread is left, aborts the connection
(https://docs.kernel.org/filesystems/fuse/fuse.html#aborting-a-filesystem-connection).
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
_CLONE_NEWNS = 0x20000  # unshare(2)
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000  # mount(2)
_MOUNT_POLL_SECONDS = 0.02  # seconds between checks until the mount exists
_EXIT_GRACE_SECONDS = 0.2  # seconds in which the last threads of a dead process may end
_CONNECTIONS_DIR = Path("/sys/fs/fuse/connections")


class AbortWatchdog:
    """Watches this process while in a `with` block.

    Enter it in the main thread, before other threads exist: it forks.
    """

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
            return  # a thread hangs in the kernel: the watchdog is needed when this process ends
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._watchdog_pid, signal.SIGKILL)
            os.waitpid(self._watchdog_pid, 0)


def _watch_process(watched_pid: int, mountpoint: Path) -> None:
    """Wait until the process has died; abort its connection if a thread is left."""
    os.setsid()  # Ctrl-C is for the mount
    null_fd = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null_fd, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # an inherited pipe would stay open otherwise
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
            _abort_connection(device or _find_device(mountpoint))
            return
        time.sleep(_EXIT_GRACE_SECONDS / 10)


def _find_device(mountpoint: Path) -> str:
    """Return the device of our mount; empty while there is none."""
    mount = mountpoints.find_mount(mountpoint)
    return mount.device if mount is not None and mount.is_redisfuse else ""


def _read_thread_states(pid: int) -> dict[int, bytes]:
    """Return the state letter of each thread of a process (proc(5)), by its id.

    Empty if the process is gone.
    """
    states: dict[int, bytes] = {}
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                states[int(task.name)] = (task / "stat").read_bytes().rpartition(b")")[2].split()[0]
    return states


def _has_exited(pid: int) -> bool:
    """Return whether all threads of a process have ended.

    It may still wait for its parent to reap it.
    """
    return set(_read_thread_states(pid).values()) <= {b"Z", b"X"}


def _abort_connection(device: str) -> None:
    """End the connection of a mount, which may be unmounted lazily.

    All its requests fail, and the threads that wait for them continue.
    """
    if not device:
        return
    abort_file = _CONNECTIONS_DIR / device.partition(":")[2] / "abort"
    try:
        abort_file.write_bytes(b"1")
    except OSError:  # fusectl is not mounted, as in most containers: root can mount it in a namespace of its own
        with contextlib.suppress(OSError):
            _mount_fusectl()
            abort_file.write_bytes(b"1")


def _mount_fusectl() -> None:
    """Mount fusectl where only this process sees it."""
    libc = ctypes.CDLL(None)
    if libc.unshare(_CLONE_NEWNS) == 0 and libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) == 0:
        libc.mount(b"none", os.fsencode(_CONNECTIONS_DIR), b"fusectl", 0, None)
