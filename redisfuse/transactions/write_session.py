"""Opens sessions that roll back or apply changes, on the server of those."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.client.limits import Limits
from redisfuse.client.opening import open_client
from redisfuse.client.ssh_tunnels import create_address_map
from redisfuse.config import DEFAULTS
from redisfuse.errors import ConflictError
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import JournalSession, SessionMetadata
from redisfuse.keyspace.listener import NullListener
from redisfuse.transactions.callers import ThisProcess
from redisfuse.transactions.executor import TransactionExecutor
from redisfuse.transactions.server_fingerprint import (
    ChangeOfSession,
    ServerComparison,
    compare_servers,
    record_recognized,
)
from redisfuse.transactions.session_start import start_session


@dataclass(frozen=True, slots=True)
class ServerConnector:
    """The user's options for connecting to servers.

    They are needed if the journal's record of a server is not sufficient.
    """

    url: str | None
    password: str | None
    timeout: float
    cluster_map: tuple[str, ...] = ()
    wait_replicas: int = 0
    ssh: str | None = None

    def connect(self, session: JournalSession, *, writable: bool) -> RedisClient:
        """Connect to the server of a session.

        Raises UnavailableError, AccessError, UsageError.
        """
        identity = session.metadata.server
        address = Address.parse(self.url or identity.redacted_url, username=identity.username, password=self.password)
        return open_client(
            address,
            Limits(timeout=self.timeout),
            writable=writable,
            address_map=create_address_map(self.cluster_map, self.ssh),
            wait_replicas=self.wait_replicas if writable else 0,
        )


class ServerCheck(Protocol):
    """A question to the user, before a server is changed that may be another one."""

    def report(self, comparisons: Sequence[ServerComparison]) -> None:
        """Receive the comparisons with the servers that were changed."""

    def confirm(self) -> bool:
        """Return whether to change the server, though it seems to be another one."""


@dataclass(frozen=True, slots=True)
class WriteSession:
    """A writable server, and the journal session of this command."""

    server: RedisClient
    executor: TransactionExecutor
    session_id: int
    server_name: str


@contextmanager
def open_write_session(
    journal: Journal,
    connector: ServerConnector,
    changes: Collection[ChangeOfSession],
    *,
    force: bool = False,
    check: ServerCheck | None = None,
) -> Iterator[WriteSession]:
    """Connect, writable, to the server of these changes.

    Settles the pending changes of that server first. If this seems to be another server, `check` decides; without it
    and without `force`, ConflictError is raised.
    """
    origin = journal.get_session(max(change.session_id for change in changes))
    server = connector.connect(origin, writable=True)
    try:
        comparisons = compare_servers(journal, server, changes)
        if check is not None:
            check.report(comparisons)
        is_recognized = all(comparison.verdict in ("same_run", "same_data") for comparison in comparisons)
        if not is_recognized and not force and (check is None or not check.confirm()):
            raise ConflictError(
                f"nothing was changed, as {origin.metadata.server.name} may be another server than the one on which "
                f"the changes were made; use --force if it is the right one"
            )
        record_recognized(journal, server, comparisons)
        info = server.server_info
        version = ".".join(map(str, info.version))
        metadata = SessionMetadata(
            origin.metadata.server, run_id=info.run_id, server_version=version, vendor=info.vendor
        )
        session = start_session(journal, server, metadata)
        try:
            executor = TransactionExecutor(
                server,
                journal,
                session,
                dump_limit=DEFAULTS["dump_limit"],
                listener=NullListener(),
                caller=ThisProcess(),
            )
            yield WriteSession(server, executor, session, origin.metadata.server.name)
        finally:
            journal.end_session(session)
    finally:
        server.close()
