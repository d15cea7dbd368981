"""Show the settings of a mount, and where each value is from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from redisfuse.cli._config_files import SERVER_TABLE, ConfigFiles
from redisfuse.cli._named_servers import complete_source, find_servers, get_applied_server
from redisfuse.cli._options import SectionCommand
from redisfuse.cli._output import TableColumn, TablePrinter
from redisfuse.cli._params import SizeParam
from redisfuse.cli._redact import redact_passwords
from redisfuse.cli._setting_sources import COMMAND_LINE, DEFAULT, describe_variable, find_source
from redisfuse.cli.mount import apply_mount_options, build_config
from redisfuse.cli.mount import command as mount_command
from redisfuse.config import format_size
from redisfuse.text import for_terminal

_HIDDEN = "***"
_NOT_SETTINGS = ("config", "foreground", "help", "as_json")
_SOURCE = click.Argument(
    ["source"], nargs=-1, metavar="[(HOST PORT | URL | NAME) MOUNTPOINT]", shell_complete=complete_source
)
_JSON_OPTION = click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object per line.")


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that is in force."""

    option: str
    value: str
    source: str  # `default`, `command line`, `REDISFUSE_OPTION in the environment`, FILE:LINE


def _show_settings(**_: Any) -> None:
    """Show the settings of a mount, and where each value is from.

    Takes the arguments and options of `redisfuse mount`, and mounts nothing. Without arguments, the servers in the
    configuration and the settings of other commands are listed, too. A source is `default`, `command line`, a variable
    in the environment, or a line of a file. Passwords are not shown.

    \b
    redisfuse config
    redisfuse config prod --rate 500
    """  # noqa: D301 - click reads the control character \b
    context = click.get_current_context()
    as_json = context.params.pop("as_json")
    if context.params["source"]:
        settings = [*_list_place(context), *_list_options(context)]
    else:
        apply_mount_options(context)
        settings = [_describe_password(context), *_list_options(context), *_list_tables(context)]
    if as_json:
        for setting in settings:
            click.echo(json.dumps(asdict(setting)))
        return
    widths = [max((len(getattr(setting, name)) for setting in settings), default=0) for name in ("option", "value")]
    table = TablePrinter(
        [TableColumn("option", widths[0]), TableColumn("value", min(widths[1], 40)), TableColumn("source", 0)]
    )
    for setting in settings:
        cells = tuple(for_terminal(cell) for cell in (setting.option, setting.value, setting.source))
        table.print_row(cells, cells, "" if setting.source == DEFAULT else "bold")


command = SectionCommand(
    "config",
    callback=_show_settings,
    params=[_SOURCE, *(param for param in mount_command.params if param.name != "source"), _JSON_OPTION],
    help=_show_settings.__doc__,
    options_metavar="[OPTIONS]",
)


def _list_place(context: click.Context) -> Iterator[Setting]:
    """Yield the server and the mount point.

    Checks the settings as a mount does. Raises UsageError.
    """
    words = context.params["source"]
    config = build_config(context)
    server = get_applied_server(context)
    url_source, mountpoint_source = COMMAND_LINE, COMMAND_LINE
    if server is not None:
        files: ConfigFiles = context.find_root().obj
        url_source = files.find_origin(SERVER_TABLE, server, "url")
        if len(words) == 1:
            mountpoint_source = files.find_origin(SERVER_TABLE, server, "mountpoint")
    target = config.target if config.port is None else f"{config.target} {config.port}"
    yield Setting("server", redact_passwords(target), url_source)
    yield Setting("mountpoint", str(config.mountpoint), mountpoint_source)
    has_password = redact_passwords(target) != target  # which has priority
    yield Setting("password", _HIDDEN, url_source) if has_password else _describe_password(context)


def _list_options(context: click.Context) -> Iterator[Setting]:
    for option in context.command.params:
        if isinstance(option, click.Option) and option.name and option.name not in _NOT_SETTINGS:
            value = context.params[option.name]
            if isinstance(option.type, SizeParam) and isinstance(value, int):
                text = format_size(value)
            else:
                text = _format_value(value)
            yield Setting(option.name, redact_passwords(text), find_source(context, option.name))


def _list_tables(context: click.Context) -> Iterator[Setting]:
    """Yield the settings of other commands, and of servers."""
    files = context.find_root().obj
    tables = files.tables.items() if isinstance(files, ConfigFiles) else ()
    sections: list[tuple[tuple[str, ...], Mapping[str, Any]]]
    sections = [((name,), table) for name, table in sorted(tables) if name != "mount"]
    sections += [((SERVER_TABLE, name), section) for name, section in sorted(find_servers(context).items())]
    for path, section in sections:
        for key, value in section.items():
            text = _HIDDEN if key == "password" else redact_passwords(_format_value(value))
            yield Setting(".".join((*path, key)), text, files.find_origin(*path, key))


def _describe_password(context: click.Context) -> Setting:
    source = _find_password_source(context)
    return Setting("password", _HIDDEN if source else "", source or DEFAULT)


def _find_password_source(context: click.Context) -> str:
    """Return where the password is from; empty if there is none.

    The order is that of `locate_password`.
    """
    file_source = context.get_parameter_source("password_file")
    if file_source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
        return find_source(context, "password_file")
    if "REDISFUSE_PASSWORD" in os.environ:
        return describe_variable("password")
    files = context.find_root().obj
    if isinstance(files, ConfigFiles) and files.password is not None:
        server = get_applied_server(context)
        if server is not None and "password" in files.servers[server]:
            return files.find_origin(SERVER_TABLE, server, "password")
        return files.find_origin("password")
    return find_source(context, "password_file") if context.params["password_file"] else ""


def _format_value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return os.fsdecode(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ",".join(_format_value(item) for item in value)
    return str(value) if isinstance(value, str | int | Path) else json.dumps(value, default=str)
