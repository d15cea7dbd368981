"""The entry point: finds the commands, defaults to `mount`, prints errors.

A command's module is imported only when the command is used, which keeps `redisfuse --version` fast. Exit statuses:
0 success, 1 failure or problems found, 2 usage error, 130 interrupted. An error is one line.
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
from redisfuse.errors import RedisFuseError, UsageError

DEFAULT_COMMAND = "mount"


class CommandGroup(click.Group):
    """The group of all commands: the modules of this package."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command line, or complete one for a shell."""
        if os.environ.get("_REDISFUSE_COMPLETE", "").startswith("bash_"):
            from redisfuse.cli import _bash_completion

            _bash_completion.register()
        return super().main(*args, **options)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of all commands, the default one first."""
        names = [module.name for module in pkgutil.iter_modules(cli.__path__)]
        commands = sorted(name for name in names if not name.startswith("_") and name != "main")
        return sorted(commands, key=lambda name: name != DEFAULT_COMMAND)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module.

        The environment variable of an option is REDISFUSE_OPTION in every command.
        """
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"redisfuse.cli.{cmd_name}").command
        assert isinstance(command, click.Command), cmd_name
        command.context_settings.setdefault("auto_envvar_prefix", "REDISFUSE")
        command.context_settings.setdefault("help_option_names", ["-h", "--help"])
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `mount` if the first word after the group's options is not a command."""
        index = self._find_command_index(args)
        if index < len(args) and args[index] not in self.list_commands(ctx):
            args = [*args[:index], DEFAULT_COMMAND, *args[index:]]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command and apply the configuration's defaults to it."""
        name, command, rest = super().resolve_command(ctx, args)
        if name and command and not ctx.resilient_parsing:
            self._apply_configuration(ctx, name, command)
        return name, command, rest

    def _apply_configuration(self, ctx: click.Context, name: str, command: click.Command) -> None:
        """Load the configuration files as defaults, and refuse unknown names.

        A command without any option of a mount, such as `umount`, works with a wrong configuration.
        """
        from redisfuse.cli._config_files import TABLE_NAMES, load_config_files
        from redisfuse.cli._spelling import check_environment, find_unknown_variables

        mount = self.get_command(ctx, DEFAULT_COMMAND)
        assert mount is not None
        is_affected = not _list_options(command).isdisjoint(_list_options(mount))
        with contextlib.nullcontext() if is_affected else contextlib.suppress(UsageError):
            ctx.obj = load_config_files(ctx.params["config"])
            ctx.default_map = {name: ctx.obj.build_default_map(TABLE_NAMES.get(name, name), command)}
        if is_affected:
            ctx.obj.check_names(mount, self.list_commands(ctx))
            if find_unknown_variables(_list_options(mount) | _list_options(self)):
                check_environment(self._list_all_options(ctx))  # imports all commands

    def _list_all_options(self, ctx: click.Context) -> set[str]:
        commands = [self.get_command(ctx, name) for name in self.list_commands(ctx)]
        return {option for command in [self, *commands] if command is not None for option in _list_options(command)}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the first line of each module's docstring, without importing it."""
        rows = [(name, _read_summary(name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Complete commands, servers, and the options of the default command."""
        from redisfuse.cli._named_servers import complete_server

        completions = [*super().shell_complete(ctx, incomplete), *complete_server(ctx, incomplete)]
        default = self.get_command(ctx, DEFAULT_COMMAND) if incomplete.startswith("-") else None
        if default:
            with click.Context(default, parent=ctx, info_name=DEFAULT_COMMAND) as child:
                completions += default.shell_complete(child, incomplete)
        return completions

    def _find_command_index(self, args: Sequence[str]) -> int:
        """Return the index of the first word after the group's own options."""
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
    epilog="`redisfuse COMMAND --help` describes a command; `redisfuse mount --help` has the options of a mount.",
)
@click.version_option(redisfuse.__version__, prog_name="redisfuse", message="%(prog)s %(version)s")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Configuration file, instead of /etc/redisfuse.toml and the user's.",
)
@click.option("--debug", is_flag=True, help="Log each step, and tracebacks.")
def group(config: Path | None, debug: bool) -> None:
    """Mount Redis as a folder: read-only by default, writes journaled and reversible.

    \b
    redisfuse 127.0.0.1 6379 MOUNTPOINT            browse, read-only
    redisfuse redis://host:6379/0 MOUNTPOINT       the same, by URL
    redisfuse NAME                                 a server in the configuration
    redisfuse --write --journal HOST PORT MOUNTPOINT
                                                   edit; each change can be rolled back
    """  # noqa: D301 - click reads the control character \b


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status.

    An error prints one line.
    """
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
        return _report_error(f"{_describe_usage_error(error)}{_usage_hint(error)}", error.exit_code)
    except UsageError as error:
        from redisfuse.cli._setting_sources import name_variables

        return _report_error(name_variables(str(error), words), error.exit_status)
    except RedisFuseError as error:
        return _report_error(str(error) or type(error).__name__, error.exit_status)
    except BrokenPipeError:
        # The reader closed the pipe (`| head`): not an error. Without this, Python would flush at exit and fail.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, click.Abort):
        return 130
    except Exception as error:  # a bug must not print a traceback
        return _report_bug(error, debug="--debug" in words)


def _list_options(command: click.Command) -> set[str]:
    """Return the names of the options of a command, and of the commands in it."""
    names = {param.name for param in command.params if isinstance(param, click.Option) and param.name}
    if isinstance(command, click.Group):
        for child in command.commands.values():
            names |= _list_options(child)
    return names


def _describe_usage_error(error: click.ClickException) -> str:
    if isinstance(error, click.BadParameter):
        from redisfuse.cli._setting_sources import describe_bad_value

        return describe_bad_value(error)
    return error.format_message() or type(error).__name__


def _report_error(message: str, status: int) -> int:
    print_err(redact_passwords(message))
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
    advice = "please report it" if debug else "add --debug for the traceback"
    if logged:
        advice = "the traceback is in the log"
    print_err(redact_passwords(f"internal error: {type(error).__name__}: {error}; {advice}"))
    return 1


def _usage_hint(error: click.ClickException) -> str:
    """Return a reference to `--help` for a usage error."""
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return ""
    return f" (see {error.ctx.command_path} --help)"


def _read_summary(name: str) -> str:
    spec = importlib.util.find_spec(f"redisfuse.cli.{name}")
    source = spec.loader.get_source(spec.name) if spec and isinstance(spec.loader, InspectLoader) else None
    first_line = (source or "").partition("\n")[0]
    return first_line.removeprefix("r").strip('"')


if __name__ == "__main__":
    sys.exit(main())
