"""Migration 3: what a session's server is recognized by, after a restart or at another address.

Immutable: `redisfuse journal check` compares a journal's schema with this SQL, its comments included.
docs/journal-format.md explains the tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

NAME = "m0003_fingerprints"

FINGERPRINTS = """
CREATE TABLE fingerprints (
    session INTEGER PRIMARY KEY,  -- sessions.id; no row: the session is of a version without fingerprints
    replication_id TEXT NOT NULL, -- the server's master_replid when the session began; empty: not reported
    key_count INTEGER             -- keys in the database then (DBSIZE); NULL: the user may not ask
) STRICT
"""

SAMPLED_KEYS = """
CREATE TABLE sampled_keys (
    session INTEGER NOT NULL, -- sessions.id
    "key" BLOB NOT NULL,      -- a key without an expiry that existed when the session began
    digest BLOB NOT NULL,     -- SHA-256 of its type and content, as redisfuse/transactions/server_fingerprint.py has it
    PRIMARY KEY (session, "key")
) STRICT, WITHOUT ROWID
"""

RECOGNIZED_RUNS = """
CREATE TABLE recognized_runs (
    run_id TEXT NOT NULL,  -- run_id of a server process
    earlier TEXT NOT NULL, -- run_id of an earlier one, whose data it was recognized to have or confirmed to have
    PRIMARY KEY (run_id, earlier)
) STRICT, WITHOUT ROWID
"""


def apply(db: Database) -> None:
    """Create the tables."""
    for statement in (FINGERPRINTS, SAMPLED_KEYS, RECOGNIZED_RUNS):
        db.conn.execute(statement.strip())
