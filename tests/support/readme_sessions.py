"""The sessions in the README and in redisfuse/docs: commands with their real output, from a mount of the demo's data.

A block of code after the line `<!-- session -->` is one. The sessions of a page form one story, in one home directory,
in the order of the page; each page starts with an empty home directory and a fresh server.
`python -m tests.support.readme_sessions [PAGE...]` runs them and writes the output into the pages.
"""

import contextlib
import fcntl
import getpass
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from redisfuse.cli._demo import data
from redisfuse.fuse import mountpoint as mountpoints
from tests.support import demo_output
from tests.support.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "redisfuse" / "docs").glob("*.md")))
SETTLING_SECONDS = 0.5  # after a command of redis-cli: a mount shows a change within a second
LIMIT = 30.0  # seconds for one command
HOME = "/home/ada"  # the home directory in the pages
COLUMNS = 100

_BLOCK = re.compile(r"(?<=<!-- session -->\n```console\n)(.*?)(?=^```$)", re.DOTALL | re.MULTILINE)
_MOUNT = re.compile(r"redisfuse (?=mount |--write|-|\d|\w+://)(?!.*--(?:daemon|help|version))")
_VARIES = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+Z)?"), "2026-06-01 10:00:00"),
    (re.compile(r"\b[A-Z][a-z]{2} [ \d]\d \d\d:\d\d\b"), "Jun  1 10:00"),
    (re.compile(r'(user\.redis\.ttl=|"ttl": )"?\d+"?'), r"\1…"),
    (re.compile(r"^  (sent|cache|memory|process) .*$", re.MULTILINE), r"  \1 …"),
    (re.compile(r"\b(\w+)\[\d+\](?=\)$)", re.MULTILINE), r"\1[4711]"),  # a process
    (re.compile(r"\bredis \d+\.\d+\.\d+"), "redis …"),
    (re.compile(r"the journal is [\d.]+ \w+ smaller"), "the journal is … smaller"),
    (re.compile(r"compacting the file freed [\d.]+ \w+"), "compacting the file freed …"),
    (re.compile(r"[ \t]+"), " "),  # columns are as wide as what is in them
)


@dataclass(frozen=True, slots=True)
class Line:
    """A command of a session and its output."""

    command: str
    answer: str


def blocks(text: str) -> list[list[Line]]:
    """Return the sessions in a text, each as its commands."""
    return [_lines(match[1]) for match in _BLOCK.finditer(text)]


def same(one: str, other: str) -> bool:
    """Return whether two outputs differ only in times, times to live and sizes of memory."""
    for pattern, instead in _VARIES:
        one, other = pattern.sub(instead, one), pattern.sub(instead, other)
    return one == other


def run(text: str) -> Iterator[tuple[Line, str]]:
    """Run the sessions of a text, and yield each command with its real output."""
    with Computer() as computer:
        for line in (line for block in blocks(text) for line in block):
            yield line, computer.answer(line.command)


def rewritten(text: str) -> str:
    """Return the text with the real output in place of each output that has changed."""
    results = list(run(text))
    position = 0

    def block(match: re.Match[str]) -> str:
        nonlocal position
        out = ""
        for line in _lines(match[1]):
            answer = results[position][1]
            position += 1
            out += f"$ {line.command}\n{line.answer if same(line.answer, answer) else answer}"
        return out

    return _BLOCK.sub(block, text)


def _lines(block: str) -> list[Line]:
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)
    assert not parts[0].strip(), f"a session begins with a command: {parts[0]}"
    return [Line(command, answer) for command, _, answer in (part.partition("\n") for part in parts[1:])]


class Computer:
    """A home directory, a Redis with the demo's data at what the pages call port 6379, and a terminal."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="readme-", dir="/tmp"))
        self._home = self._folder / "ada"
        self._directory = str(self._home)
        self._server = RedisServer(tcp=True)
        self._mounts: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._server.start()
        with contextlib.closing(self._server.client()) as client:
            for command in data.generate_commands():
                client.execute_command(*command)  # type: ignore[no-untyped-call]
        self._home.mkdir()
        programs = self._folder / "bin"
        programs.mkdir()
        port = str(self._server.port)
        configured = f"sed -i s/:6379/:{port}/ ~/.config/redisfuse/config.toml 2>/dev/null\n"
        own = f'{configured}exec "{sys.executable}" -m redisfuse.cli.main "${{@//6379/{port}}}"'
        _script(programs / "redisfuse", own)
        _script(programs / "redis-cli", f'exec {shutil.which("redis-cli")} -p {port} "$@"')
        _script(programs / "vim", f'{shutil.which("vim")} -es "$@" >/dev/null </dev/null')
        return self

    def __exit__(self, *_: object) -> None:
        for mount in mountpoints.list_redisfuse_mounts():
            if self._folder in mount.mountpoint.parents:
                mountpoints.unmount(mount.mountpoint, lazy=True)
        for process in self._mounts:
            process.terminate()
            process.wait(10)
        self._server.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def answer(self, command: str) -> str:
        """Run a command and return what the terminal shows."""
        shown = self._start(command) if _MOUNT.match(command) else self._run(command)
        shown = shown.replace(str(self._home), HOME).replace(str(self._server.port), "6379")
        user, host = getpass.getuser(), socket.gethostname()
        for mark in (" on ", "@"):
            shown = shown.replace(f"{user}{mark}{host}", f"ada{mark}laptop")
        return shown.replace(f"{user} {user} ", "ada ada ")

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("REDISFUSE_", "XDG_", "GIT_"))
        }
        return kept | {
            "PATH": f"{self._folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self._home),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "TERM": "dumb",
            "PAGER": "cat",
            "TABSIZE": "0",
        }

    def _start(self, command: str) -> str:
        """Start a mount in the foreground of another terminal, and return its first line."""
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self._directory,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._mounts.append(process)
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], LIMIT)
        assert ready, f"{command} prints nothing"
        return process.stdout.readline().decode()

    def _run(self, command: str) -> str:
        """Run a command to its end on a terminal, and return what it prints."""
        where = self._folder / "directory"
        script = f'cd "{self._directory}"; {command}\npwd >"{where}"'
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
        with subprocess.Popen(
            ["bash", "-c", script],
            env=self._environment(),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        ) as process:
            os.close(theirs)
            try:
                shown = _read(ours, command)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            finally:
                os.close(ours)
        self._directory = where.read_text().strip()
        if "redis-cli" in command:
            time.sleep(SETTLING_SECONDS)
        if command.endswith("redisfuse umount ~/redis") and not shown:
            for mount in self._mounts:
                mount.wait(LIMIT)
        return shown


def _read(terminal: int, command: str) -> str:
    """Return all that a terminal shows until the programs on it have ended."""
    deadline = time.monotonic() + LIMIT
    shown = b""
    while True:
        ready, _, _ = select.select([terminal], [], [], max(deadline - time.monotonic(), 0.0))
        assert ready, f"{command} does not end: {shown!r}"
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # EIO: no process has it open any more
            piece = b""
        if not piece:
            text = re.sub(r"^bash: line \d+: ", "bash: ", shown.decode().replace("\r\n", "\n"), flags=re.MULTILINE)
            return text if text.endswith("\n") or not text else text + "\n"
        shown += piece


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def main(names: Sequence[str]) -> None:
    """Bring the sessions, and the pictures of the demo, in the named pages or in all of them up to date."""
    for page in [Path(name) for name in names] or PAGES:
        before = page.read_text()
        after = demo_output.rewritten(rewritten(before) if blocks(before) else before)
        if after != before:
            page.write_text(after)
            print(f"updated {page}")


if __name__ == "__main__":
    main(sys.argv[1:])
