"""The layout of each directory's hashes: listed as fields, or as files.

`--hashes` decides. `auto` lists fields only in a directory of at most `hash_limit` hashes. What it decided is recorded:
for the log, the status, and the attribute `user.redis.listed-as` of the directory.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from typing import Literal, NamedTuple

from redisfuse.text import for_terminal

HashMode = Literal["auto", "fields", "files"]
HashLayout = Literal["fields", "files"]

MAX_RECORDED_DIRECTORIES = 10_000  # of the others, the layout is determined again where it is requested

log = logging.getLogger(__name__)


class _Record(NamedTuple):
    layout: HashLayout
    version: int  # of the directory, before it was listed


class HashLayouts:
    """The layouts of a mount's directories. Thread-safe; its lock is a leaf."""

    def __init__(self, mode: HashMode, *, hash_limit: int, field_limit: int) -> None:
        self.mode: HashMode = mode
        self.hash_limit = hash_limit  # hashes in a directory, with `auto`
        self.field_limit = field_limit  # fields of one hash, with `auto`
        self._lock = threading.Lock()
        # Guarded by `_lock`:
        self._records: OrderedDict[tuple[bytes, ...], _Record] = OrderedDict()
        self._is_logged = False

    def get(self, directory: tuple[bytes, ...], version: int) -> HashLayout | None:
        """Return how a directory of this version is listed; None if that is not known."""
        if self.mode != "auto":
            return self.mode
        with self._lock:
            record = self._records.get(directory)
        return record.layout if record is not None and record.version == version else None

    def record(self, directory: tuple[bytes, ...], layout: HashLayout, version: int, path: bytes) -> None:
        """Record how `auto` lists a directory.

        The first directory that it lists as files is logged.
        """
        with self._lock:
            self._records[directory] = _Record(layout, version)
            self._records.move_to_end(directory)
            if len(self._records) > MAX_RECORDED_DIRECTORIES:
                self._records.popitem(last=False)
            if layout == "fields" or self._is_logged:
                return
            self._is_logged = True
        log.info(
            "/%s has more than %d hashes: each is listed as one file, and its fields still open as HASH.FIELD. "
            "`redisfuse status` names more such folders; --hashes or --hash-limit change it",
            for_terminal(path),
            self.hash_limit,
        )

    def list_file_directories(self) -> list[tuple[bytes, ...]]:
        """Return the directories that `auto` listed as files when they were listed last."""
        with self._lock:
            return [directory for directory, record in self._records.items() if record.layout == "files"]
