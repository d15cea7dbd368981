"""A mount with one of the three read-only barriers and the two others removed.

Run as a process of its own: python -m tests.support.barrier_mount BARRIER BINDING URL MOUNTPOINT JOURNAL
  kernel       only the kernel's `ro` is left: all objects that write exist, and the connections may write
  changer      only the missing objects that write are left: the kernel mounts `rw`, and the connections may write
  connection   only the reading connections are left: the kernel mounts `rw`, and all objects that write exist
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from redisfuse.client.channel import Channel
from redisfuse.client.client import RedisClient
from redisfuse.config import Config
from redisfuse.errors import RedirectedError
from redisfuse.fuse.device import select_device
from redisfuse.fuse.session import FuseSession
from redisfuse.mount.context import MountContext
from redisfuse.mount.daemonize import ForegroundReport
from redisfuse.mount.run import build_address, build_limits, build_session_options
from redisfuse.mount.service_manager import ServiceManager


class UnguardedClient(RedisClient):
    """A read-only client that uses its reading connections for writes, too."""

    @contextlib.contextmanager
    def write_channel(self, key: bytes = b"", after: RedirectedError | None = None) -> Iterator[Channel]:  # noqa: ARG002
        with self._read_pool.acquire(self.limits.timeout) as dialogue:
            yield dialogue


def main(barrier: str, binding_name: str, url: str, mountpoint: str, journal: str) -> None:
    """Mount until unmounted."""
    logging.basicConfig(level=logging.INFO)
    path = Path(mountpoint)
    write = barrier != "changer"
    settings = Config(target=url, mountpoint=path, journal_file=Path(journal), write=write, ask_on_open=not write)
    address = build_address(settings)
    server = (UnguardedClient if barrier == "connection" else RedisClient)(
        address, build_limits(settings), writable=barrier != "connection"
    )
    server.connect()
    session = FuseSession(select_device(binding_name))
    mounted = MountContext(settings, server, session, path, ForegroundReport(ServiceManager(None)))
    options = replace(build_session_options(settings, address, path), read_only=False)
    if barrier == "kernel":
        options = replace(options, extra=("ro",))
    try:
        session.run(mounted.adapter, options)
    finally:
        mounted.close()
        server.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
