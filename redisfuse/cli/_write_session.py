"""Shared by rollback, apply and recover: connecting to the server of a change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from redisfuse.cli._options import PASSWORD_FILE_HELP, OptionList
from redisfuse.cli._params import PATH
from redisfuse.cli._terminal import print_err
from redisfuse.config import DEFAULTS
from redisfuse.errors import RedisFuseError, UsageError
from redisfuse.keyspace.listener import NullListener

if TYPE_CHECKING:
    from redisfuse.client.client import RedisClient
    from redisfuse.journal.journal import Journal
    from redisfuse.journal.models import Change, JournalSession, Outcome
    from redisfuse.transactions.executor import TransactionExecutor

connector_options = OptionList(
    click.option("--url", metavar="URL", help="URL of the server, instead of the one in the journal."),
    click.option("--password-file", type=PATH, help=PASSWORD_FILE_HELP),
    click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        metavar="SECONDS",
        default=DEFAULTS["timeout"],
        show_default=True,
        help="How long to wait for a reply of the server before failing.",
    ),
)
"""How to reach a server if the journal's record of it is not sufficient."""


@dataclass(frozen=True, slots=True)
class ServerConnector:
    """The user's options for connecting to servers."""

    url: str | None
    password: str | None
    timeout: float

    @classmethod
    def from_context(cls, context: click.Context) -> ServerConnector:
        """Return the connector for the values of `connector_options`."""
        from redisfuse.cli._config import find_password

        return cls(context.params["url"], find_password(context), context.params["timeout"])

    def connect(self, session: JournalSession, *, writable: bool) -> RedisClient:
        """Connect to the server of a session.

        Raises UnavailableError, AccessError, UsageError.
        """
        from redisfuse.client.address import Address
        from redisfuse.client.client import RedisClient
        from redisfuse.client.limits import Limits

        identity = session.metadata.server
        address = Address.parse(self.url or identity.redacted_url, username=identity.username, password=self.password)
        server = RedisClient(address, Limits(timeout=self.timeout), writable=writable)
        server.connect()
        return server


@dataclass(frozen=True, slots=True)
class WriteSession:
    """A writable server, and the journal session of this command."""

    server: RedisClient
    executor: TransactionExecutor
    session_id: int
    server_name: str


@contextmanager
def write_session(journal: Journal, connector: ServerConnector, change_session_id: int) -> Iterator[WriteSession]:
    """Connect, writable, to the server of a session.

    Settles the pending changes of that server first.
    """
    from redisfuse.journal.models import SessionMetadata
    from redisfuse.transactions.executor import TransactionExecutor
    from redisfuse.transactions.recovery import recover_pending

    origin = journal.get_session(change_session_id)
    server = connector.connect(origin, writable=True)
    try:
        info = server.server_info
        version = ".".join(map(str, info.version))
        metadata = SessionMetadata(
            origin.metadata.server, run_id=info.run_id, server_version=version, vendor=info.vendor
        )
        session = journal.begin_session(metadata)
        try:
            recover_pending(journal, server, session)
            executor = TransactionExecutor(
                server, journal, session, dump_limit=DEFAULTS["dump_limit"], listener=NullListener()
            )
            yield WriteSession(server, executor, session, origin.metadata.server.name)
        finally:
            journal.end_session(session)
    finally:
        server.close()


def resolve_pending(
    journal: Journal, connector: ServerConnector, *, quiet: bool
) -> tuple[list[tuple[Change, Outcome]], bool]:
    """Settle the pending changes of all servers.

    Returns the changes with their outcomes, and whether every server could be reached.
    """
    from redisfuse.transactions.recovery import resolve_changes

    pending: dict[str, list[Change]] = {}
    for change in journal.find_pending_changes():
        pending.setdefault(change.server_name, []).append(change)
    if connector.url is not None and len(pending) > 1:
        raise UsageError(f"{len(pending)} servers have pending changes; --url can name only one of them")
    settled: list[tuple[Change, Outcome]] = []
    complete = True
    for name, changes in pending.items():
        try:
            server = connector.connect(journal.get_session(changes[-1].session_id), writable=True)
            try:
                settled += resolve_changes(journal, server, changes)
            finally:
                server.close()
        except RedisFuseError as error:
            complete = False
            if not quiet:
                print_err(f"{name}: can't settle its pending changes: {error}")
    return settled, complete
