"""Read all key names from the server again."""

import os
from pathlib import Path

import click

from redisfuse.cli._mountpoint_param import MOUNTPOINT
from redisfuse.errors import MountError
from redisfuse.fuse import mountpoint as mountpoints


@click.command
@click.argument("mountpoint", type=MOUNTPOINT)
def command(mountpoint: Path) -> None:
    """Read all key names from the server again.

    Does the same as touching MOUNTPOINT/.updater.

    \b
    redisfuse refresh ~/redis
    """  # noqa: D301 - click reads the control character \b
    mount = mountpoints.find_mount(mountpoint)
    if mount is None or not mount.is_redisfuse:
        raise MountError(f"{mountpoint} is not a redisfuse mount")
    try:
        os.stat(mountpoint / ".updater")
    except OSError as error:
        raise MountError(f"can't refresh {mountpoint}: {error.strerror}") from error
