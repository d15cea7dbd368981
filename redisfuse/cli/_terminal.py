"""Saying things, so that whatever a key holds can't reach the terminal but as text."""

import click

from redisfuse.text import for_terminal


def print_out(text: str) -> None:
    """Print one line of result on standard output."""
    click.echo(for_terminal(text))


def print_err(text: str) -> None:
    """Print one line about what happens on standard error, where it disturbs no pipe."""
    click.echo(f"redisfuse: {for_terminal(text)}", err=True)
