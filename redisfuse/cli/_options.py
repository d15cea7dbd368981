"""Kinds of options that several commands share: sizes, bytes, paths; options in sections; how to reach a server."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from redisfuse.config import DEFAULTS, Config, format_size, parse_size
from redisfuse.errors import UsageError

if TYPE_CHECKING:
    from redisfuse.client.address import Address

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class SizeParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """Bytes, said as 512MiB, 64M or a plain number."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a size; plain numbers (of a configuration file) are bytes already."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class BytesParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """Bytes of a key, exactly as they were typed, UTF-8 or not."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:  # noqa: ARG002
        """Encode as the system does arguments, so that any bytes survive."""
        return value if isinstance(value, bytes) else os.fsencode(value)


class FilePathParam(click.ParamType):  # type: ignore[type-arg]  # generic in newer click only
    """A path made absolute at once, since a daemon changes its directory; `~` works in configuration files too."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # noqa: ARG002
        """Expand and make absolute; links are kept."""
        return Path(os.path.abspath(os.path.expanduser(value)))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Let the shell complete file names."""
        return click.Path().shell_complete(ctx, param, incomplete)


SIZE = SizeParam()
BYTES = BytesParam()
PATH = FilePathParam()


class SectionOption(click.Option):
    """An option that `--help` shows under a heading."""

    def __init__(self, *param_decls: Any, section: str = "Options", **attrs: Any) -> None:
        self.section = section
        super().__init__(*param_decls, **attrs)


class SectionCommand(click.Command):
    """A command whose options are shown in sections, in the order in which the sections first appear."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one definition list a section; options without a section come last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for heading, records in sorted(sections.items(), key=lambda item: item[0] == "Options"):
            with formatter.section(heading):
                formatter.write_dl(records)


def config_option(*param_decls: str, section: str, **attrs: Any) -> Callable[[Decorated], Decorated]:
    """An option whose default is the one of `Config`, shown in `--help`."""
    field = next(name for name in param_decls if name.startswith("--")).removeprefix("--").replace("-", "_")
    default: Any = DEFAULTS.get(field)
    if isinstance(attrs.get("type"), SizeParam):
        default = format_size(default)
    elif isinstance(default, bytes):
        default = os.fsdecode(default)
    if default is not None and default != () and default is not False:
        attrs |= {"default": default, "show_default": default != ""}
    return click.option(*param_decls, cls=SectionOption, section=section, **attrs)


def server_options(command: Decorated) -> Decorated:
    """How to reach a server, for every command that may: user, database, password file, TLS, time-out."""
    section = "Server"
    decorators = [
        config_option("--user", section=section, metavar="NAME", help="ACL user, where the URL has none."),
        config_option(
            "--db", section=section, type=click.IntRange(0), metavar="N", help="Database, instead of the URL's."
        ),
        click.option(
            "--password-file",
            cls=SectionOption,
            section=section,
            type=PATH,
            help="File whose first line is the password; only you may be able to read it. "
            "REDISFUSE_PASSWORD holds the password itself.",
        ),
        config_option("--tls", section=section, is_flag=True, help="Speak TLS, as a rediss:// URL does."),
        config_option(
            "--tls-ca", section=section, type=PATH, help="Authorities to trust (PEM), instead of the system's."
        ),
        config_option("--tls-cert", section=section, type=PATH, help="Certificate to show the server (PEM)."),
        config_option("--tls-key", section=section, type=PATH, help="The certificate's key (PEM)."),
        config_option("--tls-insecure", section=section, is_flag=True, help="Don't check the server's certificate."),
        config_option(
            "--timeout",
            section=section,
            type=click.FloatRange(0, min_open=True),
            metavar="SECONDS",
            help="A server that is silent for so long is an error (EIO).",
        ),
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def parse_server_address(source: tuple[str, ...], **options: Any) -> "Address":
    """The server that a command was given, as HOST PORT or URL and with `server_options`. Raises UsageError."""
    from redisfuse.mount.run import build_address

    if len(source) == 1 and "://" in source[0]:
        target, port = source[0], None
    elif len(source) == 2 and source[1].isascii() and source[1].isdigit():
        target, port = source[0], int(source[1])
    else:
        raise UsageError("which server? Say HOST PORT, such as 127.0.0.1 6379, or redis://HOST:PORT/DB")
    return build_address(Config(target=target, port=port, mountpoint=Path("/"), **options))
