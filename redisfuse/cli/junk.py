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
from redisfuse.cli._journal_options import CONTEXT, journal_option
from redisfuse.cli._options import BYTES, PATH, SectionCommand, address_from, server_options
from redisfuse.cli._output import Column, Printer, Table, amount, count, is_terminal, json_option, plain, print_json
from redisfuse.config import DEFAULTS
from redisfuse.errors import UsageError
from redisfuse.text import for_terminal

if TYPE_CHECKING:
    from redisfuse.client.address import Address
    from redisfuse.client.client import Server
    from redisfuse.vfs.junk_rules import Junk, Rule
    from redisfuse.vfs.junk_scan import JunkKey

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_WIDTH = 28  # characters of a pattern or name
_SHOWN = 10  # keys of a rule that are shown before they are removed
_BATCH = 500  # keys that are removed together


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
    rules = _load(junk_file, junk, keep).rules
    if as_json:
        for rule in rules:
            print_json(_row(rule))
        return
    table = Table([Column("CLASS", 9), Column("PATTERN", _WIDTH), Column("WHO", 0)])
    for rule in rules:
        pattern, group = for_terminal(rule.pattern), for_terminal(rule.group)
        table.row((rule.kind, pattern, group), (rule.kind, pattern, group, for_terminal(rule.source)))


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
    patterns = _load(junk_file, junk, keep)
    table = None
    for name in names:
        path = os.fsencode(name)
        parent, _, last = path.rstrip(b"/").lstrip(b"/").rpartition(b"/")
        rule = patterns.rule(parent, last, directory=path.endswith(b"/"))
        meaning = rule.kind.meaning if rule else "data"
        if as_json:
            print_json({"name": plain(path), "meaning": meaning, **(_row(rule) if rule else {})})
            continue
        table = table or Table([Column("NAME", _WIDTH), Column("PATTERN", _WIDTH), Column("IT IS", 0)])
        kind, pattern, group = (rule.kind, rule.pattern, rule.group) if rule else ("", "", "")
        shown, pattern, group = for_terminal(path), for_terminal(pattern), for_terminal(group)
        table.row(
            (shown, pattern, f"{meaning} ({group})" if group else meaning), (shown, kind, meaning, pattern, group)
        )


def _finding_options(command: Decorated) -> Decorated:
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


@command.command("scan", cls=SectionCommand, context_settings=CONTEXT)
@_finding_options
@click.pass_context
def scan(context: click.Context, /, **given: Any) -> None:
    """Find the keys of a server that no mount lists, because they have the names of junk.

    Nothing is changed. All keys are looked through, in pieces, for patterns of the class safe. Piped, a line is: path
    in a mount, type, length (bytes, or elements), pattern, who; between tabs.
    """
    task = _Task(context, given)
    with task.connected(writable=False) as server:
        found = task.find(server)
    if given["as_json"]:
        for each in found:
            print_json(_found_row(each))
        return
    _show(found, None)
    if is_terminal() and found:
        Printer().line(f"{_total(found)}; `redisfuse junk clean` removes them, journaled")


@command.command("clean", cls=SectionCommand, context_settings=CONTEXT)
@_finding_options
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be removed; touch nothing.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@journal_option
@click.pass_context
def clean(context: click.Context, /, dry_run: bool, yes: bool, journal_file: Path | None, **given: Any) -> None:
    """Remove the keys that `redisfuse junk scan` finds, journaled: a rollback brings them back.

    They are one session of the journal, and each is an operation of its own.
    """
    task = _Task(context, given)
    with task.connected(writable=not dry_run) as server:
        found = task.find(server)
        if given["as_json"]:
            for each in found:
                print_json(_found_row(each))
        else:
            _show(found, None if dry_run else _SHOWN)
        if not found or dry_run:
            return
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(f"{_total(found)} would be removed: say --yes, or --dry-run")
            if not click.confirm(f"Remove {_total(found)}?", err=True):
                click.echo("nothing was changed", err=True)
                return
        removed, session = _remove(server, found, journal_file)
    click.echo(
        f"{count(removed, 'key')} removed; `redisfuse rollback --session {session}` brings them back",
        err=given["as_json"],
    )


class _Task:
    """What both commands were asked to look for, and where."""

    def __init__(self, context: click.Context, given: dict[str, Any]) -> None:
        self._junk = _load(given["junk_file"], given["junk"], given["keep"])
        self._separator: bytes = given["separator"]
        self._prefix: bytes = given["prefix"]
        self._fields: bool = given["fields"]
        self._timeout: float = given["timeout"]
        if not self._separator:
            raise UsageError("--separator can't be empty")
        reaching = ("user", "db", "tls", "tls_ca", "tls_cert", "tls_key", "tls_insecure", "timeout")
        self._address: Address = address_from(
            given["source"], password=find_password(context), **{name: given[name] for name in reaching}
        )

    @contextmanager
    def connected(self, *, writable: bool) -> Iterator[Server]:
        """The server, for as long as the body runs."""
        from redisfuse.client.client import Server
        from redisfuse.client.limits import Limits

        server = Server(self._address, Limits(timeout=self._timeout), writable=writable)
        try:
            server.connect()
            yield server
        finally:
            server.close()

    def find(self, server: Server) -> list[JunkKey]:
        """All of it, by rule."""
        from redisfuse.paths.grammar import Grammar
        from redisfuse.vfs.junk_scan import Finder

        limit = DEFAULTS["field_limit"] if self._fields else 0
        finder = Finder(server, Grammar(self._separator), self._junk, prefix=self._prefix, fields=limit)
        order = {rule: number for number, rule in enumerate(self._junk.rules)}
        with _progress() as (on_total, advance):
            return sorted(finder.find(on_total, advance), key=lambda each: (order[each.rule], each.path))


def _remove(server: Server, found: Sequence[JunkKey], journal_file: Path | None) -> tuple[int, int]:
    """Remove them in a session of their own; how many were still there, and the session."""
    from redisfuse.journal.journal import Journal
    from redisfuse.mount.write_mode import session_info
    from redisfuse.transactions.key_writer import Edits
    from redisfuse.transactions.recovery import recover

    with Journal.open(journal_file, create=True) as journal:
        session = journal.begin_session(session_info(server, None, {"command": "junk clean"}))
        try:
            recover(journal, server, session)
            edits = Edits(server, journal, session, dump_limit=DEFAULTS["dump_limit"])
            removed = 0
            for batch in batched(found, _BATCH):
                removed += edits.remove_each({each.target: each.path for each in batch})
            return removed, session
        finally:
            journal.end_session(session)


def _show(found: Sequence[JunkKey], limit: int | None) -> None:
    """What was found: on a terminal by rule, with sums, at most `limit` of each; piped a line each."""
    if not is_terminal():
        for each in found:
            cells = (each.path, each.type, str(each.length), each.rule.pattern, each.rule.group)
            click.echo("\t".join(for_terminal(cell) for cell in cells))
        return
    printer = Printer()
    if not found:
        printer.line("no junk")
    for rule, keys in groupby(found, key=lambda each: each.rule):
        mine = list(keys)
        who = f" ({for_terminal(rule.group)})" if rule.group else ""
        printer.line(f"{for_terminal(rule.pattern)}{who}: {_total(mine)}", "bold")
        for each in mine[:limit]:
            size = f"{each.length} elements" if each.size is None else amount(each.size)
            printer.line(f"  {size:>12}  {for_terminal(each.path)}")
        if limit is not None and len(mine) > limit:
            printer.line(f"  … and {count(len(mine) - limit, 'more key')}")


def _total(found: Sequence[JunkKey]) -> str:
    return f"{count(len(found), 'key')}, {amount(sum(each.size or 0 for each in found))}"


def _found_row(found: JunkKey) -> dict[str, Any]:
    return {
        "path": plain(found.path),
        "key": plain(found.target.key),
        "field": plain(found.target.field),
        "type": plain(found.type),
        "length": found.length,
        **_row(found.rule),
    }


@contextmanager
def _progress() -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A bar on standard error, if that is a terminal: who tells it the total, and who moves it on."""
    if not sys.stderr.isatty():
        yield lambda _total: None, lambda _keys: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("looking through the keys", total=None)
        yield lambda total: progress.update(task, total=total), lambda keys: progress.advance(task, keys)


def _load(junk_file: Path | None, junk: Sequence[str], keep: Sequence[str]) -> Junk:
    from redisfuse.vfs.junk_rules import Junk

    return Junk.load(junk_file, junk, keep)


def _row(rule: Rule) -> dict[str, Any]:
    return {"class": rule.kind, "pattern": rule.pattern, "who": rule.group, "source": rule.source}
