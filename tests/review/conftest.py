"""A journal with every kind of change, some of them hostile, and the pages that show it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from redisfuse.errors import ConflictError
from redisfuse.journal.models import ABSENT, ChangeIntent, ServerIdentity, SessionMetadata, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.key_writer import KeyWriter
from redisfuse.transactions.precondition import Precondition
from tests.support.edit_bench import EditBench
from tests.support.redis_server import RedisServer
from tests.support.review_process import ReviewProcess

HOSTILE = (
    b"<script>alert(1)</script>",
    b"<img src=x onerror=alert(2)>",
    b'"><svg/onload=alert(3)>',
    b"' onmouseover='alert(4)",
    b"javascript:alert(5)",
    b"{{ 7 * 7 }}{% raw %}",
    b"\x1b[31mred\x1b]0;title\x07",
    b"\x00\xff\xfe not UTF-8",
    "right \u202e to left \u2066".encode(),
    b"line\nbreak\r\ttab",
    b"</title></textarea><!--",
)
"""Keys and values that a page must show as text."""


def create_keys(bench: EditBench, count: int) -> list[int]:
    """Record that keys were created, each an operation; return the IDs of the changes."""
    keys = [b"many:%d" % number for number in range(count)]
    bench.redis.mset(dict.fromkeys(keys, b"v"))
    value = State.from_value(b"v")
    intents = [ChangeIntent(key, "create", key, None, ABSENT, value) for key in keys]
    ids = bench.journal.record_intents(bench.session, intents, grouping=[1] * count)
    bench.journal.record_outcome(ids, "applied")
    bench.journal.flush()
    return ids


@pytest.fixture(scope="module")
def bench(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EditBench]:
    """Create a journal whose session records the server's address, like that of a mount."""
    bench = EditBench.create(tmp_path_factory.mktemp("review") / "state", server)
    identity = ServerIdentity(host="127.0.0.1", port=server.port, redacted_url=server.tcp_url())
    bench.session = bench.journal.begin_session(SessionMetadata(identity, mountpoint="/mnt"))
    bench.key_writer = KeyWriter(bench.server, bench.journal, bench.session)
    yield bench
    bench.close()


@pytest.fixture(scope="module")
def ids(bench: EditBench) -> dict[str, int]:
    """Make the changes, and return the id of each by its name."""
    redis = bench.redis
    redis.set("page", "<h1>Hello you</h1>\nsame\n")
    redis.set("document", '{"name": "mug", "cents": 1200, "tags": ["new"]}')
    redis.set("binary", bytes(range(64)))
    redis.zadd("zset", {"a": 1, "b": 2})
    found: dict[str, int] = {}

    def save(name: str, key: bytes, data: bytes, **options: object) -> None:
        bench.save(key, data, **options)
        found[name] = bench.last_change.id

    redis.set("notes", "one\ntwo\nthree\n")
    with pytest.raises(ConflictError):
        bench.save(b"notes", b"one\nzwei\nthree\n", precondition=Precondition.from_bytes(b"what it was"))
    found["stale"] = bench.last_change.id
    redis.set("notes", "one\n2\nthree\nfour\n")
    save("text", b"page", b"<h1>Welcome you</h1>\nsame\n")
    save("json", b"document", b'{"name": "mug", "cents": 1300, "tags": ["old", "<b>"]}')
    save("bytes", b"binary", bytes(range(32)) + b"\xff" + bytes(range(33, 64)))
    save("field", b"hash", b"value", field=b"field")
    for number, hostile in enumerate(HOSTILE):
        save(f"hostile {number}", hostile, hostile)
        save(f"hostile again {number}", hostile, hostile + b" " + hostile)
    bench.key_writer.remove([KeyRef(b"zset")], path=b"zset")
    found["collection"] = bench.last_change.id
    with pytest.raises(ConflictError):
        bench.save(b"page", b"my edit\n", precondition=Precondition.from_bytes(b"what it was"))
    found["refused"] = bench.last_change.id
    bench.journal.flush()
    return found


@pytest.fixture(scope="module")
def journal_path(bench: EditBench, ids: dict[str, int]) -> Path:
    """Return the path of that journal."""
    assert ids
    return bench.journal.path


@pytest.fixture(scope="module")
def pages(journal_path: Path) -> Iterator[ReviewProcess]:
    """Serve the pages of that journal, opened."""
    with ReviewProcess(journal_path) as process:
        assert process.open().status == 200
        yield process
