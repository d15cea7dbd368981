"""Find and remove junk that is in Redis; list and try the patterns of files that are no data."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from redisfuse.batching import batched
from redisfuse.cli._config import find_password
from redisfuse.cli._journal_options import SUBCOMMAND_SETTINGS, journal_option
from redisfuse.cli._options import BYTES, PATH, SectionCommand, parse_server_address, server_options
from redisfuse.cli._output import (
    LinePrinter,
    TableColumn,
    TablePrinter,
    bytes_to_json,
    format_bytes,
    format_count,
    is_terminal,
    json_option,
    print_json,
)
from redisfuse.config import DEFAULTS
from redisfuse.errors import UsageError
from redisfuse.text import for_terminal

if TYPE_CHECKING:
    from redisfuse.client.address import Address
    from redisfuse.client.client import RedisClient
    from redisfuse.vfs.junk_rules import JunkRule, JunkRules
    from redisfuse.vfs.junk_scan import JunkKey

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_NAME_COLUMN_WIDTH = 28  # characters of a pattern or name
_MAX_LISTED_KEYS = 10  # keys of a rule that are shown before they are removed
_MAX_KEYS_PER_BATCH = 500  # keys that are removed together


def _pattern_options(command: Decorated) -> Decorated:
    """The options with which `mount` chooses its patterns."""
    for option in (
        click.option("--keep", multiple=True, metavar="PATTERN", help="Never junk; may be repeated."),
        click.option("--junk", multiple=True, metavar="PATTERN", help="One more junk pattern; may be repeated."),
        click.option("--junk-file", type=PATH, help="Junk patterns (gitignore syntax) instead of the built-in ones."),
    ):
        command = option(command)
    return command


@click.group
def command() -> None:
    """Find and remove junk that is in Redis; list and try the patterns of files that are no data."""


@command.command("list")
@_pattern_options
@json_option
def list_patterns(junk_file: Path | None, junk: Sequence[str], keep: Sequence[str], as_json: bool) -> None:
    """List the patterns, by who makes such files.

    Piped, a line is: class, pattern, who, and the file and line that it stands in; between tabs.
    """
    rules = _load_rules(junk_file, junk, keep).rules
    if as_json:
        for rule in rules:
            print_json(_rule_to_json(rule))
        return
    table = TablePrinter([TableColumn("CLASS", 9), TableColumn("PATTERN", _NAME_COLUMN_WIDTH), TableColumn("WHO", 0)])
    for rule in rules:
        pattern, group = for_terminal(rule.pattern), for_terminal(rule.group)
        table.print_row((rule.kind, pattern, group), (rule.kind, pattern, group, for_terminal(rule.source)))


@command.command("check")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_pattern_options
@json_option
def check(
    names: Sequence[str], junk_file: Path | None, junk: Sequence[str], keep: Sequence[str], as_json: bool
) -> None:
    """Say of each name whether it is junk, and by which pattern.

    A NAME may be a path from the mount's root; it ends in / for a folder. A key that is in Redis is data whatever
    its name. Piped, a line is: name, class, what that means, pattern, who; between tabs.
    """
    patterns = _load_rules(junk_file, junk, keep)
    table = None
    for name in names:
        path = os.fsencode(name)
        parent, _, last = path.rstrip(b"/").lstrip(b"/").rpartition(b"/")
        rule = patterns.find_rule(parent, last, is_directory=path.endswith(b"/"))
        meaning = rule.kind.description if rule else "data"
        if as_json:
            print_json({"name": bytes_to_json(path), "meaning": meaning, **(_rule_to_json(rule) if rule else {})})
            continue
        table = table or TablePrinter(
            [
                TableColumn("NAME", _NAME_COLUMN_WIDTH),
                TableColumn("PATTERN", _NAME_COLUMN_WIDTH),
                TableColumn("IT IS", 0),
            ]
        )
        kind, pattern, group = (rule.kind, rule.pattern, rule.group) if rule else ("", "", "")
        shown, pattern, group = for_terminal(path), for_terminal(pattern), for_terminal(group)
        table.print_row(
            (shown, pattern, f"{meaning} ({group})" if group else meaning), (shown, kind, meaning, pattern, group)
        )


def _scan_options(command: Decorated) -> Decorated:
    """Which server, and which of its keys are looked at by which patterns."""
    command = json_option(command)
    for option in (
        click.option("--fields", is_flag=True, help="Look into small hashes too: the fields of each are read."),
        click.option("--prefix", type=BYTES, default=b"", help="Look only at keys that begin with this."),
        click.option(
            "--separator",
            type=BYTES,
            default=os.fsdecode(DEFAULTS["separator"]),
            show_default=True,
            metavar="TEXT",
            help="What separates directories in a key.",
        ),
    ):
        command = option(command)
    command = server_options(_pattern_options(command))
    return click.argument("source", nargs=-1, metavar="(HOST PORT | URL)")(command)


@command.command("scan", cls=SectionCommand, context_settings=SUBCOMMAND_SETTINGS)
@_scan_options
@click.pass_context
def scan(context: click.Context, /, **options: Any) -> None:
    """Find the keys of a server that no mount lists, because they have the names of junk.

    Nothing is changed. All keys are looked through, in pieces, for patterns of the class safe. Piped, a line is: path
    in a mount, type, length (bytes, or elements), pattern, who; between tabs.
    """
    task = _JunkCommand(context, options)
    with task.connect(writable=False) as server:
        found = task.find_junk(server)
    if options["as_json"]:
        for each in found:
            print_json(_junk_key_to_json(each))
        return
    _print_keys(found, None)
    if is_terminal() and found:
        LinePrinter().print(f"{_format_total(found)}; `redisfuse junk clean` removes them, journaled")


@command.command("clean", cls=SectionCommand, context_settings=SUBCOMMAND_SETTINGS)
@_scan_options
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be removed; touch nothing.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@journal_option
@click.pass_context
def clean(context: click.Context, /, dry_run: bool, yes: bool, journal_file: Path | None, **options: Any) -> None:
    """Remove the keys that `redisfuse junk scan` finds, journaled: a rollback brings them back.

    They are one session of the journal, and each is an operation of its own.
    """
    task = _JunkCommand(context, options)
    with task.connect(writable=not dry_run) as server:
        found = task.find_junk(server)
        if options["as_json"]:
            for each in found:
                print_json(_junk_key_to_json(each))
        else:
            _print_keys(found, None if dry_run else _MAX_LISTED_KEYS)
        if not found or dry_run:
            return
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(f"{_format_total(found)} would be removed: say --yes, or --dry-run")
            if not click.confirm(f"Remove {_format_total(found)}?", err=True):
                click.echo("nothing was changed", err=True)
                return
        removed, session = _remove_keys(server, found, journal_file)
    click.echo(
        f"{format_count(removed, 'key')} removed; `redisfuse rollback --session {session}` brings them back",
        err=options["as_json"],
    )


class _JunkCommand:
    """What both commands were asked to look for, and where."""

    def __init__(self, context: click.Context, options: dict[str, Any]) -> None:
        self._junk_rules = _load_rules(options["junk_file"], options["junk"], options["keep"])
        self._separator: bytes = options["separator"]
        self._prefix: bytes = options["prefix"]
        self._scan_fields: bool = options["fields"]
        self._timeout: float = options["timeout"]
        if not self._separator:
            raise UsageError("--separator can't be empty")
        reaching = ("user", "db", "tls", "tls_ca", "tls_cert", "tls_key", "tls_insecure", "timeout")
        self._address: Address = parse_server_address(
            options["source"], password=find_password(context), **{name: options[name] for name in reaching}
        )

    @contextmanager
    def connect(self, *, writable: bool) -> Iterator[RedisClient]:
        """The server, for as long as the body runs."""
        from redisfuse.client.client import RedisClient
        from redisfuse.client.limits import Limits

        server = RedisClient(self._address, Limits(timeout=self._timeout), writable=writable)
        try:
            server.connect()
            yield server
        finally:
            server.close()

    def find_junk(self, server: RedisClient) -> list[JunkKey]:
        """All of it, by rule."""
        from redisfuse.paths.grammar import PathCodec
        from redisfuse.vfs.junk_scan import JunkScanner

        limit = DEFAULTS["field_limit"] if self._scan_fields else 0
        finder = JunkScanner(
            server, PathCodec(self._separator), self._junk_rules, prefix=self._prefix, max_hash_fields=limit
        )
        order = {rule: number for number, rule in enumerate(self._junk_rules.rules)}
        with _show_progress() as (on_total, advance):
            return sorted(finder.find_junk(on_total, advance), key=lambda each: (order[each.rule], each.path))


def _remove_keys(server: RedisClient, junk_keys: Sequence[JunkKey], journal_file: Path | None) -> tuple[int, int]:
    """Remove them in a session of their own; how many were still there, and the session."""
    from redisfuse.journal.journal import Journal
    from redisfuse.mount.write_mode import build_session_info
    from redisfuse.transactions.key_writer import KeyWriter
    from redisfuse.transactions.recovery import recover_pending

    with Journal.open(journal_file, create=True) as journal:
        session = journal.begin_session(build_session_info(server, None, {"command": "junk clean"}))
        try:
            recover_pending(journal, server, session)
            edits = KeyWriter(server, journal, session, dump_limit=DEFAULTS["dump_limit"])
            removed = 0
            for batch in batched(junk_keys, _MAX_KEYS_PER_BATCH):
                removed += edits.remove_independently({each.target: each.path for each in batch})
            return removed, session
        finally:
            journal.end_session(session)


def _print_keys(junk_keys: Sequence[JunkKey], limit: int | None) -> None:
    """What was found: on a terminal by rule, with sums, at most `limit` of each; piped a line each."""
    if not is_terminal():
        for each in junk_keys:
            cells = (each.path, each.type, str(each.length), each.rule.pattern, each.rule.group)
            click.echo("\t".join(for_terminal(cell) for cell in cells))
        return
    printer = LinePrinter()
    if not junk_keys:
        printer.print("no junk")
    for rule, keys in groupby(junk_keys, key=lambda each: each.rule):
        mine = list(keys)
        who = f" ({for_terminal(rule.group)})" if rule.group else ""
        printer.print(f"{for_terminal(rule.pattern)}{who}: {_format_total(mine)}", "bold")
        for each in mine[:limit]:
            size = f"{each.length} elements" if each.size is None else format_bytes(each.size)
            printer.print(f"  {size:>12}  {for_terminal(each.path)}")
        if limit is not None and len(mine) > limit:
            printer.print(f"  … and {format_count(len(mine) - limit, 'more key')}")


def _format_total(junk_keys: Sequence[JunkKey]) -> str:
    return f"{format_count(len(junk_keys), 'key')}, {format_bytes(sum(each.size or 0 for each in junk_keys))}"


def _junk_key_to_json(junk_key: JunkKey) -> dict[str, Any]:
    return {
        "path": bytes_to_json(junk_key.path),
        "key": bytes_to_json(junk_key.target.key),
        "field": bytes_to_json(junk_key.target.field),
        "type": bytes_to_json(junk_key.type),
        "length": junk_key.length,
        **_rule_to_json(junk_key.rule),
    }


@contextmanager
def _show_progress() -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A bar on standard error, if that is a terminal: who tells it the total, and who moves it on."""
    if not sys.stderr.isatty():
        yield lambda _total: None, lambda _keys: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("looking through the keys", total=None)
        yield lambda total: progress.update(task, total=total), lambda keys: progress.advance(task, keys)


def _load_rules(junk_file: Path | None, junk: Sequence[str], keep: Sequence[str]) -> JunkRules:
    from redisfuse.vfs.junk_rules import JunkRules

    return JunkRules.load(junk_file, junk, keep)


def _rule_to_json(rule: JunkRule) -> dict[str, Any]:
    return {"class": rule.kind, "pattern": rule.pattern, "who": rule.group, "source": rule.source}
