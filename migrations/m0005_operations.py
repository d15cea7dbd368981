"""Migration 5: the process of a change, the operation that it belongs to, and rollbacks of many changes at once.

Immutable: `redisfuse journal check` compares a journal's schema with this SQL, its comments included.
docs/journal-format.md explains the columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

NAME = "m0005_operations"

COLUMNS = (
    """
ALTER TABLE changes ADD COLUMN
    operation -- id of the first change of the operation, such as one rm -r; NULL: the operation is the group
    INTEGER
""",
    """
ALTER TABLE changes ADD COLUMN
    pid -- process that made the change, on the host of the session; NULL: unknown
    INTEGER
""",
    """
ALTER TABLE changes ADD COLUMN
    command -- name of that process, at most 15 bytes, as ps -o comm prints it; NULL: unknown
    TEXT
""",
    """
ALTER TABLE changes ADD COLUMN
    reverts_through -- with reverts: all changes of this key and field from reverts to this id were taken back
    INTEGER
""",
)

INDEXES = (
    "CREATE INDEX changes_operation ON changes (coalesce(operation, group_id))",
    "CREATE INDEX changes_new_path ON changes (new_path) WHERE new_path IS NOT NULL",
    'CREATE INDEX changes_reverts_through ON changes ("key", reverts_through) WHERE reverts_through IS NOT NULL',
)

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
    c.error,
    c.command,
    c.pid,
    s.server,
    s.mountpoint,
    s.user
FROM changes AS c LEFT JOIN sessions AS s ON s.id = c.session
"""


def apply(db: Database) -> None:
    """Add the columns and their indexes, and show them in the view."""
    for statement in (*COLUMNS, *INDEXES, "DROP VIEW history", HISTORY):
        db.conn.execute(statement.strip())
