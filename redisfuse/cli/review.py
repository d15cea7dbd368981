"""Review the journal in a browser: what changed, side by side."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from redisfuse.cli._journal_options import journal_option, open_journal
from redisfuse.cli._params import SESSION_ID
from redisfuse.cli._write_session import connector_options, create_connector
from redisfuse.errors import NotSupportedError


@click.command
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default="a free one",
    metavar="N",
    help="Port on 127.0.0.1, such as one that an SSH tunnel leads to.",
)
@click.option("--session", type=SESSION_ID, metavar="ID", help="Begin with the changes of this session.")
@click.option(
    "--allow-rollback",
    is_flag=True,
    help="Let the pages change keys: roll back, and write refused edits.",
)
@click.option("--no-browser", is_flag=True, help="Print the address only; open no browser.")
@connector_options
@journal_option
@click.pass_context
def command(
    context: click.Context,
    /,
    port: int,
    session: int | None,
    allow_rollback: bool,
    no_browser: bool,
    journal_file: Path | None,
    **_connector_options: Any,
) -> None:
    """Review the journal in a browser: what changed, side by side.

    \b
    redisfuse review                           opens the pages, or prints their address
    redisfuse review --session 7 --no-browser  what one mount changed
    redisfuse review --allow-rollback          with a button that rolls changes back

    The pages list sessions, operations and changes with the filters of `redisfuse log`, show each change side by side,
    the history of a key, and the plan of a rollback with its conflicts. Only this host can reach them, and the printed
    address works once: it gives the browser a cookie. Ctrl-C ends the server. It needs `pip install
    'redisfuse[review]'`.
    """  # noqa: D301 - click reads the control character \b
    try:
        from redisfuse.review.server import ReviewServer, open_browser
    except ImportError as error:
        raise NotSupportedError(f"the package {error.name} is missing: pip install 'redisfuse[review]'") from error
    with _ending_quietly(), open_journal(journal_file) as journal:
        if session is not None:
            journal.get_session(session)
        connector = create_connector(context)
        server = ReviewServer(journal, connector, port=port, session_id=session, allow_rollback=allow_rollback)
        with contextlib.ExitStack() as stack:
            if not no_browser and sys.stdout.isatty():
                stack.enter_context(open_browser(server.url))
            click.echo(server.url)
            click.echo("this address works once; Ctrl-C ends the server", err=True)
            sys.stdout.flush()
            server.run()


@contextlib.contextmanager
def _ending_quietly() -> Iterator[None]:
    """Let SIGINT and SIGTERM end the body without an error."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, previous)
