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

from redisfuse.client.address import Address, TlsOptions
from redisfuse.client.client import RedisClient
from redisfuse.client.limits import Limits
from redisfuse.config import Config
from redisfuse.fuse.abort_watchdog import AbortWatchdog
from redisfuse.fuse.backends import select_binding
from redisfuse.fuse.interface import Binding, FuseSessionOptions
from redisfuse.fuse.mountpoint import validate_mountpoint as check_mountpoint
from redisfuse.mount.context import MountContext
from redisfuse.mount.daemonize import configure_logging, daemonize

READ_AHEAD_KIB = (
    1024  # KiB that the kernel reads ahead, where we may say so (root): measured, tests/benchmarks/RESULTS.md
)
_M_ARENA_MAX = -8  # malloc.h


def mount_and_serve(config: Config) -> None:
    """Mount, and serve until unmounted. Raises RedisFuseError if it can't be mounted; then nothing is left mounted."""
    address = build_address(config)
    binding = select_binding(None if config.binding == "auto" else config.binding)
    mountpoint = check_mountpoint(config.mountpoint, nonempty=_allows_nonempty(config))
    if config.daemon:
        daemonize(config, lambda ready: _serve(config, address, binding, mountpoint, ready))
    else:
        configure_logging(config)
        _serve(config, address, binding, mountpoint, lambda text: print(text, file=sys.stderr, flush=True))


def _serve(
    config: Config, address: Address, binding: Binding, mountpoint: Path, on_ready: Callable[[str], None]
) -> None:
    """Everything that belongs to the process that serves: connections and threads begin here."""
    with AbortWatchdog(mountpoint):  # first: it forks
        _limit_malloc_arenas()
        server = RedisClient(address, build_limits(config), writable=config.write)
        try:
            server.connect()
            mounted = MountContext(config, server, binding, mountpoint, on_ready)
            try:
                binding.run(
                    mounted.adapter, build_session_options(config, address, mountpoint), mounted.invalidation_queue
                )
            finally:
                mounted.close()
        finally:
            server.close()


def _limit_malloc_arenas() -> None:
    """One heap for all threads: glibc's mallopt(3) gives each a heap of its own, from which nobody else takes what it
    frees. Only one thread runs Python at a time anyway. (A listing of a million names: 163 MiB in place of 205.)"""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def build_address(config: Config) -> Address:
    """The server that was asked for. Raises UsageError."""
    if config.port is None:
        address = Address.parse(config.target, username=config.user, password=config.password, db=config.db)
    else:
        address = Address.from_host_port(
            config.target, config.port, config.db or 0, username=config.user, password=config.password
        )
    return _apply_tls_options(address, config)


def _apply_tls_options(address: Address, config: Config) -> Address:
    """The address with the TLS options of the command line over those of the URL."""
    given = config.tls or config.tls_ca or config.tls_cert
    if not given and address.tls is None:
        return address
    tls = address.tls or TlsOptions()
    if config.tls_ca:
        tls = replace(tls, ca_certs=str(config.tls_ca))
    if config.tls_cert:
        tls = replace(tls, certfile=str(config.tls_cert))
    if config.tls_key:
        tls = replace(tls, keyfile=str(config.tls_key))
    if config.tls_insecure:
        tls = replace(tls, cert_reqs="none", check_hostname=False)
    return replace(address, tls=tls, kind="tls" if address.kind == "tcp" else address.kind)


def build_limits(config: Config) -> Limits:
    """How politely the server is used."""
    return Limits(
        timeout=config.timeout,
        connections=config.connections,
        rate=config.rate,
        scan_count=config.scan_count,
    )


def build_session_options(config: Config, address: Address, mountpoint: Path) -> FuseSessionOptions:
    """How the kernel is asked to mount."""
    options = config.options
    extra = tuple(
        name if value is None else f"{name}={value}" for name, value in options.passthrough if name != "nonempty"
    )
    if options.allow_root:
        extra = (*extra, "allow_root")
    return FuseSessionOptions(
        mountpoint=mountpoint,
        read_only=not config.write,
        no_open=not config.write and not config.ask_on_open,
        fsname=address.url,
        allow_other=options.allow_other,
        nonempty=_allows_nonempty(config),
        extra=extra,
        read_ahead=READ_AHEAD_KIB,
    )


def _allows_nonempty(config: Config) -> bool:
    return any(name == "nonempty" for name, _value in config.options.passthrough)
