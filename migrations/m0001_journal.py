"""Migration 1: the journal's tables and the view `history`.

Immutable: `redisfuse journal check` compares a journal's schema with this SQL, its comments included. Each later change
of the schema is a migration of its own. docs/journal-format.md explains the tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

NAME = "m0001_journal"

SESSIONS = """
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never used twice, also after pruning
    server TEXT NOT NULL,         -- which data: host:port/db, or /path/to/socket/db; equal for two mounts of the same
    scheme TEXT NOT NULL,         -- redis, rediss, unix, redis+sentinel, redis+cluster
    server_host TEXT,             -- host name or address of the server, as given
    server_port INTEGER,          -- its TCP port
    unix_path TEXT,               -- path of its Unix socket, instead of host and port
    db INTEGER NOT NULL,          -- number of the logical database
    username TEXT,                -- ACL user; never a password
    url TEXT NOT NULL,            -- the whole address with its password masked
    run_id TEXT NOT NULL,         -- the server process's run_id when the session began
    version TEXT NOT NULL,        -- the server's version
    maker TEXT NOT NULL,          -- redis or valkey
    mountpoint TEXT,              -- where it was mounted; NULL: a command, not a mount
    user TEXT NOT NULL,           -- who started it
    host TEXT NOT NULL,           -- name of the machine it ran on
    pid INTEGER NOT NULL,         -- its process there
    process TEXT,                 -- boot and start of that process: tells a later process of the same pid
    options TEXT NOT NULL,        -- its options, a JSON object; never a secret
    started_at INTEGER NOT NULL,  -- Unix time in ms
    ended_at INTEGER              -- Unix time in ms; NULL: still running, or it died
) STRICT
"""

BLOBS = """
CREATE TABLE blobs (
    id INTEGER PRIMARY KEY,  -- what the changes refer to
    digest BLOB UNIQUE,      -- SHA-256 of the whole content; NULL while a large one is still being written
    size INTEGER NOT NULL,   -- bytes of the content
    staged_at INTEGER,       -- while a large one is being written: since when, Unix time in ms
    packed INTEGER,          -- 1: data is compressed (zlib); 0: data is the bytes themselves
    data BLOB                -- a content of at most 1 MiB; NULL: it is in chunks
) STRICT
"""

CHUNKS = """
CREATE TABLE chunks (
    blob INTEGER NOT NULL,   -- blobs.id of a content of more than 1 MiB
    number INTEGER NOT NULL, -- 0, 1, 2 … in the order of the content
    packed INTEGER NOT NULL, -- 1: data is compressed (zlib); 0: data is the bytes themselves
    data BLOB NOT NULL,      -- at most 1 MiB of the content
    PRIMARY KEY (blob, number)
) STRICT, WITHOUT ROWID
"""

# The kinds of a state: absent; value, a whole string or field; slice, a range of a large string; object, a key of
# another type; directory, an empty directory.
STATE = """
    {when}_kind TEXT NOT NULL        -- absent, value (whole string or field), slice (part of a string), object (others)
        CHECK ({when}_kind IN ('absent', 'value', 'slice', 'object', 'directory')),
    {when}_type TEXT NOT NULL,       -- string, field, list, set, zset, hash, stream …, none
    {when}_size INTEGER,             -- bytes of the string or field; of an object, of its logical copy
    {when}_blob INTEGER,             -- blobs.id: the bytes of a value or slice; of an object its DUMP payload
    {when}_logical INTEGER,          -- blobs.id: an object's portable copy, one JSON text a line
    {when}_offset INTEGER,           -- slice: where it begins in the string
    {when}_total INTEGER,            -- slice: length of the whole string
    {when}_expires_at INTEGER,       -- expiry of the key, absolute Unix time in ms; NULL: none
    {when}_field_expires_at INTEGER, -- expiry of the field, likewise
    {when}_version TEXT,             -- who made the DUMP, such as: redis 7.0.15
    {when}_note TEXT,                -- what this record of the state could not carry"""

CHANGES = f"""
CREATE TABLE changes (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of the changes, whatever clocks said; never used twice
    session INTEGER NOT NULL,  -- sessions.id
    group_id INTEGER NOT NULL, -- id of the first change of the same operation; they are done and undone together
    at INTEGER NOT NULL,       -- when it was about to be made, Unix time in ms
    op TEXT NOT NULL,          -- create, write, append, truncate, remove, rename, expire, mkdir, rmdir, rollback …
    path BLOB NOT NULL,        -- below the mount point, as the user named it
    path_text TEXT,            -- path with escapes; NULL: path is plain text
    new_path BLOB,             -- rename: the path it got
    "key" BLOB NOT NULL,       -- the key in Redis
    key_text TEXT,             -- key with escapes; NULL: key is plain text
    field BLOB,                -- the hash field; NULL: the key itself
    field_text TEXT,           -- field with escapes; NULL: field is plain text, or there is none
    state TEXT NOT NULL        -- pending (may be in Redis or not), applied, failed (not in Redis), unknown, refused
        CHECK (state IN ('pending', 'applied', 'failed', 'unknown', 'refused')),
    error TEXT,                -- why it failed or was refused
    settled_at INTEGER,        -- when state was set after the first time, Unix time in ms
{STATE.strip(chr(10)).format(when="prior")}
{STATE.strip(chr(10)).format(when="new")}
    reverts INTEGER,           -- changes.id whose prior state this one wrote back
    applies INTEGER            -- changes.id whose new state this one wrote after review
) STRICT
"""

INDEXES = (
    "CREATE INDEX changes_session ON changes (session)",
    "CREATE INDEX changes_at ON changes (at)",
    "CREATE INDEX changes_op ON changes (op)",
    'CREATE INDEX changes_key ON changes ("key")',
    "CREATE INDEX changes_path ON changes (path)",
    "CREATE INDEX changes_unsettled ON changes (state) WHERE state <> 'applied'",
    "CREATE INDEX changes_reverts ON changes (reverts) WHERE reverts IS NOT NULL",
)

DIRECTORIES = """
CREATE TABLE directories (
    server TEXT NOT NULL,     -- sessions.server
    directory BLOB NOT NULL,  -- its components joined by /, with / as %2F and % as %25
    made_at INTEGER NOT NULL, -- Unix time in ms
    PRIMARY KEY (server, directory)
) STRICT, WITHOUT ROWID
"""

HISTORY = """
CREATE VIEW history AS -- one row a change, everything readable, no contents
SELECT
    c.id,
    strftime('%Y-%m-%dT%H:%M:%fZ', c.at / 1000.0, 'unixepoch') AS time,
    c.session,
    c.group_id AS "group",
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
    c.error,
    s.server,
    s.mountpoint,
    s.user
FROM changes AS c LEFT JOIN sessions AS s ON s.id = c.session
"""


def apply(db: Database) -> None:
    """Create the tables in an empty database."""
    for statement in (SESSIONS, BLOBS, CHUNKS, CHANGES, *INDEXES, DIRECTORIES, HISTORY):
        db.conn.execute(statement.strip())
