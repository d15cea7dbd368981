"""Configuration files: the defaults of options, and servers with names.

Flags override `REDISFUSE_*` in the environment, which overrides the configuration. A file is TOML. Its top-level
settings apply to every command that has an option of that name; a table such as `[mount]` applies to that command
only, and `[server.NAME]` to a server (`_named_servers.py`).
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from redisfuse.cli._spelling import suggest_name
from redisfuse.cli._toml_lines import find_setting_lines
from redisfuse.errors import UntrustedFileError, UsageError
from redisfuse.trusted_files import is_readable_by_others, open_trusted

SYSTEM_CONFIG_PATH = Path("/etc/redisfuse.toml")
SERVER_TABLE = "server"
TABLE_NAMES = {"config": "mount"}
"""The tables of commands that share another command's."""

_PASSWORD_IN_URL = re.compile(r"://[^/@]*:[^@]+@|[?&]password=")

_SettingPath = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConfigFiles:
    """The merged settings of the configuration files."""

    top_level: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    servers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    password: str | None = field(default=None, repr=False)
    origins: Mapping[_SettingPath, str] = field(default_factory=dict)  # FILE:LINE, by the names from the top

    def find_origin(self, *names: str) -> str:
        """Return the FILE:LINE of a setting or table.

        That of the table for a setting in an inline table.
        """
        for depth in range(len(names), 0, -1):
            if origin := self.origins.get(names[:depth]):
                return origin
        return "the configuration"

    def find_default_origin(self, tables: _SettingPath, setting: str) -> str:
        """Return the FILE:LINE of a setting: that in the innermost table which has it."""
        found: _SettingPath = ()
        settings: Mapping[str, Any] = self.tables
        for depth, name in enumerate(tables, 1):
            settings = settings.get(name, {})
            if setting in settings:
                found = tables[:depth]
        return self.find_origin(*found, setting)

    def build_default_map(self, name: str, command: click.Command) -> dict[str, Any]:
        """Return the default map for click.

        Raises UsageError for a setting in `[name]` that the command does not have.
        """
        return self._build_default_map((name,), self.top_level, self.tables.get(name, {}), command)

    def _build_default_map(
        self, names: _SettingPath, inherited: Mapping[str, Any], table: Mapping[str, Any], command: click.Command
    ) -> dict[str, Any]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            children = ((child, command.get_command(context, child)) for child in command.list_commands(context))
            settings = {**inherited, **_scalar_settings(table)}
            nested = _nested_tables(table)
            self._check_names(names, nested, command.list_commands(context))
            return {
                child: self._build_default_map((*names, child), settings, nested.get(child, {}), sub)
                for child, sub in children
                if sub is not None
            }
        options = {option.name: option for option in command.params if isinstance(option, click.Option) and option.name}
        self._check_names(names, table, options)
        settings = {key: value for key, value in {**inherited, **table}.items() if key in options}
        return {
            key: [value] if options[key].multiple and not isinstance(value, list) else value
            for key, value in settings.items()
        }

    def check_names(self, mount_command: click.Command, command_names: Iterable[str]) -> None:
        """Raise UsageError for a table or a setting that does not exist.

        Top-level settings must be options of `mount`, which has nearly all of them.
        """
        commands = set(command_names)
        options = {option.name for option in mount_command.params if isinstance(option, click.Option) and option.name}
        self._check_names((), self.top_level, options | {"password"})
        self._check_names((), self.tables, commands | {SERVER_TABLE})
        for name, section in self.servers.items():
            path = (SERVER_TABLE, name)
            self._check_names(path, section, options | {"url", "mountpoint", "password"})
            problem = _find_server_problem(name, section, commands)
            if problem:
                raise UsageError(f"{self.find_origin(*path)}: [server.{name}] {problem}")

    def _check_names(self, table: _SettingPath, names: Iterable[str], known: Iterable[str]) -> None:
        known = set(known)
        for unknown in sorted(set(names) - known):
            place = f" in [{'.'.join(table)}]" if table else ""
            origin = self.find_origin(*table, unknown)
            raise UsageError(f"{origin}: unknown setting {unknown!r}{place}{suggest_name(unknown, known)}")


def load_config_files(explicit_path: Path | None) -> ConfigFiles:
    """Read `explicit_path`, or else /etc/redisfuse.toml and the user's own file.

    The user's settings override those in /etc, and a server's section replaces that of /etc. Raises UsageError for a
    file that is not TOML, that another user could have written, or that contains a password and is readable by other
    users.
    """
    top_level: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    servers: dict[str, dict[str, Any]] = {}
    origins: dict[_SettingPath, str] = {}
    for path in [explicit_path] if explicit_path else [SYSTEM_CONFIG_PATH, user_config_path()]:
        content, lines = _read_toml(path, must_exist=explicit_path is not None)
        origins.update(lines)
        sections = content.pop(SERVER_TABLE, {})
        if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
            raise UsageError(f"{lines[SERVER_TABLE,]}: write each server as a section of its own: [server.NAME]")
        servers.update({name: _normalize_keys(section) for name, section in sections.items()})
        content = _normalize_keys(content)
        top_level.update(_scalar_settings(content))
        for name, table in _nested_tables(content).items():
            tables.setdefault(name, {}).update(table)
    password = top_level.pop("password", None)
    if password is not None and not isinstance(password, str):
        raise UsageError("the password in the configuration must be a string in quotes")
    return ConfigFiles(top_level, tables, servers, password, origins)


def load_config_option(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Load `--config` if it is among the options of a mount.

    Without the word `mount` the group does not parse these options.
    """
    if path:
        config = load_config_files(path)
        root = context.find_root()
        root.params["config"] = path
        commands = root.command.list_commands(root) if isinstance(root.command, click.Group) else []
        config.check_names(context.command, commands)
        root.obj = config
        context.default_map = config.build_default_map("mount", context.command)


def user_config_path() -> Path:
    """Return the path of the user's configuration file on this platform."""
    import platformdirs

    return platformdirs.user_config_path("redisfuse") / "config.toml"


def _find_server_problem(name: str, section: Mapping[str, Any], command_names: Iterable[str]) -> str:
    """Return what is wrong with a server's section; empty if nothing is."""
    if name in command_names:
        return "is the name of a command; choose another"
    if not re.fullmatch(r"\w[\w.-]*", name):
        return "is not a name; use letters, digits, `-`, `_` and `.`"
    if not isinstance(section.get("url"), str) or "://" not in section["url"]:
        return 'needs a URL, such as url = "redis://HOST:PORT/DB"'
    for setting in ("password", "mountpoint"):
        if not isinstance(section.get(setting, ""), str):
            return f"needs a string in quotes as its {setting}"
    if "password" in section and "password_file" in section:
        return "has both a password and a password file; remove one"
    return ""


def _read_toml(path: Path, *, must_exist: bool) -> tuple[dict[str, Any], dict[_SettingPath, str]]:
    """Return a file's content, and the FILE:LINE of its settings."""
    try:
        with open_trusted(path) as file:
            is_readable = is_readable_by_others(os.fstat(file.fileno()))
            text = file.read().decode()
        content = tomllib.loads(text)
    except UntrustedFileError as error:
        raise UsageError(f"the configuration file {error}") from None
    except FileNotFoundError as error:
        if must_exist:
            raise UsageError(f"{path}: no such configuration file") from error
        return {}, {}
    except OSError as error:
        raise UsageError(f"{path}: can't read the configuration file: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    if is_readable and _holds_password(content):
        raise UsageError(f"{path}: contains a password and others can read it; run: chmod 600 {path}")
    return content, {
        _normalize_path(names): f"{path}:{line}" for names, line in reversed(find_setting_lines(text).items())
    }


def _holds_password(value: object, name: str = "") -> bool:
    if isinstance(value, dict):
        return any(_holds_password(item, key) for key, item in value.items())
    if isinstance(value, list):
        return any(_holds_password(item, name) for item in value)
    return name == "password" or (isinstance(value, str) and _PASSWORD_IN_URL.search(value) is not None)


def _normalize_path(names: _SettingPath) -> _SettingPath:
    """Return the names of a setting with underscores, except a server's."""
    return tuple(
        name if names[0] == SERVER_TABLE and depth == 1 else name.replace("-", "_") for depth, name in enumerate(names)
    )


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
