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

from redisfuse.binding import mountpoint as mountpoints
from redisfuse.demo import data, server
from redisfuse.errors import MountError

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


def run(show: Show, *, keep: bool = False) -> None:
    """Show the demo; with `keep`, leave the mount up to play with until it is interrupted or unmounted.

    Raises MountError. Whatever happens, the mount and the server are ended and the folder is removed.
    """
    with _ended_by_signals(), _folder() as folder, server.running(folder) as socket:
        count = server.load(socket, data.commands())
        show("say", f"A private Redis with {count} keys and elements is running. Mounting it:")
        mountpoint = folder / "redis"
        mountpoint.mkdir()
        with mounted(f"unix://{socket}", mountpoint, show):
            for step in LOOKING:
                _show(step, mountpoint, socket, show)
            if keep:
                _stay(socket, mountpoint, show)
    show("say", "Unmounted; the server is stopped, and nothing is left behind.")


@contextlib.contextmanager
def mounted(url: str, mountpoint: Path, show: Show, *options: str) -> Iterator[None]:
    """A mount of `url` while the block runs, by a redisfuse of its own. Raises MountError if it does not come up."""
    show("command", shlex.join(["redisfuse", *options, url, str(mountpoint)]))
    log = mountpoint.with_name(f"{mountpoint.name}.log")
    arguments = [sys.executable, "-m", "redisfuse.cli.main", "--config", os.devnull, *options, url, str(mountpoint)]
    # The user's own settings would change what the demo shows.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REDISFUSE_")}
    with log.open("wb") as output:
        descriptor = output.fileno()
        with server.ending(arguments, stdout=descriptor, stderr=descriptor, environment=environment) as process:
            try:
                _wait_until_mounted(process, mountpoint, log)
                for line in log.read_text(errors="replace").splitlines():
                    show("output", line)
                yield
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                if mountpoints.find(mountpoint):  # it would not go by itself
                    mountpoints.unmount(mountpoint, lazy=True)


def _wait_until_mounted(process: subprocess.Popen[bytes], mountpoint: Path, log: Path) -> None:
    deadline = time.monotonic() + MOUNT_LIMIT
    while not (mountpoints.find(mountpoint) and log.stat().st_size):  # mounted, and said so
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(errors="replace").strip().splitlines()
            reason = lines[-1].removeprefix("redisfuse: ") if lines else "the mount did not come up"
            raise MountError(reason)
        time.sleep(0.02)


def _show(step: Step, mountpoint: Path, socket: Path, show: Show) -> None:
    if step.say:
        show("say", step.say)
    show("command", step.command)
    if step.command.startswith("redis-cli "):  # which may not be installed, where the server is the embedded one
        show("output", server.ask(socket, *step.command.split()[1:]))
        return
    for line in _output(step.command, mountpoint):
        show("output", line)


def _output(command: str, folder: Path) -> list[str]:
    """What a shell in `folder` answers, errors included; has stand-ins for `tree` and `getfattr`."""
    program, *arguments = command.split()
    if program in ("tree", "getfattr") and not shutil.which(program):
        stand_in = _tree if program == "tree" else _attributes
        return [line for name in arguments if not name.startswith("-") for line in stand_in(folder, name)]
    environment = os.environ | {"LC_ALL": "C.UTF-8", "COLUMNS": "100", "TABSIZE": "0"}
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MountError(f"the demo's command did not end: {command}") from error
    return done.stdout.decode("utf-8", "surrogateescape").rstrip("\n").split("\n")


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


def _stay(socket: Path, mountpoint: Path, show: Show) -> None:
    show("say", f"It stays mounted at {mountpoint}")
    show("say", f"Change something with: redis-cli -s {socket}")
    show("say", "Press Ctrl-C to end it.")
    with contextlib.suppress(KeyboardInterrupt):
        while mountpoints.find(mountpoint):
            time.sleep(0.2)


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


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, once, so that nothing disturbs putting everything away."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
