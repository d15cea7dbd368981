"""Starts a session of the journal, for a mount or a command that writes."""

import contextlib
from dataclasses import replace

from redisfuse.client.client import RedisClient
from redisfuse.errors import JournalError
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import SessionMetadata
from redisfuse.transactions.recovery import recover_pending
from redisfuse.transactions.server_fingerprint import fetch_fingerprint, recognize_newest_session


def start_session(journal: Journal, client: RedisClient, metadata: SessionMetadata, *, prefix: bytes = b"") -> int:
    """Begin a session with the server's fingerprint, and return its id.

    The pending changes of the server are resolved. `client` may write. `prefix`: the fingerprint has only keys that
    begin with it. Raises UnavailableError and JournalError; then the session has ended.
    """
    recognize_newest_session(journal, client, metadata.server.name)
    session_id = journal.begin_session(replace(metadata, fingerprint=fetch_fingerprint(client, prefix)))
    try:
        recover_pending(journal, client, session_id)
    except BaseException:
        with contextlib.suppress(JournalError):
            journal.end_session(session_id)
        raise
    return session_id
