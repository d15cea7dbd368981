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

from tests.support import mount_logs
from tests.support.forkserver import MOUNT_TIMEOUT_SECONDS, ForkedProcess, run_forked, shared_forkserver
from tests.support.redis_server import RedisServer

AnyProcess = ForkedProcess | subprocess.Popen[bytes]


@dataclass
class MountedServer:
    """A mounted server."""

    path: Path
    process: AnyProcess
    log: Path
    journal: Path

    def status(self) -> dict[str, Any]:
        """Return what `redisfuse status` reports."""
        status: dict[str, Any] = json.loads(os.getxattr(self.path, "user.redisfuse.status"))
        return status

    def read_log(self) -> str:
        """Return its standard error so far."""
        return self.log.read_text(errors="replace")

    def wait_ready(self) -> None:
        """Wait until the index is complete."""
        wait_until(lambda: self.status()["ready"])

    def wait_coherent(self) -> None:
        """Wait until changes are pushed to the kernel."""
        wait_until(lambda: self.status()["kernel_cache"])

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Send it a signal and return its exit status."""
        self.process.send_signal(signal_number)
        return self.process.wait(MOUNT_TIMEOUT_SECONDS)


def wait_until(condition: Callable[[], Any], seconds: float = MOUNT_TIMEOUT_SECONDS) -> Any:
    """Wait until `condition()` is true and return it; fail after `seconds`.

    A name that it looks for may not exist yet: ENOENT is "not yet", and is raised only at the end.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            result = condition()
        except FileNotFoundError:
            if time.monotonic() >= deadline:
                raise
            result = None
        if result:
            return result
        assert time.monotonic() < deadline, f"the condition is not true after {seconds} s"
        time.sleep(0.01)


def flush_and_wait(server: RedisServer, mount: MountedServer) -> None:
    """Remove every key, and wait until the mount shows none."""
    server.client().flushall()
    wait_until(lambda: mount.status()["ready"] and not mount.status()["keys"])
    wait_until(lambda: not os.path.lexists(mount.path / "k"))  # nor the kernel the name that most tests use


def is_mounted(path: Path) -> bool:
    """Return whether a path is in the table of mounts, without accessing the path."""
    field = " {} ".format(str(path).replace(" ", r"\040"))
    return any(field in line for line in Path("/proc/self/mountinfo").read_text().splitlines())


def redisfuse_command(*words: str) -> list[str]:
    """Return the command line that runs `redisfuse`."""
    return [sys.executable, "-m", "redisfuse.cli.main", *words]


def isolated_environment(folder: Path) -> dict[str, str]:
    """Return an environment whose state and config folders are in `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REDISFUSE_")}
    own = {"XDG_STATE_HOME": str(folder / "state"), "XDG_CONFIG_HOME": str(folder / "config"), "NO_COLOR": "1"}
    return {**kept, **own, "PYTHONFAULTHANDLER": "1"}


def run_redisfuse(
    folder: Path, *words: str | Path, timeout: float = 30, cwd: Path | None = None, as_program: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a `redisfuse` command to its end, forked as `start_mount` does it, without a standard input."""
    mount_logs.watch(folder / "state" / "redisfuse" / "redisfuse.log")  # of --daemon
    command = list(map(str, words))
    if as_program:
        return subprocess.run(
            redisfuse_command(*command),
            env=isolated_environment(folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd,
        )
    done = run_forked(command, isolated_environment(folder), directory=cwd, timeout=timeout)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def start_redisfuse(folder: Path, log: Path, *words: str) -> ForkedProcess:
    """Start `redisfuse WORDS`, forked from a process with all modules; its output goes to the end of `log`."""
    return shared_forkserver().start_process(words, isolated_environment(folder), stdout=log, stderr=log)


def start_mount(
    folder: Path, url: str, *options: str, write: bool = False, wait: bool = True, as_program: bool = False
) -> MountedServer:
    """Mount `url` below `folder`; `wait` until the index is complete. End it with `clean_up_mount`.

    `as_program`: with a command line and an environment of its own, as the command is started by a shell.
    """
    path = folder / "mnt"
    if not is_mounted(path):
        path.mkdir(exist_ok=True)
    log = folder / "mount.log"
    mount_logs.watch(log)
    words = ["--write", "--journal"] if write else []
    process: AnyProcess
    if as_program:
        with log.open("ab") as output:
            process = subprocess.Popen(
                redisfuse_command(*words, *options, url, str(path)),
                env=isolated_environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
    else:
        process = start_redisfuse(folder, log, *words, *options, url, str(path))
    mount = MountedServer(path, process, log, folder / "state" / "redisfuse" / "journal.db")
    try:
        deadline = time.monotonic() + MOUNT_TIMEOUT_SECONDS
        # A dead mount may still be in the table of mounts, so a process must answer.
        while not _answers_status(path):
            assert process.poll() is None, f"the mount ended: {mount.read_log()}"
            assert time.monotonic() < deadline, f"no mount after {MOUNT_TIMEOUT_SECONDS} s: {mount.read_log()}"
            time.sleep(0.005)
        if wait:
            mount.wait_ready()
    except BaseException:
        clean_up_mount(mount)
        raise
    return mount


def _answers_status(path: Path) -> bool:
    if not is_mounted(path):
        return False
    try:
        return bool(os.getxattr(path, "user.redisfuse.status"))
    except OSError:
        return False


@contextlib.contextmanager
def mount_server(
    folder: Path, url: str, *options: str, write: bool = False, wait: bool = True, as_program: bool = False
) -> Iterator[MountedServer]:
    """Mount `url` below `folder` for the body of `with`, as `start_mount` does; afterwards nothing is left."""
    mount = start_mount(folder, url, *options, write=write, wait=wait, as_program=as_program)
    try:
        yield mount
    finally:
        clean_up_mount(mount)


def clean_up_mount(mount: MountedServer) -> None:
    """End a mount in any state: running, hung or dead."""
    if mount.process.poll() is None:
        mount.process.terminate()
        try:
            mount.process.wait(MOUNT_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            mount.process.kill()
            mount.process.wait(MOUNT_TIMEOUT_SECONDS)
    if is_mounted(mount.path):
        subprocess.run(["fusermount", "-uz", str(mount.path)], check=False, timeout=MOUNT_TIMEOUT_SECONDS)
