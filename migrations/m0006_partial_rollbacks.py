"""Migration 6: rollbacks that took back only some places of a text.

Immutable: `redisfuse journal check` compares a journal's schema with this SQL, its comments included.
docs/journal-format.md explains the column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

NAME = "m0006_partial_rollbacks"

COLUMN = """
ALTER TABLE changes ADD COLUMN
    reverts_part -- changes.id of which this one took back some places; with reverts_through, all up to that id
    INTEGER
"""

INDEX = "CREATE INDEX changes_reverts_part ON changes (reverts_part) WHERE reverts_part IS NOT NULL"

HISTORY = """
CREATE VIEW history AS -- one row a change, everything readable, no contents
SELECT
    c.id,
    strftime('%Y-%m-%dT%H:%M:%fZ', c.at / 1000.0, 'unixepoch') AS time,
    c.session,
    c.group_id AS "group",
    coalesce(c.operation, c.group_id) AS operation,
    c.op,
    coalesce(c.path_text, CAST(c.path AS TEXT)) AS path,
    coalesce(c.key_text, CAST(c."key" AS TEXT)) AS "key",
    coalesce(c.field_text, CAST(c.field AS TEXT)) AS field,
    c.state,
    c.prior_type,
    c.prior_size,
    c.new_type,
    c.new_size,
    strftime('%Y-%m-%dT%H:%M:%fZ', c.prior_expires_at / 1000.0, 'unixepoch') AS prior_expires,
    strftime('%Y-%m-%dT%H:%M:%fZ', c.new_expires_at / 1000.0, 'unixepoch') AS new_expires,
    c.reverts,
    c.reverts_through,
    c.reverts_part,
    c.error,
    c.command,
    c.pid,
    s.server,
    s.mountpoint,
    s.user
FROM changes AS c LEFT JOIN sessions AS s ON s.id = c.session
"""


def apply(db: Database) -> None:
    """Add the column and its index, and show it in the view."""
    for statement in (COLUMN, INDEX, "DROP VIEW history", HISTORY):
        db.conn.execute(statement.strip())
