"""Where values of options are from: a word, a variable, a line of a file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import click
from click.core import ParameterSource

from redisfuse.cli._config_files import SERVER_TABLE, TABLE_NAMES, ConfigFiles
from redisfuse.cli._named_servers import get_applied_server
from redisfuse.cli._spelling import variable_name

COMMAND_LINE = "command line"
DEFAULT = "default"
_OPTION_IN_TEXT = re.compile(r"(?<!\S)--[a-z][a-z-]*")


def find_source(context: click.Context, name: str) -> str:
    """Return where the value of an option is from.

    That is `default`, `command line`, `REDISFUSE_OPTION in the environment` or FILE:LINE.
    """
    source = context.get_parameter_source(name)
    if source is ParameterSource.COMMANDLINE:
        return COMMAND_LINE
    if source is ParameterSource.ENVIRONMENT:
        return describe_variable(name)
    files = context.find_root().obj
    if source is not ParameterSource.DEFAULT_MAP or not isinstance(files, ConfigFiles):
        return DEFAULT
    server = get_applied_server(context)
    if server is not None and name in files.servers[server]:
        return files.find_origin(SERVER_TABLE, server, name)
    return files.find_default_origin(_list_tables(context), name)


def describe_variable(name: str) -> str:
    """Return how a source names the variable of an option."""
    return f"{variable_name(name)} in the environment"


def describe_bad_value(error: click.BadParameter) -> str:
    """Return the message of a value that an option does not accept.

    It names the variable or the line that the value is from.
    """
    if error.ctx is not None and error.param is not None and error.param.name is not None:
        name = error.param.name
        source = find_source(error.ctx, name)
        if source == describe_variable(name):
            return f"{source}: {error.message}"
        if source not in (COMMAND_LINE, DEFAULT):
            return f"{source}: {name}: {error.message}"
    return error.format_message()


def name_variables(message: str, words: Sequence[str]) -> str:
    """Return a message about options, with the variables that set them.

    `words`: the command line, whose options need no such addition.
    """
    given = {word.partition("=")[0] for word in words}
    options = dict.fromkeys(_OPTION_IN_TEXT.findall(message))
    variables = [variable_name(option[2:].replace("-", "_")) for option in options if option not in given]
    found = [variable for variable in variables if variable in os.environ]
    return f"{message} ({' and '.join(found)} in the environment)" if found else message


def _list_tables(context: click.Context) -> tuple[str, ...]:
    """Return the names of a command's table in the configuration, from the top."""
    if context.parent is None:
        return ()
    name = context.info_name or ""
    return (*_list_tables(context.parent), TABLE_NAMES.get(name, name))
