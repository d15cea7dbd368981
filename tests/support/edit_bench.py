"""A server, a journal and edits, wired for a test."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis

from redisfuse.client.address import Address
from redisfuse.client.client import Server
from redisfuse.client.limits import Limits
from redisfuse.journal.journal import Filter, Journal
from redisfuse.journal.models import Change, Content, ServerIdentity, SessionInfo
from redisfuse.paths.grammar import Target
from redisfuse.transactions.key_writer import Edits
from redisfuse.transactions.precondition import Basis
from redisfuse.transactions.rollback import Report, Rollback
from redisfuse.transactions.selection import Selection, select
from tests.support.redis_server import RedisServer


@dataclass(repr=False)
class Bench:
    """Everything that a test of edits needs. `redis` is the test's own client, as somebody else's would be."""

    redis: redis.Redis
    server: Server
    journal: Journal
    session: int
    edits: Edits
    applied: list[bytes] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path, redis_server: RedisServer, *, url: str | None = None, **options: object) -> "Bench":
        """Wire one; its journal is in `folder`. `url`: another way to the same server, such as a proxy."""
        folder.mkdir(mode=0o700, exist_ok=True)
        timeout = options.pop("timeout", 5.0)
        connections = options.pop("connections", 4)
        limits = Limits(timeout=timeout, connections=connections)  # type: ignore[arg-type]
        server = Server(Address.parse(url or redis_server.url()), limits, writable=True)
        journal = Journal.open(folder / "journal.db", create=True)
        session = journal.begin_session(SessionInfo(ServerIdentity(unix_path=redis_server.socket_path)))
        applied: list[bytes] = []
        edits = Edits(server, journal, session, on_applied=applied.extend, **options)  # type: ignore[arg-type]
        return cls(redis_server.client(), server, journal, session, edits, applied)

    def __repr__(self) -> str:
        return "<Bench>"

    def close(self) -> None:
        """End it all."""
        self.journal.close()
        self.server.close()

    def save(self, key: bytes, data: bytes, field: bytes | None = None, **options: object) -> None:
        """Save, over whatever is there unless a `basis` is given."""
        options.setdefault("basis", Basis.anything())
        self.edits.save(Target(key, field), Content.of(data), path=key, **options)  # type: ignore[arg-type]

    def rows(self) -> list[Change]:
        """All changes, oldest first."""
        return list(self.journal.changes(Filter(oldest_first=True)))

    @property
    def last(self) -> Change:
        """The newest change."""
        return self.rows()[-1]

    def roll_back(self, *ids: int, force: bool = False, **wanted: object) -> Report:
        """Take changes back, as the command does."""
        groups = select(self.journal, Selection(ids=ids, **wanted))  # type: ignore[arg-type]
        return self.rollback(force=force).run(groups)

    def rollback(self, *, force: bool = False) -> Rollback:
        """What the command runs."""
        name = self.journal.session(self.session).info.server.name
        return Rollback(self.edits.steps, name, force=force)


MakeBench = Callable[..., Bench]
