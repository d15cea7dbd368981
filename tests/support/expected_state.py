"""The same file operations on an ordinary filesystem and on a mount, and the comparison of their results."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100


def renameat2(old: Path, new: Path, flags: int) -> None:
    """Rename with flags, by the system call that Python does not have."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def call_outcome(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Return the result of a call, or the name of its errno."""
    try:
        return call(*arguments, **named)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@contextmanager
def tmpfs_folder() -> Iterator[Path]:
    """Make an empty folder, on a tmpfs if there is one, for the expected results."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="redisfuse-oracle-", dir=memory if memory.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def comparable_stat(result: os.stat_result | str) -> Any:
    """Return the part of a stat(2) that must be equal on each filesystem: the type, and a file's size and links."""
    if isinstance(result, str):
        return result
    if stat.S_ISREG(result.st_mode):
        return "file", result.st_size, result.st_nlink
    return "directory" if stat.S_ISDIR(result.st_mode) else oct(result.st_mode)


def read_tree(folder: Path) -> dict[str, Any]:
    """Return all paths below a folder, with the contents of files and None for directories."""
    contents: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        contents[str(path.relative_to(folder))] = None if path.is_dir() else path.read_bytes()
    return contents
