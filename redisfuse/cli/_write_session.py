"""Shared by rollback, apply and recover: connecting to the server of a change."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from redisfuse.cli._options import PASSWORD_FILE_HELP, TIMEOUT_HELP, WAIT_REPLICAS_HELP, OptionList, route_options
from redisfuse.cli._params import PATH
from redisfuse.cli._terminal import print_err
from redisfuse.config import DEFAULTS
from redisfuse.errors import RedisFuseError, UsageError

if TYPE_CHECKING:
    from redisfuse.client.client import RedisClient
    from redisfuse.journal.journal import Journal
    from redisfuse.journal.models import Change, Outcome
    from redisfuse.transactions.server_fingerprint import ChangeOfSession, ServerComparison
    from redisfuse.transactions.write_session import ServerConnector, WriteSession

connector_options = OptionList(
    click.option("--url", metavar="URL", help="URL of the server, instead of the one in the journal."),
    click.option("--password-file", type=PATH, help=PASSWORD_FILE_HELP),
    click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        metavar="SECONDS",
        default=DEFAULTS["timeout"],
        show_default=True,
        help=TIMEOUT_HELP,
    ),
    click.option(
        "--wait-replicas", type=click.IntRange(0), default=0, metavar="N", show_default=True, help=WAIT_REPLICAS_HELP
    ),
    route_options,
)
"""How to reach a server if the journal's record of it is not sufficient."""


def create_connector(context: click.Context) -> ServerConnector:
    """Return the connector for the values of `connector_options`."""
    from redisfuse.cli._passwords import find_password
    from redisfuse.transactions.write_session import ServerConnector

    params = context.params
    return ServerConnector(
        params["url"],
        find_password(context),
        params["timeout"],
        params["cluster_map"],
        params["wait_replicas"],
        params["ssh"],
    )


@contextmanager
def write_session(
    journal: Journal, connector: ServerConnector, changes: Collection[ChangeOfSession], *, force: bool, ask: bool = True
) -> Iterator[WriteSession]:
    """Connect, writable, to the server of these changes.

    As `open_write_session` does. If it seems to be another server, the user is asked on a terminal (with `ask`).
    """
    from redisfuse.transactions.write_session import open_write_session

    with open_write_session(journal, connector, changes, force=force, check=_TerminalCheck(ask)) as session:
        yield session


def report_server_changes(journal: Journal, server: RedisClient, changes: Collection[ChangeOfSession]) -> None:
    """Print whether the server was restarted or replaced since these changes."""
    from redisfuse.transactions.server_fingerprint import compare_servers

    _TerminalCheck(ask=False).report(compare_servers(journal, server, changes))


class _TerminalCheck:
    """Prints differences between servers, and asks on a terminal (with `ask`)."""

    def __init__(self, ask: bool) -> None:
        self._ask = ask

    def report(self, comparisons: Sequence[ServerComparison]) -> None:
        for comparison in comparisons:
            if comparison.explanation:
                print_err(comparison.explanation)

    def confirm(self) -> bool:
        return self._ask and sys.stdin.isatty() and click.confirm("Change this server all the same?", err=True)


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
