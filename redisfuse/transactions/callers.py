"""The processes for which operations are carried out, which the journal records."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from redisfuse.journal.models import ChangeIntent
from redisfuse.journal.processes import CallingProcess, ProcessReader


class Caller(Protocol):
    """The process for which the calling thread works."""

    def identify(self) -> CallingProcess | None:
        """Return the process; None: unknown, or no process has requested the operation."""


class UnknownCaller:
    """An unknown process. Each transaction is an operation of its own."""

    def identify(self) -> None:
        """Return None."""


class ThisProcess:
    """The process that runs this code, such as `redisfuse rollback`."""

    def __init__(self) -> None:
        self._process = ProcessReader().read(os.getpid())

    def identify(self) -> CallingProcess | None:
        """Return this process."""
        return self._process


class RequestSource(Protocol):
    """The receiver of the requests of programs."""

    def get_caller_thread(self) -> int:
        """Return the thread of the program whose request this thread serves; 0: none."""


class RequestingProcess:
    """The process whose request the calling thread serves."""

    def __init__(self, source: RequestSource) -> None:
        self._source = source
        self._reader = ProcessReader()

    def identify(self) -> CallingProcess | None:
        """Return the process."""
        return self._reader.read(self._source.get_caller_thread())


def attribute_intents(intents: Sequence[ChangeIntent], process: CallingProcess | None) -> list[ChangeIntent]:
    """Return the intents as those of a process."""
    return [
        intent if process is None or intent.process is process else replace(intent, process=process)
        for intent in intents
    ]
