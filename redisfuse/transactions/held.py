"""Writes the temporary files that mounts held when they died.

Their contents are in the journal (docs/editing.md).
"""

import logging
import os

from redisfuse.client.client import RedisClient
from redisfuse.errors import RedisFuseError, UnavailableError
from redisfuse.journal.change_filter import ChangeFilter
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change
from redisfuse.keyspace.listener import NullListener
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.content_operations import SaveWhole
from redisfuse.transactions.executor import TransactionExecutor
from redisfuse.transactions.expiry import Expiry
from redisfuse.transactions.precondition import Precondition
from redisfuse.transactions.server_fingerprint import exclude_other_servers

log = logging.getLogger(__name__)


def recover_held(journal: Journal, client: RedisClient, session_id: int, *, force: bool = False) -> list[Change]:
    """Write the files that ended sessions held; return the changes.

    Each becomes a key or field of its own name. They are of the session's server. A file that can't be written is there
    as a `failed` or `refused` change. Without `force`, what was held on a server that seems to be another one stays
    held; the log reports it. Raises UnavailableError; what was written until then stays so.
    """
    held = find_abandoned(journal, journal.get_session(session_id).metadata.server.name)
    if held and not force:
        held, others = exclude_other_servers(journal, client, held)
        for comparison in others:
            log.warning("held files stay in the journal (see `redisfuse recover`): %s", comparison.explanation)
    executor = TransactionExecutor(client, journal, session_id, dump_limit=0, listener=NullListener())
    return [_write_held(executor, change) for change in held]


def find_abandoned(journal: Journal, server_name: str | None = None) -> list[Change]:
    """Return the held changes of ended sessions of a server, or of all, oldest first."""
    held = journal.find_changes(ChangeFilter(server_name=server_name, outcomes=("held",), oldest_first=True))
    return [change for change in held if _has_ended(journal, change.session_id)]


def _has_ended(journal: Journal, session_id: int) -> bool:
    session = journal.get_session(session_id)
    return session.ended_at is not None or session.has_died


def _write_held(executor: TransactionExecutor, change: Change) -> Change:
    journal, path = executor.journal, os.fsdecode(change.path)
    assert change.new.content is not None
    operation = SaveWhole(
        KeyRef(change.key, change.field),
        change.new.content,
        Precondition.absent(),
        change.path,
        op=change.op,
        expiry=Expiry.from_state(change.new),
        supersedes=change.id,
    )
    try:
        [change_id] = executor.run(operation)
    except UnavailableError:
        raise
    except RedisFuseError as error:
        log.error("%s: held by a mount that died, and can't be written: %s", path, error)
        if error.change_id is None:
            journal.record_outcome([change.id], "failed", str(error))
            return journal.get_change(change.id)
        journal.discard_held(change.id)  # the change that failed or was refused has its content
        return journal.get_change(error.change_id)
    log.info("%s: held by a mount that died, and written now", path)
    return journal.get_change(change_id)
