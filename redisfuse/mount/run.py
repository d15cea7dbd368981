"""The composition root: settings become objects, wired to each other, and mounted until somebody ends it.

The decision between read-only and write mode is made here, once: a read-only mount gets no edits, no journal and a
server object that can't write.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from redisfuse.client.address import Address, Tls
from redisfuse.client.client import Server
from redisfuse.client.limits import Limits
from redisfuse.config import Settings
from redisfuse.fuse.abort_watchdog import Guard
from redisfuse.fuse.backends import choose
from redisfuse.fuse.interface import Binding, MountOptions
from redisfuse.fuse.mountpoint import check as check_mountpoint
from redisfuse.mount.context import Mounted
from redisfuse.mount.daemonize import configure_log, in_background

READ_AHEAD = 1024  # KiB that the kernel reads ahead, where we may say so (root): measured, tests/benchmarks/RESULTS.md
_M_ARENA_MAX = -8  # malloc.h


def run(settings: Settings) -> None:
    """Mount, and serve until unmounted. Raises RedisFuseError if it can't be mounted; then nothing is left mounted."""
    address = address_of(settings)
    binding = choose(None if settings.binding == "auto" else settings.binding)
    mountpoint = check_mountpoint(settings.mountpoint, nonempty=_nonempty(settings))
    if settings.daemon:
        in_background(settings, lambda ready: _serve(settings, address, binding, mountpoint, ready))
    else:
        configure_log(settings)
        _serve(settings, address, binding, mountpoint, lambda text: print(text, file=sys.stderr, flush=True))


def _serve(
    settings: Settings, address: Address, binding: Binding, mountpoint: Path, ready: Callable[[str], None]
) -> None:
    """Everything that belongs to the process that serves: connections and threads begin here."""
    with Guard(mountpoint):  # first: it forks
        _share_memory()
        server = Server(address, limits_of(settings), writable=settings.write)
        try:
            server.connect()
            mounted = Mounted(settings, server, binding, mountpoint, ready)
            try:
                binding.run(mounted.operations, mount_options(settings, address, mountpoint), mounted.notifier)
            finally:
                mounted.close()
        finally:
            server.close()


def _share_memory() -> None:
    """One heap for all threads: glibc's mallopt(3) gives each a heap of its own, from which nobody else takes what it
    frees. Only one thread runs Python at a time anyway. (A listing of a million names: 163 MiB in place of 205.)"""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def address_of(settings: Settings) -> Address:
    """The server that was asked for. Raises UsageError."""
    if settings.port is None:
        address = Address.parse(settings.target, username=settings.user, password=settings.password, db=settings.db)
    else:
        address = Address.from_host_port(
            settings.target, settings.port, settings.db or 0, username=settings.user, password=settings.password
        )
    return _with_tls(address, settings)


def _with_tls(address: Address, settings: Settings) -> Address:
    """The address with the TLS options of the command line over those of the URL."""
    given = settings.tls or settings.tls_ca or settings.tls_cert
    if not given and address.tls is None:
        return address
    tls = address.tls or Tls()
    if settings.tls_ca:
        tls = replace(tls, ca_certs=str(settings.tls_ca))
    if settings.tls_cert:
        tls = replace(tls, certfile=str(settings.tls_cert))
    if settings.tls_key:
        tls = replace(tls, keyfile=str(settings.tls_key))
    if settings.tls_insecure:
        tls = replace(tls, cert_reqs="none", check_hostname=False)
    return replace(address, tls=tls, kind="tls" if address.kind == "tcp" else address.kind)


def limits_of(settings: Settings) -> Limits:
    """How politely the server is used."""
    return Limits(
        timeout=settings.timeout,
        connections=settings.connections,
        rate=settings.rate,
        scan_count=settings.scan_count,
    )


def mount_options(settings: Settings, address: Address, mountpoint: Path) -> MountOptions:
    """How the kernel is asked to mount."""
    options = settings.options
    extra = tuple(name if value is None else f"{name}={value}" for name, value in options.other if name != "nonempty")
    if options.allow_root:
        extra = (*extra, "allow_root")
    return MountOptions(
        mountpoint=mountpoint,
        read_only=not settings.write,
        no_open=not settings.write and not settings.ask_on_open,
        fsname=address.url,
        allow_other=options.allow_other,
        nonempty=_nonempty(settings),
        extra=extra,
        read_ahead=READ_AHEAD,
    )


def _nonempty(settings: Settings) -> bool:
    return any(name == "nonempty" for name, _value in settings.options.other)
