"""The manual pages in redisfuse/docs/man, generated from click by click-man: one for redisfuse, one for each command.

`python -m tests.support.man_pages` writes them. The wheel installs them under share/man/man1.
"""

import re
from collections.abc import Iterator, Mapping
from inspect import cleandoc
from pathlib import Path

import click
from click_man.man import ManPage

import redisfuse
from redisfuse.cli.main import group
from tests.support.reference import all_commands

FOLDER = Path(__file__).parents[2] / "redisfuse" / "docs" / "man"

_NAME = "redisfuse"
_UNWRAPPED = "\b\n"  # begins a paragraph that click does not wrap
_MORE = r"""
.SH EXIT STATUS
.TP
\fB0\fP
Done.
.TP
\fB1\fP
Refused, or trouble found.
.TP
\fB2\fP
Usage: the command line or the configuration is wrong.
.TP
\fB130\fP
Interrupted.
.SH ENVIRONMENT
.TP
\fBREDISFUSE_\fP\fIOPTION\fP
The value of an option, as in REDISFUSE_RENDER_LIMIT=5.
.TP
\fBREDISFUSE_PASSWORD\fP
The password of the server.
.SH FILES
.TP
\fI/etc/redisfuse.toml\fP, \fI~/.config/redisfuse/config.toml\fP
The configuration; the user's settings win.
.TP
\fI~/.local/state/redisfuse/journal.db\fP
The journal.
.SH SEE ALSO
\fBredisfuse help\fP lists the pages of the documentation, and \fBredisfuse help\fP \fITOPIC\fP shows one.
.PP
\fBredis\-cli\fP(1), \fBmount\fP(8), \fBfusermount3\fP(1), \fBgetfattr\fP(1)
"""


def pages() -> Mapping[str, str]:
    """Return every manual page by its file name."""
    root = click.Context(group, info_name=_NAME)
    commands = all_commands()
    contexts = {"": root}
    for name, command in commands.items():  # a group comes before its commands
        parent, _, word = name.rpartition(" ")
        contexts[name] = click.Context(command, parent=contexts[parent], info_name=word)
    return {
        f"{context.command_path.replace(' ', '-')}.1": _page(context, _children(name, commands))
        + (_MORE.lstrip() if context is root else f".SH SEE ALSO\n\\fB{_NAME}\\fP(1)\n")
        for name, context in contexts.items()
    }


def write() -> None:
    """Replace the pages in the repository."""
    FOLDER.mkdir(exist_ok=True)
    for file in FOLDER.iterdir():
        file.unlink()
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


def _children(parent: str, commands: Mapping[str, click.Command]) -> dict[str, click.Command]:
    return {name: command for name, command in commands.items() if name.rpartition(" ")[0] == parent}


def _page(context: click.Context, children: Mapping[str, click.Command]) -> str:
    """Return click-man's page of a command, with a section for the commands of a group."""
    command = context.command
    page = ManPage(context.command_path)
    page.version = f"{_NAME} {redisfuse.__version__}"
    page.date = ""  # the page changes with the program, not with the day of its build
    page.short_help = _inline(_summary(command).rstrip("."))
    page.synopsis = " ".join(command.collect_usage_pieces(context))
    page.description = _paragraphs(command.help or "")
    records = [option.get_help_record(context) for option in command.params if isinstance(option, click.Option)]
    page.options = [(name, _paragraphs(text)) for name, text in filter(None, records)]
    title, _, rest = str(page).partition("\n")
    title = title.replace(context.command_path.upper(), context.command_path.upper().replace(" ", "-"))
    title = title.replace(f"{context.command_path} Manual", f"{_NAME} manual")
    text = "\n".join([title, rest.rstrip("\n"), *_commands(children)]) + "\n"
    return text.replace("…", "...")  # roff sources are ASCII


def _commands(children: Mapping[str, click.Command]) -> Iterator[str]:
    if children:
        yield ".SH COMMANDS"
    for name, command in children.items():
        page = f"{_NAME}-{name.replace(' ', '-')}".replace("-", r"\-")
        yield from (".TP", rf"\fB{page}\fP(1)", _inline(_summary(command)))


def _summary(command: click.Command) -> str:
    """Return the first paragraph of a command's help in one line."""
    return " ".join((command.help or "").partition("\n\n")[0].split())


def _paragraphs(text: str) -> str:
    """Return a help text in roff; blank lines, which separate paragraphs, are click-man's work."""
    parts = []
    for paragraph in cleandoc(text).split("\n\n"):
        if paragraph.startswith(_UNWRAPPED):
            lines = paragraph.removeprefix(_UNWRAPPED).split("\n")
            parts.append("\n".join([".nf", *map(_inline, lines), ".fi"]))
        else:
            parts.append(_inline(" ".join(paragraph.split())))
    return "\n\n".join(parts)


def _inline(line: str) -> str:
    """Return one line in roff: escaped, what is between backticks in bold."""
    line = line.replace("\\", r"\e").replace("-", r"\-")
    line = re.sub(r"`([^`]+)`", r"\\fB\1\\fP", line)
    return rf"\&{line}" if line.startswith((".", "'")) else line


if __name__ == "__main__":
    write()
