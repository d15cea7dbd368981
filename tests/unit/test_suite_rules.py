"""The suite's own rules: the check of mounts' logs, and which tests may be tried again."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mount_logs import entries

ROOT = Path(__file__).parents[2]
CONFTEST = """
import pytest
from tests.support import mount_logs
from tests.support.timing import TimingTests

def pytest_configure(config):
    for name in ("timing(reason)", "expected_log(pattern)", "possible_log(pattern)"):
        config.addinivalue_line("markers", name)
    config.pluginmanager.register(TimingTests(config))
    config.pluginmanager.register(mount_logs.MountLogs())

@pytest.fixture(scope="module")
def log(tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "mount.log"
    mount_logs.watch(log)
    log.write_text("redis://h is mounted at /mnt (read-only); unmount with Ctrl-C or `redisfuse umount /mnt`\\n")
    return log

@pytest.fixture
def late(log):
    yield
    with log.open("a") as file:
        file.write("redisfuse: an error as the mount ended\\n")
"""
LOGS = """
import pytest

def say(log, text):
    with log.open("a") as file:
        file.write(text)

def test_quiet(log): pass
def test_loud(log): say(log, "redisfuse: tracking the server's changes was interrupted\\n")
def test_later(log): pass
@pytest.mark.expected_log("was interrupted")
def test_expected(log): say(log, "redisfuse: tracking the server's changes was interrupted\\n")
@pytest.mark.expected_log("ValueError: a bug")
def test_traceback(log):
    say(log, "redisfuse: read failed\\nTraceback (most recent call last):\\n  File\\nValueError: a bug\\n")
@pytest.mark.expected_log("was interrupted")
def test_missing(log): pass
@pytest.mark.possible_log("was interrupted")
def test_possible(log): pass
@pytest.mark.possible_log("was interrupted")
def test_another(log): say(log, "redisfuse: another thing\\n")
def test_as_it_ends(late): pass
def test_of_a_library(log): say(log, "Exception ignored in: <x>\\nTraceback (most recent call last):\\nOSError\\n")
def test_half_a_line(log): say(log, "redisfuse: half")
def test_the_other_half(log): say(log, " and half\\n")
"""
TIMING = """
import pytest
attempts = []

@pytest.mark.timing("a reason")
def test_timed():
    attempts.append(1)
    assert len(attempts) == 2

def test_other():
    attempts.append(1)
    assert len(attempts) > 9
"""


def run(folder: Path, test: str) -> str:
    """Run a module of tests under the suite's rules and return what pytest prints."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(test)
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-ra", f"--rootdir={folder}"]
    words += [f"--basetemp={folder / 'temporary'}", str(folder)]
    output = subprocess.PIPE
    return subprocess.run(words, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True, timeout=100).stdout


def test_unexpected_entries_fail_the_test(tmp_path: Path) -> None:
    """An entry fails the test in which it was written unless that test declares it, and what is declared must come."""
    printed = run(tmp_path, LOGS)
    failed = [
        line.partition(" - ")[0].rpartition("::test_")[2]
        for line in printed.splitlines()
        if line.startswith("ERROR ../")
    ]
    assert failed == ["loud", "missing", "another", "as_it_ends", "of_a_library", "the_other_half"], printed
    assert "12 passed, 6 errors" in printed


def test_entries() -> None:
    """A log is split where an entry begins; a traceback belongs to the entry before it."""
    first = "redisfuse: read: unexpected ValueError\nTraceback (most recent call last):\n  File\nValueError: a bug"
    second = "Fatal Python error: Aborted"
    third = "2026-06-01 10:00:00,123 WARNING slow"
    fourth = "WARNING:redisfuse.fuse:refused"
    assert list(entries(f"{first}\n{third}\n{second}\n{fourth}\n")) == [first, third, second, fourth]


def test_only_timing_tests_are_tried_again(tmp_path: Path) -> None:
    """A test marked timing has another attempt, which the run's end reports; any other test has none."""
    printed = run(tmp_path, TIMING)
    assert "1 failed, 1 passed, 1 rerun" in printed
    assert "tried again: test_it.py::test_timed, call" in printed
    assert "test_it.py::test_timed: 1 failed attempt\n" in printed.partition("timing tests that were tried again")[2]


@pytest.mark.parametrize(
    ("test", "error"),
    [
        ("@pytest.mark.timing()\ndef test_it(): pass", "needs its reason"),
        ("@pytest.mark.timing(' ')\ndef test_it(): pass", "needs its reason"),
        ("@pytest.mark.flaky(reruns=9)\ndef test_it(): pass", "in place of flaky"),
        (
            "\n".join(f"@pytest.mark.timing('x')\ndef test_{number}(): pass" for number in range(13)),
            "13 tests are marked timing",
        ),
    ],
)
def test_the_rules_of_timing(tmp_path: Path, test: str, error: str) -> None:
    """A test that may be tried again says why, and there are few of them."""
    printed = run(tmp_path, f"import pytest\n{test}\n")
    assert error in printed
    assert "passed" not in printed


def test_the_readme_names_each_module_of_support_and_tests_that_exist() -> None:
    """tests/README.md has every module that tiers share, and the tests in its examples exist."""
    text = (ROOT / "tests" / "README.md").read_text()
    modules = {path.name for path in (ROOT / "tests" / "support").glob("*.py")} - {"__init__.py"}
    assert {name for name in modules if f"`{name}`" not in text} == set()
    named = re.findall(r"(tests/\w+/\w+\.py)(?:::(\w+))?", text)
    assert any(test for _path, test in named)
    for path, test in named:
        assert f"def {test}" in (ROOT / path).read_text(), test
