"""What a mount has more when it may write: journal, edits, open files, scratch, and a thread for what waits.

Made only for `--write`; a read-only mount has no object of this class.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from redisfuse.client.client import Server
from redisfuse.config import Settings
from redisfuse.errors import RedisFuseError, TooLargeError
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import ServerIdentity, SessionInfo
from redisfuse.paths.grammar import Target
from redisfuse.text import glob_matches
from redisfuse.transactions.executor import OnApplied
from redisfuse.transactions.key_writer import Edits
from redisfuse.transactions.recovery import recover
from redisfuse.vfs.content import Reader
from redisfuse.vfs.empty_dirs import Directory, MadeDirectories
from redisfuse.vfs.filesystem import Filesystem
from redisfuse.vfs.junk_rules import Junk
from redisfuse.vfs.memory_fs import Scratch
from redisfuse.vfs.namespace import Rearranger
from redisfuse.vfs.open_files import OpenFiles
from redisfuse.vfs.overlay import Overlay
from redisfuse.vfs.staged_replace import Parking, PatientClock

log = logging.getLogger(__name__)

LARGEST = 512 * 1024 * 1024  # bytes; https://redis.io/docs/latest/develop/data-types/strings/#limits
LOOK = 0.5  # seconds between looks whether somebody else wrote to the journal
TICK = 0.05  # seconds between looks at what waits for its time


class WriteMode:
    """The writing half of a mount."""

    def __init__(
        self,
        settings: Settings,
        server: Server,
        reader: Reader,
        mountpoint: Path,
        on_begin: Callable[[Collection[bytes]], None],
        on_applied: OnApplied,
        on_saved: Callable[[Target, int], None],
        reappeared: Callable[[Collection[bytes]], None],
        on_directories: Callable[[Collection[Directory]], None],
    ) -> None:
        self._settings = settings
        self._on_directories = on_directories  # told of empty directories that came or went in the journal
        self.journal = Journal.open(settings.journal_file, create=True)
        try:
            allow = [repr(each)[2:-1] for each in settings.allow]
            info = session_info(server, mountpoint, {"conflict_check": settings.conflict_check, "allow": allow})
            self.session = self.journal.begin_session(info)
            self.recovered = recover(self.journal, server, self.session)
            self.made = MadeDirectories(self.journal, info.server.name)
            self.edits = Edits(
                server,
                self.journal,
                self.session,
                conflict_check=settings.conflict_check,
                allow=_allowed(settings.allow),
                dump_limit=settings.dump_limit,
                on_begin=on_begin,
                on_applied=on_applied,
            )
        except BaseException:
            self.journal.close()
            raise
        self._reappeared = reappeared  # told of keys that the tree shows again as Redis has them
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._clock = PatientClock()
        self.files = OpenFiles(
            self.edits,
            reader.snapshot,
            _check_size,
            hold_seconds=settings.park_seconds,
            clock=self._clock,
            wake=self._wake,
            given_up=lambda key: reappeared([key]),
            saved=on_saved,
        )
        self.parking = Parking(self._clock, self._wake)
        self.scratch = Scratch(settings.scratch_memory)
        self.overlay = Overlay(self.scratch, self.files, self.parking)
        self._rearranger: Rearranger | None = None
        self._thread = threading.Thread(target=self._keep_time, name="redisfuse-waiting", daemon=True)

    def rearranger(self, tree: Filesystem, junk: Junk) -> Rearranger:
        """The tree's changer; made once, after the tree."""
        self._rearranger = Rearranger(
            tree,
            self.overlay,
            self.edits,
            junk,
            self.made,
            strings_only=self._settings.new_files == "string",
            park_seconds=self._settings.park_seconds,
            reappeared=self._reappeared,
        )
        return self._rearranger

    def start(self) -> None:
        """Begin to let waiting changes go."""
        self._thread.start()

    def _keep_time(self) -> None:
        while not self._ending.is_set():
            if not self._wake.wait(LOOK):
                self._look_at_directories()
                continue
            self._wake.clear()
            before = time.monotonic()
            while not self._ending.is_set() and self._waiting():
                self._ending.wait(TICK)
                now = time.monotonic()
                self._clock.advance(min(now - before, 2 * TICK))
                before = now
                self._settle(self._clock.now)

    def _look_at_directories(self) -> None:
        """Empty directories are in the journal only, where a rollback or another mount may have changed them."""
        try:
            changed = self.made.reload_if_changed()
        except RedisFuseError as error:
            log.debug("the journal's directories could not be read: %s", error)
            return
        if changed:
            self._on_directories(changed)

    def _waiting(self) -> bool:
        return bool(self.parking) or any(file.held_until is not None for file in self.files.all())

    def _settle(self, now: float | None) -> None:
        if self._rearranger is None:
            return
        try:
            self._rearranger.settle(now)
        except RedisFuseError as error:
            log.error("what waited for its time could not be saved: %s", error)
        except Exception:
            log.exception("what waited for its time could not be saved")

    def close(self, *, left_open: bool = False) -> None:
        """The mount ends, `left_open`: while programs have files open. Commit what is left, and say what could not be.

        Never raises.
        """
        if self._ending.is_set():
            return
        self._ending.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        for file in self.files.all():
            file.finish(left_open=left_open)
        self._settle(None)
        self.edits.settle()
        try:
            self.journal.end_session(self.session)
            self.journal.close()
        except RedisFuseError as error:
            log.error("the journal could not be closed: %s", error)


def session_info(server: Server, mountpoint: Path | None, options: Mapping[str, object]) -> SessionInfo:
    """What the journal keeps of a session on this server."""
    facts, address = server.facts, server.address
    identity = ServerIdentity(
        scheme=address.kind,
        host=address.host or None,
        port=address.port or None,
        unix_path=address.unix_path or None,
        db=address.db,
        username=address.username,
        url=address.url,
    )
    return SessionInfo(
        identity,
        run_id=facts.run_id,
        version=".".join(map(str, facts.version)),
        maker=facts.maker,
        mountpoint=None if mountpoint is None else str(mountpoint),
        options=options,
    )


def _allowed(globs: Collection[bytes]) -> Callable[[bytes], bool]:
    """Whether a key may be changed: all may if no glob was given."""
    if not globs:
        return lambda _key: True
    return lambda key: any(glob_matches(glob, key) for glob in globs)


def _check_size(size: int) -> None:
    if size > LARGEST:
        raise TooLargeError("a Redis string can't be larger than 512 MiB")
