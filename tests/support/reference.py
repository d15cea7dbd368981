"""The tables of commands and options in redisfuse/docs/commands.md, generated from click.

`python -m tests.support.reference` writes them into the page, between `<!-- NAME -->` and `<!-- end -->`.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import click

from redisfuse.cli.main import group

PAGE = Path(__file__).parents[2] / "redisfuse" / "docs" / "commands.md"


def all_commands() -> dict[str, click.Command]:
    """Return every command by name; those of a group as `junk list`."""
    context = click.Context(group)
    commands: dict[str, click.Command] = {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        commands[name] = command
        if isinstance(command, click.Group):
            commands |= {f"{name} {child}": command.commands[child] for child in command.commands}
    return commands


def rewritten(page: str) -> str:
    """Return the page with current tables."""
    for name, lines in (("commands", command_table()), ("options", option_tables())):
        table = "\n".join(lines)
        before, start, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert start, f"no place for the {name}"
        assert end, f"no end of the {name}"
        page = f"{before}{start}{table}\n{end}{after}"
    return page


def command_table() -> Iterator[str]:
    """Yield a row for each command that is not a group: its usage and the first line of its help."""
    yield "| Command | What it does |"
    yield "|---|---|"
    for name, command in all_commands().items():
        if isinstance(command, click.Group):
            continue
        pieces = [piece for piece in command.collect_usage_pieces(click.Context(command)) if piece != "[OPTIONS]"]
        summary = " ".join((command.help or "").partition("\n\n")[0].split())
        yield f"| `{_cell(' '.join(['redisfuse', name, *pieces]))}` | {_cell(summary)} |"


def option_tables() -> Iterator[str]:
    """Yield a table for each section of `redisfuse mount --help`: the option, its default and its help."""
    mount = all_commands()["mount"]
    options = [option for option in mount.params if isinstance(option, click.Option)]
    for number, (section, members) in enumerate(groupby(options, lambda option: str(getattr(option, "section", "")))):
        yield from ([""] if number else [])
        yield from (f"### {section}", "", "| Option | Default | Meaning |", "|---|---|---|")
        yield from (_option_row(mount, option) for option in members)


def _option_row(mount: click.Command, option: click.Option) -> str:
    context = click.Context(mount)
    record = option.get_help_record(context)
    assert record is not None
    default = option.show_default if isinstance(option.show_default, str) else f"`{option.get_default(context)}`"
    if not option.show_default or option.is_flag:
        default = ""
    return f"| `{_cell(record[0])}` | {default} | {_cell(option.help or '')} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
