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

MOUNT_LIMIT = 20.0  # seconds until a mount must answer
COMMAND_LIMIT = 20.0  # seconds for one shown command
_LONGEST_SOCKET = 90  # bytes of the folder's path; a socket's may have 107

Show = Callable[[str, str], None]
"""Called with a kind ("say", "command" or "output") and one line."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the session, and what is said before it."""

    command: str
    say: str = ""


LOOKING = (
    Step("ls -C", "Every key is a file; what stands before a colon is a folder."),
    Step("tree feature product queue template"),
    Step("cat template/welcome.html", "A string is its bytes, a hash has a file for each field."),
    Step("ls -C user"),
    Step("cat user/1001.email"),
    Step("wc -l queue/* tag/*", "Lists, sets, sorted sets and streams read as lines."),
    Step("sort -rn leaderboard/2026-06 | head -n 3"),
    Step("head -n 3 events/orders"),
    Step("cat user/1001%json", "Any key is also there as JSON, and as its DUMP."),
    Step("grep -r overdue .", "Ordinary tools find things: who is to be sent a reminder?"),
    Step("grep -l free user/*.plan"),
    Step("getfattr -d session/b2278a963678b908", "Types and times to live (in milliseconds) are extended attributes."),
    Step("ls -C odd", "No name hides a key: what no file may be called is escaped, and leads back to the key."),
    Step("redis-cli SET feature:banner on", "When the server changes, so does the mount."),
    Step("sleep 1; ls -C feature"),
    Step("echo off > feature/dark-mode", "And nothing can be hurt: the mount is read-only."),
    Step("rm user/1001.email"),
)

CHANGING = (
    Step("echo 50% > feature/new-checkout", "Strings and fields are edited with whatever edits files."),
    Step("sed -i 's/trial/free trial/' template/overdue.txt"),
    Step("rm product/poster"),
    Step("sleep 1; redisfuse log", "Each change was in the journal, with what it replaced, before it was in Redis."),
    Step("redisfuse diff 2"),
    Step("redisfuse rollback 3", "Any of them can be taken back, mounted or not."),
    Step("cat product/poster"),
)


def run(show: Show, *, keep: bool = False) -> None:
    """Show the demo; with `keep`, leave the mount up to play with until it is interrupted or unmounted.

    Raises MountError. Whatever happens, the mount and the server are ended and the folder is removed.
    """
    with Interruptions() as interruptions, _folder() as folder, server.running(folder) as socket:
        count = server.load(socket, data.commands())
        show("say", f"A private Redis with {count} keys and elements is running. Mounting it:")
        shell = Shell(folder, socket, show, interruptions)
        with shell.mounted():
            for step in LOOKING:
                shell.run(step)
        show("say", "Unmounted. To change something, say so when mounting:")
        with shell.mounted("--write", "--journal"):
            for step in CHANGING:
                shell.run(step)
            if keep:
                shell.stay()
    show("say", "Unmounted; the server is stopped, and nothing is left behind.")


class Interruptions:
    """Ctrl-C, SIGTERM and SIGHUP while the block runs: noted, and raised where `check` is called.

    Raised at any moment, an exception could come between the start of a child and the note of it, and leave it behind.
    """

    def __init__(self) -> None:
        self._noted = False
        self._before: dict[signal.Signals, Any] = {}

    def check(self) -> None:
        """Raise KeyboardInterrupt if somebody wants an end."""
        if self._noted:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._noted = True


class Shell:
    """Runs commands in a mount of the demo's server, and shows them with what they answer."""

    def __init__(self, folder: Path, socket: Path, show: Show, interruptions: Interruptions) -> None:
        self._socket = socket
        self._show = show
        self._interruptions = interruptions
        self._url = f"unix://{socket}"
        self._mountpoint = folder / "redis"
        self._mountpoint.mkdir()
        self._log = folder / "mount.log"
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
    def mounted(self, *options: str) -> Iterator[None]:
        """A mount while the block runs. Raises MountError if it does not come up."""
        words = [*options, self._url, str(self._mountpoint)]
        self._show("command", shlex.join(["redisfuse", *words]))
        arguments = [sys.executable, "-m", "redisfuse.cli.main", *words]
        with (
            self._log.open("wb") as log,
            server.ending(arguments, stdout=log, stderr=log, environment=self._environment) as process,
        ):
            try:
                for line in self._wait_until_mounted(process):
                    self._show("output", line)
                yield
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                if mountpoints.find(self._mountpoint):  # it would not go by itself
                    mountpoints.unmount(self._mountpoint, lazy=True)

    def run(self, step: Step) -> None:
        """Run one step in the mount and show it."""
        self._interruptions.check()
        if step.say:
            self._show("say", step.say)
        self._show("command", step.command)
        for line in self._answer(step.command):
            self._show("output", line)

    def stay(self) -> None:
        """Leave it mounted until Ctrl-C, or until somebody unmounts it."""
        journal = self._environment["REDISFUSE_JOURNAL_FILE"]
        self._show("say", f"It stays mounted, for you to play with, at {self._mountpoint}")
        self._show("say", f"What you change is listed by: redisfuse log --journal-file {journal}")
        self._show("say", f"The other side of it: redis-cli -s {self._socket}")
        self._show("say", "Press Ctrl-C to end it.")
        with contextlib.suppress(KeyboardInterrupt):
            while mountpoints.find(self._mountpoint):
                self._interruptions.check()
                time.sleep(0.2)

    def _wait_until_mounted(self, process: subprocess.Popen[bytes]) -> list[str]:
        """What the mount says when it is there."""
        deadline = time.monotonic() + MOUNT_LIMIT
        while not (mountpoints.find(self._mountpoint) and self._log.stat().st_size):  # mounted, and said so
            self._interruptions.check()
            if process.poll() is not None or time.monotonic() > deadline:
                lines = self._log.read_text(errors="replace").strip().splitlines()
                reason = lines[-1].removeprefix("redisfuse: ") if lines else "the mount did not come up"
                raise MountError(reason)
            time.sleep(0.02)
        return self._log.read_text(errors="replace").splitlines()

    def _answer(self, command: str) -> list[str]:
        """What a shell in the mount answers, errors included; has stand-ins for programs that may be missing."""
        program, *arguments = command.split()
        if program == "redis-cli":
            return [server.ask(self._socket, *arguments)]
        if program in ("tree", "getfattr") and not shutil.which(program):
            stand_in = _tree if program == "tree" else _attributes
            return [line for name in arguments if name[0] != "-" for line in stand_in(self._mountpoint, name)]
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                cwd=self._mountpoint,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=COMMAND_LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise MountError(f"the demo's command did not end: {command}") from error
        text = done.stdout.decode("utf-8", "surrogateescape").rstrip("\n")
        return text.split("\n") if text else []


def _tree(folder: Path, name: str, indent: str = "") -> Iterator[str]:
    if not indent:
        yield name
    names = sorted(os.listdir(folder / name))
    for child in names:
        last = child == names[-1]
        yield f"{indent}{'└── ' if last else '├── '}{child}"
        if (folder / name / child).is_dir():
            yield from _tree(folder / name, child, indent + ("    " if last else "│   "))


def _attributes(folder: Path, pattern: str) -> Iterator[str]:
    for path in sorted(folder.glob(pattern)):
        yield f"# file: {path.relative_to(folder)}"
        for name in sorted(os.listxattr(path)):
            yield f'{name}="{os.fsdecode(os.getxattr(path, name))}"'
        yield ""


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A private folder that goes with the block; not on another mount that is still there."""
    usual = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="redisfuse-demo-", dir=usual if len(usual) < _LONGEST_SOCKET else "/tmp"))
    try:
        yield folder
    finally:
        for mount in mountpoints.mounts():
            if folder in mount.mountpoint.parents:
                mountpoints.unmount(mount.mountpoint, lazy=True)
        shutil.rmtree(folder, ignore_errors=True)
