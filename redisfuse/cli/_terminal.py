"""Printing lines in which control characters are escaped."""

import click

from redisfuse.text import for_terminal


def print_out(text: str) -> None:
    """Print one line of a result to standard output."""
    click.echo(for_terminal(text))


def print_err(text: str) -> None:
    """Print one message to standard error, which keeps pipes clean."""
    click.echo(f"redisfuse: {for_terminal(text)}", err=True)
