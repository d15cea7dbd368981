"""Show a page of the documentation, or list the pages."""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import click
from click.shell_completion import CompletionItem

from redisfuse.cli._output import is_terminal
from redisfuse.errors import UsageError

WIDEST = 100  # columns of a page on a terminal
SUGGESTED = 3  # names that resemble an unknown topic

_COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
_RELATIVE_LINK = re.compile(r"\[([^\]]+)\]\((?![a-z+]+://)[^)]+\)")


@dataclass(frozen=True, slots=True)
class Page:
    """One page: its title, the line below the title, and its Markdown, without comments."""

    title: str
    summary: str
    text: str

    @classmethod
    def read(cls, file: Traversable) -> Page:
        """Read a file that begins with `# TITLE`, a blank line and one line of summary."""
        text = _COMMENT.sub("", file.read_text(encoding="utf-8"))
        title, _, rest = text.partition("\n")
        return cls(title.removeprefix("# "), rest.lstrip("\n").partition("\n")[0], text)


def read_pages() -> Mapping[str, Page]:
    """Return the pages in redisfuse/docs by topic, sorted."""
    folder = resources.files("redisfuse") / "docs"
    files = {file.name.removesuffix(".md"): file for file in folder.iterdir() if file.name.endswith(".md")}
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
@click.argument("topic", required=False, type=Topic())
@click.pass_context
def command(context: click.Context, /, topic: str | None) -> None:
    """Show a page of the documentation, or list the pages.

    TOPIC is the name of a page, or of a command, whose --help is shown then. On a terminal a page is formatted and
    shown in the pager; piped, it is Markdown.
    """
    pages = read_pages()
    if topic is None:
        _list(pages)
    elif topic in pages:
        _show(pages[topic])
    else:
        _show_command(context, topic, pages)


def _list(pages: Mapping[str, Page]) -> None:
    if not is_terminal():
        for topic, page in pages.items():
            click.echo(f"{topic}\t{page.title}\t{page.summary}")
        return
    formatter = click.HelpFormatter(width=min(shutil.get_terminal_size().columns, WIDEST))
    with formatter.section("Pages"):
        formatter.write_dl([(topic, f"{page.title}: {page.summary}") for topic, page in pages.items()])
    click.echo(formatter.getvalue(), nl=False)
    click.echo("\n`redisfuse help TOPIC` shows one; `redisfuse help COMMAND` the options of a command.")


def _show(page: Page) -> None:
    if is_terminal():
        click.echo_via_pager(_formatted(page.text))
    else:
        click.echo(page.text, nl=False)


def _formatted(text: str) -> str:
    """Return Markdown as text for this terminal; the targets of relative links are dropped."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(width=min(shutil.get_terminal_size().columns, WIDEST))
    with console.capture() as capture:
        console.print(Markdown(_RELATIVE_LINK.sub(r"**\1**", text), code_theme="ansi_dark", hyperlinks=False))
    return capture.get()


def _show_command(context: click.Context, name: str, pages: Mapping[str, Page]) -> None:
    """Print the `--help` of a command. Raises UsageError for a name that is neither a page nor a command."""
    from redisfuse.cli.main import group

    root = context.find_root()
    found: Any = group.get_command(root, name)
    if found is None:
        near = difflib.get_close_matches(name, [*pages, *group.list_commands(root)], n=SUGGESTED, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(f"there is no page or command {name!r}; {hint}`redisfuse help` lists the pages")
    with click.Context(found, parent=root, info_name=name) as child:
        click.echo(found.get_help(child))
