"""Empty directories: they are in no server, so they live here, per server and database (DESIGN 2)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from redisfuse.journal.blobs import Query

Directory = tuple[bytes, ...]  # its components


def encode(directory: Directory) -> bytes:
    """The components as one text that can be read back."""
    return b"/".join(component.replace(b"%", b"%25").replace(b"/", b"%2F") for component in directory)


def decode(text: bytes) -> Directory:
    """The inverse of `encode`."""
    return tuple(component.replace(b"%2F", b"/").replace(b"%25", b"%") for component in text.split(b"/"))


def of(query: Query, server: str) -> set[Directory]:
    """The directories that were made in a server's database and are kept although they are empty."""
    return {decode(text) for (text,) in query("SELECT directory FROM directories WHERE server = ?", (server,))}


def alter(
    connection: sqlite3.Connection, server: str, add: Iterable[Directory], remove: Iterable[Directory], at: int
) -> None:
    """Remove and add directories; adding one that is there, or removing one that is not, does nothing."""
    connection.executemany(
        "DELETE FROM directories WHERE server = ? AND directory = ?", [(server, encode(each)) for each in remove]
    )
    connection.executemany(
        "INSERT OR IGNORE INTO directories VALUES (?, ?, ?)", [(server, encode(each), at) for each in add]
    )
