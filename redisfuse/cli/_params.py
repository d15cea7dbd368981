"""Parameter types: sizes, bytes, paths, times, and ids with completion."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from redisfuse.cli._output import escape_text
from redisfuse.config import parse_size
from redisfuse.errors import UsageError
from redisfuse.text import parse_timestamp

if TYPE_CHECKING:
    from redisfuse.journal.models import Change

MAX_SQLITE_INTEGER = (1 << 63) - 1
MAX_COMPLETIONS = 50  # changes or sessions that completion reads


class SizeParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """A number of bytes, written as 512MiB, 64M or a plain number."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a size; an integer in a configuration file is a number of bytes."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class RowCountParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """A number of rows that SQLite can store."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a number that is not negative."""
        try:
            return _parse_id(value)
        except ValueError:
            self.fail(f"{value!r} is not a number from 0 to {MAX_SQLITE_INTEGER}", param, ctx)


class BytesParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """Bytes of a key, exactly as they were typed, UTF-8 or not."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """Encode as the system encodes arguments, which preserves all bytes."""
        if not isinstance(value, str | bytes):
            self.fail(f"{value!r} is not a string in quotes", param, ctx)
        return value if isinstance(value, bytes) else os.fsencode(value)


class FilePathParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """An absolute path; `~` is expanded in configuration files, too.

    Relative paths are resolved immediately, because a daemon changes its directory.
    """

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Expand `~` and make the path absolute; symbolic links are not resolved."""
        if not isinstance(value, str | Path):
            self.fail(f"{value!r} is not a string in quotes", param, ctx)
        return Path(os.path.abspath(os.path.expanduser(value)))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Let the shell complete file names."""
        return click.Path().shell_complete(ctx, param, incomplete)


class TimestampParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """A time as Unix time in ms.

    Written as ISO 8601 (local without a time zone), 14:30, 2h (ago), 1d12h, now, today or yesterday.
    """

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a time; an integer is returned unchanged."""
        if isinstance(value, int):
            return value
        try:
            return parse_timestamp(str(value), datetime.now().astimezone())
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is not a time; write 2026-07-04, 2026-07-04T12:00, 14:30, 2h, 3d or yesterday", param, ctx
            )


class ChangeIdParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """The id of a change."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse an id, which may be written as `#42`."""
        try:
            return _parse_id(str(value).removeprefix("#"))
        except ValueError:
            self.fail(f"{value!r} is not the id of a change; `redisfuse log` lists the ids", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Offer the newest changes."""
        return [
            CompletionItem(str(change.id), help=f"{change.op} {escape_text(change.path)}")
            for change in _list_newest_changes(ctx)
            if str(change.id).startswith(incomplete)
        ]


class SessionIdParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """The id of a session."""

    name = "session"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse an id."""
        try:
            return _parse_id(value)
        except ValueError:
            self.fail(f"{value!r} is not the id of a session; `redisfuse sessions` lists the ids", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Offer the newest sessions."""
        from redisfuse.journal.journal import Journal

        try:
            with Journal.open(ctx.params.get("journal_file"), writable=False) as journal:
                sessions = [session for session, _ in journal.iter_sessions(MAX_COMPLETIONS)]
        except Exception:  # completion must not print anything
            return []
        return [
            CompletionItem(str(session.id), help=f"{session.metadata.server.name} {session.metadata.mountpoint or ''}")
            for session in sessions
            if str(session.id).startswith(incomplete)
        ]


class ChangeWordParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """The id of a change, a range of ids, an operation, or a path."""

    name = "change"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer the newest changes and, once a letter is typed, the newest paths.

        With `diff --live` the words are servers and paths.
        """
        if ctx.params.get("live"):
            from redisfuse.cli._named_servers import complete_where

            return complete_where(ctx, param, incomplete)
        completions = CHANGE_ID.shell_complete(ctx, param, incomplete)
        return completions or CHANGED_PATH.shell_complete(ctx, param, incomplete)


class ChangedPathParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """A path below the mount point, as bytes."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """Encode the path as the system encodes arguments."""
        return BYTES.convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Offer the paths that were changed last."""
        paths = dict.fromkeys(escape_text(change.path) for change in _list_newest_changes(ctx, path=incomplete))
        return [CompletionItem(path) for path in paths if path.startswith(incomplete)]


SIZE = SizeParam()
ROW_COUNT = RowCountParam()
BYTES = BytesParam()
PATH = FilePathParam()
TIMESTAMP = TimestampParam()
CHANGE_ID = ChangeIdParam()
SESSION_ID = SessionIdParam()
CHANGED_PATH = ChangedPathParam()
CHANGE_WORD = ChangeWordParam()


def _parse_id(value: Any) -> int:
    """Return an id or number that SQLite can store. Raises ValueError."""
    number = int(value)
    if not 0 <= number <= MAX_SQLITE_INTEGER:
        raise ValueError(f"out of range for SQLite: {number}")
    return number


def _list_newest_changes(ctx: click.Context, path: str = "") -> list[Change]:
    from redisfuse.journal.change_filter import ChangeFilter
    from redisfuse.journal.journal import Journal

    directory = path.rpartition("/")[0].encode() or None
    try:
        with Journal.open(ctx.params.get("journal_file"), writable=False) as journal:
            return list(journal.find_changes(ChangeFilter(limit=MAX_COMPLETIONS, path=directory)))
    except Exception:  # completion must not print anything
        return []
