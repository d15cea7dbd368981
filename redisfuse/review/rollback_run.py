"""A rollback in a thread of its own, which continues if the browser is closed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ProgressState:
    """A part of the work, and for how many changes it is done."""

    name: str = ""
    done: int = 0
    total: int = 0


class RollbackProgress:
    """How far a rollback is. One thread writes it, others read it."""

    def __init__(self) -> None:
        self.state = ProgressState()

    @property
    def text(self) -> str:
        """The state as text."""
        state = self.state
        return f"{state.name}: {state.done:,} of {state.total:,} changes" if state.total else f"{state.name}…"

    def begin(self, name: str, total: int = 0) -> None:
        """Begin a part of the work; 0: the number of changes is not known."""
        self.state = ProgressState(name, 0, total)

    def advance(self, count: int) -> None:
        """Add changes that are done."""
        self.state = replace(self.state, done=self.state.done + count)


class RollbackRun(Generic[Result]):
    """A rollback that is being executed, or was."""

    def __init__(self, server_name: str, execute: Callable[[RollbackProgress], Result]) -> None:
        """Start it."""
        self.server_name = server_name
        self.progress = RollbackProgress()
        self._execute = execute
        self._ended = threading.Event()
        # Set before _ended:
        self._result: Result | None = None
        self._error: Exception | None = None
        # The process may end before the thread, as in a crash: the journal has what is pending then.
        threading.Thread(target=self._run, name="redisfuse-rollback", daemon=True).start()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return not self._ended.is_set()

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the end."""
        self._ended.wait(seconds)

    def get_result(self) -> Result:
        """Return the result, or raise what ended it. It must have ended."""
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._execute(self.progress)
        except Exception as error:
            self._error = error
        finally:
            self._ended.set()
