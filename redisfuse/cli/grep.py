"""Search values, fields and elements for a pattern, as `grep -r` does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli._decode_options import build_decode_limits, decode_options
from redisfuse.cli._match_output import MatchPrinter, OutputMode
from redisfuse.cli._named_servers import complete_where
from redisfuse.cli._options import SectionCommand, section_option
from redisfuse.cli._output import json_option
from redisfuse.cli._params import BYTES
from redisfuse.cli._where import WHERE_HELP, Where, resolve_where, where_options
from redisfuse.errors import UsageError

if TYPE_CHECKING:
    import re

    from redisfuse.client.client import RedisClient
    from redisfuse.rendering.decoding.limits import DecodeLimits

_MATCHING = "Matching"
_KEYS = "Keys"
_OUTPUT = "Output"


_flag = partial(section_option, is_flag=True)
_number = partial(section_option, section=_OUTPUT, type=click.IntRange(0))
_globs = partial(section_option, section=_KEYS, metavar="GLOB", multiple=True, type=BYTES)


@click.command(cls=SectionCommand, epilog=WHERE_HELP)
@click.argument("words", nargs=-1, metavar="PATTERN [WHERE]", shell_complete=complete_where)
@section_option(
    "-e",
    "--regexp",
    section=_MATCHING,
    metavar="PATTERN",
    multiple=True,
    help="A pattern, which may begin with a dash; may be repeated. The only argument is WHERE then.",
)
@_flag("-E", "--extended-regexp", section=_MATCHING, help="PATTERN is an extended regular expression, not a basic one.")
@_flag("-F", "--fixed-strings", section=_MATCHING, help="PATTERN is literal.")
@_flag("-i", "--ignore-case", section=_MATCHING, help="Ignore case.")
@_flag("-w", "--word-regexp", section=_MATCHING, help="Match whole words only.")
@_flag("-x", "--line-regexp", section=_MATCHING, help="Match whole lines only.")
@_flag("-v", "--invert-match", section=_MATCHING, help="Select the lines that don't match.")
@section_option(
    "--type",
    section=_KEYS,
    multiple=True,
    metavar="TYPE[,TYPE…]",
    help="Search string, list, set, zset, hash, stream or json keys only.",
)
@_globs("--name", help="Search keys whose last component matches; may be repeated.")
@_globs("--key", help="Search keys that match as a whole; may be repeated.")
@_flag("--names", section=_KEYS, help="Search the names of keys and fields, too; a match prints the path.")
@_flag("--decode", section=_KEYS, help="Search what is inside values: their NAME%text, whose path a match prints.")
@_flag("-l", "--files-with-matches", section=_OUTPUT, help="Print only the paths of files with selected lines.")
@_flag("-c", "--count", section=_OUTPUT, help="Print the number of selected lines of each file that has any.")
@_flag("-n", "--line-number", section=_OUTPUT, help="Print line numbers.")
@_flag("-o", "--only-matching", section=_OUTPUT, help="Print only the parts of lines that match, one a line.")
@_flag("-a", "--text", section=_OUTPUT, help="Print lines of binary values, too.")
@_number("-m", "--max-count", metavar="N", help="Print at most N lines of a file.")
@_number("-A", "--after-context", metavar="N", help="Print N lines after each selected one.")
@_number("-B", "--before-context", metavar="N", help="Print N lines before each selected one.")
@_number("-C", "--context", metavar="N", help="Print N lines before and after each selected one.")
@_flag("-Z", "--null", "nul", section=_OUTPUT, help="End paths with a NUL byte; with -l, for xargs -0.")
@section_option(
    "--color",
    section=_OUTPUT,
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Colour matches; auto is on a terminal.",
)
@json_option
@decode_options
@where_options
@click.pass_context
def command(context: click.Context, /, words: Sequence[str], **options: Any) -> int:
    """Search values, fields and elements for a pattern, as `grep -r` does.

    The lines are those of the files of a mount, but they are read in pipelines, without the kernel. Hashes are searched
    field by field. The exit status is 1 if no line is selected.

    \b
    redisfuse grep -i timeout ~/redis/session
    redisfuse grep -lF '"user": 1003' redis://host/0 --key 'session:*'
    redisfuse grep -nE 'attempt": [3-9]' ~/redis/queue -C 1
    redisfuse grep --decode -l ada@example.com ~/redis
    """  # noqa: D301 - click reads the control character \b
    from redisfuse.survey.patterns import compile_pattern

    if not words and not options["regexp"]:
        raise UsageError("no pattern is given: write PATTERN [WHERE]")
    patterns, where = (options["regexp"], words) if options["regexp"] else (words[:1], words[1:])
    if options["fixed_strings"] and options["extended_regexp"]:
        raise UsageError("-E and -F contradict each other")
    if options["as_json"] and (options["files_with_matches"] or options["count"] or options["nul"]):
        raise UsageError("--json prints selected lines; it can't be combined with -l, -c or -Z")
    expression = compile_pattern(
        "\n".join(patterns),
        fixed=options["fixed_strings"],
        extended=options["extended_regexp"],
        ignore_case=options["ignore_case"],
        whole_word=options["word_regexp"],
        whole_line=options["line_regexp"],
    )
    place = resolve_where(context, where)
    with place.connect() as clients:
        limits = build_decode_limits(context, place.decode_settings) if options["decode"] else None
        return 0 if _search(place, clients, expression, options, limits) else 1


def _search(
    where: Where,
    clients: Sequence[RedisClient],
    pattern: re.Pattern[str],
    options: dict[str, Any],
    decode_limits: DecodeLimits | None,
) -> bool:
    """Print the selected lines; return whether there was any."""
    from redisfuse.cli._result_writer import report_unreadable, result_writer
    from redisfuse.survey.conditions import NameFilter, parse_types
    from redisfuse.survey.naming import DirectorySet, PathNamer
    from redisfuse.survey.scan import KeySurvey
    from redisfuse.survey.search import ContentSearch

    search = ContentSearch(
        pattern,
        options["invert_match"],
        options["text"],
        in_names=options["names"],
        hashes_as_files=where.hashes == "files",
        max_sorted=where.render_limit,
        decode_limits=decode_limits,
    )
    directories = DirectorySet(where.codec.separator)
    namer = PathNamer(where.codec, directories)
    with result_writer("reading the names of keys") as writer:
        printer = MatchPrinter(writer, where, search, OutputMode.from_options(options))
        names = NameFilter(where.codec.separator, options["key"], options["name"])
        survey = KeySurvey(clients, where.scope, names, writer, directories)
        if where.scope.target is None:
            # Then each match is printed when it is found, with its path.
            directories.complete(survey.iter_all_keys())
        writer.restart("searching")
        conditions = survey.scan_only([parse_types(options["type"])] if options["type"] else [])
        for client, contents in search.iter_candidates(survey, conditions):
            paths = namer.build_paths(client, [content.record for content in contents])
            for content, path in zip(contents, paths, strict=True):
                printer.print(content, path if decode_limits is None else where.codec.view_path(path, "text"))
    report_unreadable(survey.unreadable)
    return printer.has_selected
