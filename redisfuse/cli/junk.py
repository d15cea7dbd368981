"""Find and remove junk in Redis; list and test the junk patterns."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from more_itertools import chunked

from redisfuse.cli._journal_options import journal_option
from redisfuse.cli._named_servers import complete_source, expand_server
from redisfuse.cli._options import (
    SEPARATOR_HELP,
    SUBCOMMAND_SETTINGS,
    TIMEOUT_HELP,
    WAIT_REPLICAS_HELP,
    OptionList,
    SectionCommand,
    build_server_options,
    parse_server_address,
)
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
    progress_bar,
)
from redisfuse.cli._params import BYTES, PATH
from redisfuse.cli._passwords import find_password
from redisfuse.config import DEFAULTS
from redisfuse.errors import UsageError
from redisfuse.text import for_terminal

if TYPE_CHECKING:
    from redisfuse.client.address import Address
    from redisfuse.client.client import RedisClient
    from redisfuse.vfs.junk_rules import JunkRule, JunkRules
    from redisfuse.vfs.junk_scan import JunkKey

_NAME_COLUMN_WIDTH = 28  # characters of a pattern or name
_MAX_LISTED_KEYS = 10  # keys per rule that are listed before they are removed
_MAX_KEYS_PER_BATCH = 500  # keys that are removed in one batch

_pattern_options = OptionList(
    click.option("--junk-file", type=PATH, help="Junk patterns (gitignore syntax) that replace the built-in ones."),
    click.option("--junk", multiple=True, metavar="PATTERN", help="Additional junk pattern; may be repeated."),
    click.option(
        "--keep", multiple=True, metavar="PATTERN", help="Pattern of files that are never junk; may be repeated."
    ),
)
"""The options with which `mount` selects its patterns."""


@click.group
def command() -> None:
    """Find and remove junk in Redis; list and test the junk patterns.

    \b
    redisfuse junk check .notes.txt.swp
    redisfuse junk scan redis://host:6379/0
    """  # noqa: D301 - click reads the control character \b


@command.command("list")
@_pattern_options
@json_option
def list_patterns(junk_file: Path | None, junk: Sequence[str], keep: Sequence[str], as_json: bool) -> None:
    """List the patterns, by the program that creates such files.

    In a pipe, each line has these fields, separated by tabs: class, pattern, program, file and line of the pattern.

    \b
    redisfuse junk list
    """  # noqa: D301 - click reads the control character \b
    rules = _load_rules(junk_file, junk, keep).rules
    if as_json:
        for rule in rules:
            print_json(_rule_to_json(rule))
        return
    table = TablePrinter(
        [TableColumn("CLASS", 9), TableColumn("PATTERN", _NAME_COLUMN_WIDTH), TableColumn("PROGRAM", 0)]
    )
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
    """Show whether names are junk, and by which pattern.

    A NAME may be a path from the mount's root; it ends in / for a directory. A key in Redis is data, regardless of its
    name. In a pipe, each line has these fields, separated by tabs: name, class, meaning of the class, pattern, program.

    \b
    redisfuse junk check .main.c.swp session/
    """  # noqa: D301 - click reads the control character \b
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
                TableColumn("MEANING", 0),
            ]
        )
        kind, pattern, group = (rule.kind, rule.pattern, rule.group) if rule else ("", "", "")
        shown, pattern, group = for_terminal(path), for_terminal(pattern), for_terminal(group)
        table.print_row(
            (shown, pattern, f"{meaning} ({group})" if group else meaning), (shown, kind, meaning, pattern, group)
        )


_scan_options = OptionList(
    click.argument("source", nargs=-1, metavar="(HOST PORT | URL | NAME)", shell_complete=complete_source),
    build_server_options(TIMEOUT_HELP),
    _pattern_options,
    click.option(
        "--separator",
        type=BYTES,
        default=os.fsdecode(DEFAULTS["separator"]),
        show_default=True,
        metavar="TEXT",
        help=SEPARATOR_HELP,
    ),
    click.option("--prefix", type=BYTES, default=b"", help="Scan only keys with this prefix."),
    click.option("--fields", is_flag=True, help="Scan the fields of small hashes, too."),
    json_option,
)
"""Which server to scan, which of its keys, and for which patterns."""


@command.command("scan", cls=SectionCommand, context_settings=SUBCOMMAND_SETTINGS)
@_scan_options
@click.pass_context
def scan(context: click.Context, /, **options: Any) -> None:
    """Find the keys with names of junk, which mounts don't list.

    Changes nothing. Scans all keys, in batches, for patterns of the class safe. In a pipe, each line has these fields,
    separated by tabs: path in a mount, type, length (bytes or elements), pattern, program.

    \b
    redisfuse junk scan redis://host:6379/0
    """  # noqa: D301 - click reads the control character \b
    junk_scan = _JunkCommand(context, options)
    with junk_scan.connect(writable=False) as server:
        keys = junk_scan.find_junk(server)
    if options["as_json"]:
        for key in keys:
            print_json(_junk_key_to_json(key))
        return
    _print_keys(keys, None)
    if is_terminal() and keys:
        LinePrinter().print(f"{_format_total(keys)}; `redisfuse junk clean` removes them, journaled")


@command.command("clean", cls=SectionCommand, context_settings=SUBCOMMAND_SETTINGS)
@_scan_options
@click.option("-n", "--dry-run", is_flag=True, help="Print what would be removed; change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask for confirmation.")
@click.option(
    "--wait-replicas", type=click.IntRange(0), default=0, metavar="N", show_default=True, help=WAIT_REPLICAS_HELP
)
@journal_option
@click.pass_context
def clean(context: click.Context, /, dry_run: bool, yes: bool, wait_replicas: int, **options: Any) -> None:
    """Remove the keys that `redisfuse junk scan` finds, journaled.

    A rollback restores them. The changes are one session of the journal, and each is a separate operation.

    \b
    redisfuse junk clean redis://host:6379/0
    """  # noqa: D301 - click reads the control character \b
    junk_scan = _JunkCommand(context, options)
    with junk_scan.connect(writable=not dry_run, wait_replicas=wait_replicas) as server:
        keys = junk_scan.find_junk(server)
        if options["as_json"]:
            for key in keys:
                print_json(_junk_key_to_json(key))
        else:
            _print_keys(keys, None if dry_run else _MAX_LISTED_KEYS)
        if not keys or dry_run:
            return
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(f"{_format_total(keys)} would be removed: confirm with --yes, or add --dry-run")
            if not click.confirm(f"Remove {_format_total(keys)}?", err=True):
                click.echo("nothing was changed", err=True)
                return
        removed, session = _remove_keys(server, keys, context.params["journal_file"])
    click.echo(
        f"{format_count(removed, 'key')} removed; `redisfuse rollback --session {session}` restores them",
        err=options["as_json"],
    )


class _JunkCommand:
    """The keys and patterns that `scan` and `clean` look for, and the server."""

    def __init__(self, context: click.Context, options: dict[str, Any]) -> None:
        source = expand_server(context, options["source"])
        options = {name: context.params[name] for name in options}
        self._junk_rules = _load_rules(options["junk_file"], options["junk"], options["keep"])
        self._separator: bytes = options["separator"]
        self._prefix: bytes = options["prefix"]
        self._scan_fields: bool = options["fields"]
        self._timeout: float = options["timeout"]
        if not self._separator:
            raise UsageError("--separator can't be empty")
        server_parameters = ("user", "db", "tls", "tls_ca", "tls_cert", "tls_key", "tls_insecure", "timeout")
        self._cluster_map: tuple[str, ...] = options["cluster_map"]
        self._ssh: str | None = options["ssh"]
        self._address: Address = parse_server_address(
            source, password=find_password(context), **{name: options[name] for name in server_parameters}
        )

    @contextmanager
    def connect(self, *, writable: bool, wait_replicas: int = 0) -> Iterator[RedisClient]:
        """Yield the connected server; close it at the end."""
        from redisfuse.client.limits import Limits
        from redisfuse.client.opening import open_client
        from redisfuse.client.ssh_tunnels import create_address_map

        address_map = create_address_map(self._cluster_map, self._ssh)
        limits = Limits(timeout=self._timeout)
        server = open_client(
            self._address,
            limits,
            writable=writable,
            address_map=address_map,
            wait_replicas=wait_replicas if writable else 0,
        )
        try:
            yield server
        finally:
            server.close()

    def find_junk(self, server: RedisClient) -> list[JunkKey]:
        """Return all junk keys, ordered by rule and path."""
        from redisfuse.paths.grammar import PathCodec
        from redisfuse.vfs.junk_scan import JunkScanner

        limit = DEFAULTS["field_limit"] if self._scan_fields else 0
        scanner = JunkScanner(
            server, PathCodec(self._separator), self._junk_rules, prefix=self._prefix, max_hash_fields=limit
        )
        order = {rule: number for number, rule in enumerate(self._junk_rules.rules)}
        with progress_bar("scanning the keys") as bar:
            return sorted(
                scanner.find_junk(bar.set_total, bar.advance),
                key=lambda junk_key: (order[junk_key.rule], junk_key.path),
            )


def _remove_keys(server: RedisClient, junk_keys: Sequence[JunkKey], journal_file: Path | None) -> tuple[int, int]:
    """Remove keys in a new session.

    Returns the number of keys that still existed, and the id of the session.
    """
    from redisfuse.journal.journal import Journal
    from redisfuse.mount.write_mode import build_session_info
    from redisfuse.transactions.callers import ThisProcess
    from redisfuse.transactions.key_writer import KeyWriter
    from redisfuse.transactions.session_start import start_session

    with Journal.open(journal_file, create=True, operation_idle_ms=None) as journal:
        session = start_session(journal, server, build_session_info(server, None, {"command": "junk clean"}))
        try:
            key_writer = KeyWriter(server, journal, session, dump_limit=DEFAULTS["dump_limit"], caller=ThisProcess())
            removed = 0
            for batch in chunked(junk_keys, _MAX_KEYS_PER_BATCH):
                removed += key_writer.remove_independently({junk_key.target: junk_key.path for junk_key in batch})
            return removed, session
        finally:
            journal.end_session(session)


def _print_keys(junk_keys: Sequence[JunkKey], limit: int | None) -> None:
    """Print junk keys: on a terminal by rule with totals, else one line per key.

    `limit`: the maximum number of keys per rule on a terminal.
    """
    if not is_terminal():
        for junk_key in junk_keys:
            cells = (junk_key.path, junk_key.type, str(junk_key.length), junk_key.rule.pattern, junk_key.rule.group)
            click.echo("\t".join(for_terminal(cell) for cell in cells))
        return
    printer = LinePrinter()
    if not junk_keys:
        printer.print("no junk")
    for rule, group in groupby(junk_keys, key=lambda junk_key: junk_key.rule):
        keys = list(group)
        program = f" ({for_terminal(rule.group)})" if rule.group else ""
        printer.print(f"{for_terminal(rule.pattern)}{program}: {_format_total(keys)}", "bold")
        for key in keys[:limit]:
            size = f"{key.length} elements" if key.size is None else format_bytes(key.size)
            printer.print(f"  {size:>12}  {for_terminal(key.path)}")
        if limit is not None and len(keys) > limit:
            printer.print(f"  … and {format_count(len(keys) - limit, 'more key')}")


def _format_total(junk_keys: Sequence[JunkKey]) -> str:
    return f"{format_count(len(junk_keys), 'key')}, {format_bytes(sum(junk_key.size or 0 for junk_key in junk_keys))}"


def _junk_key_to_json(junk_key: JunkKey) -> dict[str, Any]:
    return {
        "path": bytes_to_json(junk_key.path),
        "key": bytes_to_json(junk_key.target.key),
        "field": bytes_to_json(junk_key.target.field),
        "type": bytes_to_json(junk_key.type),
        "length": junk_key.length,
        **_rule_to_json(junk_key.rule),
    }


def _load_rules(junk_file: Path | None, junk: Sequence[str], keep: Sequence[str]) -> JunkRules:
    from redisfuse.vfs.junk_rules import JunkRules

    return JunkRules.load(junk_file, junk, keep)


def _rule_to_json(rule: JunkRule) -> dict[str, Any]:
    return {"class": rule.kind, "pattern": rule.pattern, "program": rule.group, "source": rule.source}
