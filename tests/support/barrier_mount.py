"""A mount with one of the three read-only barriers (DESIGN.md 6) and the two others taken away.

Run as a process of its own: python -m tests.support.barrier_mount BARRIER BINDING URL MOUNTPOINT JOURNAL
  kernel       everything that writes is there, and the server's connections may write; only the kernel mounts `ro`
  changer      the kernel mounts `rw`, the connections may write; only the objects that change things are missing
  connection   the kernel mounts `rw`, everything that writes is there; only the connections are for reading
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from redisfuse.client.channel import Dialogue
from redisfuse.client.client import Server
from redisfuse.config import Settings
from redisfuse.fuse.backends import choose
from redisfuse.mount.context import Mounted
from redisfuse.mount.run import address_of, limits_of, mount_options


class Careless(Server):
    """A server for reading only, that gives its reading connections to those who want to write."""

    @contextlib.contextmanager
    def writer(self) -> Iterator[Dialogue]:
        with self._readers.use(self.limits.timeout) as dialogue:
            yield dialogue


def main(barrier: str, name: str, url: str, mountpoint: str, journal: str) -> None:
    """Mount until unmounted."""
    logging.basicConfig(level=logging.INFO)
    path = Path(mountpoint)
    settings = Settings(target=url, mountpoint=path, journal_file=Path(journal), write=barrier != "changer")
    address = address_of(settings)
    server = (Careless if barrier == "connection" else Server)(
        address, limits_of(settings), writable=barrier != "connection"
    )
    server.connect()
    binding = choose(name)
    mounted = Mounted(settings, server, binding, path, print)
    # Not `read_only`, for which the binding answers EROFS itself: the kernel's flag is all there is.
    options = replace(mount_options(settings, address, path), read_only=False)
    if barrier == "kernel":
        options = replace(options, extra=("ro",))
    try:
        binding.run(mounted.operations, options, mounted.notifier)
    finally:
        mounted.close()
        server.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
