"""A program that adds tokens to files of a mount, and one that adds them as a client of the server.

Run as a process: `python -m tests.crash.history_program SETTINGS`. The settings are a JSON object (`Settings`). It ends
when its standard input ends. Each attempt to add a token is a line of its record: a JSON object (`Attempt`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.crash.history_record import Outcome, Program, Settings, Target


class MountProgram(Program):
    """A program that edits files of a mount."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        assert settings.mount is not None
        self._mount = Path(settings.mount)
        self._folder: int | None = None

    def attempt(self, target: Target) -> None:
        folder = self._open_folder()
        if folder is None:
            time.sleep(0.05)
            return
        kinds: list[Callable[[int, Target], None]] = [self._append, self._append_and_sync]
        if target.slot_count:
            kinds += [self._patch, self._patch]
        if target.is_locked:
            kinds += [self._rewrite, self._truncate_and_write, self._replace]
        kind = self.random.choice(kinds)
        with self._lock(target) if target.is_locked else contextlib.nullcontext():
            kind(folder, target)

    # -- kinds of changes ---------------------------------------------------------------------------------------------

    def _append(self, folder: int, target: Target) -> None:
        """Append a token; close(2) reports the outcome."""
        token = self.make_token()
        with self._recorded(token, target, "append"), _opened(folder, target.name, os.O_WRONLY | os.O_APPEND) as file:
            self._pause()
            _write(file, token)
            self._pause()

    def _append_and_sync(self, folder: int, target: Target) -> None:
        """Append a few tokens through one descriptor, with fsync(2) after each.

        The file keeps what fsync could not save, so that the next fsync, or close(2), that succeeds saves it too.
        """
        unsaved: dict[bytes, list[OSError]] = {}  # token: why it was not saved
        token = self.make_token()
        try:
            file = os.open(target.name, os.O_RDWR | os.O_APPEND, dir_fd=folder)
        except OSError as error:
            self._note_error(error)
            self.record(token, target, "sync", "refused", f"open {_name_error(error)}")
            return
        for save in [os.fsync] * self.random.randint(1, 3) + [os.close]:
            if save is os.fsync:
                token = self.make_token()
                try:
                    _write(file, token)
                except OSError as error:
                    self._note_error(error)
                    self.record(token, target, "sync", _classify(error), f"write {_name_error(error)}")
                else:
                    unsaved[token] = []
            self._pause()
            try:
                save(file)
            except OSError as error:
                self._note_error(error)
                for errors in unsaved.values():
                    errors.append(error)
            else:
                for token in unsaved:
                    self.record(token, target, "sync", "acknowledged")
                unsaved.clear()
        for token, errors in unsaved.items():
            outcome: Outcome = "refused" if all(_classify(error) == "refused" for error in errors) else "unknown"
            self.record(token, target, "sync", outcome, " ".join(map(_name_error, errors)))

    def _patch(self, folder: int, target: Target) -> None:
        """Write a token into a slot."""
        offset = self.take_slot(target)
        if offset is None:
            return
        token = self.make_token()
        with self._recorded(token, target, "patch"), _opened(folder, target.name, os.O_RDWR) as file:
            self._pause()
            _write(file, token, offset)
            self._pause()

    def _rewrite(self, folder: int, target: Target) -> None:
        """Read the value and write it with a token before it."""
        token = self.make_token()
        with self._recorded(token, target, "rewrite"), _opened(folder, target.name, os.O_RDWR) as file:
            data = _read(file)
            self._pause()
            _write(file, token + data, 0)

    def _truncate_and_write(self, folder: int, target: Target) -> None:
        """Read the value, cut the file off and write the value with a token after it."""
        token = self.make_token()
        with self._recorded(token, target, "truncate"), _opened(folder, target.name, os.O_RDWR) as file:
            data = _read(file)
            self._pause()
            os.ftruncate(file, 0)
            _write(file, data + token, 0)

    def _replace(self, folder: int, target: Target) -> None:
        """Read the value, write it with a token to a temporary file and rename that over it."""
        token = self.make_token()
        letters = "".join(self.random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=6))
        temporary = self.random.choice([f".{target.name}.{letters}", f"new-{self.settings.number}-{letters}"])
        is_synced = self.random.random() < 0.5
        try:
            with self._recorded(token, target, "replace"):
                with _opened(folder, target.name, os.O_RDONLY) as file:
                    data = _read(file)
                self._pause()
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                with _opened(folder, temporary, flags) as file:
                    _write(file, data + token)
                    if is_synced:
                        os.fsync(file)
                os.rename(temporary, target.name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)

    # -- its mount ----------------------------------------------------------------------------------------------------

    def _open_folder(self) -> int | None:
        """Return a descriptor of the mounted directory; None while nothing is mounted there."""
        if self._folder is None:
            try:
                folder = os.open(self._mount, os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                return None
            if os.fstat(folder).st_dev == os.stat(self._mount.parent).st_dev:
                os.close(folder)
                return None
            self._folder = folder
        return self._folder

    def _note_error(self, error: OSError) -> None:
        """Open the directory again after the mount has died."""
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED) and self._folder is not None:
            os.close(self._folder)
            self._folder = None

    @contextlib.contextmanager
    def _recorded(self, token: bytes, target: Target, kind: str) -> Iterator[None]:
        """Record the outcome of the body: an attempt to add a token."""
        try:
            yield
        except OSError as error:
            self._note_error(error)
            self.record(token, target, kind, _classify(error), _name_error(error))
        else:
            self.record(token, target, kind, "acknowledged")

    @contextlib.contextmanager
    def _lock(self, target: Target) -> Iterator[None]:
        """Take the lock of a target, which the programs of a mount share."""
        lock = os.open(f"{self.settings.locks}/{target.name}", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _pause(self) -> None:
        """Let other programs run: often for a moment, rarely for long."""
        chance = self.random.random()
        if chance < 0.5:
            time.sleep(self.random.uniform(0, 0.5 if chance < 0.01 else 0.01))


class _NotOpenedError(OSError):
    """The file could not be opened, so that no byte was written."""


@contextlib.contextmanager
def _opened(folder: int, name: str, flags: int) -> Iterator[int]:
    """Open a file; raise the error of the body or of close(2).

    If both fail, the error is a refusal only if both are.
    """
    try:
        file = os.open(name, flags, 0o600, dir_fd=folder)
    except OSError as error:
        raise _NotOpenedError(error.errno, os.strerror(error.errno or 0)) from error
    try:
        yield file
    except OSError as error:
        try:
            os.close(file)
        except OSError as later:
            if _classify(error) == "refused":
                raise later from error
        raise
    except BaseException:
        os.close(file)
        raise
    os.close(file)


def _classify(error: OSError) -> Outcome:
    is_refusal = error.errno in (errno.ESTALE, errno.EBUSY) or isinstance(error, _NotOpenedError)
    return "refused" if is_refusal else "unknown"


def _read(file: int) -> bytes:
    pieces = []
    while piece := os.pread(file, 1 << 20, sum(map(len, pieces))):
        pieces.append(piece)
    return b"".join(pieces)


def _write(file: int, data: bytes, offset: int | None = None) -> None:
    count = os.write(file, data) if offset is None else os.pwrite(file, data, offset)
    assert count == len(data)


def _name_error(error: OSError) -> str:
    return ("open " if isinstance(error, _NotOpenedError) else "") + errno.errorcode.get(error.errno or 0, str(error))


class ServerProgram(Program):
    """A client of the server; its commands and transactions are atomic."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._client = redis.Redis(
            unix_socket_path=settings.socket_path, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)
        )

    def attempt(self, target: Target) -> None:
        time.sleep(self.random.uniform(0, 0.05))  # or the programs on the mounts would only meet conflicts
        kinds: list[Callable[[Target, bytes], None]] = [self._append]
        if target.slot_count:
            kinds.append(self._patch)
        else:
            kinds.append(self._rewrite)
        kind, token = self.random.choice(kinds), self.make_token()
        name = f"client {kind.__name__.strip('_')}"
        try:
            kind(target, token)
        except redis.WatchError as error:
            # redis-py raises it for a connection that was lost during EXEC, too.
            outcome: Outcome = "refused" if str(error) == "Watched variable changed." else "unknown"
            self.record(token, target, name, outcome, str(error))
        except redis.RedisError as error:
            self.record(token, target, name, "unknown", type(error).__name__)
        else:
            self.record(token, target, name, "acknowledged")

    def _append(self, target: Target, token: bytes) -> None:
        if target.field is None:
            self._client.append(target.key, token)
        else:
            script = "redis.call('HSET', KEYS[1], ARGV[1], redis.call('HGET', KEYS[1], ARGV[1]) .. ARGV[2])"
            self._client.eval(script, 1, target.key, target.field, token)

    def _patch(self, target: Target, token: bytes) -> None:
        offset = self.take_slot(target)
        if offset is not None:
            self._client.setrange(target.key, offset, token)
        else:
            self._client.append(target.key, token)

    def _rewrite(self, target: Target, token: bytes) -> None:
        with self._client.pipeline() as pipeline:
            pipeline.watch(target.key)
            if target.field is None:
                data = pipeline.get(target.key)
                pipeline.multi()
                pipeline.set(target.key, token + data, keepttl=True)
            else:
                data = pipeline.hget(target.key, target.field)
                pipeline.multi()
                pipeline.hset(target.key, target.field, token + data)
            pipeline.execute()


def main(words: list[str]) -> None:
    """Run the program that the settings describe."""
    settings = Settings(**json.loads(words[0]))
    program = ServerProgram(settings) if settings.mount is None else MountProgram(settings)
    program.run()


if __name__ == "__main__":
    main(sys.argv[1:])
