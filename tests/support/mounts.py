"""Real mounts for the tests: each in a process of its own, so that no bug can hang the suite."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.redis_server import RedisServer

PATIENCE = 20.0  # seconds for a mount to appear or go


@dataclass
class Mount:
    """A mounted server."""

    path: Path
    process: subprocess.Popen[bytes]
    log: Path
    journal: Path

    def status(self) -> dict[str, Any]:
        """What `redisfuse status` tells."""
        found: dict[str, Any] = json.loads(os.getxattr(self.path, "user.redisfuse.status"))
        return found

    def said(self) -> str:
        """Its standard error so far."""
        return self.log.read_text(errors="replace")

    def wait_ready(self) -> None:
        """Wait until the index is whole."""
        eventually(lambda: self.status()["ready"])

    def wait_coherent(self) -> None:
        """Wait until changes are pushed to the kernel."""
        eventually(lambda: self.status()["kernel_cache"])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal; returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def eventually(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Wait until `condition()` is true and return it; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def empty(server: RedisServer, mount: Mount) -> None:
    """Remove every key, and wait until the mount knows."""
    server.client().flushall()
    eventually(lambda: mount.status()["ready"] and not mount.status()["keys"])


def is_mounted(path: Path) -> bool:
    """Whether something is mounted at a path, without touching it."""
    wanted = f" {path} "
    return any(wanted in line for line in Path("/proc/self/mountinfo").read_text().splitlines())


def command_line(*words: str) -> list[str]:
    """How the tests run `redisfuse`."""
    return [sys.executable, "-m", "redisfuse.cli.main", *words]


def environment(folder: Path) -> dict[str, str]:
    """An environment whose state and config folders are in `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REDISFUSE_")}
    own = {"XDG_STATE_HOME": str(folder / "state"), "XDG_CONFIG_HOME": str(folder / "config"), "NO_COLOR": "1"}
    return {**kept, **own, "PYTHONFAULTHANDLER": "1"}


def run(folder: Path, *words: str, timeout: float = 30, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a `redisfuse` command to its end."""
    return subprocess.run(
        command_line(*words), env=environment(folder), capture_output=True, text=True, timeout=timeout, **options
    )


@contextlib.contextmanager
def mounted(folder: Path, url: str, *options: str, write: bool = False, wait: bool = True) -> Iterator[Mount]:
    """Mount `url` below `folder` for the body of `with`; afterwards nothing is left mounted or running."""
    path = folder / "mnt"
    path.mkdir(exist_ok=True)
    log = folder / "mount.log"
    words = ["--write", "--journal"] if write else []
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command_line(*words, *options, url, str(path)),
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
        )
    mount = Mount(path, process, log, folder / "state" / "redisfuse" / "journal.db")
    try:
        deadline = time.monotonic() + PATIENCE
        while not is_mounted(path):
            assert process.poll() is None, f"the mount ended: {mount.said()}"
            assert time.monotonic() < deadline, f"no mount after {PATIENCE} s: {mount.said()}"
            time.sleep(0.01)
        if wait:
            mount.wait_ready()
        yield mount
    finally:
        sweep(mount)


def sweep(mount: Mount) -> None:
    """End a mount however it is."""
    if mount.process.poll() is None:
        mount.process.terminate()
        try:
            mount.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            mount.process.kill()
            mount.process.wait(PATIENCE)
    if is_mounted(mount.path):
        subprocess.run(["fusermount", "-uz", str(mount.path)], check=False, timeout=PATIENCE)
