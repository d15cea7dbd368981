"""A mount of `kernel_tree` in a process of its own, with a time-out on everything."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from redisfuse.fuse import mountpoint as mountpoints
from tests.support import mount_logs

LIBC = ctypes.CDLL(None, use_errno=True)
ROOT = Path(__file__).parents[2]
_MAX_LIFETIME_SECONDS = 60.0  # seconds after which the process is killed, so that no bug can hang a test in the kernel


class MemoryMount:
    """Mounted while in the `with` block, at `path`; afterwards nothing is left.

    `settings` as in `kernel_tree`.
    """

    def __init__(self, binding: str, *, mountpoint: Path | None = None, **settings: Any) -> None:
        self._binding = binding
        self._settings = settings
        self._folder = Path(tempfile.mkdtemp(prefix="redisfuse-test-"))
        self.path = mountpoint if mountpoint is not None else self._folder / "mnt"
        self.path.mkdir(exist_ok=True)
        self._control = str(self._folder / "control")
        self.log = self._folder / "log"
        mount_logs.watch(self.log)
        self.process: subprocess.Popen[bytes]
        self._socket: socket.socket | None = None
        self._kill_timer: threading.Timer

    def __enter__(self) -> MemoryMount:
        self.start()
        deadline = time.monotonic() + 20
        while not self.is_mounted:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise AssertionError(f"not mounted: {self.log.read_text()}")
            time.sleep(0.02)
        os.stat(self.path)  # the first reply comes after `init`
        return self

    def start(self) -> None:
        """Start the process without waiting for the mount."""
        command = [sys.executable, "-m", "tests.support.kernel_tree", self._binding, str(self.path), self._control]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, json.dumps(self._settings)], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )
        self._kill_timer = threading.Timer(_MAX_LIFETIME_SECONDS, self.process.kill)
        self._kill_timer.daemon = True
        self._kill_timer.start()

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)
        self._kill_timer.cancel()
        if self._socket is not None:
            self._socket.close()
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.path)], check=False)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    @property
    def is_mounted(self) -> bool:
        return mountpoints.find_mount(self.path) is not None

    def wait_for_exit(self, timeout: float = 20) -> int:
        """Wait until the process has ended; return its exit status."""
        return self.process.wait(timeout)

    def send_request(self, action: str, **arguments: Any) -> Any:
        """Send one request to the control socket."""
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(20)
            self._socket.connect(self._control)
            self._stream = self._socket.makefile("rwb")
        self._stream.write(json.dumps({"do": action, **arguments}).encode() + b"\n")
        self._stream.flush()
        return json.loads(self._stream.readline())

    def put_file(self, path: str, data: str) -> None:
        """Make or change a file without notifying the kernel."""
        self.send_request("put", path=path, data=data)

    def take_counts(self) -> dict[str, int]:
        """Return how often each operation ran since the last call; those that did not are 0."""
        return _CallCounts(self.send_request("counts")["calls"])


class _CallCounts(dict[str, int]):
    def __missing__(self, key: str) -> int:
        return 0


def call_errno(call: Callable[[], object]) -> int:
    """Return the errno with which a call fails."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is compared
        call()
    return caught.value.errno or 0


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Return whether a condition becomes true within that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
