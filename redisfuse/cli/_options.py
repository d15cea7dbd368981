"""Options that several commands share, and options in sections."""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from redisfuse.cli._params import PATH, SizeParam
from redisfuse.config import DEFAULTS, Config, format_size
from redisfuse.errors import UsageError

if TYPE_CHECKING:
    from redisfuse.client.address import Address

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

SUBCOMMAND_SETTINGS = {
    "auto_envvar_prefix": "REDISFUSE",
    "help_option_names": ["-h", "--help"],
}
"""The context settings of commands inside a group."""

TIMEOUT_HELP = "How long to wait for a reply of the server before failing."

SEPARATOR_HELP = "Text that separates folders in the names of keys."

PASSWORD_FILE_HELP = (
    "File with the password in its first line, readable only by you. "
    "REDISFUSE_PASSWORD can hold the password itself instead."
)


class OptionList:
    """A decorator that adds several options to a command, in this order."""

    def __init__(self, *decorators: Any) -> None:
        self._decorators = decorators

    def __call__(self, command: Decorated) -> Decorated:
        """Add the options."""
        for decorator in reversed(self._decorators):
            command = decorator(command)
        return command


class SectionOption(click.Option):
    """An option that `--help` shows under a heading."""

    def __init__(self, *param_decls: Any, section: str = "Options", **attrs: Any) -> None:
        self.section = section
        super().__init__(*param_decls, **attrs)


class SectionCommand(click.Command):
    """A command whose options are shown in sections, ordered by first use."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one definition list per section; options without a section last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for heading, records in sorted(sections.items(), key=lambda item: item[0] == "Options"):
            with formatter.section(heading):
                formatter.write_dl(records)


section_option = partial(click.option, cls=SectionOption)
"""The decorator of an option that has a `section`."""


def config_option(*param_decls: str, section: str, **attrs: Any) -> Callable[[Decorated], Decorated]:
    """Return the decorator of an option whose default is that of `Config`."""
    field = next(name for name in param_decls if name.startswith("--")).removeprefix("--").replace("-", "_")
    default: Any = DEFAULTS.get(field)
    if isinstance(attrs.get("type"), SizeParam):
        default = format_size(default)
    elif isinstance(default, bytes):
        default = os.fsdecode(default)
    if default is not None and default != () and default is not False:
        attrs = {"default": default, "show_default": default != ""} | attrs
    return section_option(*param_decls, section=section, **attrs)


_HOST_AND_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)(?::[0-9]{1,5})?")

_SECTION = "Server"

WAIT_REPLICAS_HELP = (
    "Acknowledge a change when N replicas have it (WAIT), within --timeout; until then it is pending in the journal."
)

route_options = OptionList(
    config_option(
        "--cluster-map",
        section=_SECTION,
        multiple=True,
        metavar="HOST:PORT=HOST:PORT",
        help="Where an address that a Sentinel or a node of a cluster announces is reached from here, such as the end "
        "of a tunnel; may be repeated.",
    ),
    config_option(
        "--ssh",
        section=_SECTION,
        metavar="USER@BASTION",
        help="Reach each server through this host, with tunnels of the system's ssh.",
    ),
)
"""How the addresses that servers announce are reached."""


def build_server_options(timeout_help: str, *, shows_timeout: bool = True) -> OptionList:
    """Return the options that say how to reach a server.

    They are user, database, password file, TLS, time-out and route. With `shows_timeout`, `--help` has its default.
    """
    return OptionList(
        config_option("--user", section=_SECTION, metavar="NAME", help="ACL user, if the URL has none."),
        config_option(
            "--db", section=_SECTION, type=click.IntRange(0), metavar="N", help="Database number, instead of the URL's."
        ),
        section_option("--password-file", section=_SECTION, type=PATH, help=PASSWORD_FILE_HELP),
        config_option("--tls", section=_SECTION, is_flag=True, help="Use TLS, as a rediss:// URL does."),
        config_option(
            "--tls-ca", section=_SECTION, type=PATH, help="CA certificates to trust (PEM), instead of the system's."
        ),
        config_option("--tls-cert", section=_SECTION, type=PATH, help="Client certificate (PEM)."),
        config_option("--tls-key", section=_SECTION, type=PATH, help="Private key of the client certificate (PEM)."),
        config_option("--tls-insecure", section=_SECTION, is_flag=True, help="Don't verify the server's certificate."),
        config_option(
            "--timeout",
            section=_SECTION,
            type=click.FloatRange(0, min_open=True),
            metavar="SECONDS",
            help=timeout_help,
            show_default=shows_timeout,
        ),
        route_options,
    )


def is_host_and_port(text: str) -> bool:
    """Return whether a word can be `HOST` or `HOST:PORT`.

    An IPv6 address is in brackets.
    """
    return _HOST_AND_PORT.fullmatch(text) is not None


def parse_server_address(source: tuple[str, ...], **options: Any) -> "Address":
    """Return the address in HOST PORT or URL and `server_options`.

    Raises UsageError.
    """
    from redisfuse.mount.run import build_address

    if len(source) == 1 and "://" in source[0]:
        target, port = source[0], None
    elif len(source) == 1 and is_host_and_port(source[0]):
        target, port = f"redis://{source[0]}", None
    elif len(source) == 2 and source[1].isascii() and source[1].isdigit():
        target, port = source[0], int(source[1])
    else:
        raise UsageError("no server given: write HOST PORT, such as 127.0.0.1 6379, or redis://HOST:PORT/DB")
    return build_address(Config(target=target, port=port, mountpoint=Path("/"), **options))
