"""Show the biggest folders and keys, the busiest keys, or queues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from redisfuse.cli._options import SectionCommand, section_option
from redisfuse.cli._output import json_option
from redisfuse.cli._params import BYTES
from redisfuse.cli._where import WHERE_HELP, Where, resolve_where, where_argument, where_options
from redisfuse.errors import UsageError

if TYPE_CHECKING:
    from redisfuse.client.client import RedisClient

_VIEWS = "Views"
_WHAT = "Selection"


@click.command(cls=SectionCommand, epilog=WHERE_HELP)
@where_argument
@section_option(
    "--by",
    section=_WHAT,
    type=click.Choice(["memory", "bytes", "elements", "keys"]),
    default="memory",
    show_default=True,
    help="Measure: memory in the server, bytes of strings, elements of collections, or number of keys.",
)
@section_option(
    "--depth",
    section=_WHAT,
    type=click.IntRange(0, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Levels of folders to show; 0 is only the total.",
)
@section_option(
    "--limit",
    section=_WHAT,
    type=click.IntRange(0),
    default=10,
    show_default=True,
    metavar="N",
    help="Show at most N folders of a level, N keys, or N queues; 0 is all folders or queues, and no keys.",
)
@section_option(
    "--key", section=_WHAT, help="Only keys that match; may be repeated.", metavar="GLOB", multiple=True, type=BYTES
)
@section_option(
    "--sample",
    section=_WHAT,
    type=click.IntRange(1),
    metavar="N",
    help="Estimate from about N keys, with the error.",
)
@section_option(
    "--expiries/--no-expiries",
    section=_WHAT,
    default=True,
    show_default=True,
    help="Count when the keys expire, which costs a command for each.",
)
@section_option(
    "--queues", section=_VIEWS, is_flag=True, help="Show lists and streams: length, oldest entry, consumers, lag."
)
@section_option(
    "--changes",
    section=_VIEWS,
    is_flag=True,
    help="Watch which keys change most, from the server's messages; includes other databases.",
)
@section_option(
    "--seconds",
    section=_VIEWS,
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="With --changes: how long to watch before printing; by default until Ctrl-C on a terminal, else 10.",
)
@json_option
@where_options
@click.pass_context
def command(context: click.Context, /, where: Sequence[str], **options: Any) -> None:
    """Show the biggest folders and keys, the busiest keys, or queues.

    Each folder has its sum, its share, its number of keys, and when they expire: the columns 1m to 30d count keys that
    expire within that time, and not within that of the column before.

    \b
    redisfuse top ~/redis --depth 2
    redisfuse top redis://host/0 --sample 10000
    redisfuse top ~/redis --queues
    redisfuse top ~/redis --changes
    """  # noqa: D301 - click reads the control character \b
    views = [name for name in ("queues", "changes") if options[name]]
    if len(views) == 2:
        raise UsageError("--queues and --changes are separate views; give one of them")
    if views and options["sample"]:
        raise UsageError(f"--sample is for sizes; it can't be combined with --{views[0]}")
    sized = [
        name
        for name in ("by", "depth", "expiries")
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if views and sized:
        raise UsageError(f"--{sized[0]} is for sizes; it can't be combined with --{views[0]}")
    if options["seconds"] and not options["changes"]:
        raise UsageError("--seconds is for --changes")
    place = resolve_where(context, where)
    if place.scope.target is not None and not options["changes"]:
        raise UsageError("WHERE is one key; give a folder or a server, or use `redisfuse find --ls`")
    with place.connect() as clients:
        if options["changes"]:
            _watch_changes(place, clients, options)
        elif options["queues"]:
            _show_queues(place, clients, options)
        else:
            _show_usage(place, clients, options)


def _show_usage(where: Where, clients: Sequence[RedisClient], options: dict[str, Any]) -> None:
    from redisfuse.cli._result_writer import report_unreadable, result_writer
    from redisfuse.cli._usage_output import UsagePrinter
    from redisfuse.survey.conditions import NameFilter
    from redisfuse.survey.naming import DirectorySet, PathNamer
    from redisfuse.survey.scan import KeySurvey
    from redisfuse.survey.usage import UsageCollector

    with result_writer("measuring the keys") as writer:
        directories = DirectorySet(where.codec.separator)
        names = NameFilter(where.codec.separator, options["key"])
        survey = KeySurvey(clients, where.scope, names, writer, directories)
        collector = UsageCollector(
            survey,
            options["by"],
            separator=where.codec.separator,
            depth=options["depth"],
            biggest=options["limit"],
            expiries=options["expiries"],
        )
        report = collector.collect(options["sample"])
        namer = PathNamer(where.codec, directories)
        paths = [namer.build_paths(client, [record])[0] for client, record in report.biggest]
    printer = UsagePrinter(where, report, root=collector.root, limit=options["limit"])
    if options["as_json"]:
        printer.print_json(paths)
    else:
        printer.print_table(paths)
    report_unreadable(survey.unreadable)


def _show_queues(where: Where, clients: Sequence[RedisClient], options: dict[str, Any]) -> None:
    from redisfuse.cli._queue_output import print_queues
    from redisfuse.cli._result_writer import report_unreadable, result_writer
    from redisfuse.survey.conditions import NameFilter, TypeCondition
    from redisfuse.survey.naming import DirectorySet, PathNamer
    from redisfuse.survey.queues import Queue, fetch_queues
    from redisfuse.survey.scan import KeySurvey

    queues: list[tuple[RedisClient, Queue]] = []
    with result_writer("looking for queues") as writer:
        directories = DirectorySet(where.codec.separator)
        names = NameFilter(where.codec.separator, options["key"])
        survey = KeySurvey(clients, where.scope, names, writer, directories)
        is_queue = survey.scan_only([TypeCondition(frozenset([b"list", b"stream"]))])
        for client, records in survey.iter_batches(is_queue, ["length"]):
            queues += [(client, queue) for queue in fetch_queues(client, records)]
        queues.sort(key=lambda one: (-(one[1].record.length or 0), one[1].record.key))
        del queues[options["limit"] or len(queues) :]
        if queues:
            directories.complete(survey.iter_all_keys())
        namer = PathNamer(where.codec, directories)
        paths = [namer.build_paths(client, [queue.record])[0] for client, queue in queues]
    print_queues(where, [queue for _, queue in queues], paths, as_json=options["as_json"])
    report_unreadable(survey.unreadable)


def _watch_changes(where: Where, clients: Sequence[RedisClient], options: dict[str, Any]) -> None:
    from redisfuse.cli._change_counts import ChangeCountsOutput
    from redisfuse.survey.changes import ChangeCounter

    target = where.scope.target
    counter = ChangeCounter(clients, where.scope.prefix if target is None else target.key)
    view = ChangeCountsOutput(where, counter, limit=options["limit"] or 10, as_json=options["as_json"])
    counter.start()
    try:
        view.run(options["seconds"])
    finally:
        counter.close()
