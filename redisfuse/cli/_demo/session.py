"""The demo: a server, its data, a mount, and the commands that are shown with what they really answer."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

from redisfuse.cli._demo import data, server
from redisfuse.errors import MountError
from redisfuse.fuse import mountpoint as mountpoints

MOUNT_TIMEOUT_SECONDS = 20.0  # seconds until a mount must answer
COMMAND_TIMEOUT_SECONDS = 20.0  # seconds for one shown command
_MAX_TEMP_DIR_BYTES = 90  # bytes of the folder's path; a socket's may have 107

ShowCallback = Callable[[str, str], None]
"""Called with a kind ("say", "command" or "output") and one line."""


@dataclass(frozen=True, slots=True)
class DemoStep:
    """One command of the session, and what is said before it."""

    command: str
    comment: str = ""


READ_STEPS = (
    DemoStep("ls -C", "Every key is a file; what stands before a colon is a folder."),
    DemoStep("tree feature product queue template"),
    DemoStep("cat template/welcome.html", "A string is its bytes, a hash has a file for each field."),
    DemoStep("ls -C user"),
    DemoStep("cat user/1001.email"),
    DemoStep("wc -l queue/* tag/*", "Lists, sets, sorted sets and streams read as lines."),
    DemoStep("sort -rn leaderboard/2026-06 | head -n 3"),
    DemoStep("head -n 3 events/orders"),
    DemoStep("cat user/1001%json", "Any key is also there as JSON, and as its DUMP."),
    DemoStep("grep -r overdue .", "Ordinary tools find things: who is to be sent a reminder?"),
    DemoStep("grep -l free user/*.plan"),
    DemoStep(
        "getfattr -d session/b2278a963678b908", "Types and times to live (in milliseconds) are extended attributes."
    ),
    DemoStep("ls -C odd", "No name hides a key: what no file may be called is escaped, and leads back to the key."),
    DemoStep("redis-cli SET feature:banner on", "When the server changes, so does the mount."),
    DemoStep("sleep 1; ls -C feature"),
    DemoStep("echo off > feature/dark-mode", "And nothing can be hurt: the mount is read-only."),
    DemoStep("rm user/1001.email"),
)

WRITE_STEPS = (
    DemoStep("echo 50% > feature/new-checkout", "Strings and fields are edited with whatever edits files."),
    DemoStep("sed -i 's/trial/free trial/' template/overdue.txt"),
    DemoStep("rm product/poster"),
    DemoStep(
        "sleep 1; redisfuse log", "Each change was in the journal, with what it replaced, before it was in Redis."
    ),
    DemoStep("redisfuse diff 2"),
    DemoStep("redisfuse rollback 3", "Any of them can be taken back, mounted or not."),
    DemoStep("cat product/poster"),
)


def run_demo(show: ShowCallback, *, keep: bool = False) -> None:
    """Show the demo; with `keep`, leave the mount up to play with until it is interrupted or unmounted.

    Raises MountError. Whatever happens, the mount and the server are ended and the folder is removed.
    """
    with StopSignal() as interruptions, _temporary_folder() as folder, server.run_server(folder) as socket:
        count = server.load_data(socket, data.generate_commands())
        show("say", f"A private Redis with {count} keys and elements is running. Mounting it:")
        shell = DemoShell(folder, socket, show, interruptions)
        with shell.mount():
            for step in READ_STEPS:
                shell.run_step(step)
        show("say", "Unmounted. To change something, say so when mounting:")
        with shell.mount("--write", "--journal"):
            for step in WRITE_STEPS:
                shell.run_step(step)
            if keep:
                shell.wait_for_stop()
    show("say", "Unmounted; the server is stopped, and nothing is left behind.")


class StopSignal:
    """Ctrl-C, SIGTERM and SIGHUP while the block runs: noted, and raised where `raise_if_requested` is called.

    Raised at any moment, an exception could come between the start of a child and the note of it, and leave it behind.
    """

    def __init__(self) -> None:
        self._requested = False
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def raise_if_requested(self) -> None:
        """Raise KeyboardInterrupt if somebody wants an end."""
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
    """Runs commands in a mount of the demo's server, and shows them with what they answer."""

    def __init__(self, folder: Path, socket_path: Path, show: ShowCallback, stop_signal: StopSignal) -> None:
        self._socket_path = socket_path
        self._show = show
        self._stop_signal = stop_signal
        self._url = f"unix://{socket_path}"
        self._mountpoint = folder / "redis"
        self._mountpoint.mkdir()
        self._log_path = folder / "mount.log"
        programs = folder / "bin"
        programs.mkdir()
        program = programs / "redisfuse"  # this very copy, whether it is in PATH or not
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m redisfuse.cli.main "$@"\n')
        program.chmod(0o700)
        # The user's own settings would change what the demo shows.
        mine = {name: value for name, value in os.environ.items() if not name.startswith("REDISFUSE_")}
        self._environment = mine | {
            "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}",
            "REDISFUSE_CONFIG": os.devnull,
            "REDISFUSE_JOURNAL_FILE": str(folder / "journal" / "journal.db"),
            "LC_ALL": "C.UTF-8",
            "COLUMNS": "100",
            "TABSIZE": "0",
        }

    @contextlib.contextmanager
    def mount(self, *options: str) -> Iterator[None]:
        """A mount while the block runs. Raises MountError if it does not come up."""
        words = [*options, self._url, str(self._mountpoint)]
        self._show("command", shlex.join(["redisfuse", *words]))
        arguments = [sys.executable, "-m", "redisfuse.cli.main", *words]
        with (
            self._log_path.open("wb") as log,
            server.run_child_process(arguments, stdout=log, stderr=log, environment=self._environment) as process,
        ):
            try:
                for line in self._wait_until_mounted(process):
                    self._show("output", line)
                yield
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                if mountpoints.find_mount(self._mountpoint):  # it would not go by itself
                    mountpoints.unmount(self._mountpoint, lazy=True)

    def run_step(self, step: DemoStep) -> None:
        """Run one step in the mount and show it."""
        self._stop_signal.raise_if_requested()
        if step.comment:
            self._show("say", step.comment)
        self._show("command", step.command)
        for line in self._run_command(step.command):
            self._show("output", line)

    def wait_for_stop(self) -> None:
        """Leave it mounted until Ctrl-C, or until somebody unmounts it."""
        journal = self._environment["REDISFUSE_JOURNAL_FILE"]
        self._show("say", f"It stays mounted, for you to play with, at {self._mountpoint}")
        self._show("say", f"What you change is listed by: redisfuse log --journal-file {journal}")
        self._show("say", f"The other side of it: redis-cli -s {self._socket_path}")
        self._show("say", "Press Ctrl-C to end it.")
        with contextlib.suppress(KeyboardInterrupt):
            while mountpoints.find_mount(self._mountpoint):
                self._stop_signal.raise_if_requested()
                time.sleep(0.2)

    def _wait_until_mounted(self, process: subprocess.Popen[bytes]) -> list[str]:
        """What the mount says when it is there."""
        deadline = time.monotonic() + MOUNT_TIMEOUT_SECONDS
        while not (mountpoints.find_mount(self._mountpoint) and self._log_path.stat().st_size):  # mounted, and said so
            self._stop_signal.raise_if_requested()
            if process.poll() is not None or time.monotonic() > deadline:
                lines = self._log_path.read_text(errors="replace").strip().splitlines()
                reason = lines[-1].removeprefix("redisfuse: ") if lines else "the mount did not come up"
                raise MountError(reason)
            time.sleep(0.02)
        return self._log_path.read_text(errors="replace").splitlines()

    def _run_command(self, command: str) -> list[str]:
        """What a shell in the mount answers, errors included; has stand-ins for programs that may be missing."""
        program, *arguments = command.split()
        if program == "redis-cli":
            return [server.execute(self._socket_path, *arguments)]
        if program in ("tree", "getfattr") and not shutil.which(program):
            stand_in = _draw_tree if program == "tree" else _list_xattrs
            return [line for name in arguments if name[0] != "-" for line in stand_in(self._mountpoint, name)]
        try:
            done = subprocess.run(
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
            raise MountError(f"the demo's command did not end: {command}") from error
        text = done.stdout.decode("utf-8", "surrogateescape").rstrip("\n")
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
    """A private folder that goes with the block; not on another mount that is still there."""
    usual = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="redisfuse-demo-", dir=usual if len(usual) < _MAX_TEMP_DIR_BYTES else "/tmp"))
    try:
        yield folder
    finally:
        for mount in mountpoints.list_redisfuse_mounts():
            if folder in mount.mountpoint.parents:
                mountpoints.unmount(mount.mountpoint, lazy=True)
        shutil.rmtree(folder, ignore_errors=True)
