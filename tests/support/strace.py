"""strace(1) on a running mount: errors and signals injected at chosen system calls, and the calls counted."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

DETACH_TIMEOUT_SECONDS = 20.0


@contextlib.contextmanager
def trace_process(pid: int, log: Path, *expressions: str) -> Iterator[subprocess.Popen[str]]:
    """Attach to a process and all its threads for the body of `with`. `expressions` are strace's -e options.

    Each thread and each call has a count (`when=N`) of its own (strace(1), "Tampering").
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
                process.wait(DETACH_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def kill_at_syscall(pid: int, log: Path, syscall: str, number: int) -> contextlib.AbstractContextManager[object]:
    """Kill the process as one of its threads is about to make its `number`-th `call`."""
    return trace_process(pid, log, syscall, f"{syscall}:signal=SIGKILL:when={number}")


def fail_syscalls(
    pid: int, log: Path, syscalls: str, error: str, when: str = "1+"
) -> contextlib.AbstractContextManager[object]:
    """Let these calls fail with an error (a name), without being made."""
    return trace_process(pid, log, syscalls, f"{syscalls}:error={error}:when={when}")
