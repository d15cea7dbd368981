"""Ctrl-C between two batches of a long command, and below a progress bar."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import click

INTERRUPTED_STATUS = 130
"""The exit status after Ctrl-C."""


class InterruptFlag:
    """Whether Ctrl-C was pressed once."""

    def __init__(self) -> None:
        self.is_set = False

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        """Set the flag; the second time raise KeyboardInterrupt."""
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True


@contextmanager
def deferred_interrupt() -> Iterator[InterruptFlag]:
    """Yield a flag that the first Ctrl-C sets. The second one interrupts the body."""
    flag = InterruptFlag()
    previous = signal.signal(signal.SIGINT, flag.handle)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def removed_bar(remove: Callable[[], bool]) -> Iterator[None]:
    """Remove a progress bar after the body.

    `remove` returns whether there was one. Its line has the `^C` of the terminal, and is erased with it; the new line
    that click prints after Ctrl-C would leave a blank one.
    """
    try:
        yield
    except KeyboardInterrupt:
        if remove():
            raise click.exceptions.Exit(INTERRUPTED_STATUS) from None
        raise
    finally:
        remove()
