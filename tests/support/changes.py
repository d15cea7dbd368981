"""The changes that a mount made: in the journal, and on the wire as MONITOR shows them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from redisfuse.cli._changes import change_to_json
from redisfuse.journal.change_filter import ChangeFilter
from redisfuse.journal.journal import Journal
from tests.support.mounts import MountedServer
from tests.support.redis_server import RedisServer

WRITE_COMMANDS = frozenset(
    {
        *("APPEND", "DEL", "HDEL", "HSET", "HSETEX", "PERSIST", "PEXPIREAT", "RENAME"),
        *("RESTORE", "RPUSH", "SADD", "SET", "SETRANGE", "UNLINK", "XADD", "ZADD"),
    }
)
POLL_INTERVAL_SECONDS = 0.0005  # between two EXISTS


def journal_rows(mount: MountedServer, after: int = 0) -> list[dict[str, Any]]:
    """Return the journal's rows after an id, oldest first, as `redisfuse log --json` prints them."""
    with Journal.open(mount.journal) as journal:
        return [
            change_to_json(change)
            for change in journal.find_changes(ChangeFilter(oldest_first=True))
            if change.id > after
        ]


def last_change_id(mount: MountedServer) -> int:
    """Return the id of the newest row, 0 if there is none."""
    rows = journal_rows(mount)
    return rows[-1]["id"] if rows else 0


@contextmanager
def monitor_writes(server: RedisServer, key: bytes | None = None) -> Iterator[list[list[str]]]:
    """Collect the write commands (that name `key`, or all) while the body runs, as MONITOR shows them."""
    commands: list[list[str]] = []
    done = threading.Event()
    with server.client().monitor() as monitor:

        def listen() -> None:
            for event in monitor.listen():
                words = event["command"].split()
                if words[:2] == ["ECHO", "end"]:
                    done.set()
                    return
                if words[0].upper() in WRITE_COMMANDS and (key is None or key.decode() in words):
                    commands.append(words)

        threading.Thread(target=listen, daemon=True).start()
        yield commands
        server.client().execute_command("ECHO", "end")
        assert done.wait(20)


@dataclass
class PresenceCounts:
    """How often a key or field was looked up, and how often it was missing."""

    checks: int = 0
    missing: int = 0
    errors: list[Exception] = field(default_factory=list)


@contextmanager
def watch_presence(server: RedisServer, key: bytes, hash_field: bytes | None = None) -> Iterator[PresenceCounts]:
    """Look up a key, or a field of it, repeatedly in a thread while the body runs."""
    presence = PresenceCounts()
    ended = threading.Event()
    client = server.client()

    def poll() -> None:
        try:
            while not ended.is_set():
                exists = client.exists(key) if hash_field is None else client.hexists(key, hash_field.decode())
                presence.checks += 1
                presence.missing += not exists
                time.sleep(POLL_INTERVAL_SECONDS)
        except Exception as error:
            presence.errors.append(error)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield presence
    finally:
        ended.set()
        thread.join(20)
    assert not presence.errors, presence.errors
    assert presence.checks
