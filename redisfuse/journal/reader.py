"""Queries on the journal, through one connection that can't write."""

from __future__ import annotations

import re
import sqlite3
import threading
from pathlib import Path
from typing import Any

from redisfuse.journal import database
from redisfuse.text import compile_glob


class JournalReader:
    """A read-only connection, opened at the first query. Thread-safe.

    Each query sees everything that was committed before it began, by any process.
    """

    def __init__(self, path: Path, *, busy_timeout: float) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._lock = threading.RLock()  # held for one query; no other lock is taken while it is held
        # Guarded by _lock:
        self._connection: sqlite3.Connection | None = None

    def query(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query. Raises JournalError or one of its subclasses."""
        with self._lock, database.translate_errors(self._path):
            if self._connection is None:
                self._connection = database.connect(self._path, writable=False, busy_timeout=self._busy_timeout)
                self._connection.create_function("redis_glob", 2, GlobFunction(), deterministic=True)
            return self._connection.execute(sql, values).fetchall()

    def close(self) -> None:
        """Close the connection, if there is one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


class GlobFunction:
    """The SQL function `redis_glob(pattern, key)`, which compiles each pattern once."""

    def __init__(self) -> None:
        self._compiled: dict[bytes, tuple[bytes, re.Pattern[bytes] | None]] = {}

    def __call__(self, pattern: bytes, key: bytes) -> bool:
        """Return whether a Redis glob matches a key."""
        compiled = self._compiled.get(pattern)
        if compiled is None:
            compiled = self._compiled[pattern] = compile_glob(pattern)
        literal, expression = compiled
        return key == literal if expression is None else expression.fullmatch(key) is not None
