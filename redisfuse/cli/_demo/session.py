"""The demo's session: its commands, run in a mount, with their real output."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, Self

from redisfuse.cli._demo import data, server
from redisfuse.errors import MountError
from redisfuse.fuse import mountpoint as mountpoints

MOUNT_TIMEOUT_SECONDS = 20.0  # until the mount is ready
COMMAND_TIMEOUT_SECONDS = 20.0  # for one command
_MAX_TEMP_DIR_BYTES = 90  # of the folder's path; a socket's path may have 107


class Transcript(Protocol):
    """Receives the session while it runs."""

    def show_comment(self, text: str) -> None:
        """Show a remark."""

    def show_command(self, command: str) -> None:
        """Show a command that is about to run."""

    def show_output(self, line: str) -> None:
        """Show one line of a command's output."""


@dataclass(frozen=True, slots=True)
class DemoStep:
    """One command of the session, and the remark before it."""

    command: str
    comment: str = ""


READ_STEPS = (
    DemoStep("ls -C", "Every key is a file; the part before a colon is a directory."),
    DemoStep("tree feature product queue template"),
    DemoStep("cat template/welcome.html", "A string is its bytes, a hash has a file for each field."),
    DemoStep("ls -C user"),
    DemoStep("cat user/1001.email"),
    DemoStep("wc -l queue/* tag/*", "Lists, sets, sorted sets and streams read as lines."),
    DemoStep("sort -rn leaderboard/2026-06 | head -n 3"),
    DemoStep("head -n 3 events/orders"),
    DemoStep("cat user/1001%json", "Any key is also there as JSON, and as its DUMP."),
    DemoStep("grep -r overdue .", "Ordinary tools search Redis: which mails are reminders?"),
    DemoStep("grep -l free user/*.plan"),
    DemoStep(
        "getfattr -d session/b2278a963678b908", "Types and times to live (in milliseconds) are extended attributes."
    ),
    DemoStep("ls -C odd", "Every key has a file: characters that a file name can't contain are escaped."),
    DemoStep("redis-cli SET feature:banner on", "A change on the server appears in the mount."),
    DemoStep("sleep 1; ls -C feature"),
    DemoStep("echo off > feature/dark-mode", "Nothing can be damaged: the mount is read-only."),
    DemoStep("rm user/1001.email"),
)

WRITE_STEPS = (
    DemoStep("echo 50% > feature/new-checkout", "Any program that edits files edits strings and fields."),
    DemoStep("sed -i 's/trial/free trial/' template/overdue.txt"),
    DemoStep("rm product/poster"),
    DemoStep("sleep 1; redisfuse log", "Each change was journaled, with the old value, before Redis was changed."),
    DemoStep("redisfuse diff 3"),
    DemoStep("redisfuse rollback 4", "Each change can be rolled back, mounted or not."),
    DemoStep("cat product/poster"),
)


def run_demo(transcript: Transcript, *, keep: bool = False) -> None:
    """Run the demo.

    With `keep`, the mount remains until it is interrupted or unmounted. Raises MountError. In every case the mount and
    the server are stopped and the folder is removed.
    """
    with StopSignal() as stop_signal, _temporary_folder() as folder, server.run_server(folder) as socket:
        count = server.load_data(socket, data.generate_commands())
        transcript.show_comment(f"A private Redis with {count} keys and elements is running. Mounting it:")
        shell = DemoShell(folder, socket, transcript, stop_signal)
        with shell.mount():
            for step in READ_STEPS:
                shell.run_step(step)
        transcript.show_comment("Unmounted. To edit, mount in write mode:")
        with shell.mount("--write", "--journal"):
            for step in WRITE_STEPS:
                shell.run_step(step)
            if keep:
                shell.wait_for_stop()
    transcript.show_comment("Unmounted; the server is stopped, and all files of the demo are removed.")


class StopSignal:
    """Defers Ctrl-C, SIGTERM and SIGHUP during the block.

    `raise_if_requested` raises them. An exception at an arbitrary point could occur between the start of a child
    process and the assignment of its handle, and leave the child running.
    """

    def __init__(self) -> None:
        self._requested = False
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def raise_if_requested(self) -> None:
        """Raise KeyboardInterrupt if a signal was received."""
        if self._requested:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._previous_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._requested = True


class DemoShell:
    """Runs commands in a mount of the demo's server, and shows their output."""

    def __init__(self, folder: Path, socket_path: Path, transcript: Transcript, stop_signal: StopSignal) -> None:
        self._socket_path = socket_path
        self._transcript = transcript
        self._stop_signal = stop_signal
        self._url = f"unix://{socket_path}"
        self._mountpoint = folder / "redis"
        self._mountpoint.mkdir()
        self._log_path = folder / "mount.log"
        programs = folder / "bin"
        programs.mkdir()
        program = programs / "redisfuse"  # this installation, whether it is in PATH or not
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m redisfuse.cli.main "$@"\n')
        program.chmod(0o700)
        # The user's own settings would change the output of the demo.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("REDISFUSE_")}
        self._environment = inherited | {
            "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}",
            "REDISFUSE_CONFIG": os.devnull,
            "REDISFUSE_JOURNAL_FILE": str(folder / "journal" / "journal.db"),
            "LC_ALL": "C.UTF-8",
            "COLUMNS": "100",
            "TABSIZE": "0",
        }

    @contextlib.contextmanager
    def mount(self, *options: str) -> Iterator[None]:
        """Mount during the block.

        Raises MountError if the mount fails.
        """
        words = [*options, self._url, str(self._mountpoint)]
        self._transcript.show_command(shlex.join(["redisfuse", *words]))
        arguments = [sys.executable, "-m", "redisfuse.cli.main", *words]
        with (
            self._log_path.open("wb") as log,
            server.run_child_process(arguments, stdout=log, stderr=log, environment=self._environment) as process,
        ):
            try:
                for line in self._wait_until_mounted(process):
                    self._transcript.show_output(line)
                yield
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                if mountpoints.find_mount(self._mountpoint):  # it did not unmount on SIGTERM
                    mountpoints.unmount(self._mountpoint, lazy=True)

    def run_step(self, step: DemoStep) -> None:
        """Run one step in the mount and show it."""
        self._stop_signal.raise_if_requested()
        if step.comment:
            self._transcript.show_comment(step.comment)
        self._transcript.show_command(step.command)
        for line in self._run_command(step.command):
            self._transcript.show_output(line)

    def wait_for_stop(self) -> None:
        """Wait for Ctrl-C or for the unmount."""
        journal = self._environment["REDISFUSE_JOURNAL_FILE"]
        self._transcript.show_comment(f"It remains mounted, for you to explore, at {self._mountpoint}")
        self._transcript.show_comment(f"To list your changes: redisfuse log --journal-file {journal}")
        self._transcript.show_comment(f"To query the server directly: redis-cli -s {self._socket_path}")
        self._transcript.show_comment("Press Ctrl-C to end the demo.")
        with contextlib.suppress(KeyboardInterrupt):
            while mountpoints.find_mount(self._mountpoint):
                self._stop_signal.raise_if_requested()
                time.sleep(0.2)

    def _wait_until_mounted(self, process: subprocess.Popen[bytes]) -> list[str]:
        """Return the output of the mount when it is ready."""
        deadline = time.monotonic() + MOUNT_TIMEOUT_SECONDS
        while not (mountpoints.find_mount(self._mountpoint) and self._log_path.stat().st_size):
            self._stop_signal.raise_if_requested()
            if process.poll() is not None or time.monotonic() > deadline:
                lines = self._log_path.read_text(errors="replace").strip().splitlines()
                reason = lines[-1].removeprefix("redisfuse: ") if lines else "the mount did not start"
                raise MountError(reason)
            time.sleep(0.02)
        return self._log_path.read_text(errors="replace").splitlines()

    def _run_command(self, command: str) -> list[str]:
        """Return the lines that a shell in the mount prints, including errors.

        Replaces tree and getfattr if they are missing.
        """
        program, *arguments = command.split()
        if program == "redis-cli":
            return [server.execute(self._socket_path, *arguments)]
        if program in ("tree", "getfattr") and not shutil.which(program):
            replacement = _draw_tree if program == "tree" else _list_xattrs
            return [line for name in arguments if name[0] != "-" for line in replacement(self._mountpoint, name)]
        try:
            process = subprocess.run(
                ["/bin/sh", "-c", command],
                cwd=self._mountpoint,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=COMMAND_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise MountError(f"the demo's command timed out: {command}") from error
        text = process.stdout.decode("utf-8", "surrogateescape").rstrip("\n")
        return text.split("\n") if text else []


def _draw_tree(folder: Path, name: str, indent: str = "") -> Iterator[str]:
    if not indent:
        yield name
    names = sorted(os.listdir(folder / name))
    for child in names:
        last = child == names[-1]
        yield f"{indent}{'└── ' if last else '├── '}{child}"
        if (folder / name / child).is_dir():
            yield from _draw_tree(folder / name, child, indent + ("    " if last else "│   "))


def _list_xattrs(folder: Path, pattern: str) -> Iterator[str]:
    for path in sorted(folder.glob(pattern)):
        yield f"# file: {path.relative_to(folder)}"
        for name in sorted(os.listxattr(path)):
            yield f'{name}="{os.fsdecode(os.getxattr(path, name))}"'
        yield ""


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Yield a private folder; afterwards unmount whatever is in it and remove it."""
    usual = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="redisfuse-demo-", dir=usual if len(usual) < _MAX_TEMP_DIR_BYTES else "/tmp"))
    try:
        yield folder
    finally:
        for mount in mountpoints.list_redisfuse_mounts():
            if folder in mount.mountpoint.parents:
                mountpoints.unmount(mount.mountpoint, lazy=True)
        shutil.rmtree(folder, ignore_errors=True)
