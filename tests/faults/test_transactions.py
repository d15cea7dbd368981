"""Writes under faults: servers that refuse, hang or die, lost replies, and journals that can't be written.

Each test demands the right error class (and so errno), the right outcome of the row, and one change in Redis or none.
"""

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from redisfuse.errors import (
    AccessError,
    ConflictError,
    JournalFullError,
    JournalLockedError,
    JournalReadOnlyError,
    NoSpaceError,
    OutcomeUnknownError,
    ReadOnlyError,
    RedisFuseError,
    TooLargeError,
    TryAgainError,
    UnavailableError,
)
from redisfuse.journal.content import Blob
from redisfuse.journal.journal import Journal
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.precondition import Precondition
from redisfuse.transactions.recovery import recover_pending
from tests.support.edit_bench import BenchFactory, EditBench
from tests.support.mounts import wait_until
from tests.support.proxy import FaultKind, Proxy
from tests.support.redis_server import RedisServer, find_free_port

MIB = 1 << 20
TIMEOUT = 0.7  # seconds
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs and chattr need root")


@pytest.fixture
def make_bench(own_redis: RedisServer, tmp_path: Path) -> Iterator[BenchFactory]:
    opened: list[EditBench] = []

    def make(**options: object) -> EditBench:
        options.setdefault("timeout", TIMEOUT)
        opened.append(EditBench.create(tmp_path / f"state{len(opened)}", own_redis, **options))
        return opened[-1]

    yield make
    for bench in opened:
        bench.close()


@pytest.fixture
def bench(make_bench: BenchFactory) -> EditBench:
    return make_bench()


@pytest.fixture
def proxy(own_redis: RedisServer) -> Iterator[Proxy]:
    with Proxy(own_redis.socket_path) as proxy:
        yield proxy


@pytest.fixture
def behind(make_bench: BenchFactory, proxy: Proxy) -> EditBench:
    """Return a bench that reaches its server through the proxy; its connection is open already."""
    bench = make_bench(url=proxy.url())
    bench.save(b"warm", b"up")
    return bench


def inject_before_exec(bench: EditBench, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Call `act` once, between the journal's fsync and EXEC."""
    record_intents = bench.journal.record_intents
    once = iter([True])

    def record_then_act(*arguments: object, **options: object) -> list[int]:
        ids = record_intents(*arguments, **options)  # type: ignore[arg-type]
        if next(once, False):
            act()
        return ids

    monkeypatch.setattr(bench.journal, "record_intents", record_then_act)


def outcomes(bench: EditBench) -> list[str]:
    """Return the outcomes of all changes, oldest first, without that of the warm-up."""
    return [row.outcome for row in bench.changes() if row.key != b"warm"]


# -- servers that refuse ---------------------------------------------------------------------------------------------


def test_out_of_memory(bench: EditBench) -> None:
    """OOM raises NoSpaceError: the row is failed, the old value stays, and removing still works."""
    bench.redis.set("k", "old")
    bench.redis.config_set("maxmemory", "1")
    for size in (3, 3 * MIB):
        with pytest.raises(NoSpaceError):
            bench.save(b"k", b"n" * size)
    with pytest.raises(NoSpaceError):
        bench.save(b"h", b"v", b"f")
    assert bench.redis.get("k") == b"old"
    assert outcomes(bench) == ["failed"] * 3
    bench.key_writer.remove([KeyRef(b"k")], path=b"k")
    assert bench.last_change.outcome == "applied"


def test_a_rename_between_field_and_string_is_all_or_nothing(bench: EditBench) -> None:
    """If the server refuses the first half of a transaction (OOM), it does not execute the second half."""
    bench.redis.hset("h", "f", "v")
    bench.redis.config_set("maxmemory", "1")
    with pytest.raises(NoSpaceError):
        bench.key_writer.rename([(KeyRef(b"h", b"f"), KeyRef(b"s"))], path=b"h.f", new_path=b"s")
    assert bench.redis.hget("h", "f") == b"v"
    assert outcomes(bench) == ["failed", "failed"]


def test_a_replica(bench: EditBench) -> None:
    """A replica's READONLY raises ReadOnlyError and the row is failed; after its promotion the same writer works."""
    bench.redis.set("k", "old")
    bench.redis.replicaof("127.0.0.1", str(find_free_port()))
    with pytest.raises(ReadOnlyError):
        bench.save(b"k", b"new")
    assert outcomes(bench) == ["failed"]
    bench.redis.replicaof("no", "one")
    bench.save(b"k", b"new")
    assert bench.redis.get("k") == b"new"


def test_a_replica_without_its_master(bench: EditBench) -> None:
    """MASTERDOWN is retried until the time-out, then raises TryAgainError; there is no row."""
    bench.redis.config_set("replica-serve-stale-data", "no")
    bench.redis.replicaof("127.0.0.1", str(find_free_port()))
    with pytest.raises(TryAgainError):
        bench.save(b"k", b"new")
    assert outcomes(bench) == []


@pytest.mark.parametrize("setting", [("min-replicas-to-write", "3")])
def test_too_few_replicas(bench: EditBench, setting: tuple[str, str]) -> None:
    """NOREPLICAS changes nothing, and the row is failed."""
    bench.redis.set("k", "old")
    bench.redis.config_set(*setting)
    with pytest.raises(RedisFuseError, match="NOREPLICAS"):
        bench.save(b"k", b"new")
    assert bench.redis.get("k") == b"old"
    assert outcomes(bench) == ["failed"]


@pytest.mark.parametrize(
    ("rules", "expected_outcomes"),
    [
        (["+@all", "-set", "~*"], ["failed"]),
        (["+@all", "%R~*"], ["failed"]),
        (["+@all", "-multi", "~*"], []),
        (["+@all", "-exec", "~*"], []),
        (["+@all", "-getrange", "~*"], []),
        (["+@all", "~other:*"], []),
    ],
)
def test_denied_by_the_acl(
    make_bench: BenchFactory, own_redis: RedisServer, rules: list[str], expected_outcomes: list[str]
) -> None:
    """NOPERM raises AccessError and nothing is written, not even by a user that may SET but not MULTI."""
    client = own_redis.client()
    client.set("k", "old")
    client.execute_command("ACL", "SETUSER", "writer", "on", "nopass", *rules)
    bench = make_bench(url=f"redis://writer:x@127.0.0.1:{own_redis.port}/0")
    with pytest.raises(AccessError):
        bench.save(b"k", b"new", precondition=Precondition.from_bytes(b"old"))
    assert client.get("k") == b"old"
    assert outcomes(bench) == expected_outcomes


def test_a_rollback_wakes_a_waiting_worker(bench: EditBench, own_redis: RedisServer) -> None:
    """A queue that comes back gives its job to the worker that waits for it, which crashed some servers: NO-TOUCH."""
    bench.redis.rpush("jobs", "first")
    bench.key_writer.remove([KeyRef(b"jobs")], path=b"jobs")
    jobs: list[object] = []
    worker = threading.Thread(target=lambda: jobs.append(own_redis.client().brpop("jobs", 20)))
    worker.start()
    wait_until(lambda: bench.redis.info("clients")["blocked_clients"] == 1)
    bench.roll_back(last=1)
    worker.join()
    assert jobs == [(b"jobs", b"first")]


@pytest.mark.parametrize("change", ["save", "remove"])
def test_multi_is_forbidden_before_exec(bench: EditBench, change: str) -> None:
    """A write for which MULTI is refused too late is recorded as applied, so it can be rolled back; the next raises."""
    bench.redis.mset({"k": "old", "other": "old"})
    bench.save(b"other", b"new")
    bench.redis.execute_command("ACL", "SETUSER", "default", "-multi")
    if change == "save":
        bench.save(b"k", b"new", precondition=Precondition.from_bytes(b"old"))
        assert bench.redis.get("k") == b"new"
    else:
        bench.key_writer.remove([KeyRef(b"k")], path=b"k")
        assert not bench.redis.exists("k")
    assert outcomes(bench) == ["applied", "applied"]
    with pytest.raises(AccessError):
        bench.save(b"other", b"newer")
    assert bench.redis.get("other") == b"new"
    assert outcomes(bench) == ["applied", "applied"]


def test_the_connection_is_lost_while_memory_is_short(behind: EditBench, proxy: Proxy) -> None:
    """If the removal without MULTI (out of memory) can't start, its row is failed, and the removal is retried."""
    behind.redis.set("k", "old")
    behind.redis.config_set("maxmemory", "1")
    with contextlib.suppress(redis.OutOfMemoryError, redis.exceptions.ExecAbortError):
        behind.redis.pipeline(transaction=True).delete("other").execute()
        pytest.skip("the server removes keys within MULTI when memory is short, as Redis 8 does")
    proxy.inject("drop", "WATCH", skip=1, times=1)
    behind.key_writer.remove([KeyRef(b"k")], path=b"k")
    assert not behind.redis.exists("k")
    assert outcomes(behind) == ["failed", "applied"]


def test_a_value_over_the_servers_limit(bench: EditBench) -> None:
    """A value over proto-max-bulk-len raises TooLargeError: the old value stays and the row is failed."""
    bench.redis.set("k", "old")
    bench.redis.config_set("proto-max-bulk-len", str(MIB))
    with pytest.raises(TooLargeError):
        bench.save(b"k", b"n" * (6 * MIB))
    assert bench.redis.get("k") == b"old"
    assert outcomes(bench) == ["failed"]


# -- lost replies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lost_reply", "lost_reset", "partial", "hang_reply", "garbage"])
def test_a_lost_reply_of_an_executed_write(behind: EditBench, proxy: Proxy, kind: FaultKind) -> None:
    """The outcome is found by reading the key, so the append succeeds and is executed once."""
    behind.redis.set("k", "a" * 10)
    proxy.inject(kind, "EXEC", times=1)
    behind.key_writer.patch(
        KeyRef(b"k"), 10, Blob.from_bytes(b"b"), precondition=Precondition.from_bytes(b"a" * 10), path=b"k"
    )
    assert behind.redis.get("k") == b"a" * 10 + b"b"
    assert outcomes(behind) == ["applied"]
    behind.save(b"k", b"next")
    assert behind.redis.get("k") == b"next"


@pytest.mark.parametrize("kind", ["drop", "reset", "hang"])
@pytest.mark.parametrize("size", [1, 3 * MIB])
def test_a_lost_write(behind: EditBench, proxy: Proxy, kind: FaultKind, size: int) -> None:
    """A write that never arrives raises UnavailableError: the row is failed, the old value stays, nothing is resent."""
    behind.redis.set("k", "old")
    proxy.inject(kind, "EXEC", times=1)
    with pytest.raises(UnavailableError) as caught:
        behind.save(b"k", b"n" * size)
    assert not isinstance(caught.value, OutcomeUnknownError)
    assert behind.redis.get("k") == b"old"
    assert outcomes(behind) == ["failed"]
    behind.save(b"k", b"next")
    assert behind.redis.get("k") == b"next"


def test_a_connection_lost_while_reading(behind: EditBench, proxy: Proxy) -> None:
    """A connection lost before anything is written is replaced, once: the save succeeds with one row."""
    behind.redis.set("k", "old")
    proxy.inject("lost_reply", "STRLEN", times=1)
    behind.save(b"k", b"new", precondition=Precondition.from_bytes(b"old"))
    assert outcomes(behind) == ["applied"]
    proxy.inject("reset", "STRLEN")
    with pytest.raises(UnavailableError):
        behind.save(b"k", b"newer", precondition=Precondition.from_bytes(b"new"))
    assert outcomes(behind) == ["applied"]


def test_idle_connections_that_were_closed(behind: EditBench, proxy: Proxy) -> None:
    """Connections that were closed while idle cause no error."""
    proxy.disconnect_all()
    behind.save(b"k", b"new")
    assert outcomes(behind) == ["applied"]


def test_a_reply_is_lost_and_another_client_writes(behind: EditBench, proxy: Proxy) -> None:
    """If the key holds neither the old nor the new value, the outcome is unknown."""
    behind.redis.set("k", "old")
    proxy.inject("hang_reply", "EXEC", times=1)

    def overwrite() -> None:
        deadline = time.monotonic() + 5
        while behind.redis.get("k") != b"new" and time.monotonic() < deadline:
            time.sleep(0.01)
        behind.redis.set("k", "theirs")

    other_client = threading.Thread(target=overwrite)
    other_client.start()
    with pytest.raises(OutcomeUnknownError):
        behind.save(b"k", b"new")
    other_client.join(10)
    assert outcomes(behind) == ["unknown"]
    assert behind.redis.get("k") == b"theirs"


def test_the_reply_and_the_server_are_lost(behind: EditBench, proxy: Proxy) -> None:
    """While the server is unreachable the row stays pending; the next operation resolves it first."""
    behind.redis.set("k", "old")
    proxy.inject("lost_reply", "EXEC", times=1)
    proxy.inject("drop", "PEXPIRETIME", skip=1)
    started = time.monotonic()
    with pytest.raises(OutcomeUnknownError):
        behind.save(b"k", b"new")
    assert time.monotonic() - started < 5
    assert outcomes(behind) == ["pending"]
    proxy.clear()
    behind.save(b"j", b"1")
    assert outcomes(behind) == ["applied", "applied"]
    assert behind.redis.get("k") == b"new"
    assert set(behind.applied_keys) >= {b"k", b"j"}


def test_several_replies_are_lost(behind: EditBench, proxy: Proxy) -> None:
    """Saves of several threads, whose replies are lost, are each applied exactly once."""
    proxy.inject("lost_reply", "EXEC", times=3)
    threads = [
        threading.Thread(
            target=behind.save, args=(b"%d" % number, b"v"), kwargs={"precondition": Precondition.absent()}
        )
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert outcomes(behind) == ["applied"] * 8
    assert behind.redis.mget([b"%d" % number for number in range(8)]) == [b"v"] * 8


# -- servers that hang or die ----------------------------------------------------------------------------------------


def test_a_hung_server(bench: EditBench, own_redis: RedisServer) -> None:
    """A server that hangs before anything is written raises UnavailableError within the time-out; there is no row."""
    own_redis.pause()
    started = time.monotonic()
    try:
        with pytest.raises(UnavailableError):
            bench.save(b"k", b"new")
    finally:
        own_redis.resume()
    assert time.monotonic() - started < 5
    assert outcomes(bench) == []


@pytest.mark.parametrize("size", [10, 3 * MIB])
def test_a_server_that_hangs_before_exec(
    bench: EditBench, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The write may be executed when the server resumes: the row is pending until then, and is then right."""
    bench.redis.set("k", "old")
    bench.save(b"warm", b"up")
    inject_before_exec(bench, monkeypatch, own_redis.pause)
    try:
        with pytest.raises(UnavailableError):
            bench.save(b"k", b"n" * size)
    finally:
        own_redis.resume()
    bench.key_writer.resolve_in_doubt()
    written = bench.redis.get("k") == b"n" * size
    assert outcomes(bench) == ["applied" if written else "failed"]


def test_paused_writes(bench: EditBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the server delays writes but answers reads, a write that raised is never executed later."""
    bench.redis.set("k", "old")
    bench.save(b"warm", b"up")
    inject_before_exec(bench, monkeypatch, lambda: bench.redis.execute_command("CLIENT", "PAUSE", "60000", "WRITE"))
    with pytest.raises(UnavailableError):
        bench.save(b"k", b"new")
    bench.redis.execute_command("CLIENT", "UNPAUSE")
    bench.key_writer.resolve_in_doubt()
    time.sleep(0.2)
    assert bench.redis.get("k") == b"old"
    assert outcomes(bench) == ["failed"]


def test_a_server_that_dies_before_exec_and_restarts(
    bench: EditBench, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that dies before the write and restarts empty: pending, then unknown (neither old nor new)."""
    bench.redis.set("k", "old")
    bench.save(b"warm", b"up")
    inject_before_exec(bench, monkeypatch, own_redis.kill)
    with pytest.raises(OutcomeUnknownError):
        bench.save(b"k", b"new")
    assert outcomes(bench) == ["pending"]
    own_redis.start()
    [(change, outcome)] = recover_pending(bench.journal, bench.server, bench.session)
    assert (change.key, outcome) == (b"k", "unknown")
    bench.save(b"k", b"newer", precondition=Precondition.absent())


# -- journals that can't be written ----------------------------------------------------------------------------------


def count_writes(bench: EditBench) -> int:
    """Return how many write commands the server has executed since its start."""
    counts = bench.redis.info("commandstats")
    return sum(counts.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("set", "hset", "unlink", "rename"))


@needs_root
def test_a_full_journal(own_redis: RedisServer, tmp_path: Path) -> None:
    """With the journal's disk full a save raises ENOSPC before Redis is touched; with space again it succeeds."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(folder)], check=True, timeout=10)
    try:
        bench = EditBench.create(folder, own_redis)
        bench.save(b"k", b"old")
        before = count_writes(bench)
        with pytest.raises(JournalFullError):
            bench.save(b"k", os.urandom(2 * MIB))
        with pytest.raises(JournalFullError):
            bench.key_writer.rename([(KeyRef(b"k"), KeyRef(b"j"))] * 1, path=os.urandom(2 * MIB), new_path=b"j")
        assert count_writes(bench) == before
        assert bench.redis.get("k") == b"old"
        bench.save(b"k", b"new")
        assert bench.redis.get("k") == b"new"
        bench.close()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


def test_a_locked_journal(bench: EditBench) -> None:
    """While another process locks the journal past the time-out a save raises EBUSY, and Redis is not touched."""
    bench.save(b"k", b"old")
    bench.journal.flush()
    before = count_writes(bench)
    script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
    script += "c.execute('BEGIN EXCLUSIVE'); print('held', flush=True); sys.stdin.read()"
    python = shutil.which("python3") or "python3"
    with subprocess.Popen(
        [python, "-c", script, str(bench.journal.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        holder.stdout.readline()
        with pytest.raises(JournalLockedError):
            bench.save(b"k", b"new")
        holder.stdin.close()
        holder.wait(10)
    assert count_writes(bench) == before
    bench.save(b"k", b"new")
    assert bench.redis.get("k") == b"new"


def test_a_journal_opened_for_reading(own_redis: RedisServer, tmp_path: Path) -> None:
    """With a read-only journal nothing is changed."""
    bench = EditBench.create(tmp_path / "state", own_redis)
    bench.save(b"k", b"old")
    bench.journal.close()
    with Journal.open(bench.journal.path, writable=False) as journal:
        bench.key_writer.executor.journal = journal
        with pytest.raises(JournalReadOnlyError):
            bench.save(b"k", b"new")
    assert bench.redis.get("k") == b"old"
    bench.server.close()


# -- other clients ---------------------------------------------------------------------------------------------------


def test_the_type_changes_between_reading_and_writing(bench: EditBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A string that becomes a hash after it was read is not destroyed: WATCH notices and the edit is refused."""
    bench.redis.set("k", "old")

    def become_hash() -> None:
        bench.redis.delete("k")
        bench.redis.hset("k", "f", "v")

    inject_before_exec(bench, monkeypatch, become_hash)
    with pytest.raises(ConflictError):
        bench.save(b"k", b"new")
    assert bench.redis.hgetall("k") == {b"f": b"v"}
    assert outcomes(bench) == ["failed", "refused"]


def test_a_key_that_expires_before_exec(bench: EditBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that expires between reading and writing is not created again without an expiry."""
    bench.redis.set("k", "old", px=400)
    inject_before_exec(bench, monkeypatch, lambda: time.sleep(0.5))
    with pytest.raises(ConflictError, match="gone"):
        bench.save(b"k", b"new", precondition=Precondition.from_bytes(b"old"))
    assert bench.redis.exists("k") == 0
