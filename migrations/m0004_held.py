"""Migration 4: the state `held`, of a temporary file that was closed and may still be renamed over a key.

Immutable: `redisfuse journal check` compares a journal's schema with this SQL, its comments included.
docs/journal-format.md explains the states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

NAME = "m0004_held"

OLD_STATE = """
    state TEXT NOT NULL        -- pending (may be in Redis or not), applied, failed (not in Redis), unknown, refused
        CHECK (state IN ('pending', 'applied', 'failed', 'unknown', 'refused')),
""".strip()

NEW_STATE = """
    state TEXT NOT NULL        -- pending (may be in Redis or not), applied, failed (not in Redis), unknown, refused,
                               -- held (a closed temporary file, to be written unless it is renamed or removed)
        CHECK (state IN ('pending', 'applied', 'failed', 'unknown', 'refused', 'held')),
""".strip()


def apply(db: Database) -> None:
    """Let the column `state` have one more value.

    A CHECK has no effect on the rows in the file, so that only the text of the table's definition is replaced
    (https://www.sqlite.org/lang_altertable.html, section 7). Rebuilding the table would rewrite a large journal.
    """
    connection = db.conn
    (version,) = connection.execute("PRAGMA schema_version").fetchone()
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = 'changes'",
        (OLD_STATE, NEW_STATE),
    )
    connection.execute(f"PRAGMA schema_version = {version + 1}")
    connection.execute("PRAGMA writable_schema = RESET")
