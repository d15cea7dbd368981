"""Shared by rollback, apply and recover: connecting to the server of a change."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from redisfuse.cli._options import PASSWORD_FILE_HELP, OptionList
from redisfuse.cli._params import PATH
from redisfuse.cli._terminal import print_err
from redisfuse.config import DEFAULTS
from redisfuse.errors import ConflictError, RedisFuseError, UsageError
from redisfuse.keyspace.listener import NullListener

if TYPE_CHECKING:
    from redisfuse.client.client import RedisClient
    from redisfuse.journal.journal import Journal
    from redisfuse.journal.models import Change, JournalSession, Outcome
    from redisfuse.transactions.executor import TransactionExecutor
    from redisfuse.transactions.server_fingerprint import ServerComparison

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
def write_session(
    journal: Journal, connector: ServerConnector, changes: Sequence[Change], *, force: bool, ask: bool = True
) -> Iterator[WriteSession]:
    """Connect, writable, to the server of these changes.

    Settles the pending changes of that server first. If it seems to be another server than the one that was changed,
    the user is asked on a terminal (with `ask`); otherwise, without `force`, ConflictError is raised.
    """
    from redisfuse.journal.models import SessionMetadata
    from redisfuse.transactions.executor import TransactionExecutor
    from redisfuse.transactions.server_fingerprint import record_recognized
    from redisfuse.transactions.session_start import start_session

    origin = journal.get_session(changes[0].session_id)
    server = connector.connect(origin, writable=True)
    try:
        comparisons = report_server_changes(journal, server, changes)
        is_recognized = all(comparison.verdict in ("same_run", "same_data") for comparison in comparisons)
        if not is_recognized and not force and not (ask and _confirm_other_server()):
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
                server, journal, session, dump_limit=DEFAULTS["dump_limit"], listener=NullListener()
            )
            yield WriteSession(server, executor, session, origin.metadata.server.name)
        finally:
            journal.end_session(session)
    finally:
        server.close()


def report_server_changes(
    journal: Journal, server: RedisClient, changes: Sequence[Change]
) -> Sequence[ServerComparison]:
    """Print whether the server was restarted or replaced since these changes.

    Returns the comparisons.
    """
    from redisfuse.transactions.server_fingerprint import compare_servers

    comparisons = compare_servers(journal, server, changes)
    for comparison in comparisons:
        if comparison.explanation:
            print_err(comparison.explanation)
    return comparisons


def _confirm_other_server() -> bool:
    return sys.stdin.isatty() and click.confirm("Change this server all the same?", err=True)


def resolve_pending(
    journal: Journal, connector: ServerConnector, *, quiet: bool, force: bool = False
) -> tuple[list[tuple[Change, Outcome]], bool]:
    """Settle the pending changes of all servers.

    Without `force`, those of a server that seems to be another one now are left pending. Returns the changes with their
    outcomes, and whether every server could be reached and recognized.
    """
    from redisfuse.transactions.recovery import resolve_changes
    from redisfuse.transactions.server_fingerprint import exclude_other_servers

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
                if not force:
                    changes, others = exclude_other_servers(journal, server, changes)
                    complete = complete and not others
                    for comparison in () if quiet else others:
                        print_err(f"{comparison.explanation}; its changes stay pending, --force settles them here")
                settled += resolve_changes(journal, server, changes)
            finally:
                server.close()
        except RedisFuseError as error:
            complete = False
            if not quiet:
                print_err(f"{name}: can't settle its pending changes: {error}")
    return settled, complete


def write_abandoned_files(
    journal: Journal, connector: ServerConnector, *, force: bool
) -> tuple[list[tuple[Change, Outcome]], bool]:
    """Write the temporary files that mounts held when they died, on all servers.

    A server that seems to be another one now is left out (without `force`). Returns the changes with their outcomes,
    and whether every server could be reached and recognized.
    """
    from redisfuse.transactions.held import find_abandoned, recover_held

    held: dict[str, list[Change]] = {}
    for change in find_abandoned(journal):
        held.setdefault(change.server_name, []).append(change)
    if connector.url is not None and len(held) > 1:
        raise UsageError(f"{len(held)} servers have files to be written; --url can name only one of them")
    written: list[Change] = []
    complete = True
    for name, changes in held.items():
        try:
            with write_session(journal, connector, changes, force=force, ask=False) as session:
                written += recover_held(journal, session.server, session.session_id, force=True)
        except RedisFuseError as error:
            complete = False
            print_err(f"{name}: can't write the files that a mount held when it died: {error}")
    return [(change, change.outcome) for change in written], complete
