"""strace(1) on a running mount: errors and signals injected at chosen system calls, and the calls counted."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 20.0  # seconds


@contextlib.contextmanager
def traced(pid: int, log: Path, *expressions: str) -> Iterator[subprocess.Popen[str]]:
    """Attach to a process and all its threads for the body of `with`. `expressions` are strace's -e options.

    Counts (`when=N`) are for each thread and each call of its own (strace(1), "Tampering").
    """
    program = shutil.which("strace")
    assert program, "strace is missing"
    words = [program, "-f", "-o", str(log), *(f"--trace={expression}" for expression in expressions[:1])]
    words += [f"--inject={expression}" for expression in expressions[1:]]
    with subprocess.Popen([*words, "-p", str(pid)], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert "attached" in line, line
            yield process
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def killed_at(pid: int, log: Path, call: str, number: int) -> contextlib.AbstractContextManager[object]:
    """SIGKILL as a thread of the process is about to make its `number`-th `call`."""
    return traced(pid, log, call, f"{call}:signal=SIGKILL:when={number}")


def failing(pid: int, log: Path, calls: str, error: str, when: str = "1+") -> contextlib.AbstractContextManager[object]:
    """These calls fail with an error (a name), without being made."""
    return traced(pid, log, calls, f"{calls}:error={error}:when={when}")
