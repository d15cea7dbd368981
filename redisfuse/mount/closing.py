"""Closing files: whether a close(2) ends the writing of a file."""

from __future__ import annotations

from redisfuse.fuse import procfs
from redisfuse.vfs.handles import ReadWriteHandle


def ends_writing(caller: int, handle: ReadWriteHandle, path: bytes) -> bool:
    """Return whether the close(2) by a thread ends the writing.

    `path` is absolute. It doesn't when a child closes what it inherited while the process that opened the file still
    has it open: `sh -c 'a; b' > file` closes once for each command. A file to which nothing was written yet is still to
    be written if the program that closes it has another descriptor: a shell duplicates the descriptor of `> file`, and
    closes the first one before it writes.
    """
    opener = handle.opener_tid
    if caller != opener:
        process = procfs.find_process_id(opener)
        if process != procfs.find_process_id(caller) and procfs.has_file_open(process, path):
            return False
    # False, not None: if /proc may not be read, the last close is known only at its release.
    return handle.file.has_unsaved_writes or procfs.has_file_open(caller, path) is False
