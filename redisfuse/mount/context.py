"""The objects of one mount, wired to each other."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from redisfuse.client.client import RedisClient
from redisfuse.config import Config
from redisfuse.fuse.session import FuseSession
from redisfuse.keyspace.cluster_monitor import create_monitor
from redisfuse.keyspace.metadata import MetadataStore
from redisfuse.mount.adapter import FuseAdapter
from redisfuse.mount.attributes import AttributeBuilder, Permissions, inode_number
from redisfuse.mount.daemonize import StartupReport
from redisfuse.mount.directories import OpenDirectories
from redisfuse.mount.preflight import set_read_ahead
from redisfuse.mount.progress import show_progress
from redisfuse.mount.status import build_status
from redisfuse.mount.unopened_files import UnopenedFiles
from redisfuse.mount.write_mode import WriteSupport
from redisfuse.mount.xattr_requests import XattrRequests
from redisfuse.paths.grammar import PathCodec
from redisfuse.rendering.decoding.limits import DecodeLimits
from redisfuse.text import for_terminal
from redisfuse.transactions.callers import RequestingProcess
from redisfuse.vfs.coherence import Coherence
from redisfuse.vfs.content import ContentLoader
from redisfuse.vfs.dentry_tracker import DentryTracker
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.hash_layouts import HashLayouts
from redisfuse.vfs.inodes import InodeTable
from redisfuse.vfs.junk_rules import JunkRules
from redisfuse.vfs.kernel_cache import KernelCache
from redisfuse.vfs.pinned_contents import PinnedContents
from redisfuse.vfs.resolver import PathResolver
from redisfuse.vfs.statfs import StatfsProvider
from redisfuse.vfs.xattrs import XattrReader

READ_AHEAD_KIB = 1024
"""The kernel's read-ahead, set where the mount may set it (root). Measured: tests/benchmarks/RESULTS.md."""

DEFAULT_UMASK = 0o077
"""Without `-o umask=`, only the owner may read and write."""


class MountContext:
    """Everything that serves one mount.

    Created in the process that serves it; threads start in `start`.
    """

    def __init__(
        self, config: Config, client: RedisClient, session: FuseSession, mountpoint: Path, report: StartupReport
    ) -> None:
        self.config = config
        self.client = client
        self.session = session
        self.mountpoint = mountpoint
        self._report = report
        self._started_ns = time.time_ns()
        client.wait_hook = session.prepare_to_wait
        self.path_codec = PathCodec(config.separator)
        skips_open = not config.write and not config.ask_on_open
        inodes = InodeTable()
        kernel_cache = KernelCache(inodes, session.notifier, keeps_pages=skips_open)
        self.coherence = Coherence(client, self.path_codec, kernel_cache)
        self.keyspace = create_monitor(
            client,
            layout=self.path_codec,
            prefix=config.prefix,
            index_memory=config.index_memory,
            rescan_interval=config.rescan_seconds,
            follow=config.follow,
            idle_seconds=config.idle_seconds,
            listener=self.coherence,
        )
        self.metadata = MetadataStore(
            client,
            max_cache_bytes=config.cache_memory,
            freshness=self.coherence,
            sort_key=lambda key: inode_number(self.path_codec.key_path(key)),
        )
        self.content_loader = ContentLoader(
            client,
            self.metadata,
            self.keyspace,
            self.coherence,
            render_limit=config.render_limit,
            dump_limit=config.dump_limit,
            decode_limits=DecodeLimits.from_settings(config),
        )
        dentry_tracker = DentryTracker(self.path_codec, self.keyspace, kernel_cache)
        junk_rules = JunkRules.from_config(config)
        self.write_support: WriteSupport | None = None
        if config.write:
            self.write_support = WriteSupport(
                config,
                client,
                self.content_loader,
                mountpoint,
                self.coherence,
                caller=RequestingProcess(session),
            )
        overlay = self.write_support.overlay if self.write_support else None
        empty_directories = self.write_support.empty_directories if self.write_support else None
        self.hash_layouts = HashLayouts(config.hashes, hash_limit=config.hash_limit, field_limit=config.field_limit)
        resolver = PathResolver(
            grammar=self.path_codec,
            keyspace=self.keyspace,
            metadata=self.metadata,
            overlay=overlay,
            empty_directories=empty_directories,
            prefix=config.prefix,
            layouts=self.hash_layouts,
            interrupts=session,
        )
        self.filesystem = Filesystem(
            grammar=self.path_codec,
            keyspace=self.keyspace,
            metadata=self.metadata,
            content_loader=self.content_loader,
            junk_rules=junk_rules,
            overlay=overlay,
            empty_directories=empty_directories,
            resolver=resolver,
            xattrs=XattrReader(client, self.path_codec, self.metadata, resolver, self.content_loader),
            show_junk=config.show_junk,
            mount_time_ns=self._started_ns,
        )
        attributes = AttributeBuilder(self.filesystem, self._build_permissions())
        self._unopened_files = None
        if skips_open:
            contents = PinnedContents(self.filesystem, self.coherence)
            self._unopened_files = UnopenedFiles(self.filesystem, attributes, inodes, contents, dentry_tracker)
        directories = OpenDirectories(
            self.filesystem, attributes, inodes, self.coherence, dentry_tracker, self._unopened_files
        )
        self.adapter = FuseAdapter(
            self.filesystem,
            self.write_support.create_namespace(self.filesystem, junk_rules) if self.write_support else None,
            attributes,
            inodes,
            mount=self,
            mountpoint=os.fsencode(mountpoint),
            coherence=self.coherence,
            dentry_tracker=dentry_tracker,
            directories=directories,
            unopened_files=self._unopened_files,
            xattr_requests=XattrRequests(self.filesystem, self),
            statfs=StatfsProvider(client),
        )
        self.coherence.connect(
            monitor=self.keyspace,
            metadata=self.metadata,
            content_loader=self.content_loader,
            dentry_tracker=dentry_tracker,
            readdir_cache=directories.cache,
        )

    def _build_permissions(self) -> Permissions:
        options = self.config.options
        return Permissions(
            uid=os.getuid() if options.uid is None else options.uid,
            gid=os.getgid() if options.gid is None else options.gid,
            umask=DEFAULT_UMASK if options.umask is None else options.umask,
            is_writable=self.config.write,
        )

    # -- start and end -----------------------------------------------------------------------------------------------

    @property
    def uptime_seconds(self) -> float:
        """How long this process has served the mount."""
        return (time.time_ns() - self._started_ns) / 1e9

    def start(self) -> None:
        """Start the threads, and report that the mount answers requests."""
        set_read_ahead(self.mountpoint, READ_AHEAD_KIB)
        self.coherence.state_changed()
        self.keyspace.start()
        if self.write_support is not None:
            self.write_support.start()
        self._report.ready(self.format_banner())
        if not self.config.daemon and sys.stderr.isatty():
            show_progress(self.keyspace)

    def format_banner(self) -> str:
        """Return the line that names the server, the mount point and how to unmount."""
        how = "read and write, journaled" if self.config.write else "read-only"
        how += ", from replicas" if self.config.replicas else ""
        shortcut = "" if self.config.daemon else "Ctrl-C or "
        mountpoint = for_terminal(str(self.mountpoint))
        return (
            f"{self.client.address.redacted_url} is mounted at {mountpoint} ({how}); "
            f"unmount with {shortcut}`redisfuse umount {mountpoint}`"
        )

    def stop(self) -> None:
        """Commit delayed changes and stop the threads, after the last request."""
        self._report.stopping()
        if self._unopened_files is not None:
            self._unopened_files.close()
        if self.write_support is not None:
            self.write_support.close(busy_at_unmount=self.session.busy_at_unmount)
        self.keyspace.close()

    def close(self) -> None:
        """Close everything, after the unmount or a failed mount."""
        if self.write_support is not None:
            self.write_support.close()
        self.keyspace.close()

    def refresh(self) -> None:
        """Scan the keyspace again."""
        self.keyspace.request_rescan()

    def encode_status(self) -> bytes:
        """Return the status as JSON."""
        return json.dumps(build_status(self)).encode()
