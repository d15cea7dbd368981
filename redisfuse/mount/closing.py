"""Closing files: whether a close(2) is the last one of a writer."""

from __future__ import annotations

from redisfuse.mount import procfs
from redisfuse.mount.attributes import inode_number
from redisfuse.vfs.handles import ReadWriteHandle


def ends_writing(caller: int, handle: ReadWriteHandle, mountpoint: bytes, path: bytes) -> bool:
    """Return whether a close(2) by the thread `caller` ends the writing.

    `path` is that of the file below the mountpoint. The writing continues when a child closes an
    inherited descriptor while the process that opened the file still has it open: `sh -c 'a; b' > file` closes once for
    each command. It also continues when nothing was written yet and the closing program has another descriptor: a shell
    duplicates the descriptor of `> file` and closes the first one before it writes.
    """
    opener = handle.opener_tid
    if caller != opener:
        process = procfs.find_process_id(opener)
        if process != procfs.find_process_id(caller) and _has_file_open(process, mountpoint, path):
            return False
    # `is False`: None means that /proc is not readable, and then the last close is known at the release only.
    return handle.has_unsaved_writes or _has_file_open(caller, mountpoint, path) is False


def _has_file_open(process: int, mountpoint: bytes, path: bytes) -> bool | None:
    return procfs.has_file_open(process, mountpoint + b"/" + path, inode_number(path))
