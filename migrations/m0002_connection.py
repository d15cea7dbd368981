"""Migration 2: which connection was to execute a change.

Immutable once released, as every migration is. docs/journal-format.md explains the column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

NAME = "m0002_connection"

CONNECTION = """
ALTER TABLE changes ADD COLUMN
    connection -- run_id of the server process and CLIENT ID of the connection: RUN_ID/CLIENT_ID; NULL: unknown
    TEXT
"""


def apply(db: Database) -> None:
    """Add the column."""
    db.conn.execute(CONNECTION.strip())
