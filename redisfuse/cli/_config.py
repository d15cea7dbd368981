"""Configuration files and passwords: the defaults of options.

Flags override `REDISFUSE_*` in the environment, which overrides the configuration. A file is TOML. Its top-level
settings apply to every command that has an option of that name; a table such as `[mount]` applies to that command only.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from redisfuse.client.password_file import read_password
from redisfuse.errors import UntrustedFileError, UsageError
from redisfuse.trusted_files import is_readable_by_others, open_trusted

SYSTEM_CONFIG_PATH = Path("/etc/redisfuse.toml")

_PASSWORD_IN_URL = re.compile(r"://[^/@]*:[^@]+@|[?&]password=")


@dataclass(frozen=True, slots=True)
class ConfigFiles:
    """The merged settings of the configuration files."""

    top_level: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    password: str | None = field(default=None, repr=False)

    def build_default_map(self, name: str, command: click.Command) -> dict[str, Any]:
        """Return the default map for click.

        Raises UsageError for a setting in `[name]` that the command does not have.
        """
        table = self.tables.get(name, {})
        if isinstance(command, click.Group):
            context = click.Context(command)
            children = ((child, command.get_command(context, child)) for child in command.list_commands(context))
            nested = ConfigFiles({**self.top_level, **_scalar_settings(table)}, _nested_tables(table))
            return {child: nested.build_default_map(child, sub) for child, sub in children if sub is not None}
        options = {option.name: option for option in command.params if isinstance(option, click.Option) and option.name}
        for unknown in sorted(table.keys() - options.keys()):
            raise UsageError(f"the configuration has an unknown setting {unknown!r} in [{name}]")
        settings = {key: value for key, value in {**self.top_level, **table}.items() if key in options}
        return {
            key: [value] if options[key].multiple and not isinstance(value, list) else value
            for key, value in settings.items()
        }

    def check_top_level(self, mount_command: click.Command) -> None:
        """Raise UsageError for a top-level setting that `mount` does not have.

        `mount` has nearly all of them.
        """
        for unknown in sorted(self.top_level.keys() - {option.name for option in mount_command.params}):
            raise UsageError(f"the configuration has an unknown setting {unknown!r}")


def load_config_files(explicit_path: Path | None) -> ConfigFiles:
    """Read `explicit_path`, or else /etc/redisfuse.toml and the user's own file.

    The user's settings override those in /etc. Raises UsageError for a file that is not TOML, that another user could
    have written, or that contains a password and is readable by other users.
    """
    top_level: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    for path in [explicit_path] if explicit_path else [SYSTEM_CONFIG_PATH, user_config_path()]:
        content = _read_toml(path, must_exist=explicit_path is not None)
        top_level.update(_scalar_settings(content))
        for name, table in _nested_tables(content).items():
            tables.setdefault(name, {}).update(table)
    password = top_level.pop("password", None)
    if password is not None and not isinstance(password, str):
        raise UsageError("the password in the configuration must be a string in quotes")
    return ConfigFiles(top_level, tables, password)


def user_config_path() -> Path:
    """Return the path of the user's configuration file on this platform."""
    import platformdirs

    return platformdirs.user_config_path("redisfuse") / "config.toml"


@dataclass(frozen=True, slots=True)
class FoundPassword:
    """A password that is given outside the URL."""

    password: str | None = field(default=None, repr=False)
    file: Path | None = None  # that it was read from


def find_password(context: click.Context) -> str | None:
    """Return the password that is given outside the URL, or None.

    Raises UsageError.
    """
    return locate_password(context).password


def locate_password(context: click.Context) -> FoundPassword:
    """Find the password that is given outside the URL.

    The order is: --password-file, REDISFUSE_PASSWORD, the configuration. Raises UsageError for a password file that
    other users can read or could have written.
    """
    path: Path | None = context.params.get("password_file")
    source = context.get_parameter_source("password_file")
    if path and source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
        return FoundPassword(read_password(path), path)
    if (password := os.environ.get("REDISFUSE_PASSWORD")) is not None:
        return FoundPassword(password)
    config = context.find_root().obj
    if isinstance(config, ConfigFiles) and config.password is not None:
        return FoundPassword(config.password)
    return FoundPassword(read_password(path), path) if path else FoundPassword()


def _read_toml(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        with open_trusted(path) as file:
            is_readable = is_readable_by_others(os.fstat(file.fileno()))
            content = tomllib.load(file)
    except UntrustedFileError as error:
        raise UsageError(f"the configuration file {error}") from None
    except FileNotFoundError as error:
        if must_exist:
            raise UsageError(f"{path}: no such configuration file") from error
        return {}
    except OSError as error:
        raise UsageError(f"{path}: can't read the configuration file: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    if is_readable and _holds_password(content):
        raise UsageError(f"{path}: contains a password and others can read it; run: chmod 600 {path}")
    return _normalize_keys(content)


def _holds_password(value: object, name: str = "") -> bool:
    if isinstance(value, dict):
        return any(_holds_password(item, key) for key, item in value.items())
    if isinstance(value, list):
        return any(_holds_password(item, name) for item in value)
    return name == "password" or (isinstance(value, str) and _PASSWORD_IN_URL.search(value) is not None)


def _normalize_keys(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table with underscores in its keys.

    Settings may be written like the options (`render-limit`) or with underscores.
    """
    return {
        key.replace("-", "_"): _normalize_keys(value) if isinstance(value, dict) else value
        for key, value in table.items()
    }


def _scalar_settings(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if not isinstance(value, dict)}


def _nested_tables(table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {key: value for key, value in table.items() if isinstance(value, dict)}
