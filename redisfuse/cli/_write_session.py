"""What rollback, apply and recover share: reaching the server that a change was made on, and naming what was done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from redisfuse.cli._journal_options import datum, described, where
from redisfuse.cli._options import PATH
from redisfuse.cli._output import escape_text
from redisfuse.cli._terminal import tell
from redisfuse.config import DEFAULTS
from redisfuse.errors import RedisFuseError, UsageError

if TYPE_CHECKING:
    from redisfuse.client.client import Server
    from redisfuse.journal.journal import Journal
    from redisfuse.journal.models import Change, Outcome, Session, State
    from redisfuse.transactions.executor import Steps

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

SHOWN = 200  # bytes of a value that are shown beside another


def server_options(command: Decorated) -> Decorated:
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
class Way:
    """How the user wants servers to be reached."""

    url: str | None
    password: str | None
    timeout: float

    @classmethod
    def of(cls, context: click.Context) -> Way:
        """From the options of `server_options`."""
        from redisfuse.cli._config import find_password

        return cls(context.params["url"], find_password(context), context.params["timeout"])

    def connect(self, session: Session, *, writable: bool) -> Server:
        """The server that a session was for. Raises UnavailableError, AccessError, UsageError."""
        from redisfuse.client.address import Address
        from redisfuse.client.client import Server
        from redisfuse.client.limits import Limits

        identity = session.info.server
        address = Address.parse(self.url or identity.url, username=identity.username, password=self.password)
        server = Server(address, Limits(timeout=self.timeout), writable=writable)
        server.connect()
        return server


@dataclass(frozen=True, slots=True)
class Work:
    """A server that may be changed, in a session of this command's own."""

    server: Server
    steps: Steps
    session: int
    name: str


@contextmanager
def working(journal: Journal, way: Way, change_session: int) -> Iterator[Work]:
    """Connect for changing the server that a session was for; whatever was left open on it is settled first."""
    from redisfuse.journal.models import SessionInfo
    from redisfuse.transactions.executor import Steps
    from redisfuse.transactions.recovery import recover

    made_in = journal.session(change_session)
    server = way.connect(made_in, writable=True)
    try:
        facts = server.facts
        version = ".".join(map(str, facts.version))
        info = SessionInfo(made_in.info.server, run_id=facts.run_id, version=version, maker=facts.maker)
        session = journal.begin_session(info)
        try:
            recover(journal, server, session)
            steps = Steps(server, journal, session, dump_limit=DEFAULTS["dump_limit"], on_applied=lambda _changed: None)
            yield Work(server, steps, session, made_in.info.server.name)
        finally:
            journal.end_session(session)
    finally:
        server.close()


def settle_open(journal: Journal, way: Way, *, quiet: bool) -> tuple[list[tuple[Change, Outcome]], bool]:
    """Settle what is pending, server by server; also whether every server that has some could be reached."""
    from redisfuse.transactions.recovery import settle

    waiting: dict[str, list[Change]] = {}
    for change in journal.pending():
        waiting.setdefault(change.server, []).append(change)
    if way.url is not None and len(waiting) > 1:
        raise UsageError(f"changes of {len(waiting)} servers are open; --url can be only one of them")
    settled: list[tuple[Change, Outcome]] = []
    complete = True
    for name, changes in waiting.items():
        try:
            server = way.connect(journal.session(changes[-1].session), writable=False)
            try:
                settled += settle(journal, server, changes)
            finally:
                server.close()
        except RedisFuseError as error:
            complete = False
            if not quiet:
                tell(f"{name}: its open changes could not be settled: {error}")
    return settled, complete


def line_of(change: Change) -> str:
    """A change in one line, printable."""
    return f"{change.id}  {change.op}  {where(change)}  ({datum(change)})"


def shown(state: State) -> str:
    """What a state is, and the beginning of its content, printable and in one line."""
    text = described(state)
    content = state.logical if state.kind == "object" else state.content
    if content is None or not content.size:
        return text
    head = content.head(SHOWN)
    return f"{text}: {escape_text(head)}{'…' if content.size > len(head) else ''}"
