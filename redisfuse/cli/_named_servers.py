"""Servers by name: `[server.NAME]` in the configuration.

A section has `url`, and may have `mountpoint`, `password` and each option of a mount. It overrides `[mount]` and the
top level of the configuration; flags and the environment override it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from redisfuse.cli._config_files import SERVER_TABLE, ConfigFiles, load_config_files
from redisfuse.cli._redact import redact_passwords
from redisfuse.errors import UsageError

_NAME_KEY = "redisfuse.server"  # in the context's `meta`
_ORIGINAL_KEY = "redisfuse.original"


@dataclass(frozen=True, slots=True)
class _Original:
    """The options of a command as they were before a server was applied."""

    params: Mapping[str, Any]
    sources: Mapping[str, ParameterSource | None]
    config: ConfigFiles


def find_servers(context: click.Context) -> Mapping[str, Mapping[str, Any]]:
    """Return the sections of all servers by name."""
    config = context.find_root().obj
    return config.servers if isinstance(config, ConfigFiles) else {}


def get_applied_server(context: click.Context) -> str | None:
    """Return the name of the server whose section was applied."""
    name: str | None = context.meta.get(_NAME_KEY)
    return name


def expand_mount_source(context: click.Context, source: tuple[str, ...]) -> tuple[str, ...]:
    """Return URL MOUNTPOINT for NAME or NAME MOUNTPOINT, and apply its settings.

    Another source is returned as it is.
    Raises UsageError if neither the command line nor the section has a mount point.
    """
    if len(source) not in (1, 2) or source[0] not in find_servers(context):
        return source
    name = source[0]
    section = apply_server(context, name)
    mountpoint = source[1] if len(source) == 2 else section.get("mountpoint")
    if mountpoint is None:
        origin = context.find_root().obj.find_origin(SERVER_TABLE, name)
        raise UsageError(
            f"{origin}: [server.{name}] has no mountpoint; add one, or write `redisfuse {name} MOUNTPOINT`"
        )
    return section["url"], mountpoint


def expand_server(context: click.Context, words: Sequence[str]) -> tuple[str, ...]:
    """Return the URL for NAME or NAME#PREFIX, and apply its settings.

    Other words are returned as they are.
    """
    _restore_options(context)
    if len(words) != 1:
        return tuple(words)
    name, mark, prefix = words[0].partition("#")
    if name not in find_servers(context):
        return tuple(words)
    return (f"{apply_server(context, name)['url']}{mark}{prefix}",)


def apply_server(context: click.Context, name: str) -> Mapping[str, Any]:
    """Make a server's settings the defaults of this command; return its section.

    Only options that the command has, and that neither the command line nor the environment gives, are set. Raises
    UsageError for a value that the option does not accept.
    """
    root = context.find_root()
    section = find_servers(context)[name]
    _restore_options(context)
    sources = {key: context.get_parameter_source(key) for key in context.params}
    context.meta[_ORIGINAL_KEY] = _Original(dict(context.params), sources, root.obj)
    if "password" in section or "password_file" in section:
        root.obj = replace(root.obj, password=section.get("password"))
    options = {option.name: option for option in context.command.params if isinstance(option, click.Option)}
    for key in section.keys() & options.keys():
        if context.get_parameter_source(key) in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
            continue
        context.params[key] = _convert(context, name, options[key])
        context.set_parameter_source(key, ParameterSource.DEFAULT_MAP)
    context.meta[_NAME_KEY] = name
    return section


def _restore_options(context: click.Context) -> None:
    """Undo `apply_server`.

    A command with two servers must not send the password of one to the other.
    """
    original: _Original | None = context.meta.pop(_ORIGINAL_KEY, None)
    context.meta.pop(_NAME_KEY, None)
    if original is None:
        return
    context.params.update(original.params)
    for key, source in original.sources.items():
        if source is not None:
            context.set_parameter_source(key, source)
    context.find_root().obj = original.config


def read_mount_setting(context: click.Context, setting: str, default: Any) -> Any:
    """Return a setting of the applied server that is an option of `mount` only."""
    name = get_applied_server(context)
    root = context.find_root()
    if name is None or setting not in find_servers(context)[name] or not isinstance(root.command, click.Group):
        return default
    mount = root.command.get_command(root, "mount")
    assert mount is not None
    option = next(param for param in mount.params if param.name == setting)
    return _convert(context, name, option)


def _convert(context: click.Context, name: str, option: click.Parameter) -> Any:
    assert option.name
    value = find_servers(context)[name][option.name]
    if option.multiple and not isinstance(value, list):
        value = [value]
    try:
        return option.type_cast_value(context, value)
    except click.BadParameter as error:
        origin = context.find_root().obj.find_origin(SERVER_TABLE, name, option.name)
        raise UsageError(f"{origin}: {option.name}: {error.message}") from None


# -- completion ------------------------------------------------------------------------------------------------------


def complete_server(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Offer the names of servers, with their URLs as help."""
    with contextlib.suppress(Exception):  # completion must not print anything
        servers = load_config_files(ctx.find_root().params.get("config")).servers
        return [
            CompletionItem(name, help=redact_passwords(str(section.get("url", ""))))
            for name, section in sorted(servers.items())
            if name.startswith(incomplete)
        ]
    return []


def complete_source(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer servers as the first word, and directories after it."""
    if ctx.params.get(param.name or ""):
        return [CompletionItem(incomplete, type="dir")]
    return complete_server(ctx, incomplete)


def complete_where(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """Offer servers and paths."""
    return [*complete_server(ctx, incomplete), CompletionItem(incomplete, type="file")]
