"""Shell scripts on a mount, without this machine's configuration of git and the locale."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

GIT_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_TERMINAL_PROMPT": "0",
}


def run_script(folder: Path, script: str, *, timeout: float = 60) -> str:
    """Run a bash script in a folder up to the first command that fails, and return its output.

    Fail with its output unless it ends with status 0 within `timeout` seconds.
    """
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, **GIT_ENVIRONMENT, "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
    )
    assert done.returncode == 0, f"status {done.returncode} of\n{script}\n{done.stdout}"
    return done.stdout
