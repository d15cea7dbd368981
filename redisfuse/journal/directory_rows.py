"""Empty directories: they are in no server, so they live here, per server and database (DESIGN 2)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from redisfuse.journal.blobs import QueryFunction

DirectoryComponents = tuple[bytes, ...]  # its components


def encode_directory(directory: DirectoryComponents) -> bytes:
    """The components as one text that can be read back."""
    return b"/".join(component.replace(b"%", b"%25").replace(b"/", b"%2F") for component in directory)


def decode_directory(encoded: bytes) -> DirectoryComponents:
    """The inverse of `encode_directory`."""
    return tuple(component.replace(b"%2F", b"/").replace(b"%25", b"%") for component in encoded.split(b"/"))


def fetch_directories(query: QueryFunction, server_name: str) -> set[DirectoryComponents]:
    """The directories that were made in a server's database and are kept although they are empty."""
    return {
        decode_directory(text)
        for (text,) in query("SELECT directory FROM directories WHERE server = ?", (server_name,))
    }


def update_directories(
    connection: sqlite3.Connection,
    server_name: str,
    add: Iterable[DirectoryComponents],
    remove: Iterable[DirectoryComponents],
    added_at: int,
) -> None:
    """Remove and add directories; adding one that is there, or removing one that is not, does nothing."""
    connection.executemany(
        "DELETE FROM directories WHERE server = ? AND directory = ?",
        [(server_name, encode_directory(each)) for each in remove],
    )
    connection.executemany(
        "INSERT OR IGNORE INTO directories VALUES (?, ?, ?)",
        [(server_name, encode_directory(each), added_at) for each in add],
    )
