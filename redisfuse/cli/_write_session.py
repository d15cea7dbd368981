"""What rollback, apply and recover share: reaching the server that a change was made on, and naming what was done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from redisfuse.cli._journal_options import describe_state, format_key, format_path
from redisfuse.cli._options import PATH
from redisfuse.cli._output import escape_text
from redisfuse.cli._terminal import print_err
from redisfuse.config import DEFAULTS
from redisfuse.errors import RedisFuseError, UsageError
from redisfuse.keyspace.listener import NullListener

if TYPE_CHECKING:
    from redisfuse.client.client import RedisClient
    from redisfuse.journal.journal import Journal
    from redisfuse.journal.models import Change, JournalSession, Outcome, State
    from redisfuse.transactions.executor import TransactionExecutor

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

MAX_PREVIEW_BYTES = 200  # bytes of a value that are shown beside another


def connector_options(command: Decorated) -> Decorated:
    """How to reach the server where the journal's own record of it does not do."""
    options = [
        click.option("--url", metavar="URL", help="Reach the server so, instead of as the journal remembers it."),
        click.option(
            "--password-file",
            type=PATH,
            help="File whose first line is the password; only you may be able to read it. "
            "REDISFUSE_PASSWORD holds the password itself.",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(0, min_open=True),
            metavar="SECONDS",
            default=DEFAULTS["timeout"],
            show_default=True,
            help="A server that is silent for so long is an error.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class ServerConnector:
    """How the user wants servers to be reached."""

    url: str | None
    password: str | None
    timeout: float

    @classmethod
    def from_context(cls, context: click.Context) -> ServerConnector:
        """From the options of `connector_options`."""
        from redisfuse.cli._config import find_password

        return cls(context.params["url"], find_password(context), context.params["timeout"])

    def connect(self, session: JournalSession, *, writable: bool) -> RedisClient:
        """The server that a session was for. Raises UnavailableError, AccessError, UsageError."""
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
    """A server that may be changed, in a session of this command's own."""

    server: RedisClient
    executor: TransactionExecutor
    session_id: int
    server_name: str


@contextmanager
def write_session(journal: Journal, connector: ServerConnector, change_session_id: int) -> Iterator[WriteSession]:
    """Connect for changing the server that a session was for; whatever was left open on it is settled first."""
    from redisfuse.journal.models import SessionMetadata
    from redisfuse.transactions.executor import TransactionExecutor
    from redisfuse.transactions.recovery import recover_pending

    made_in = journal.get_session(change_session_id)
    server = connector.connect(made_in, writable=True)
    try:
        facts = server.server_info
        version = ".".join(map(str, facts.version))
        info = SessionMetadata(
            made_in.metadata.server, run_id=facts.run_id, server_version=version, vendor=facts.vendor
        )
        session = journal.begin_session(info)
        try:
            recover_pending(journal, server, session)
            steps = TransactionExecutor(
                server, journal, session, dump_limit=DEFAULTS["dump_limit"], listener=NullListener()
            )
            yield WriteSession(server, steps, session, made_in.metadata.server.name)
        finally:
            journal.end_session(session)
    finally:
        server.close()


def resolve_pending(
    journal: Journal, connector: ServerConnector, *, quiet: bool
) -> tuple[list[tuple[Change, Outcome]], bool]:
    """Settle what is pending, server by server; also whether every server that has some could be reached."""
    from redisfuse.transactions.recovery import resolve_changes

    waiting: dict[str, list[Change]] = {}
    for change in journal.find_pending_changes():
        waiting.setdefault(change.server_name, []).append(change)
    if connector.url is not None and len(waiting) > 1:
        raise UsageError(f"changes of {len(waiting)} servers are open; --url can be only one of them")
    settled: list[tuple[Change, Outcome]] = []
    complete = True
    for name, changes in waiting.items():
        try:
            server = connector.connect(journal.get_session(changes[-1].session_id), writable=False)
            try:
                settled += resolve_changes(journal, server, changes)
            finally:
                server.close()
        except RedisFuseError as error:
            complete = False
            if not quiet:
                print_err(f"{name}: its open changes could not be settled: {error}")
    return settled, complete


def format_change(change: Change) -> str:
    """A change in one line, printable."""
    return f"{change.id}  {change.op}  {format_path(change)}  ({format_key(change)})"


def format_state(state: State) -> str:
    """What a state is, and the beginning of its content, printable and in one line."""
    text = describe_state(state)
    content = state.portable_copy if state.kind == "object" else state.content
    if content is None or not content.size:
        return text
    head = content.read_prefix(MAX_PREVIEW_BYTES)
    return f"{text}: {escape_text(head)}{'…' if content.size > len(head) else ''}"
