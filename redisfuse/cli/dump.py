"""Write keys to an archive, from which `redisfuse load` creates them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli._named_servers import complete_where
from redisfuse.cli._options import SectionCommand, section_option
from redisfuse.cli._output import format_count
from redisfuse.cli._params import BYTES
from redisfuse.cli._terminal import print_err
from redisfuse.cli._where import WHERE_HELP, Where, resolve_where, where_options
from redisfuse.config import DEFAULTS
from redisfuse.errors import UsageError
from redisfuse.text import iso_utc

if TYPE_CHECKING:
    from redisfuse.client.client import RedisClient
    from redisfuse.survey.scan import KeySurvey
    from redisfuse.transactions.archive_file import ArchiveWriter

_KEYS = "Keys"


@click.command(cls=SectionCommand, epilog=WHERE_HELP)
@click.argument("words", nargs=-1, metavar="[WHERE] (FILE|DIR/)", shell_complete=complete_where)
@section_option(
    "--key",
    section=_KEYS,
    metavar="GLOB",
    multiple=True,
    type=BYTES,
    help="Only keys that match; may be repeated.",
)
@section_option(
    "--type",
    "types",
    section=_KEYS,
    metavar="TYPE[,TYPE…]",
    multiple=True,
    help="Only keys of these types.",
)
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@click.option("--resume", is_flag=True, help="Finish an interrupted dump; keys that it has are not read again.")
@click.option(
    "--dump-limit",
    type=click.IntRange(0),
    metavar="N",
    default=DEFAULTS["dump_limit"],
    show_default=True,
    help="Largest collection to write exactly, with DUMP, in elements; of larger ones only the elements are written.",
)
@where_options
@click.pass_context
def command(context: click.Context, /, words: Sequence[str], **options: Any) -> int:
    """Write keys to an archive, from which `redisfuse load` creates them.

    The archive is a file of JSON lines, compressed if its name ends in .gz or .zst; - is standard output. A name that
    ends in a slash is a directory, which gets one file for each key. Each key has its type, its expiry, its value as
    text and, except for strings, the exact copy that DUMP returns. Nothing is changed in Redis.

    \b
    redisfuse dump ~/redis/user users.jsonl.gz
    redisfuse dump redis://host/0#user: users/
    redisfuse dump redis://host/0#user: users/ --resume
    redisfuse dump redis://host/0 - | ssh backup 'cat > all.jsonl'
    """  # noqa: D301 - click reads the control character \b
    if not words:
        raise UsageError("no archive given: name a file, a directory with a slash at its end, or -")
    place = resolve_where(context, words[:-1])
    if place.scope.target is not None and place.scope.target.field is not None:
        raise UsageError(f"{words[0]} is a field; give its hash or a folder, or copy the field with cp")
    with place.connect() as clients:
        return _dump(place, clients, words[-1], options)


def _dump(place: Where, clients: Sequence[RedisClient], target: str, options: dict[str, Any]) -> int:
    from redisfuse.cli._result_writer import report_unreadable, result_writer
    from redisfuse.survey.conditions import NameFilter
    from redisfuse.survey.scan import KeySurvey
    from redisfuse.transactions.archive_file import STREAM_NAME, create_archive
    from redisfuse.transactions.archive_record import ArchiveHeader

    prefix = place.scope.prefix if place.scope.target is None else place.scope.target.key
    header = ArchiveHeader(clients[0].server_info.label, prefix, iso_utc(round(time.time() * 1000)))
    try:
        archive = create_archive(target, header, place.codec, force=options["force"], resume=options["resume"])
    except OSError as error:
        raise UsageError(f"{target} can't be written: {error.strerror}") from error
    try:
        with result_writer("dumping the keys") as progress:
            progress.on_terminal = False  # the bar is on standard error; standard output may be the archive
            survey = KeySurvey(clients, place.scope, NameFilter(place.codec.separator, options["key"]), progress)
            inexact, kept = _write_keys(survey, archive, options)
        archive.finish()
    except OSError as error:
        raise UsageError(f"{target} can't be written: {error.strerror}") from error
    finally:
        archive.close()
        if archive.unfinished_name:
            print_err(f"the keys so far are in {archive.unfinished_name}; add --resume to finish the dump")
    report_unreadable(survey.unreadable)
    summary = f"{format_count(archive.key_count, 'key')} written to {target}"
    if kept:
        summary += f"; {format_count(kept, 'key')} were there"
    if inexact:
        summary += f"; of {format_count(inexact, 'key')} the elements only, because of --dump-limit"
    click.echo(summary, file=sys.stderr if target == STREAM_NAME else sys.stdout)
    return 1 if survey.unreadable.count else 0


def _write_keys(survey: KeySurvey, archive: ArchiveWriter, options: dict[str, Any]) -> tuple[int, int]:
    """Write the keys of a survey.

    Returns how many have no exact copy, and how many the archive had.
    """
    from more_itertools import chunked

    from redisfuse.survey.conditions import parse_types
    from redisfuse.transactions.archive_record import ArchivedKey
    from redisfuse.transactions.unwatched_reader import MAX_KEYS_PER_READ, UnwatchedReader

    conditions = survey.scan_only([parse_types(options["types"])] if options["types"] else [])
    readers: dict[RedisClient, UnwatchedReader] = {}
    inexact = kept = 0
    for client, records in survey.iter_batches(conditions):
        reader = readers.setdefault(
            client,
            UnwatchedReader(client, dump_limit=options["dump_limit"], on_denied=survey.unreadable.add),
        )
        missing = [record.key for record in records if not archive.has_key(record.key)]
        kept += len(records) - len(missing)
        for keys in chunked(missing, MAX_KEYS_PER_READ):
            for key, current in reader.read(keys).items():
                archive.write(ArchivedKey(key, current.state))
                inexact += current.state.kind == "object" and current.state.content is None
    return inexact, kept
