"""Print a systemd unit that mounts a server."""

from __future__ import annotations

import copy
import os
import pwd
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from redisfuse.cli._named_servers import complete_source, get_applied_server
from redisfuse.cli._options import SectionCommand, SectionOption
from redisfuse.cli._redact import redact_passwords
from redisfuse.cli.mount import build_config
from redisfuse.cli.mount import command as mount_command
from redisfuse.config import Config
from redisfuse.errors import UsageError

_NOT_IN_UNITS = ("daemon", "foreground")
_XDG_VARIABLES = ("XDG_CONFIG_HOME", "XDG_STATE_HOME")  # where the configuration, the journal and the log are
_GIVEN_SOURCES = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
_PLAIN_WORD = re.compile(r"[\w@%+=:,./*?#-]+", re.ASCII)  # needs no quotes in ExecStart=; `%` is doubled
_PLAIN_NAME = re.compile(r"[\w:.]", re.ASCII)  # needs no escape in the name of a unit

_SOURCE = click.Argument(
    ["source"], nargs=-1, metavar="(HOST PORT | URL | NAME) MOUNTPOINT", shell_complete=complete_source
)
_SYSTEM_OPTION = SectionOption(
    ["--system"],
    section="Unit",
    is_flag=True,
    help="A unit of the system, which mounts at boot as this user. The default for root; others get a user unit.",
)


def _hide(param: click.Parameter) -> click.Parameter:
    """Return a copy of an option that `--help` does not show."""
    hidden = copy.copy(param)
    assert isinstance(hidden, click.Option)
    hidden.hidden = True
    return hidden


def _print_unit(**_: Any) -> None:
    """Print a systemd unit that mounts a server.

    Takes the arguments and options of `redisfuse mount`, and checks them. The unit starts with the system, or when you
    log in, is ready when the mount answers, and tries again every 5 seconds while the server can't be reached. Settings
    of the configuration stay there. A unit has no password: use --password-file, or a server in the configuration.

    \b
    redisfuse service prod ~/redis > ~/.config/systemd/user/redisfuse-prod.service
    redisfuse service --system prod /mnt/redis | sudo tee /etc/systemd/system/redisfuse-prod.service
    """  # noqa: D301 - click reads the control character \b
    context = click.get_current_context()
    is_system = context.params.pop("system") or os.geteuid() == 0
    source: tuple[str, ...] = context.params["source"]
    options = _list_given_options(context)
    config = build_config(context)
    _check_unit(context, config, (*source, *options))
    if len(source) > 1:  # a server's own mount point stays in the configuration
        source = (*source[:-1], str(config.mountpoint))
    command = [*_find_program(), *_config_option(context), "mount", *options, "--", *source]
    name = f"redisfuse-{get_applied_server(context) or _escape_name(str(config.mountpoint))}"
    for line in _format_unit(name, command, config, is_system=is_system):
        click.echo(line.encode("utf-8", "surrogateescape"))


command = SectionCommand(
    "service",
    callback=_print_unit,
    params=[
        _SOURCE,
        _SYSTEM_OPTION,
        *(_hide(param) if param.name in _NOT_IN_UNITS else param for param in mount_command.params[1:]),
    ],
    help=_print_unit.__doc__,
    options_metavar="[OPTIONS]",
)


def _list_given_options(context: click.Context) -> list[str]:
    """Return the options of the command line and of the environment, as words."""
    words: list[str] = []
    for param in mount_command.params:
        if not isinstance(param, click.Option) or param.name is None or param.name in _NOT_IN_UNITS:
            continue
        if context.get_parameter_source(param.name) not in _GIVEN_SOURCES or param.name not in context.params:
            continue
        value = context.params[param.name]
        option = max(param.opts, key=len)
        if param.is_flag:
            words += [option] if value else []
        else:
            for one in value if param.multiple else [value]:
                text = os.fsdecode(one) if isinstance(one, bytes) else str(one)
                words += ["-o", text] if option == "-o" else [f"{option}={text}"]
    return words


def _check_unit(context: click.Context, config: Config, words: Sequence[str]) -> None:
    """Raise UsageError for settings that no unit can have."""
    if config.daemon:
        raise UsageError("--daemon can't be in a unit, because systemd runs the mount in the background; remove it")
    if any(redact_passwords(word) != word for word in words):
        raise UsageError("every user can read a unit and the password in it: use --password-file")
    if config.password is not None and config.password == os.environ.get("REDISFUSE_PASSWORD"):
        raise UsageError("REDISFUSE_PASSWORD is not in the environment of a service: use --password-file")
    if any("\n" in word for word in words) or "\n" in str(context.find_root().params.get("config")):
        raise UsageError("a unit can't have a line break in an option or a path")


def _config_option(context: click.Context) -> list[str]:
    path: Path | None = context.find_root().params.get("config")
    return [] if path is None else [f"--config={os.path.abspath(path)}"]


def _find_program() -> list[str]:
    """Return the command line that runs this program from anywhere."""
    program = Path(os.path.abspath(sys.argv[0]))
    if program.name == "redisfuse":
        found = program if program.exists() else shutil.which("redisfuse")
        if found is not None:
            return [str(found)]
    return [sys.executable, "-m", "redisfuse.cli.main"]


def _format_unit(name: str, command: Sequence[str], config: Config, *, is_system: bool) -> Iterator[str]:
    systemctl = "systemctl" if is_system else "systemctl --user"
    folder = "/etc/systemd/system" if is_system else "~/.config/systemd/user"
    yield f"# {folder}/{name}.service"
    yield f"# {systemctl} daemon-reload && {systemctl} enable --now {shlex.quote(name)}"
    if not is_system:
        yield "# It starts when you log in; at boot, too, after: loginctl enable-linger"
    yield "[Unit]"
    yield f"Description=redisfuse at {_escape_percent(str(config.mountpoint))}"
    if is_system:
        yield "Wants=network-online.target"
        yield "After=network-online.target"
    yield "StartLimitIntervalSec=0"
    yield ""
    yield "[Service]"
    yield "Type=notify"
    if is_system and os.geteuid() != 0:
        yield f"User={pwd.getpwuid(os.geteuid()).pw_name}"
    for variable in _XDG_VARIABLES:
        if value := os.environ.get(variable):
            yield f"Environment={_quote_word(f'{variable}={value}')}"
    yield f"ExecStart={' '.join(map(_quote_word, command))}"
    yield "Restart=on-failure"
    yield "RestartSec=5"
    yield "# 2: the command line or the configuration is wrong"
    yield "RestartPreventExitStatus=2"
    yield "# Only the mount gets SIGTERM, not its tunnels: it completes its saves first"
    yield "KillMode=mixed"
    yield ""
    yield "[Install]"
    yield f"WantedBy={'multi-user' if is_system else 'default'}.target"


def _quote_word(word: str) -> str:
    """Return a word of ExecStart= (systemd.service(5), "Command lines")."""
    quoted = _escape_percent(word).replace("$", "$$")
    if _PLAIN_WORD.fullmatch(quoted):
        return quoted
    return '"{}"'.format(quoted.replace("\\", "\\\\").replace('"', '\\"'))


def _escape_percent(text: str) -> str:
    return text.replace("%", "%%")


def _escape_name(path: str) -> str:
    """Return a path as in the name of a unit (systemd-escape(1), --path)."""
    return "".join(
        "-" if character == "/" else character if _PLAIN_NAME.match(character) else _escape_bytes(character)
        for character in path.strip("/")
    )


def _escape_bytes(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
