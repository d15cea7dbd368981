"""What /proc tells of the programs that use the mount (proc(5))."""

from __future__ import annotations

import contextlib
import os
import platform
import stat
import time
from pathlib import Path

_READ_SYSCALLS = {"x86_64": (b"0", b"17", b"19", b"295", b"327"), "aarch64": (b"63", b"65", b"67", b"69", b"286")}.get(
    platform.machine(), ()
)
"""Of read(2), pread, readv, preadv and preadv2."""
_SEEK_SYSCALLS = {"x86_64": (b"8",), "aarch64": (b"62",)}.get(platform.machine(), ())
"""Of lseek(2)."""


def find_process_id(thread_id: int) -> int:
    """The process that a thread belongs to (FUSE names the thread that asks); the thread itself if unknown."""
    try:
        for line in Path(f"/proc/{thread_id}/status").read_bytes().splitlines():
            if line.startswith(b"Tgid:"):
                return int(line[5:])
    except (OSError, ValueError):
        pass
    return thread_id


def now() -> float:
    """Return the seconds since the boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def is_same_process(thread_id: int, seen_at: float, other_id: int, /) -> bool:
    """Return whether two threads are of one process.

    The first was seen at a time of `now`; a later thread of the same number is another one.
    """
    if not thread_id or (thread_id != other_id and find_process_id(thread_id) != find_process_id(other_id)):
        return False
    started_at = _read_start_time(thread_id)
    return started_at is None or started_at <= seen_at


def _read_start_time(thread_id: int) -> float | None:
    """Return when a thread started, in seconds since the boot, rounded down; None if unknown."""
    try:
        fields = Path(f"/proc/{thread_id}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def is_reading(thread_id: int) -> bool | None:
    """Whether a thread is in read(2) or the like; False if it is in lseek(2); None if that is not known."""
    call = _read_syscall_number(thread_id)
    return True if call in _READ_SYSCALLS else False if call in _SEEK_SYSCALLS else None


def _read_syscall_number(thread_id: int) -> bytes:
    """The number of the system call that a thread is in; nothing if we may not look."""
    try:
        return Path(f"/proc/{thread_id}/syscall").read_bytes().partition(b" ")[0]
    except OSError:
        return b""


def has_file_open(process_id: int, path: bytes) -> bool | None:
    """Whether a process has a file open for writing, by its absolute path; None if we may not look."""
    directory = f"/proc/{process_id}/fd"
    try:
        for name in os.listdir(directory):
            link = f"{directory}/{name}"
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                # The owner's write bit of the link is that of the descriptor (proc(5)).
                if os.fsencode(os.readlink(link)) == path and os.lstat(link).st_mode & stat.S_IWUSR:
                    return True
    except PermissionError:
        return None
    except OSError:
        return False  # the process has ended
    return False
