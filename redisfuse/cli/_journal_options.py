"""What the commands that read the journal share: its option, times, ids that complete, and how a change is shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from redisfuse.cli._options import BYTES, PATH
from redisfuse.cli._output import bytes_to_json, escape_text, format_utc

if TYPE_CHECKING:
    from redisfuse.journal.change_rows import ChangeFilter
    from redisfuse.journal.journal import Journal
    from redisfuse.journal.models import Change, State

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

MAX_SQLITE_INTEGER = (1 << 63) - 1  # that SQLite can count
SUBCOMMAND_SETTINGS = {
    "auto_envvar_prefix": "REDISFUSE",
    "help_option_names": ["-h", "--help"],
}  # of commands inside a group
CHANGE_OPS = (
    "create",
    "write",
    "append",
    "truncate",
    "remove",
    "rename",
    "expire",
    "mkdir",
    "rmdir",
    "rollback",
    "apply",
)
CHANGE_STATES = ("pending", "applied", "failed", "unknown", "refused")
STATE_STYLES = {"applied": "", "pending": "yellow", "failed": "dim", "unknown": "bold red", "refused": "magenta"}
MAX_COMPLETIONS = 50  # ids or paths that completion looks through

_TIME_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGE_PATTERN = re.compile(r"(?:\s*(\d+)\s*([smhdw])[a-z]*)(?:\s*(\d+)\s*([smhdw])[a-z]*)?(?:\s+ago)?\s*", re.IGNORECASE)
_CLOCK_PATTERN = re.compile(r"\d{1,2}:\d\d(:\d\d)?")


def journal_option(command: Decorated) -> Decorated:
    """`--journal-file`, for every command that opens the journal."""
    option = click.option(
        "--journal-file",
        type=PATH,
        metavar="FILE",
        show_default="journal.db in the platform's state folder",
        help="The journal's database.",
    )
    return option(command)


def open_journal(path: Path | None, *, write: bool = False) -> Journal:
    """Open an existing journal. Raises JournalError."""
    from redisfuse.journal.journal import Journal

    return Journal.open(path, writable=write)


# -- times -----------------------------------------------------------------------------------------------------------


class TimestampParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """A moment: ISO 8601 (local unless it says otherwise), 14:30, 2h (ago), 1d12h, now, today, yesterday. To ms."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a time; plain integers stay."""
        if isinstance(value, int):
            return value
        try:
            return parse_timestamp(str(value), datetime.now().astimezone())
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time: say 2026-07-04, 2026-07-04T12:00, 14:30, 2h, 3d or yesterday", param, ctx)


TIMESTAMP = TimestampParam()


def parse_timestamp(text: str, now: datetime) -> int:
    """The Unix time in ms that `text` means at `now` (which has a time zone). Raises ValueError."""
    word = text.strip().lower()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if word == "now":
        found = now
    elif word in ("today", "yesterday"):
        found = _to_local_time(midnight.replace(tzinfo=None) - timedelta(days=word == "yesterday"))
    elif _CLOCK_PATTERN.fullmatch(word):
        hour, _, rest = word.partition(":")
        found = _to_local_time(datetime.fromisoformat(f"{midnight:%Y-%m-%d}T{hour:0>2}:{rest}"))
    elif parts := _AGE_PATTERN.fullmatch(word):
        pairs = [(parts[1], parts[2]), (parts[3], parts[4])]
        found = now - sum((timedelta(**{_TIME_UNITS[unit]: int(n)}) for n, unit in pairs if n), timedelta())
    else:
        found = datetime.fromisoformat(text.strip())
        found = found if found.tzinfo else _to_local_time(found)
    return int(found.timestamp() * 1000)


def _to_local_time(naive: datetime) -> datetime:
    return naive.astimezone()


# -- ids and paths that complete -------------------------------------------------------------------------------------


def _parse_id(value: Any) -> int:
    """Raises ValueError."""
    number = int(value)
    if not 0 <= number <= MAX_SQLITE_INTEGER:
        raise ValueError("SQLite has no such number")
    return number


class ChangeIdParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """The id of a change."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read an id; `#42` is one too."""
        try:
            return _parse_id(str(value).removeprefix("#"))
        except ValueError:
            self.fail(f"{value!r} is no id of a change; redisfuse log shows them", param, ctx)

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
        """Read an id."""
        try:
            return _parse_id(value)
        except ValueError:
            self.fail(f"{value!r} is no id of a session; redisfuse sessions shows them", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Offer the newest sessions."""
        try:
            with open_journal(ctx.params.get("journal_file")) as journal:
                found = [session for session, _ in journal.iter_sessions(MAX_COMPLETIONS)]
        except Exception:  # completion must not print anything
            return []
        return [
            CompletionItem(str(session.id), help=f"{session.metadata.server.name} {session.metadata.mountpoint or ''}")
            for session in found
            if str(session.id).startswith(incomplete)
        ]


class ChangedPathParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """A path below the mount point."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """As bytes, whatever they are."""
        return BYTES.convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Offer the paths changed last."""
        found = dict.fromkeys(escape_text(change.path) for change in _list_newest_changes(ctx, path=incomplete))
        return [CompletionItem(path) for path in found if path.startswith(incomplete)]


CHANGE_ID = ChangeIdParam()
SESSION_ID = SessionIdParam()
CHANGED_PATH = ChangedPathParam()


def _list_newest_changes(ctx: click.Context, path: str = "") -> list[Change]:
    try:
        from redisfuse.journal.change_rows import ChangeFilter

        folder = path.rpartition("/")[0].encode() or None
        with open_journal(ctx.params.get("journal_file")) as journal:
            return list(journal.find_changes(ChangeFilter(limit=MAX_COMPLETIONS, path=folder)))
    except Exception:  # completion must not print anything
        return []


# -- which changes ---------------------------------------------------------------------------------------------------


def filter_options(command: Decorated) -> Decorated:
    """The options that choose changes; `build_change_filter` makes a Filter of them."""
    options = [
        click.option("--session", type=SESSION_ID, metavar="ID", help="Only changes of this session."),
        click.option("--key", type=BYTES, metavar="GLOB", help="Only keys that match (*, ?, [a-z], as in Redis)."),
        click.option("--path", type=CHANGED_PATH, metavar="PATH", help="Only this path and what is below it."),
        click.option("--since", type=TIMESTAMP, metavar="TIME", help="Not before: ISO 8601, 14:30, 2h, yesterday."),
        click.option("--until", type=TIMESTAMP, metavar="TIME", help="Before: likewise."),
        click.option(
            "--state", type=click.Choice(CHANGE_STATES), multiple=True, help="Only in this state; repeatable."
        ),
        click.option("--op", type=click.Choice(CHANGE_OPS), multiple=True, help="Only this operation; repeatable."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def build_change_filter(
    *,
    session: int | None,
    key: bytes | None,
    path: bytes | None,
    since: int | None,
    until: int | None,
    state: tuple[Any, ...],
    op: tuple[str, ...],
    limit: int | None = None,
) -> ChangeFilter:
    """What the options of `filter_options` say."""
    from redisfuse.journal.change_rows import ChangeFilter

    return ChangeFilter(
        session_id=session, key_glob=key, path=path, since=since, until=until, outcomes=state, ops=op, limit=limit
    )


# -- how a change is shown -------------------------------------------------------------------------------------------


def change_to_json(change: Change) -> dict[str, Any]:
    """A change in JSON: everything but the contents."""
    return {
        "id": change.id,
        "group": change.group_id,
        "session": change.session_id,
        "server": change.server_name,
        "at": format_utc(change.recorded_at),
        "op": change.op,
        "path": bytes_to_json(change.path),
        "new_path": bytes_to_json(change.new_path),
        "key": bytes_to_json(change.key),
        "field": bytes_to_json(change.field),
        "state": change.outcome,
        "error": change.error,
        "prior_type": bytes_to_json(change.prior.type),
        "prior_size": change.prior.size,
        "prior_expires_at": format_utc(change.prior.expires_at),
        "new_type": bytes_to_json(change.new.type),
        "new_size": change.new.size,
        "new_expires_at": format_utc(change.new.expires_at),
        "reverts": change.reverts,
        "applies": change.applies,
        "settled_at": format_utc(change.settled_at),
    }


def format_path(change: Change) -> str:
    """The path that was changed, printable; of a rename both."""
    path = escape_text(change.path)
    return path if change.new_path is None else f"{path} → {escape_text(change.new_path)}"


def format_key(change: Change) -> str:
    """The key, or the key and its field, printable."""
    key = escape_text(change.key)
    return key if change.field is None else f"{key} field {escape_text(change.field)}"


def describe_state(state: State) -> str:
    """A state in few words, printable."""
    if state.kind == "absent":
        return "nothing"
    if state.kind == "directory":
        return "an empty directory"
    if state.kind == "slice":
        slice = state.content.size if state.content else 0
        return f"{escape_text(state.type)}: {slice} bytes at {state.offset} of {state.total_size}"
    if state.kind == "object":
        maker = f" by {escape_text(state.dump_version.encode())}" if state.dump_version else ""
        dump = f"DUMP of {state.content.size} bytes{maker}" if state.content else "no DUMP"
        return f"{escape_text(state.type)}, {dump}"
    return f"{escape_text(state.type)} of {state.size} bytes"
