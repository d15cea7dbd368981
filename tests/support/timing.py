"""Tests marked `timing` may be tried again; no other test may.

    @pytest.mark.timing("compares the durations of two reads, which another process can stretch")

The reason is the marker's argument. At most LIMIT tests (parametrized ones count once) may have it, so that a race is
mended instead of retried. The end of the run lists each test that was tried again.
"""

from __future__ import annotations

import pytest

LIMIT = 12
RETRIES = 2
DELAY_SECONDS = 1


class TimingTests:
    """A plugin of pytest, to be registered in `pytest_configure`."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._retried: dict[str, int] = {}  # test -> attempts that failed

    @pytest.hookimpl(tryfirst=True)  # before -k and -m deselect
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        names = set()
        for item in items:
            if item.get_closest_marker("flaky") is not None:
                raise pytest.UsageError(f"{item.nodeid}: use the marker timing, with the reason, in place of flaky")
            mark = item.get_closest_marker("timing")
            if mark is None:
                continue
            if len(mark.args) != 1 or not isinstance(mark.args[0], str) or not mark.args[0].strip():
                raise pytest.UsageError(f"{item.nodeid}: the marker timing needs its reason, and nothing else")
            names.add(item.nodeid.partition("[")[0])
            item.add_marker(pytest.mark.flaky(reruns=RETRIES, reruns_delay=DELAY_SECONDS))
        if len(names) > LIMIT:
            raise pytest.UsageError(f"{len(names)} tests are marked timing; at most {LIMIT} may be: {sorted(names)}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.outcome == "rerun" and terminal is not None:  # type: ignore[comparison-overlap]
            self._retried[report.nodeid] = self._retried.get(report.nodeid, 0) + 1
            # At once, as the run may not come to its summary.
            terminal.write_line(f"\ntried again: {report.nodeid}, {report.when}\n{report.longreprtext}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._retried:
            terminalreporter.section("timing tests that were tried again", yellow=True)
            for name, failed in sorted(self._retried.items()):
                terminalreporter.write_line(f"{name}: {failed} failed attempt{'s' if failed > 1 else ''}")
