"""List and try the patterns of files that are no data."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from redisfuse.cli._options import PATH
from redisfuse.cli._output import Column, Table, json_option, plain, print_json
from redisfuse.printable import printable

if TYPE_CHECKING:
    from redisfuse.junk import Junk, Rule

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_WIDTH = 28  # characters of a pattern or name


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
    """List and try the patterns of files that are no data."""


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
        pattern, group = printable(rule.pattern), printable(rule.group)
        table.row((rule.kind, pattern, group), (rule.kind, pattern, group, printable(rule.source)))


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
        shown, pattern, group = printable(path), printable(pattern), printable(group)
        table.row(
            (shown, pattern, f"{meaning} ({group})" if group else meaning), (shown, kind, meaning, pattern, group)
        )


def _load(junk_file: Path | None, junk: Sequence[str], keep: Sequence[str]) -> Junk:
    from redisfuse.junk import Junk

    return Junk.load(junk_file, junk, keep)


def _row(rule: Rule) -> dict[str, Any]:
    return {"class": rule.kind, "pattern": rule.pattern, "who": rule.group, "source": rule.source}
