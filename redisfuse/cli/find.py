"""Find keys by type, size, time to live, idle time or name."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli._options import SectionCommand, section_option
from redisfuse.cli._output import json_option
from redisfuse.cli._params import BYTES
from redisfuse.cli._record_output import RecordPrinter
from redisfuse.cli._terminal import print_err
from redisfuse.cli._where import WHERE_HELP, Where, resolve_where, where_argument, where_options
from redisfuse.errors import UsageError
from redisfuse.text import format_count

if TYPE_CHECKING:
    from redisfuse.client.client import RedisClient
    from redisfuse.survey.conditions import Condition
    from redisfuse.survey.naming import FoundRecord
    from redisfuse.survey.records import KeyRecord, Property
    from redisfuse.survey.scan import KeySurvey

_CONDITIONS = "Conditions"
_OUTPUT = "Output"

_SORT_PROPERTIES: dict[str, Property | None] = {
    "name": None,
    "size": "length",
    "elements": "length",
    "memory": "memory",
    "ttl": "ttl",
    "idle": "idle",
}


_condition = partial(section_option, section=_CONDITIONS)
_output = partial(section_option, section=_OUTPUT)


@click.command(cls=SectionCommand, epilog=WHERE_HELP)
@where_argument
@_condition(
    "--type",
    metavar="TYPE[,TYPE…]",
    help="string, list, set, zset, hash, stream, json, or a module's type.",
    multiple=True,
)
@_condition(
    "--name", metavar="GLOB", help="The last component of the key matches; may be repeated.", multiple=True, type=BYTES
)
@_condition("--key", metavar="GLOB", help="The whole key matches; may be repeated.", multiple=True, type=BYTES)
@_condition("--field", metavar="GLOB", help="List the fields of hashes that match, instead of keys.", type=BYTES)
@_condition("--size", metavar="[+-]SIZE", help="Bytes of a string or field: +1M is more, -1K is less.")
@_condition("--elements", metavar="[+-]N", help="Elements of a collection: +1000 is more, -10 is fewer.")
@_condition("--memory", metavar="[+-]SIZE", help="Memory in the server, as MEMORY USAGE estimates it.")
@_condition("--ttl", metavar="[+-]TIME|none|any", help="Time to live: -1h expires sooner, +7d later, none never.")
@_condition("--idle", metavar="[+-]TIME", help="Time since the last access: +7d is longer.")
@_condition(
    "--encoding", metavar="NAME", help="Encoding in the server, such as listpack; may be repeated.", multiple=True
)
@_output(
    "--sort",
    type=click.Choice(list(_SORT_PROPERTIES)),
    help="Sort: largest first, by ttl soonest first, by name A to Z.",
)
@_output("-r", "--reverse", is_flag=True, help="Reverse the order of --sort.")
@_output("--limit", type=click.IntRange(1), metavar="N", help="Maximum number of keys to list.")
@_output("--count", is_flag=True, help="Print only the number of keys.")
@_output("--ls", "long", is_flag=True, help="List type, length, time to live and path.")
@_output("--keys", is_flag=True, help="Print keys instead of paths; this begins before the scan has ended.")
@_output("-0", "--print0", is_flag=True, help="End each path with a NUL byte, for xargs -0.")
@json_option
@where_options
@click.pass_context
def command(context: click.Context, /, where: Sequence[str], **options: Any) -> None:
    """Find keys by type, size, time to live, idle time or name.

    Without a condition, all keys are listed. A key must satisfy every condition. Paths are those of a mount, whether
    there is one or not. Keys with names of junk, which mounts don't list, are found, too.

    \b
    redisfuse find ~/redis/session --ttl none
    redisfuse find redis://host/0 --memory +10M --sort memory --ls
    redisfuse find ~/redis --field password -0 | xargs -0 grep -L '^\\$2b'
    """  # noqa: D301 - click reads the control character \b
    conditions = _parse_conditions(options)
    if options["print0"] and (options["as_json"] or options["long"]):
        raise UsageError("--print0 prints paths only; it can't be combined with --json or --ls")
    place = resolve_where(context, where)
    with place.connect() as clients:
        _find(place, clients, conditions, options)


def _parse_conditions(options: dict[str, Any]) -> list[Condition]:
    from redisfuse.survey import conditions as parsers

    conditions: list[Condition] = []
    if options["type"]:
        conditions.append(parsers.parse_types(options["type"]))
    if options["encoding"]:
        conditions.append(parsers.EncodingCondition(frozenset(name.encode() for name in options["encoding"])))
    quantities: tuple[parsers.Quantity, ...] = ("size", "elements", "memory")
    conditions += [parsers.parse_quantity(name, options[name]) for name in quantities if options[name] is not None]
    if options["ttl"] is not None:
        conditions.append(parsers.parse_expiry(options["ttl"]))
    if options["idle"] is not None:
        conditions.append(parsers.parse_idle(options["idle"]))
    return conditions


def _find(
    where: Where, clients: Sequence[RedisClient], conditions: Sequence[Condition], options: dict[str, Any]
) -> None:
    from redisfuse.cli._result_writer import report_unreadable, result_writer
    from redisfuse.survey.conditions import NameFilter, TypeCondition
    from redisfuse.survey.naming import DirectorySet, PathNamer, iter_named
    from redisfuse.survey.scan import KeySurvey

    with result_writer("scanning the keys") as writer:
        printer = RecordPrinter(
            writer,
            where,
            as_json=options["as_json"],
            long=options["long"],
            keys=options["keys"],
            nul=options["print0"],
        )
        directories = DirectorySet(where.codec.separator)
        survey = KeySurvey(
            clients,
            where.scope,
            NameFilter(where.codec.separator, options["key"], options["name"]),
            writer,
            directories if printer.needs_paths and not options["count"] else None,
        )
        directories.is_complete = where.scope.target is not None and options["field"] is None  # its path is WHERE
        of_fields: list[Condition] = []
        if options["field"] is not None:
            of_fields = [one for one in conditions if one.needs == "length"]
            conditions = [TypeCondition(frozenset([b"hash"])), *(one for one in conditions if one.needs != "length")]
        conditions = survey.scan_only(conditions)
        iter_found = partial(_iter_found, survey, conditions, options["field"], of_fields)
        if options["count"]:
            count = sum(1 for _ in iter_found(set()))
            writer.stop_bar()
            click.echo(str(min(count, options["limit"] or count)))
        elif printer.prints_only_keys and not (conditions or options["sort"] or options["field"] or where.scope.target):
            _print_keys(survey, printer, options["limit"])
        else:
            properties = printer.properties
            if options["sort"] and (name := _SORT_PROPERTIES[options["sort"]]) is not None:
                properties.add(name)
            found = _order(iter_found(properties), options["sort"], reverse=options["reverse"], limit=options["limit"])
            if printer.needs_paths:
                namer = PathNamer(where.codec, directories)
                for record, path in iter_named(found, namer, survey.iter_all_keys()):
                    printer.print(record, path)
            else:
                for _, record in found:
                    printer.print(record, None)
    report_unreadable(survey.unreadable)
    if printer.omitted_keys:
        print_err(
            f"{format_count(printer.omitted_keys, 'key')} with a NUL byte left out, which --print0 can't show: "
            f"use paths, without --keys, or --json"
        )


def _print_keys(survey: KeySurvey, printer: RecordPrinter, limit: int | None) -> None:
    """Print the keys of a survey without conditions, in batches."""
    for _, keys in survey.iter_keys():
        printer.print_keys(keys[:limit])
        if limit is not None:
            limit -= len(keys)
            if limit <= 0:
                return


def _iter_found(
    survey: KeySurvey,
    conditions: Sequence[Condition],
    field: bytes | None,
    of_fields: Sequence[Condition],
    properties: Collection[Property],
) -> Iterator[FoundRecord]:
    """Yield the keys that satisfy the conditions.

    With `field`, those of their fields that match it and satisfy `of_fields`.
    """
    if field is None:
        yield from survey.iter_records(conditions, properties)
        return
    from redisfuse.survey.fields import iter_fields

    for client, hashes in survey.iter_batches(conditions, {name for name in properties if name != "length"}):
        fields = list(iter_fields(client, hashes, field, survey.unreadable))
        for record in survey.select(client, fields, of_fields, [name for name in properties if name == "length"]):
            yield client, record


def _order(
    found: Iterable[FoundRecord], sort: str | None, *, reverse: bool, limit: int | None
) -> Iterable[FoundRecord]:
    """Return at most `limit` records in the order of `--sort`, then of names."""
    if sort is None:
        return islice(found, limit)
    if sort == "name":
        named = sorted(found, key=lambda one: _sort_name(one[1]), reverse=reverse)
        return named[:limit]
    sign = 1 if (sort == "ttl") != reverse else -1
    valued = ((_sort_value(one[1], sort), one) for one in found)
    pairs = ((sign * value, _sort_name(one[1]), one) for value, one in valued if value is not None)
    if limit is None:
        return [one for *_, one in sorted(pairs, key=lambda pair: pair[:2])]
    return [one for *_, one in heapq.nsmallest(limit, pairs, key=lambda pair: pair[:2])]


def _sort_name(record: KeyRecord) -> tuple[bytes, bytes]:
    return record.key, record.field or b""


def _sort_value(record: KeyRecord, sort: str) -> int | None:
    """Return the number that a record is sorted by; None if it has no such quantity."""
    if sort == "ttl":
        return record.ttl_ms if record.ttl_ms is not None and record.ttl_ms >= 0 else None
    value: int | None = record.idle_seconds if sort == "idle" else getattr(record, sort)
    return value
