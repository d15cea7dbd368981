"""Rows of empty directories, which no key represents.

They belong to a server and its database.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from redisfuse.journal.reader import JournalReader

DirectoryComponents = tuple[bytes, ...]
"""The names on the path of a directory, below the mount point."""


def encode_directory(directory: DirectoryComponents) -> bytes:
    """Return the components joined by `/`, with `%` as `%25` and `/` as `%2F`."""
    return b"/".join(component.replace(b"%", b"%25").replace(b"/", b"%2F") for component in directory)


def decode_directory(encoded: bytes) -> DirectoryComponents:
    """Invert `encode_directory`."""
    return tuple(component.replace(b"%2F", b"/").replace(b"%25", b"%") for component in encoded.split(b"/"))


def fetch_directories(reader: JournalReader, server_name: str) -> set[DirectoryComponents]:
    """Return the empty directories of a server's database."""
    return {
        decode_directory(encoded)
        for (encoded,) in reader.query("SELECT directory FROM directories WHERE server = ?", (server_name,))
    }


def update_directories(
    connection: sqlite3.Connection,
    server_name: str,
    add: Iterable[DirectoryComponents],
    remove: Iterable[DirectoryComponents],
    added_at: int,
) -> None:
    """Remove and add directories.

    Adding one that exists, or removing one that does not, does nothing. `added_at`: Unix time in ms.
    """
    connection.executemany(
        "DELETE FROM directories WHERE server = ? AND directory = ?",
        [(server_name, encode_directory(directory)) for directory in remove],
    )
    connection.executemany(
        "INSERT OR IGNORE INTO directories VALUES (?, ?, ?)",
        [(server_name, encode_directory(directory), added_at) for directory in add],
    )
