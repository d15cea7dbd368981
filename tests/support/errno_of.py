"""The effects of a failure: the errno that a program gets, the journal's rows, the data in Redis."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from redisfuse.journal.change_filter import ChangeFilter
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change
from tests.support.mounts import MountedServer


def errno_name(call: Callable[..., object], *arguments: object) -> str:
    """Return the name of the errno that a call fails with; empty if it succeeds."""
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return ""


def save_file(path: Path, data: bytes) -> str:
    """Save as a program does (open, write, close); return the name of the first errno, empty if all succeeded."""
    return errno_name(_save, path, data)


def _save(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    failed = None
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError as error:
        failed = error
    os.close(descriptor)
    if failed is not None:
        raise failed


def time_call(call: Callable[..., str], *arguments: object) -> tuple[str, float]:
    """Return the result of a call and its duration in seconds."""
    began = time.monotonic()
    return call(*arguments), time.monotonic() - began


def journal_changes(mount: MountedServer, key: bytes | None = None) -> list[Change]:
    """Return the journal's rows (of one key), oldest first."""
    with Journal.open(mount.journal, writable=False) as journal:
        changes = list(journal.find_changes(ChangeFilter(oldest_first=True)))
        return [change for change in changes if key is None or change.key == key]


def change_states(mount: MountedServer, key: bytes | None = None) -> list[str]:
    """Return the states of the journal's rows (of one key), oldest first."""
    return [change.outcome for change in journal_changes(mount, key)]
