"""A server, a journal and a key writer, wired for a test."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.client.limits import Limits
from redisfuse.journal.change_filter import ChangeFilter, IdRange
from redisfuse.journal.content import Blob
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change, ServerIdentity, SessionMetadata
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.key_writer import KeyWriter
from redisfuse.transactions.precondition import Precondition
from redisfuse.transactions.rollback import Rollback, RollbackReport
from redisfuse.transactions.selection import SelectedChanges, select_changes
from tests.support.listeners import RecordingWrites
from tests.support.redis_server import RedisServer


@dataclass(repr=False)
class EditBench:
    """All that a test of edits needs. `redis` is the test's own client, which redisfuse sees as another client."""

    redis: redis.Redis
    server: RedisClient
    journal: Journal
    session: int
    key_writer: KeyWriter
    applied_keys: list[bytes] = field(default_factory=list)

    @classmethod
    def create(
        cls, folder: Path, redis_server: RedisServer, *, url: str | None = None, **options: object
    ) -> "EditBench":
        """Wire a bench with a journal in `folder`. `url`: another way to the same server, such as a proxy."""
        folder.mkdir(mode=0o700, exist_ok=True)
        timeout = options.pop("timeout", 5.0)
        connections = options.pop("connections", 4)
        limits = Limits(timeout=timeout, connections=connections)  # type: ignore[arg-type]
        server = RedisClient(Address.parse(url or redis_server.url()), limits, writable=True)
        journal = Journal.open(folder / "journal.db", create=True)
        session = journal.begin_session(SessionMetadata(ServerIdentity(unix_path=redis_server.socket_path)))
        writes = RecordingWrites()
        edits = KeyWriter(server, journal, session, listener=writes, **options)  # type: ignore[arg-type]
        return cls(redis_server.client(), server, journal, session, edits, writes.keys)

    def __repr__(self) -> str:
        return "<Bench>"

    def close(self) -> None:
        """Close the journal and the client."""
        self.journal.close()
        self.server.close()

    def save(self, key: bytes, data: bytes, field: bytes | None = None, **options: object) -> None:
        """Save over any state, unless a `basis` is given."""
        options.setdefault("precondition", Precondition.unconditional())
        self.key_writer.save(KeyRef(key, field), Blob.from_bytes(data), path=key, **options)  # type: ignore[arg-type]

    def changes(self) -> list[Change]:
        """Return all changes, oldest first."""
        return list(self.journal.find_changes(ChangeFilter(oldest_first=True)))

    @property
    def last_change(self) -> Change:
        """The newest change."""
        return self.changes()[-1]

    def list_directories(self) -> set[tuple[bytes, ...]]:
        """Return the empty directories in the journal."""
        return self.journal.list_directories(self.journal.get_session(self.session).metadata.server.name)

    def roll_back(self, *ids: int, force: bool = False, **wanted: object) -> RollbackReport:
        """Roll changes back, as the command does."""
        selected = select_for_rollback(self.journal, *ids, **wanted)  # type: ignore[arg-type]
        return self.create_rollback(force=force).run(selected.groups, selected.ids)

    def create_rollback(self, *, force: bool = False) -> Rollback:
        """Return the rollback that the command runs."""
        name = self.journal.get_session(self.session).metadata.server.name
        return Rollback(self.key_writer.executor, name, force=force)


def select_for_rollback(journal: Journal, *ids: int, last: int | None = None, **conditions: object) -> SelectedChanges:
    """Return what `rollback` selects for ids, and for conditions as `ChangeFilter` has them."""
    ranges = tuple(IdRange(id, id) for id in ids)
    return select_changes(journal, ChangeFilter(id_ranges=ranges, **conditions), last=last)  # type: ignore[arg-type]


BenchFactory = Callable[..., EditBench]
