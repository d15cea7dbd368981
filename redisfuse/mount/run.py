"""The composition root: build a mount from its settings and serve it.

The choice between read-only and write mode is made here, once: a read-only mount gets no journal, no key writer and a
client that can't write.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from dataclasses import replace
from pathlib import Path

from redisfuse.client.address import Address, TlsOptions
from redisfuse.client.address_map import AddressMap
from redisfuse.client.limits import Limits
from redisfuse.client.opening import open_client
from redisfuse.client.ssh_tunnels import check_destination, create_address_map
from redisfuse.config import Config
from redisfuse.errors import UsageError
from redisfuse.fuse.device import FuseDevice, select_device
from redisfuse.fuse.interface import FuseSessionOptions
from redisfuse.fuse.session import FuseSession
from redisfuse.mount.abort_watchdog import AbortWatchdog
from redisfuse.mount.context import MountContext
from redisfuse.mount.daemonize import ForegroundReport, StartupReport, daemonize
from redisfuse.mount.log_file import configure_logging
from redisfuse.mount.preflight import validate_mountpoint
from redisfuse.mount.service_manager import ServiceManager

_MMAP_THRESHOLD_BYTES = 4 << 20  # more than the largest reply to the kernel
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_COLLECTOR_THRESHOLDS = (20_000, 20, 50)  # gc.set_threshold; the default is (700, 10, 10)


def mount_and_serve(config: Config) -> None:
    """Mount, and serve until unmounted.

    Raises RedisFuseError if the mount fails; nothing is left mounted then.
    """
    address = build_address(config)
    AddressMap.parse(config.cluster_map)  # errors of usage come before the fork
    if config.ssh is not None:
        check_destination(config.ssh)
    device = select_device(None if config.binding == "auto" else config.binding)
    mountpoint = validate_mountpoint(config.mountpoint, nonempty=_allows_nonempty(config))
    manager = ServiceManager.from_environment()
    if config.daemon:
        daemonize(config, lambda report: _serve(config, address, device, mountpoint, report))
    else:
        configure_logging(config)
        _serve(config, address, device, mountpoint, ForegroundReport(manager))


def _serve(config: Config, address: Address, device: FuseDevice, mountpoint: Path, report: StartupReport) -> None:
    """Open connections, start threads and serve, all in the serving process."""
    with AbortWatchdog(mountpoint):  # first, because it forks
        _configure_malloc()
        _configure_collector()
        address_map = create_address_map(config.cluster_map, config.ssh)
        client = open_client(
            address,
            build_limits(config),
            writable=config.write,
            # A password in the URL has priority, and is not the file's.
            password_file=config.password_file if address.password == config.password else None,
            address_map=address_map,
            replicas=config.replicas,
            max_lag=config.max_lag,
            wait_replicas=config.wait_replicas,
        )
        try:
            session = FuseSession(device)
            context = MountContext(config, client, session, mountpoint, report)
            try:
                session.run(context.adapter, build_session_options(config, address, mountpoint))
            finally:
                context.close()
        finally:
            client.close()
            address_map.close()


def _configure_malloc() -> None:
    """Limit glibc to one malloc arena, and fix its mmap threshold (mallopt(3)).

    Each thread would otherwise get an arena of its own, whose free memory no other thread can use, while the GIL lets
    only one thread run Python anyway. A listing of a million names then takes 163 MiB instead of 205. And once a large
    table is freed, glibc would raise the threshold, so that the tables after it leave holes in the heap that are never
    returned: the same listing takes 163 MiB instead of 197.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)


def _configure_collector() -> None:
    """Let Python look for reference cycles more rarely.

    A listing creates many objects that live long, and the default thresholds make the collector visit them again and
    again: a `grep -r` of 100 000 files then takes 1.1 to 1.2 times as long. Requests create few cycles.
    """
    gc.freeze()  # modules and classes live as long as the process
    gc.set_threshold(*_COLLECTOR_THRESHOLDS)


def build_address(config: Config) -> Address:
    """Return the server's address. Raises UsageError."""
    if config.port is None:
        address = Address.parse(config.target, username=config.user, password=config.password, db=config.db)
    else:
        address = Address.from_host_port(
            config.target, config.port, config.db or 0, username=config.user, password=config.password
        )
    return _apply_tls_options(address, config)


def _apply_tls_options(address: Address, config: Config) -> Address:
    """Return the address with the TLS options of the command line.

    They override those of the URL.
    """
    has_tls_options = config.tls or config.tls_ca or config.tls_cert
    if not has_tls_options and address.tls is None:
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
    """Return the limits that keep the load on the server low."""
    return Limits(
        timeout=config.timeout,
        connections=config.connections,
        rate=config.rate,
        scan_count=config.scan_count,
    )


def build_session_options(config: Config, address: Address, mountpoint: Path) -> FuseSessionOptions:
    """Return the options of the FUSE session."""
    options = config.options
    if {"fsname", "subtype"} <= {name for name, _value in options.passthrough}:
        raise UsageError(
            "-o fsname= and subtype= together would leave nothing that identifies the mount; give one of them"
        )
    extra = tuple(
        name if value is None else f"{name}={value}" for name, value in options.passthrough if name != "nonempty"
    )
    if options.allow_root:
        extra = (*extra, "allow_root")
    return FuseSessionOptions(
        mountpoint=mountpoint,
        read_only=not config.write,
        fsname=address.url,
        allow_other=options.allow_other,
        nonempty=_allows_nonempty(config),
        extra=extra,
    )


def _allows_nonempty(config: Config) -> bool:
    return any(name == "nonempty" for name, _value in config.options.passthrough)
