"""The password that is given outside the URL."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import click
from click.core import ParameterSource

from redisfuse.cli._config_files import ConfigFiles
from redisfuse.client.password_file import read_password


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
