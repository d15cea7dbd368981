"""Facts from /proc about the programs that use the mount (proc(5))."""

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
"""The numbers of read(2), pread, readv, preadv and preadv2."""
_SEEK_SYSCALLS = {"x86_64": (b"8",), "aarch64": (b"62",)}.get(platform.machine(), ())
"""The number of lseek(2)."""


def find_process_id(thread_id: int) -> int:
    """Return the process of a thread, or the thread itself if it is unknown.

    A FUSE request names the calling thread.
    """
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
    """Return whether two threads belong to one process.

    The first one existed at `seen_at`, a time of `now`; a thread that started later only has the same number.
    """
    if not thread_id or (thread_id != other_id and find_process_id(thread_id) != find_process_id(other_id)):
        return False
    started_at = _read_start_time(thread_id)
    return started_at is None or started_at <= seen_at


def _read_start_time(thread_id: int) -> float | None:
    """Return the start of a thread in seconds since the boot, None if unknown.

    It is rounded down to a clock tick.
    """
    try:
        fields = Path(f"/proc/{thread_id}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def is_reading(thread_id: int) -> bool | None:
    """Return True for a thread in a system call that reads, False in lseek(2).

    None if the system call is another one or unknown.
    """
    call = _read_syscall_number(thread_id)
    return True if call in _READ_SYSCALLS else False if call in _SEEK_SYSCALLS else None


def _read_syscall_number(thread_id: int) -> bytes:
    """Return the number of the system call of a thread; empty if not readable."""
    try:
        return Path(f"/proc/{thread_id}/syscall").read_bytes().partition(b" ")[0]
    except OSError:
        return b""


def has_file_open(process_id: int, path: bytes, inode_number: int) -> bool | None:
    """Return whether a process has a file open for writing.

    `path` is absolute; in another mount namespace, or through a bind mount, the process knows the file by another one,
    but by the same name and inode number. None if this process may not read that, or if the process has no number here
    (0), because it is outside of our pid namespace.
    """
    if not process_id:
        return None
    directory = f"/proc/{process_id}/fd"
    try:
        for name in os.listdir(directory):
            link = f"{directory}/{name}"
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                opened = os.fsencode(os.readlink(link)).removesuffix(b" (deleted)")  # its name was invalidated
                is_same = opened == path or (
                    os.path.basename(opened) == os.path.basename(path)
                    and _read_inode_number(process_id, name) == inode_number
                )
                # The owner's write bit of the link is that of the descriptor (proc(5)).
                if is_same and os.lstat(link).st_mode & stat.S_IWUSR:
                    return True
    except PermissionError:
        return None
    except OSError:
        return False  # the process has ended
    return False


def _read_inode_number(process_id: int, descriptor: str) -> int | None:
    """Return the inode number of a descriptor; None before Linux 5.14.

    Sends no request to its filesystem.
    """
    info = Path(f"/proc/{process_id}/fdinfo/{descriptor}").read_bytes()
    return next((int(line[4:]) for line in info.splitlines() if line.startswith(b"ino:")), None)
