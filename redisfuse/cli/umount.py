"""End a mount, finishing what is being saved."""

from pathlib import Path

import click

from redisfuse.cli._options import PATH
from redisfuse.fuse import mountpoint as mountpoints


@click.command
@click.argument("mountpoint", type=PATH)
@click.option("-z", "--lazy", is_flag=True, help="Take it away even while programs use it.")
def command(mountpoint: Path, lazy: bool) -> None:
    """End a mount, finishing what is being saved.

    Nothing is said when it is done. A program that is still in MOUNTPOINT (a shell, say) keeps it busy, but for --lazy.
    """
    mountpoints.unmount(mountpoint, lazy=lazy)
