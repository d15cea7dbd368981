"""Configuration files and passwords: where defaults come from when neither a flag nor the environment has them.

Flags > `REDISFUSE_*` environment > configuration. A file is TOML; what stands at its top is for every command that has
an option of that name, a table such as `[mount]` is for that command alone.
"""

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from redisfuse.errors import UsageError

SYSTEM_CONFIG_PATH = Path("/etc/redisfuse.toml")

_PASSWORD_IN_URL = re.compile(r"://[^/@]*:[^@]+@|[?&]password=")


@dataclass(frozen=True, slots=True)
class ConfigFiles:
    """What the configuration files say, merged."""

    top_level: Mapping[str, Any] = field(default_factory=dict)  # the top of the files
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    password: str | None = field(default=None, repr=False)

    def build_default_map(self, name: str, command: click.Command) -> dict[str, Any]:
        """A default map for click. Raises UsageError for a setting in `[name]` that the command does not have."""
        table = self.tables.get(name, {})
        if isinstance(command, click.Group):
            context = click.Context(command)
            children = ((child, command.get_command(context, child)) for child in command.list_commands(context))
            nested = ConfigFiles({**self.top_level, **_scalar_settings(table)}, _nested_tables(table))
            return {child: nested.build_default_map(child, found) for child, found in children if found is not None}
        options = {option.name: option for option in command.params if isinstance(option, click.Option) and option.name}
        for unknown in sorted(table.keys() - options.keys()):
            raise UsageError(f"the configuration has an unknown setting {unknown!r} in [{name}]")
        wanted = {key: value for key, value in {**self.top_level, **table}.items() if key in options}
        return {
            key: [value] if options[key].multiple and not isinstance(value, list) else value
            for key, value in wanted.items()
        }

    def check_top_level(self, mount_command: click.Command) -> None:
        """Raise UsageError for a setting at the top that `mount`, which has nearly all of them, does not have."""
        for unknown in sorted(self.top_level.keys() - {option.name for option in mount_command.params}):
            raise UsageError(f"the configuration has an unknown setting {unknown!r}")


def load_config_files(explicit_path: Path | None) -> ConfigFiles:
    """Read `explicit`, or else /etc/redisfuse.toml and then the user's own file, whose settings win.

    Raises UsageError for a file that is not TOML, or that holds a password and can be read by others.
    """
    shared: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    for path in [explicit_path] if explicit_path else [SYSTEM_CONFIG_PATH, user_config_path()]:
        content = _read_toml(path, must_exist=explicit_path is not None)
        shared.update(_scalar_settings(content))
        for name, table in _nested_tables(content).items():
            tables.setdefault(name, {}).update(table)
    password = shared.pop("password", None)
    if password is not None and not isinstance(password, str):
        raise UsageError("the password in the configuration must be a string in quotes")
    return ConfigFiles(shared, tables, password)


def user_config_path() -> Path:
    """The user's own configuration file, in the platform's place."""
    import platformdirs

    return platformdirs.user_config_path("redisfuse") / "config.toml"


def find_password(context: click.Context) -> str | None:
    """The password outside the URL: --password-file, else REDISFUSE_PASSWORD, else the configuration, else None.

    Raises UsageError for a password file that others can read.
    """
    path: Path | None = context.params.get("password_file")
    source = context.get_parameter_source("password_file")
    if path and source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
        return read_password(path)
    if (password := os.environ.get("REDISFUSE_PASSWORD")) is not None:
        return password
    config = context.find_root().obj
    if isinstance(config, ConfigFiles) and config.password is not None:
        return config.password
    return read_password(path) if path else None


def read_password(path: Path) -> str:
    """The first line of a file that only its owner can read. Raises UsageError."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise UsageError(f"{path}: others can read this password file; do: chmod 600 {path}")
            return file.readline().rstrip(b"\r\n").decode("utf-8", "surrogateescape")
    except OSError as error:
        raise UsageError(f"{path}: the password file can't be read: {error.strerror}") from error


def _read_toml(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = tomllib.load(file)
    except FileNotFoundError as error:
        if must_exist:
            raise UsageError(f"{path}: there is no such configuration file") from error
        return {}
    except OSError as error:
        raise UsageError(f"{path}: the configuration file can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO) and _holds_password(content):
        raise UsageError(f"{path}: holds a password and others can read it; do: chmod 600 {path}")
    return _normalize_keys(content)


def _holds_password(value: object, name: str = "") -> bool:
    if isinstance(value, dict):
        return any(_holds_password(item, key) for key, item in value.items())
    if isinstance(value, list):
        return any(_holds_password(item, name) for item in value)
    return name == "password" or (isinstance(value, str) and _PASSWORD_IN_URL.search(value) is not None)


def _normalize_keys(table: Mapping[str, Any]) -> dict[str, Any]:
    """Settings are written like the options, `render-limit`, or with underscores."""
    return {
        key.replace("-", "_"): _normalize_keys(value) if isinstance(value, dict) else value
        for key, value in table.items()
    }


def _scalar_settings(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if not isinstance(value, dict)}


def _nested_tables(table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {key: value for key, value in table.items() if isinstance(value, dict)}
