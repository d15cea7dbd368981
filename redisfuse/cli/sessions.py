"""List the sessions: who mounted what where, and how much they changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli import _journal_options
from redisfuse.cli._output import (
    TableColumn,
    TablePrinter,
    escape_text,
    format_local_time,
    format_utc,
    json_option,
    print_json,
)

if TYPE_CHECKING:
    from redisfuse.journal.models import JournalSession


@click.command
@click.option(
    "-n", "--limit", type=click.IntRange(0, _journal_options.MAX_SQLITE_INTEGER), metavar="N", help="At most so many."
)
@json_option
@_journal_options.journal_option
def command(limit: int | None, as_json: bool, journal_file: Path | None) -> None:
    """List the sessions, newest first: who mounted what where, and how much they changed.

    Piped, a line is: id, start and end (UTC; no end: it runs, or died), number of changes, server, mount point, user,
    host; between tabs.
    """
    with _journal_options.open_journal(journal_file) as journal:
        table = None
        for session, changes in journal.iter_sessions(limit):
            if as_json:
                print_json(_session_to_json(session, changes))
                continue
            table = table or _create_table(session.id)
            _print_session(table, session, changes)


def _session_to_json(session: JournalSession, change_count: int) -> dict[str, Any]:
    info = session.metadata
    return {
        "id": session.id,
        "server": info.server.name,
        "url": info.server.redacted_url,
        "version": info.server_version,
        "maker": info.vendor,
        "run_id": info.run_id,
        "mountpoint": info.mountpoint,
        "user": info.user,
        "host": info.host,
        "pid": info.pid,
        "started_at": format_utc(session.started_at),
        "ended_at": format_utc(session.ended_at),
        "died": session.has_died,
        "changes": change_count,
        "options": dict(info.options),
    }


def _create_table(newest_id: int) -> TablePrinter:
    return TablePrinter(
        [
            TableColumn("ID", max(2, len(str(newest_id))), align_right=True),
            TableColumn("STARTED", 19),
            TableColumn("ENDED", 19),
            TableColumn("CHANGES", 8, align_right=True),
            TableColumn("SERVER", 24),
            TableColumn("BY", 20),
            TableColumn("MOUNT POINT", 0),
        ]
    )


def _print_session(table: TablePrinter, session: JournalSession, change_count: int) -> None:
    info = session.metadata
    server, mountpoint, user, host = (
        escape_text(text.encode()) for text in (info.server.name, info.mountpoint or "", info.user, info.host)
    )
    ended = format_local_time(session.ended_at) or ("died" if session.has_died else "running")
    table.print_row(
        (
            *(
                str(session.id),
                format_local_time(session.started_at),
                ended,
                f"{change_count:,}",
                server,
                f"{user}@{host}",
            ),
            mountpoint or "(a command)",
        ),
        (
            *(
                session.id,
                format_utc(session.started_at),
                format_utc(session.ended_at),
                change_count,
                server,
                mountpoint,
                user,
            ),
            host,
        ),
        "red" if session.has_died else "",
    )
