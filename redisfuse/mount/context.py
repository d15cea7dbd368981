"""One mount's objects, wired to each other: who tells whom that something changed.

A change that the server tells of drops the process's caches first (`_touched`), and once it is verified what the index
says is followed by what the kernel knows (`_changed`). The kernel is told long time-outs only while both the follower
and the notifier live.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from redisfuse import __version__
from redisfuse.client.client import Server
from redisfuse.config import Settings
from redisfuse.errors import RedisFuseError
from redisfuse.fuse import procfs
from redisfuse.fuse.interface import Binding
from redisfuse.fuse.notify import Notifier
from redisfuse.keyspace.exists import existing
from redisfuse.keyspace.metadata import AttributeStore
from redisfuse.keyspace.monitor import Keyspace
from redisfuse.mount.adapter import Operations, Outside, Ownership, inode_of
from redisfuse.mount.progress import show_progress
from redisfuse.mount.write_mode import WriteMode
from redisfuse.paths.grammar import UPDATER, Grammar
from redisfuse.vfs.content import Reader
from redisfuse.vfs.dentry_tracker import Told
from redisfuse.vfs.filesystem import Filesystem, TreeOptions
from redisfuse.vfs.junk_rules import Junk
from redisfuse.vfs.statfs import Space

log = logging.getLogger(__name__)

LONG = 3600.0  # seconds that the kernel may believe what it was told, while changes are pushed to it
SHORT = 1.0  # where they are not
UMASK = 0o077  # of a mount that was given none: owner only


class Mounted:
    """Everything that serves one mount. Made in the process that serves it; threads begin in `_started`."""

    def __init__(
        self, settings: Settings, server: Server, binding: Binding, mountpoint: Path, ready: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._server = server
        self._binding = binding
        self._mountpoint = mountpoint
        self._ready = ready
        self._started_ns = time.time_ns()
        self.grammar = Grammar(settings.separator)
        self.notifier = Notifier()
        self.keyspace = Keyspace(
            server,
            separator=settings.separator,
            is_long=self.grammar.key_is_long,
            prefix=settings.prefix,
            index_memory=settings.index_memory,
            rescan_interval=settings.rescan_seconds,
            on_touched=self._touched,
            on_change=self._changed,
            on_reset=self._reset,
            on_state=self._state_changed,
            on_none_expiring=lambda: self.attributes.none_expiring(),
        )
        self.attributes = AttributeStore(
            server,
            memory=settings.cache_memory,
            trust=self._trust,
            volatile=lambda: self.keyspace.volatile,
            on_deadline=self._expires,
            order=lambda key: inode_of(self.grammar.key_path(key)),
        )
        self.reader = Reader(
            server,
            self.attributes,
            self.keyspace,
            self._trust,
            render_limit=settings.render_limit,
            dump_limit=settings.dump_limit,
        )
        self.told = Told(
            self.grammar,
            lambda: self.keyspace.index,
            self.notifier.invalidate,
            lambda paths: self.notifier.invalidate(paths, names_stand=True),
            self.notifier.invalidate_all,
        )
        junk = Junk.of(settings)
        self.writing: WriteMode | None = None
        if settings.write:
            self.writing = WriteMode(
                settings,
                server,
                self.reader,
                mountpoint,
                self.keyspace.will_change,
                self._applied,
                self.keyspace.saved,
                self.told.changed,
                self._directories_changed,
            )
        self.tree = Filesystem(
            grammar=self.grammar,
            keyspace=self.keyspace,
            attributes=self.attributes,
            reader=self.reader,
            junk=junk,
            overlay=self.writing.overlay if self.writing else None,
            empty=self.writing.made if self.writing else None,
            options=TreeOptions(settings.field_limit, settings.hash_limit, settings.show_junk, settings.prefix),
            started_ns=self._started_ns,
            interrupted=binding.interrupted,
        )
        self.operations = Operations(
            self.tree,
            self.writing.rearranger(self.tree, junk) if self.writing else None,
            self._ownership(),
            Outside(
                started=self._start,
                stopped=self._stop,
                waiting=binding.waiting,
                without_open=lambda: binding.without_open,
                brief=binding.brief,
                number=binding.node,
                believed_size=binding.believed_size,
                has_node=binding.has_node,
                store=binding.store,
                outdated=binding.outdated,
                push=self.notifier.invalidate,
                trust=self._trust,
                coherent=lambda: self._coherent,
                caller=lambda: binding.caller()[2],
                process_of=procfs.process_of,
                reading=lambda: procfs.is_reading(binding.caller()[2]),
                removing=lambda: procfs.is_removing(binding.caller()[2]),
                has_open=lambda pid, path: procfs.has_open(pid, os.fsencode(mountpoint) + b"/" + path),
                space=Space(server),
                refresh=self._refresh,
                note=self.told.note,
                note_keys=self.told.note_keys,
                status=self._status_text,
            ),
        )

    def _ownership(self) -> Ownership:
        options = self._settings.options
        return Ownership(
            uid=os.getuid() if options.uid is None else options.uid,
            gid=os.getgid() if options.gid is None else options.gid,
            umask=UMASK if options.umask is None else options.umask,
            write=self._settings.write,
        )

    # -- its life ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.notifier.start()
        self._state_changed()
        self.keyspace.start()
        if self.writing is not None:
            self.writing.start()
        self._ready(self.banner())
        if not self._settings.daemon and sys.stderr.isatty():
            show_progress(self.keyspace)

    def banner(self) -> str:
        """The one line that says what is mounted, and how to leave."""
        how = "read and write, journaled" if self._settings.write else "read-only"
        leave = "" if self._settings.daemon else "Ctrl-C or "
        return (
            f"{self._server.address.masked} is mounted at {self._mountpoint} ({how}); "
            f"leave with {leave}`redisfuse umount {self._mountpoint}`"
        )

    def _stop(self) -> None:
        self.operations.shared.close()
        if self.writing is not None:
            self.writing.close(left_open=self._binding.left_open)
        self.keyspace.close()

    def close(self) -> None:
        """After the mount is gone, or if it could not be made."""
        if self.writing is not None:
            self.writing.close()
        self.keyspace.close()
        self.notifier.close()

    # -- what changes ------------------------------------------------------------------------------------------------

    @property
    def _coherent(self) -> bool:
        """Whether every change reaches the kernel's cache."""
        return self.keyspace.live and self.keyspace.ready and self.notifier.supported

    def _trust(self) -> float:
        return math.inf if self.keyspace.live else SHORT

    def _expires(self, key: bytes, deadline: float) -> None:
        """A key will expire (time.monotonic()): nobody tells of that in time, so it is then looked at."""
        if not self.keyspace.expires_at(key, deadline):
            self._changed([key])

    def _touched(self, keys: Collection[bytes]) -> None:
        self.attributes.drop(keys)
        self.operations.listings.changed(keys)
        self.operations.shared.changed(keys)

    def _changed(self, keys: Collection[bytes]) -> None:
        self._touched(keys)
        self.told.changed(keys)

    def _applied(self, keys: Mapping[bytes, bool | None]) -> None:
        """A change of our own: the caches and the index must not wait for the server to tell."""
        self.attributes.drop(keys)
        asked = [key for key, exists in keys.items() if exists is None]
        found = dict(zip(asked, self._existing(asked), strict=True))
        for key, exists in keys.items():
            there = found[key] if exists is None else exists
            if there is None:
                self.keyspace.touched(key)
            else:
                self.keyspace.changed(key, there)
        self.told.changed(keys)

    def _existing(self, keys: Sequence[bytes]) -> Sequence[bool | None]:
        try:
            return existing(self._server, keys)
        except RedisFuseError:
            return [None] * len(keys)  # the follower's thread will find out

    def _directories_changed(self, directories: Collection[tuple[bytes, ...]]) -> None:
        """Empty directories came or went in the journal: the kernel may know otherwise."""
        self.notifier.invalidate([self.grammar.directory_path(each) for each in directories], parents_too=True)

    def _reset(self) -> None:
        self.attributes.drop_all()
        self.reader.forget()
        self.operations.shared.changed_all()
        self._state_changed()
        self.told.forget()

    def _state_changed(self) -> None:
        """The follower began or ended, or the index is complete: the kernel may believe more, or less."""
        if self._coherent:
            self._binding.set_timeouts(LONG, LONG, LONG)
        else:
            self._binding.set_timeouts(SHORT, SHORT, 0.0)
        self.operations.listings.forget()
        self.operations.shared.changed_all()
        self.told.forget()

    def _refresh(self) -> None:
        self.keyspace.refresh()
        self.notifier.invalidate([UPDATER])

    # -- what is said of it ------------------------------------------------------------------------------------------

    def status(self) -> dict[str, object]:
        """For `redisfuse status`: plain values, ready for JSON. Sizes in bytes, times in seconds."""
        done, total = self.keyspace.progress
        counters = self._server.counters
        facts = self._server.facts
        asked = self.attributes.hits + self.attributes.misses
        return {
            "mountpoint": str(self._mountpoint),
            "server": self._server.address.masked,
            "server_version": f"{facts.maker} {'.'.join(map(str, facts.version))}",
            "version": __version__,
            "pid": os.getpid(),
            "mode": "write" if self._settings.write else "read-only",
            "journal": None if self.writing is None else str(self.writing.journal.path),
            "session": None if self.writing is None else self.writing.session,
            "binding": self._binding.name,
            "library": self._binding.library,
            "up_seconds": round((time.time_ns() - self._started_ns) / 1e9, 1),
            "keys": len(self.keyspace.index),
            "scanning": self.keyspace.scanning,
            "ready": self.keyspace.ready,
            "scanned": done,
            "scan_total": total,
            "live": self.keyspace.live,
            "reason": self.keyspace.reason,
            "kernel_cache": self._coherent,
            "kernel_cache_reason": "" if self.notifier.supported else self.notifier.reason,
            "index_bytes": self.keyspace.index.memory,
            "index_on_disk": self.keyspace.index.on_disk,
            "cache_hits": self.attributes.hits,
            "cache_misses": self.attributes.misses,
            "cache_hit_rate": round(self.attributes.hits / asked, 3) if asked else None,
            "commands": counters.commands,
            "round_trips": counters.round_trips,
            "bytes_sent": counters.bytes_sent,
            "bytes_received": counters.bytes_received,
            "reconnects": counters.reconnects,
            "memory_bytes": _resident(),
        }

    def _status_text(self) -> bytes:
        return json.dumps(self.status()).encode()


def _resident() -> int:
    """Resident memory of this process in bytes (proc(5), statm)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
