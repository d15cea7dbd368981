"""Capturing the output of a C library."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def capture_stderr() -> Iterator[Callable[[], str]]:
    """Capture descriptor 2; yield a function that returns the text after the block.

    libfuse and fusermount report their errors nowhere else.
    """
    with tempfile.TemporaryFile() as file:
        text = ""
        try:
            saved = os.dup(2)
        except OSError:  # stderr is closed
            yield lambda: text
            return
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: text
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            text = file.read().decode(errors="replace").strip()
