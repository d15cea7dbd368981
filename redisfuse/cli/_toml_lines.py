"""The lines of the settings in a TOML file, which `tomllib` does not report."""

import re

_TABLE = re.compile(r"\s*\[\[?([^\[\]#]+)\]\]?\s*(?:#.*)?$")
_SETTING = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_NAME = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
_LONG_QUOTES = re.compile(r"\"\"\"|'''")


def find_setting_lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the line of each setting and table.

    The keys are the names from the top, such as `("mount", "rate")`. `text` must be valid TOML. The settings of an
    inline table have only the line of the table.
    """
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    open_quotes = ""
    for number, line in enumerate(text.splitlines(), 1):
        is_inside = bool(open_quotes)
        for quotes in _LONG_QUOTES.findall(line):
            open_quotes = "" if quotes == open_quotes else open_quotes or quotes
        if is_inside:
            continue
        if match := _TABLE.match(line):
            table = _split_names(match[1])
            names = table
        elif match := _SETTING.match(line):
            names = (*table, *_split_names(match[1]))
        else:
            continue
        for depth in range(1, len(names) + 1):
            lines.setdefault(names[:depth], number)
    return lines


def _split_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip("\"'") for name in _NAME.findall(text))
