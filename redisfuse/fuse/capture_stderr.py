"""What a C library prints."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def capture_stderr() -> Iterator[Callable[[], str]]:
    """Catch what libfuse and fusermount print to descriptor 2, the only place where they say what is wrong."""
    with tempfile.TemporaryFile() as file:
        text = ""
        try:
            saved = os.dup(2)
        except OSError:  # no stderr at all
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
