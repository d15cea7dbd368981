"""The objects of a mount that writes.

They are the journal, the key writer, the open files, the memory filesystem and a timer for delayed changes. They exist
with `--write` only.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from redisfuse.client.client import RedisClient
from redisfuse.config import Config
from redisfuse.errors import RedisFuseError
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import ServerIdentity, SessionMetadata
from redisfuse.mount import procfs
from redisfuse.transactions.callers import Caller
from redisfuse.transactions.held import recover_held
from redisfuse.transactions.key_writer import KeyWriter
from redisfuse.transactions.session_start import start_session
from redisfuse.vfs.coherence import Coherence
from redisfuse.vfs.content import ContentLoader
from redisfuse.vfs.empty_dirs import EmptyDirectories
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.junk_rules import JunkRules
from redisfuse.vfs.memory_fs import MemoryFS
from redisfuse.vfs.namespace import NamespaceOperations
from redisfuse.vfs.open_file_table import OpenFileTable
from redisfuse.vfs.overlay import Overlay
from redisfuse.vfs.staged_replace import PausableClock, PendingRemovals

log = logging.getLogger(__name__)

JOURNAL_POLL_SECONDS = 0.5
"""How often the journal is checked for changes by other processes."""

TIMER_TICK_SECONDS = 0.05
"""How often delayed changes are checked while there are any."""


class WriteSupport:
    """The objects with which a mount writes."""

    def __init__(
        self,
        config: Config,
        client: RedisClient,
        content_loader: ContentLoader,
        mountpoint: Path,
        coherence: Coherence,
        caller: Caller,
    ) -> None:
        self._config = config
        self._coherence = coherence
        self.journal = Journal.open(
            config.journal_file, create=True, operation_idle_ms=round(config.operation_idle * 1000)
        )
        try:
            allow = [repr(glob)[2:-1] for glob in config.allow]
            options = {
                "conflict_check": config.conflict_check,
                "allow": allow,
                "separator": os.fsdecode(config.separator),
            }
            info = build_session_info(client, mountpoint, options)
            self.session_id = start_session(self.journal, client, info, prefix=config.prefix)
            recover_held(self.journal, client, self.session_id)
            self.empty_directories = EmptyDirectories(self.journal, info.server.name)
            self.key_writer = KeyWriter(
                client,
                self.journal,
                self.session_id,
                conflict_check=config.conflict_check,
                added_newline=config.added_newline,
                allow=config.allow,
                dump_limit=config.dump_limit,
                listener=coherence,
                caller=caller,
            )
        except BaseException:
            self.journal.close()
            raise
        self._wakeup = threading.Event()
        self._closing = threading.Event()
        self._clock = PausableClock()
        self.open_files = OpenFileTable(
            self.key_writer,
            content_loader,
            coherence,
            hold_seconds=config.park_seconds,
            clock=self._clock,
            wake_event=self._wakeup,
            processes=procfs,
        )
        self.pending_removals = PendingRemovals(self._clock, self._wakeup)
        self.memory_fs = MemoryFS(config.scratch_memory)
        self.overlay = Overlay(self.memory_fs, self.open_files, self.pending_removals)
        self._namespace: NamespaceOperations | None = None
        self._timer_thread = threading.Thread(target=self._timer_loop, name="redisfuse-timer", daemon=True)

    def create_namespace(self, filesystem: Filesystem, junk_rules: JunkRules) -> NamespaceOperations:
        """Create the namespace operations; called once, after the filesystem exists."""
        self._namespace = NamespaceOperations(
            filesystem,
            self.overlay,
            self.key_writer,
            junk_rules,
            self.empty_directories,
            strings_only=self._config.new_files == "string",
            removal_delay_seconds=self._config.park_seconds,
            coherence=self._coherence,
            processes=procfs,
        )
        return self._namespace

    def start(self) -> None:
        """Start the timer of delayed changes."""
        self._timer_thread.start()

    def _timer_loop(self) -> None:
        while not self._closing.is_set():
            if not self._wakeup.wait(JOURNAL_POLL_SECONDS):
                self._poll_journal()
                continue
            self._wakeup.clear()
            before = time.monotonic()
            while not self._closing.is_set() and self._has_delayed_changes():
                self._closing.wait(TIMER_TICK_SECONDS)
                now = time.monotonic()
                self._clock.advance(min(now - before, 2 * TIMER_TICK_SECONDS))
                before = now
                self._commit_due(self._clock.now)

    def _poll_journal(self) -> None:
        """Reload the empty directories from the journal, and settle changes in doubt.

        Another process may have changed the directories there.
        """
        try:
            self.key_writer.resolve_in_doubt()
            changed = self.empty_directories.reload_if_changed()
        except RedisFuseError as error:
            log.debug("the journal could not be polled: %s", error)
            return
        if changed:
            self._coherence.directories_changed(changed)

    def _has_delayed_changes(self) -> bool:
        return bool(self.pending_removals) or any(
            file.hold_deadline is not None for file in self.open_files.iter_files()
        )

    def _commit_due(self, now: float | None) -> None:
        if self._namespace is None:
            return
        try:
            self._namespace.commit_expired(now)
        except RedisFuseError as error:
            log.error("a delayed change could not be committed: %s", error)
        except Exception:
            log.exception("a delayed change could not be committed")

    def close(self, *, busy_at_unmount: bool = False) -> None:
        """Commit delayed changes and end the session; never raises.

        Changes that can't be committed are logged. `busy_at_unmount`: programs still have files open.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        self._wakeup.set()
        if self._timer_thread.is_alive():
            self._timer_thread.join()
        for file in self.open_files.iter_files():
            file.commit_at_unmount(busy_at_unmount=busy_at_unmount)
        self._commit_due(None)
        self.key_writer.resolve_in_doubt()
        try:
            self.journal.end_session(self.session_id)
            self.journal.close()
        except RedisFuseError as error:
            log.error("closing the journal failed: %s", error)


def build_session_info(client: RedisClient, mountpoint: Path | None, options: Mapping[str, object]) -> SessionMetadata:
    """Return the journal's record of a session on this server."""
    server_info, address = client.server_info, client.address
    identity = ServerIdentity(
        scheme=address.kind,
        host=",".join(sorted(address.endpoint.split(","))) if address.kind == "cluster" else address.host or None,
        port=address.port or None,
        unix_path=address.unix_path or None,
        db=address.db,
        username=address.username,
        redacted_url=address.url,
    )
    return SessionMetadata(
        identity,
        run_id=server_info.run_id,
        server_version=".".join(map(str, server_info.version)),
        vendor=server_info.vendor,
        mountpoint=None if mountpoint is None else str(mountpoint),
        options=options,
    )
