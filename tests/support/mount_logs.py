"""The check of the mounts' logs: a test fails if one of its mounts logs what the test does not expect.

After each test all logs that `watch` was given are read. A mount that works logs nothing but the lines of NORMAL. Any
other warning, error, traceback or line of a library fails the test during which it was written, unless a marker
declares it. Patterns are regular expressions, searched for in a whole entry with its traceback:

    @pytest.mark.expected_log("out of memory", "was interrupted")   an entry must match each of these patterns
    @pytest.mark.possible_log("the connection to .* was lost")      entries may match these patterns

A mount of a module's fixture can still log when the test has ended, and the next test would fail: where that can be,
the test waits until the entry is in `mount.read_log()`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

NORMAL = re.compile(
    r".* is mounted at .*; unmount with .*"
    r"|redisfuse: tracking the server's changes was interrupted for [\d.]+ s, and has resumed"  # after a warning
    r"|redisfuse: the database has \d+ keys, the index \d+; the keys are scanned again"
    r"|[\d-]{10} [\d:,]{12} (INFO|DEBUG) .*"  # with --daemon or --log-file
    r"|(INFO|DEBUG):.*|ended"  # of tests/support/kernel_tree.py and barrier_mount.py
)
# Entries that several tests expect.
INTERRUPTED = "tracking the server's changes was interrupted"
SILENT = "has not answered for|the server answers again"
KEPT = r"its bytes are kept as change \d+"
NOT_KEPT = "its bytes could not be kept either"
ENDED = "the mount ended while it was open for writing"

_ENTRY = re.compile(r"redisfuse: |(DEBUG|INFO|WARNING|ERROR|CRITICAL):|[\d-]{10} [\d:,]{12} [A-Z]+ |.* is mounted at ")
_TRACEBACK = "Traceback (most recent call last):"

EXPECTED_SECONDS = 5.0  # for which an expected entry may come after its test

_positions: dict[Path, int] = {}  # log -> bytes that were read


def watch(log: Path) -> None:
    """Check this log after each test from now on; a file that does not exist yet is fine."""
    _positions.setdefault(log, 0)


def entries(text: str) -> Iterator[str]:
    """Split a log into its entries, each with the traceback that belongs to it."""
    entry: list[str] = []
    for line in text.splitlines():
        belongs = line.startswith((" ", _TRACEBACK)) or _TRACEBACK in entry
        if entry and (_ENTRY.match(line) or not belongs):
            yield "\n".join(entry)
            entry = []
        entry.append(line)
    if entry:
        yield "\n".join(entry)


def _new_text(log: Path) -> str:
    """Return the whole lines that were written since the last call."""
    try:
        with log.open("rb") as file:
            file.seek(_positions[log])
            data = file.read()
    except FileNotFoundError:
        return ""
    data = data[: data.rfind(b"\n") + 1]
    _positions[log] += len(data)
    return data.decode(errors="replace")


class MountLogs:
    """A plugin of pytest, to be registered in `pytest_configure`."""

    _passed = pytest.StashKey[bool]()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "call":
            item.stash[self._passed] = report.passed
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        """Check the logs when the test's own mounts have ended."""
        expected = _patterns(item, "expected_log")
        try:
            yield
        finally:
            logged = _read_new_entries()
            if item.stash.get(self._passed, False):  # a mount can still be handling the close of a file
                deadline = time.monotonic() + EXPECTED_SECONDS
                while _missing(expected, logged) and time.monotonic() < deadline:
                    time.sleep(0.05)
                    logged += _read_new_entries()
        allowed = [*expected, *_patterns(item, "possible_log")]
        wrong = [
            f"{log}: {entry}"
            for log, entry in logged
            if not NORMAL.fullmatch(entry) and not any(pattern.search(entry) for pattern in allowed)
        ]
        if wrong:
            pytest.fail("a mount logged what this test does not expect:\n" + "\n".join(wrong), pytrace=False)
        for pattern in _missing(expected, logged) if item.stash.get(self._passed, False) else ():
            pytest.fail(f"no mount logged what this test expects: {pattern.pattern}", pytrace=False)


def _read_new_entries() -> list[tuple[Path, str]]:
    return [(log, entry) for log in _positions for entry in entries(_new_text(log))]


def _missing(expected: list[re.Pattern[str]], logged: list[tuple[Path, str]]) -> list[re.Pattern[str]]:
    return [pattern for pattern in expected if not any(pattern.search(entry) for _, entry in logged)]


def _patterns(item: pytest.Item, name: str) -> list[re.Pattern[str]]:
    return [re.compile(pattern) for mark in item.iter_markers(name) for pattern in mark.args]
