"""What /proc tells of the programs that use the mount (proc(5))."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_REMOVING = {"x86_64": (b"87", b"263"), "aarch64": (b"35",)}.get(platform.machine(), ())
"""The numbers of unlink(2) and unlinkat(2), as syscalls(2) has them for each machine."""


def process_of(thread: int) -> int:
    """The process that a thread belongs to (FUSE names the thread that asks); the thread itself if unknown."""
    try:
        for line in Path(f"/proc/{thread}/status").read_bytes().splitlines():
            if line.startswith(b"Tgid:"):
                return int(line[5:])
    except (OSError, ValueError):
        pass
    return thread


def is_removing(thread: int) -> bool:
    """Whether a thread is in unlink(2) or unlinkat(2). False too where that is not known, or if we may not look."""
    try:
        return Path(f"/proc/{thread}/syscall").read_bytes().partition(b" ")[0] in _REMOVING
    except OSError:
        return False


def has_open(process: int, path: bytes) -> bool:
    """Whether a process has a file open under an absolute path. False too if we may not look."""
    directory = f"/proc/{process}/fd"
    try:
        for name in os.listdir(directory):
            try:
                if os.fsencode(os.readlink(f"{directory}/{name}")) == path:
                    return True
            except OSError:
                continue  # closed meanwhile
    except OSError:
        pass
    return False
