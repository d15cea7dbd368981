"""The parameter type of a mount point, which completion lists."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import click
from click.shell_completion import CompletionItem

from redisfuse.cli._params import FilePathParam
from redisfuse.fuse import mountpoint as mountpoints


class MountpointParam(FilePathParam):
    """The path of a mount, which is not accessed."""

    name = "mountpoint"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:  # noqa: ARG002
        """Offer the mounts of this user, or those of all users to root."""
        items = []
        with contextlib.suppress(OSError):  # completion must not print anything
            for mount in mountpoints.list_redisfuse_mounts():
                spelling = _spell_like(str(mount.mountpoint), incomplete)
                if spelling.startswith(incomplete) and os.getuid() in (0, mount.owner_uid):
                    items.append(CompletionItem(spelling, help=mount.source))
        return items


def _spell_like(path: str, incomplete: str) -> str:
    """Return an absolute path as the user began to write it: with `~`, or relative."""
    if not incomplete or incomplete.startswith("/"):
        return path
    if incomplete.startswith("~"):
        folder, spelling = os.path.realpath(os.path.expanduser("~")), "~/"
    else:
        folder, spelling = os.getcwd(), "./" if incomplete.startswith("./") else ""
    return spelling + path.removeprefix(f"{folder}/") if path.startswith(f"{folder}/") else path


MOUNTPOINT = MountpointParam()
