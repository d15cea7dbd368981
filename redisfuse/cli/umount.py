"""Unmount, after all pending saves are finished."""

from pathlib import Path

import click

from redisfuse.cli._mountpoint_param import MOUNTPOINT
from redisfuse.fuse import mountpoint as mountpoints


@click.command
@click.argument("mountpoint", type=MOUNTPOINT)
@click.option("-z", "--lazy", is_flag=True, help="Detach the mount even if programs use it.")
def command(mountpoint: Path, lazy: bool) -> None:
    """Unmount, after all pending saves are finished.

    Prints nothing on success. A program that is still in MOUNTPOINT (such as a shell) keeps it busy, except with
    --lazy.

    \b
    redisfuse umount ~/redis
    redisfuse umount --lazy ~/redis
    """  # noqa: D301 - click reads the control character \b
    mountpoints.unmount(mountpoint, lazy=lazy)
