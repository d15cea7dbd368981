"""Show a page of the documentation, or list the pages."""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

import redisfuse
from redisfuse.cli._output import is_terminal
from redisfuse.errors import UsageError

MAX_PAGE_WIDTH = 100  # columns on a terminal
MAX_SUGGESTIONS = 3  # names similar to an unknown topic

_IMAGE = re.compile(r"^!\[.*\n", re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
_RELATIVE_LINK = re.compile(r"\[([^\]]+)\]\((?![a-z+]+://)[^)]+\)")


@dataclass(frozen=True, slots=True)
class Page:
    """A page: its title, its summary, and its Markdown without comments."""

    title: str
    summary: str
    text: str

    @classmethod
    def read(cls, file: Traversable) -> Page:
        """Read a file that begins with `# TITLE`, a blank line and a one-line summary."""
        text = _COMMENT.sub("", file.read_text(encoding="utf-8"))
        title, _, rest = text.partition("\n")
        return cls(title.removeprefix("# "), rest.lstrip("\n").partition("\n")[0], text)


def read_pages() -> Mapping[str, Page]:
    """Return the pages by topic, sorted.

    They are those in redisfuse/docs, and SECURITY.md, which is there in a wheel and above it in a source tree.
    """
    folder = resources.files("redisfuse") / "docs"
    files = {file.name.removesuffix(".md"): file for file in folder.iterdir() if file.name.endswith(".md")}
    security = Path(redisfuse.__file__).resolve().parents[1] / "SECURITY.md"
    if "security" not in files and security.exists():
        files["security"] = security
    return {topic: Page.read(files[topic]) for topic in sorted(files)}


class Topic(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """The name of a page or of a command."""

    name = "topic"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Offer the pages."""
        return [
            CompletionItem(topic, help=page.summary)
            for topic, page in read_pages().items()
            if topic.startswith(incomplete)
        ]


@click.command
@click.argument("words", nargs=-1, type=Topic(), metavar="[TOPIC]")
@click.pass_context
def command(context: click.Context, /, words: tuple[str, ...]) -> None:
    """Show a page of the documentation, or list the pages.

    TOPIC is a page, or a command whose --help is shown, such as rollback or junk scan. On a terminal, a page is
    formatted and shown in the pager; in a pipe, it is Markdown.

    \b
    redisfuse help recipes
    redisfuse help rollback
    """  # noqa: D301 - click reads the control character \b
    pages = read_pages()
    if not words:
        _list_pages(pages)
    elif len(words) == 1 and words[0] in pages:
        _show_page(pages[words[0]])
    else:
        _show_command(context, words, pages)


def _list_pages(pages: Mapping[str, Page]) -> None:
    if not is_terminal():
        for topic, page in pages.items():
            click.echo(f"{topic}\t{page.title}\t{page.summary}")
        return
    formatter = click.HelpFormatter(width=min(shutil.get_terminal_size().columns, MAX_PAGE_WIDTH))
    with formatter.section("Pages"):
        formatter.write_dl([(topic, f"{page.title}: {page.summary}") for topic, page in pages.items()])
    click.echo(formatter.getvalue(), nl=False)
    click.echo("\n`redisfuse help TOPIC` shows a page, `redisfuse help COMMAND` the options of a command.")


def _show_page(page: Page) -> None:
    if is_terminal():
        click.echo_via_pager(_format_markdown(page.text))
    else:
        click.echo(page.text, nl=False)


def _format_markdown(text: str) -> str:
    """Return Markdown as text for this terminal, without images and link targets."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(width=min(shutil.get_terminal_size().columns, MAX_PAGE_WIDTH))
    with console.capture() as capture:
        console.print(
            Markdown(_RELATIVE_LINK.sub(r"**\1**", _IMAGE.sub("", text)), code_theme="ansi_dark", hyperlinks=False)
        )
    return capture.get()


def _show_command(context: click.Context, words: Sequence[str], pages: Mapping[str, Page]) -> None:
    """Print the `--help` of a command, or of a command in a group.

    Raises UsageError for words that are neither a page nor a command.
    """
    from redisfuse.cli.main import group

    root = context.find_root()
    command: Any = group
    child = root
    for word in words:
        command = command.get_command(child, word) if isinstance(command, click.Group) else None
        if command is None:
            break
        child = click.Context(command, parent=child, info_name=word)
    if command is None:
        name = " ".join(words)
        similar = difflib.get_close_matches(name, [*pages, *group.list_commands(root)], n=MAX_SUGGESTIONS, cutoff=0.5)
        hint = f"did you mean {' or '.join(similar)}? " if similar else ""
        raise UsageError(f"no page or command {name!r}; {hint}`redisfuse help` lists the pages")
    click.echo(command.get_help(child))
