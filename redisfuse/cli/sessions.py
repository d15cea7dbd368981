"""List the sessions: who mounted what where, and how much they changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli import _journal_options
from redisfuse.cli._output import Column, Table, escape_text, json_option, local_time, moment, print_json

if TYPE_CHECKING:
    from redisfuse.journal.models import Session


@click.command
@click.option("-n", "--limit", type=click.IntRange(0, _journal_options.MOST), metavar="N", help="At most so many.")
@json_option
@_journal_options.journal_option
def command(limit: int | None, as_json: bool, journal_file: Path | None) -> None:
    """List the sessions, newest first: who mounted what where, and how much they changed.

    Piped, a line is: id, start and end (UTC; no end: it runs, or died), number of changes, server, mount point, user,
    host; between tabs.
    """
    with _journal_options.open_journal(journal_file) as journal:
        table = None
        for session, changes in journal.sessions(limit):
            if as_json:
                print_json(_row(session, changes))
                continue
            table = table or _table(session.id)
            _print(table, session, changes)


def _row(session: Session, changes: int) -> dict[str, Any]:
    info = session.info
    return {
        "id": session.id,
        "server": info.server.name,
        "url": info.server.url,
        "version": info.version,
        "maker": info.maker,
        "run_id": info.run_id,
        "mountpoint": info.mountpoint,
        "user": info.user,
        "host": info.host,
        "pid": info.pid,
        "started_at": moment(session.started_at),
        "ended_at": moment(session.ended_at),
        "died": session.died,
        "changes": changes,
        "options": dict(info.options),
    }


def _table(newest: int) -> Table:
    return Table(
        [
            Column("ID", max(2, len(str(newest))), right=True),
            Column("STARTED", 19),
            Column("ENDED", 19),
            Column("CHANGES", 8, right=True),
            Column("SERVER", 24),
            Column("BY", 20),
            Column("MOUNT POINT", 0),
        ]
    )


def _print(table: Table, session: Session, changes: int) -> None:
    info = session.info
    server, mountpoint, user, host = (
        escape_text(text.encode()) for text in (info.server.name, info.mountpoint or "", info.user, info.host)
    )
    ended = local_time(session.ended_at) or ("died" if session.died else "running")
    table.row(
        (
            *(str(session.id), local_time(session.started_at), ended, f"{changes:,}", server, f"{user}@{host}"),
            mountpoint or "(a command)",
        ),
        (
            *(session.id, moment(session.started_at), moment(session.ended_at), changes, server, mountpoint, user),
            host,
        ),
        "red" if session.died else "",
    )
