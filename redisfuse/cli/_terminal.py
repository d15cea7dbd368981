"""Saying things, so that whatever a key holds can't reach the terminal but as text."""

import click

from redisfuse.text import printable


def say(text: str) -> None:
    """Print one line of result on standard output."""
    click.echo(printable(text))


def tell(text: str) -> None:
    """Print one line about what happens on standard error, where it disturbs no pipe."""
    click.echo(f"redisfuse: {printable(text)}", err=True)
