"""The processes for which operations are carried out, which the journal records."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from redisfuse.journal.models import ChangeIntent
from redisfuse.journal.processes import CallingProcess, ProcessReader

CallerIdentifier = Callable[[], CallingProcess | None]
"""Returns the process for which the calling thread works; None: unknown, or no process has requested it."""


def identify_no_process() -> CallingProcess | None:
    """Return None: the process is unknown.

    Each transaction is an operation of its own.
    """
    return None


class ThisProcess:
    """Identifies the process that runs this code, such as `redisfuse rollback`."""

    def __init__(self) -> None:
        self._process = ProcessReader().read(os.getpid())

    def __call__(self) -> CallingProcess | None:
        """Return this process."""
        return self._process


class RequestingProcess:
    """Identifies the process whose request the calling thread serves."""

    def __init__(self, get_thread: Callable[[], int]) -> None:
        """`get_thread` returns the thread of the current request; 0: there is none."""
        self._get_thread = get_thread
        self._reader = ProcessReader()

    def __call__(self) -> CallingProcess | None:
        """Return the process."""
        return self._reader.read(self._get_thread())


def attribute_intents(intents: Sequence[ChangeIntent], process: CallingProcess | None) -> list[ChangeIntent]:
    """Return the intents as those of a process."""
    return list(intents) if process is None else [replace(intent, process=process) for intent in intents]
