"""List the sessions, newest first: user, server, mount point, number of changes."""

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
    shorten,
    terminal_width,
)

if TYPE_CHECKING:
    from redisfuse.journal.models import JournalSession

MIN_WIDTH_WITH_ALL = 100  # columns of a terminal that shows whole times, servers and hosts
NARROW_USER_WIDTH = 6


@click.command
@limit_option
@json_option
@journal_option
def command(limit: int | None, as_json: bool, journal_file: Path | None) -> None:
    """List the sessions, newest first: user, server, mount point, number of changes.

    In a pipe, each line has these fields, separated by tabs: id, start and end (UTC; no end: it is running, or it
    died), number of changes, server, mount point, user, host.

    \b
    redisfuse sessions
    """  # noqa: D301 - click reads the control character \b
    with open_journal(journal_file) as journal:
        table = None
        for session, changes in journal.iter_sessions(limit):
            if as_json:
                print_json(_session_to_json(session, changes))
                continue
            table = table or _SessionTable(session.id)
            table.print(session, changes)


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


class _SessionTable:
    """Prints sessions in the width of the terminal, or between tabs."""

    def __init__(self, newest_id: int) -> None:
        width = terminal_width()
        self._is_narrow = width < MIN_WIDTH_WITH_ALL
        id_width = max(2, len(str(newest_id)))
        ended_width = len("2026-11-27") if self._is_narrow else 19
        rest = max(NARROW_USER_WIDTH + 16, width - (id_width + 19 + ended_width + 8 + 4 * 2))
        self._user_width = NARROW_USER_WIDTH if self._is_narrow else 20
        self._server_width = (rest - self._user_width - 4) * 3 // 5 if self._is_narrow else 24
        self._mountpoint_width = rest - self._user_width - self._server_width - 4
        self._table = TablePrinter(
            [
                TableColumn("ID", id_width, align_right=True),
                TableColumn("STARTED", 19),
                TableColumn("ENDED", ended_width),
                TableColumn("CHANGES", 8, align_right=True),
                TableColumn("SERVER", self._server_width),
                TableColumn("BY", self._user_width),
                TableColumn("MOUNT" if self._is_narrow else "MOUNT POINT", 0),
            ]
        )

    def print(self, session: JournalSession, change_count: int) -> None:
        """Print one session.

        A narrow terminal shows no hosts, and of the end its time or date.
        """
        metadata = session.metadata
        server, mountpoint, user, host = (
            escape_text(text.encode())
            for text in (metadata.server.name, metadata.mountpoint or "", metadata.user, metadata.host)
        )
        started = format_local_time(session.started_at)
        ended = format_local_time(session.ended_at) or ("died" if session.has_died else "running")
        by, place = f"{user}@{host}", mountpoint or "(a command)"
        cells = [str(session.id), started, ended, f"{change_count:,}", server, by, place]
        if self._is_narrow:
            date, _, time = ended.partition(" ")
            cells[2] = time if time and started.startswith(date) else date
            cells[4] = shorten(server, self._server_width)
            cells[5] = shorten(user, self._user_width)
            cells[6] = shorten(mountpoint or "(command)", self._mountpoint_width)
        self._table.print_row(
            cells,
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
