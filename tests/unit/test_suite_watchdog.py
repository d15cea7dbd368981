"""tests/support/watchdog.py: a test that hangs is ended and its place reported, and the run continues."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFTEST = """
import pytest
from tests.support.mounts import mount_server
from tests.support.redis_server import RedisServer
from tests.support.watchdog import SuiteWatchdog

def pytest_configure(config):
    config.pluginmanager.register(SuiteWatchdog(config, leeway=8.0))

@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session):
    with RedisServer(tcp=True) as session.server:
        return (yield)

@pytest.fixture
def mount(request, tmp_path):
    with mount_server(tmp_path, request.session.server.url(), write=True) as mount:
        yield mount
"""
HANGING_MOUNT = """
import os, pytest, signal
from pathlib import Path
from tests.support.mounts import wait_until

def is_stopped(pid):
    tasks = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)

@pytest.mark.timeout(4)
def test_it(mount):
    os.kill(mount.process.pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(mount.process.pid))  # one thread takes the signal, and the others still answer
    os.path.exists(mount.path / "absent")

def test_another(mount):
    assert os.listdir(mount.path) == []
"""
NOT_TO_BE_ENDED = """
import pytest, time

@pytest.mark.timeout(1)
def test_it():
    while True:
        try:
            time.sleep(1)
        except BaseException:
            pass

def test_another():
    pass
"""


def run(folder: Path, test: str, *options: str) -> str:
    """Return pytest's output for a test module; the run has a time-out."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_hanging.py").write_text(test)
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "timeout_func_only=true"]
    words += [f"--rootdir={folder}", f"--basetemp={folder / 'temporary'}", *options, str(folder)]
    output = subprocess.PIPE
    return subprocess.run(words, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True, timeout=100).stdout


def test_a_mount_that_hangs(tmp_path: Path) -> None:
    """The mount is terminated, the test that waits for it fails, and the next one has its own."""
    output = run(tmp_path, HANGING_MOUNT)
    assert "1 failed, 1 passed" in output
    assert "hangs: test_hanging.py::test_it, the test" in output
    assert "in test_it" in output, "where this process was"
    assert "fuse/worker_pool.py" in output, output


def test_a_test_that_does_not_end(tmp_path: Path) -> None:
    """The worker process is terminated, and another continues."""
    output = run(tmp_path, NOT_TO_BE_ENDED, "-n", "1")
    assert "1 failed, 1 passed" in output
