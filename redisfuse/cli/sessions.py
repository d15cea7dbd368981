"""List the sessions: user, server, mount point, number of changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli._journal_options import journal_option, limit_option, open_journal
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
@limit_option
@json_option
@journal_option
def command(limit: int | None, as_json: bool, journal_file: Path | None) -> None:
    """List the sessions, newest first: user, server, mount point, number of changes.

    In a pipe, each line has these fields, separated by tabs: id, start and end (UTC; no end: it is running, or it
    died), number of changes, server, mount point, user, host.
    """
    with open_journal(journal_file) as journal:
        table = None
        for session, changes in journal.iter_sessions(limit):
            if as_json:
                print_json(_session_to_json(session, changes))
                continue
            table = table or _create_table(session.id)
            _print_session(table, session, changes)


def _session_to_json(session: JournalSession, change_count: int) -> dict[str, Any]:
    metadata = session.metadata
    return {
        "id": session.id,
        "server": metadata.server.name,
        "url": metadata.server.redacted_url,
        "version": metadata.server_version,
        "maker": metadata.vendor,
        "run_id": metadata.run_id,
        "mountpoint": metadata.mountpoint,
        "user": metadata.user,
        "host": metadata.host,
        "pid": metadata.pid,
        "started_at": format_utc(session.started_at),
        "ended_at": format_utc(session.ended_at),
        "died": session.has_died,
        "changes": change_count,
        "options": dict(metadata.options),
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
    metadata = session.metadata
    server, mountpoint, user, host = (
        escape_text(text.encode())
        for text in (metadata.server.name, metadata.mountpoint or "", metadata.user, metadata.host)
    )
    ended = format_local_time(session.ended_at) or ("died" if session.has_died else "running")
    table.print_row(
        (
            str(session.id),
            format_local_time(session.started_at),
            ended,
            f"{change_count:,}",
            server,
            f"{user}@{host}",
            mountpoint or "(a command)",
        ),
        (
            session.id,
            format_utc(session.started_at),
            format_utc(session.ended_at),
            change_count,
            server,
            mountpoint,
            user,
            host,
        ),
        "red" if session.has_died else "",
    )
