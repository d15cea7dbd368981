"""Builds the index with a scan.

Announces where it differs from the previous one.
"""

from __future__ import annotations

import time

from redisfuse.client.client import RedisClient
from redisfuse.keyspace.change_times import ChangeClock, directory_prefixes
from redisfuse.keyspace.drift import DriftDetector
from redisfuse.keyspace.index import Index
from redisfuse.keyspace.listener import ChangeListener
from redisfuse.keyspace.monitor_state import MonitorState, ScanReasons
from redisfuse.keyspace.reconciler import ScanSupersededError, ShardIndex
from redisfuse.keyspace.scanner import ScanObserver, scan_keys

_MAX_REPORTED_DIFFERENCES = 100_000  # changed keys that a scan announces one by one; more are announced as a reset


class IndexBuilder(ScanObserver):
    """The work of the scanning thread; `build` is called by that thread only.

    Has no lock of its own.
    """

    def __init__(
        self,
        client: RedisClient,
        state: MonitorState,
        reconciler: ShardIndex,
        change_clock: ChangeClock,
        drift_detector: DriftDetector,
        listener: ChangeListener,
        *,
        separator: bytes,
        prefix: bytes,
    ) -> None:
        self._client = client
        self._state = state
        self._reconciler = reconciler
        self._change_clock = change_clock
        self._drift_detector = drift_detector
        self._listener = listener
        self._separator = separator
        self._prefix = prefix
        self.progress = (0, 0)  # keys visited by the current scan, and in total (0: unknown)

    def build(self) -> None:
        """Scan into a new index, which then replaces the current one in one step.

        Raises ScanSupersededError if the scan became useless, UnavailableError, AccessError, NoSpaceError.
        """
        started_at = time.monotonic()
        reasons = self._state.take_scan_reasons()
        self.progress = (0, 0)
        scan = self._reconciler.begin_scan()
        visited = 0
        try:
            for keys in scan_keys(self._client, prefix=self._prefix, observer=self):
                if self._state.is_closing:
                    raise ScanSupersededError
                self._reconciler.add_scanned(scan, keys)
                # With a prefix, the server visits more keys than it returns.
                visited += max(len(keys), self._client.limits.scan_count if self._prefix else 0)
                total = self.progress[1]
                self.progress = (min(visited, total) if total else visited, total)
            replaced = self._reconciler.finish_scan(scan)
        finally:
            self._reconciler.abandon_scan(scan)
        self._drift_detector.reset()
        self._state.record_scan(time.monotonic() - started_at)
        self._listener.state_changed()
        if replaced is not None:
            self._announce_differences(replaced, scan.index, reasons)

    def before_scan_command(self) -> None:
        """Report to the reconciler that a SCAN is about to be sent."""
        self._reconciler.register_scan_command()

    def set_total(self, total: int) -> None:
        """Set the number of keys in the database."""
        self.progress = (0, total)

    def _announce_differences(self, old: Index, new: Index, reasons: ScanReasons) -> None:
        differences = old.symmetric_difference(new, _MAX_REPORTED_DIFFERENCES)
        if reasons.drift_detected:
            self._drift_detector.record_scan(differences != set(), time.monotonic())
        if differences is None or (reasons.index_suspect and differences):
            self._listener.all_touched()
            self._change_clock.record_all_changed()
        if differences:
            self._listener.keys_touched(differences)
            self._change_clock.record_changes(differences | directory_prefixes(differences, self._separator))
            self._listener.keys_changed(differences)
        if reasons.index_suspect or differences is None:
            self._listener.reset()
