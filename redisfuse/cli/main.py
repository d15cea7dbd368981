"""The entry point: finds the commands, lets `mount` be the one that need not be named, makes one line of errors.

A command's module is imported only when the command is used, so that `redisfuse --version` stays quick. Exit statuses:
0 done, 1 refused or found trouble, 2 usage, 130 interrupted.
"""

import contextlib
import importlib
import importlib.util
import logging
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader
from pathlib import Path
from typing import Any

import click

import redisfuse
from redisfuse import cli
from redisfuse.cli._redact import redact_argv, redact_passwords
from redisfuse.cli._terminal import print_err
from redisfuse.errors import RedisFuseError

DEFAULT_COMMAND = "mount"


class CommandGroup(click.Group):
    """The group of all commands, read from the modules beside this one."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Every command, the default one first."""
        names = [module.name for module in pkgutil.iter_modules(cli.__path__)]
        commands = sorted(name for name in names if not name.startswith("_") and name != "main")
        return sorted(commands, key=lambda name: name != DEFAULT_COMMAND)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module. Its environment variables are REDISFUSE_OPTION, whatever the command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"redisfuse.cli.{cmd_name}").command
        assert isinstance(command, click.Command), cmd_name
        command.context_settings.setdefault("auto_envvar_prefix", "REDISFUSE")
        command.context_settings.setdefault("help_option_names", ["-h", "--help"])
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `mount` in front of the first word that is neither an option of the group nor a command."""
        first = self._find_command_index(args)
        if first < len(args) and args[first] not in self.list_commands(ctx):
            args = [*args[:first], DEFAULT_COMMAND, *args[first:]]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, and give it the configuration's defaults."""
        name, command, rest = super().resolve_command(ctx, args)
        if name and command and not ctx.resilient_parsing:
            from redisfuse.cli import _config

            ctx.obj = _config.load_config_files(ctx.params["config"])
            ctx.default_map = {name: ctx.obj.build_default_map(name, command)}
            if name == DEFAULT_COMMAND:
                ctx.obj.check_top_level(command)
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The first line of each module's docstring, read without importing it."""
        rows = [(name, _read_summary(name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Complete commands, and the options of the command that need not be named."""
        found = super().shell_complete(ctx, incomplete)
        default = self.get_command(ctx, DEFAULT_COMMAND) if incomplete.startswith("-") else None
        if default:
            with click.Context(default, parent=ctx, info_name=DEFAULT_COMMAND) as child:
                found += default.shell_complete(child, incomplete)
        return found

    def _find_command_index(self, args: Sequence[str]) -> int:
        """Where the group's own options end."""
        options = {name: param for param in self.params if isinstance(param, click.Option) for name in param.opts}
        position = 0
        while position < len(args):
            name, equals, _ = args[position].partition("=")
            if args[position] in ("-h", "--help"):
                position += 1
            elif name in options:
                takes_next = not options[name].is_flag and not equals
                position += 2 if takes_next else 1
            else:
                break
        return position


@click.group(
    name="redisfuse",
    cls=CommandGroup,
    subcommand_metavar="[COMMAND] ...",
    context_settings={"auto_envvar_prefix": "REDISFUSE", "help_option_names": ["-h", "--help"]},
    epilog="`redisfuse COMMAND --help` says more; `redisfuse mount --help` has the options of a mount.",
)
@click.version_option(redisfuse.__version__, prog_name="redisfuse", message="%(prog)s %(version)s")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Read this configuration file, instead of /etc/redisfuse.toml and the user's.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks, and log what is done.")
def group(config: Path | None, debug: bool) -> None:
    """Mount a Redis server as a folder: read-only by default, every write journaled and reversible.

    \b
    redisfuse 127.0.0.1 6379 MOUNTPOINT            look, without any way of hurting
    redisfuse redis://host:6379/0 MOUNTPOINT       the same, by URL
    redisfuse --write --journal HOST PORT MOUNTPOINT
                                                   edit; each change can be taken back
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; answers the exit status. Nothing but one line ever reaches the user from an error."""
    redact_argv()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = group.main(words, prog_name="redisfuse", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _report_error(error, error.exit_code, _usage_hint(error))
    except RedisFuseError as error:
        return _report_error(error, error.exit_status)
    except BrokenPipeError:
        # The reader went away (`| head`): no error. Python would still try to flush at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, click.Abort):
        return 130
    except Exception as error:  # the last wall: a bug must not print a traceback
        return _report_bug(error, debug="--debug" in words)


def _report_error(error: Exception, status: int, hint: str = "") -> int:
    text = error.format_message() if isinstance(error, click.ClickException) else str(error)
    print_err(redact_passwords(f"{text or type(error).__name__}{hint}"))
    return status


def _report_bug(error: Exception, *, debug: bool) -> int:
    log = logging.getLogger("redisfuse")
    logged = any(isinstance(handler, logging.FileHandler) for handler in logging.getLogger().handlers)
    if logged:
        log.error("unexpected error", exc_info=error)
    elif debug:
        import traceback

        for line in redact_passwords("".join(traceback.format_exception(error))).splitlines():
            print_err(line)
    where = "the traceback is in the log" if logged else "add --debug for the traceback"
    print_err(
        redact_passwords(
            f"a bug: {type(error).__name__}: {error}; {where if logged or not debug else 'please report it'}"
        )
    )
    return 1


def _usage_hint(error: click.ClickException) -> str:
    """How to find out more about a usage error, on the same line."""
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return ""
    return f" (see {error.ctx.command_path} --help)"


def _read_summary(name: str) -> str:
    spec = importlib.util.find_spec(f"redisfuse.cli.{name}")
    source = spec.loader.get_source(spec.name) if spec and isinstance(spec.loader, InspectLoader) else None
    first = (source or "").partition("\n")[0]
    return first.removeprefix("r").strip('"')


if __name__ == "__main__":
    sys.exit(main())
