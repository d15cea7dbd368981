"""The commands rollback, apply and recover, on a real journal and server."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pexpect
import pytest

from redisfuse.cli.main import main
from redisfuse.errors import ConflictError
from redisfuse.journal.models import Blob, ChangeIntent, ServerIdentity, SessionMetadata, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.key_writer import KeyWriter
from redisfuse.transactions.precondition import Precondition
from tests.support.edit_bench import EditBench
from tests.support.redis_server import RedisServer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(redis_server: RedisServer, tmp_path: Path) -> Iterator[EditBench]:
    """A bench whose session remembers how the server is reached, as a mount's does."""
    bench = EditBench.create(tmp_path / "state", redis_server)
    identity = ServerIdentity(host="127.0.0.1", port=redis_server.port, redacted_url=redis_server.tcp_url())
    bench.session = bench.journal.begin_session(SessionMetadata(identity, mountpoint="/mnt"))
    bench.key_writer = KeyWriter(bench.server, bench.journal, bench.session)
    yield bench
    bench.close()


@pytest.fixture
def run(bench: EditBench, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on the bench's journal: its exit status, standard output and standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        bench.journal.flush()
        status = main([*words, "--journal-file", str(bench.journal.path)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_rollback_prints_its_plan_and_does_it(bench: EditBench, run: Run) -> None:
    """A rollback says what becomes of each change, does it, and ends with 0; a dry run only says."""
    bench.redis.set("k", "old")
    bench.save(b"k", b"new")
    id = str(bench.last_change.id)
    status, out, _ = run("rollback", id, "--dry-run")
    assert (status, bench.redis.get("k")) == (0, b"new")
    assert f"{id}  write  k  (k): back to string of 3 bytes" in out
    status, out, _ = run("rollback", id)
    assert (status, bench.redis.get("k")) == (0, b"old")
    assert "1 change taken back" in out
    status, out, _ = run("rollback", id)
    assert (status, bench.redis.get("k")) == (0, b"old")
    assert "nothing to take back" in out
    assert run("rollback", str(bench.last_change.id))[0] == 0
    assert bench.redis.get("k") == b"new"


def test_the_plan_of_an_expiry_says_which(bench: EditBench, run: Run) -> None:
    """Taking back a change of expiry: the plan says when the key will expire then, or that it never will."""
    bench.redis.set("k", "v")
    at = 1_900_000_000_000
    bench.key_writer.expire(KeyRef(b"k"), at, path=b"k")
    bench.key_writer.expire(KeyRef(b"k"), None, path=b"k")
    first, second = (str(row.id) for row in bench.changes())
    when = datetime.fromtimestamp(at // 1000)
    assert f"{second}  expire  k  (k): to expire at {when:%Y-%m-%d %H:%M:%S}" in run("rollback", second)[1]
    assert bench.redis.pexpiretime("k") == at
    assert f"{first}  expire  k  (k): never to expire" in run("rollback", first)[1]
    assert bench.redis.pexpiretime("k") == -1


def test_the_newest_needs_nothing(bench: EditBench, run: Run) -> None:
    """A key that has expired stays removed; who wants to go further back is told how, and gets there."""
    bench.redis.mset({"a": "old", "b": "old"})
    bench.save(b"a", b"new")
    bench.redis.pexpire("b", 300)
    bench.save(b"b", b"new")
    time.sleep(0.4)
    status, out, _ = run("rollback", "--last")
    assert (status, bench.redis.get("a")) == (0, b"new")
    assert "1 needed nothing\nto go further back: redisfuse rollback --last 2\n" in out
    status, out, _ = run("rollback", "--last", "2")
    assert (status, bench.redis.get("a")) == (0, b"old")
    assert "further back" not in out


def test_a_conflict_is_explained(bench: EditBench, run: Run) -> None:
    """A conflict shows what was expected and what is there, and names the later change; --force overwrites."""
    bench.redis.set("k", "0")
    bench.save(b"k", b"one")
    bench.save(b"k", b"two")
    first, second = (row.id for row in bench.changes())
    status, out, _ = run("rollback", str(first))
    assert status == 1
    assert bench.redis.get("k") == b"two"
    both = f"redisfuse rollback {second} {first}"
    for words in ("conflict", "string of 3 bytes: one", "string of 3 bytes: two", both):
        assert words in out
    status, out, _ = run("rollback", str(first), "--json")
    assert status == 1
    row = json.loads(out)
    assert (row["id"], row["result"], row["together"]) == (first, "conflict", both)
    assert run("rollback", str(first), "--force")[0] == 0
    assert bench.redis.get("k") == b"0"


def test_selections_of_the_command(bench: EditBench, run: Run) -> None:
    """--last, --last N, --key, --since, --session and --group choose what their names say."""
    for number in range(6):
        bench.save(b"a:%d" % number if number % 2 else b"b:%d" % number, b"v")
    assert run("rollback", "--last")[0] == 0
    assert bench.redis.exists("a:5") == 0
    assert run("rollback", "--last", "2", "--yes")[0] == 0
    assert bench.redis.exists("b:4", "a:3") == 0
    assert run("rollback", "--key", "a:*", "--since", "1h")[0] == 0
    assert sorted(bench.redis.keys()) == [b"b:0", b"b:2"]
    assert run("rollback", "--group", str(bench.changes()[0].id))[0] == 0
    assert run("rollback", "--session", str(bench.session), "--yes", "--json")[0] == 0
    assert bench.redis.keys() == []


def test_wrong_usage(bench: EditBench, run: Run) -> None:
    """Nothing named is a usage error; an unknown change, or one that was never made, is said."""
    assert run("rollback")[0] == 2
    assert run("rollback", "999")[0] == 1
    bench.save(b"k", b"1")
    with pytest.raises(ConflictError):
        bench.save(b"k", b"2", precondition=Precondition.absent())
    status, _, err = run("rollback", str(bench.last_change.id))
    assert status == 2
    assert "refused" in err


def test_apply_writes_a_refused_edit(bench: EditBench, run: Run) -> None:
    """Apply writes the kept bytes, and says as which change; when the key changed once more it ends with 1."""
    bench.redis.set("k", "theirs")
    with pytest.raises(ConflictError):
        bench.save(b"k", b"mine", precondition=Precondition.from_bytes(b"old"))
    id = str(bench.last_change.id)
    bench.redis.set("k", "third")
    status, _, err = run("apply", id)
    assert status == 1
    assert "--force" in err
    bench.redis.set("k", "theirs")
    status, out, _ = run("apply", id)
    assert (status, bench.redis.get("k")) == (0, b"mine")
    assert f"change {id} is written" in out
    [row] = run("apply", id, "--force", "--json")[1].splitlines()
    assert json.loads(row)["applies"] == int(id)


def test_recover_settles_and_says(bench: EditBench, run: Run) -> None:
    """Recover says what each open change turned out to be; 1 if one can't be told, 0 if nothing is open."""
    bench.redis.mset({"k": "new", "j": "other"})
    old, new = State.from_value(b"old"), State.from_value(b"new")
    for key in (b"k", b"j"):
        bench.journal.record_intents(bench.session, [ChangeIntent(key, "write", key, None, old, new)])
    status, out, _ = run("recover")
    assert status == 0
    assert "was made" in out
    assert "1 change settled" in out  # the other may be in flight, as far as anybody can tell
    bench.journal.end_session(bench.session)
    status, out, _ = run("recover")
    assert status == 1
    assert "can't be told" in out
    assert [row.outcome for row in bench.changes()] == ["applied", "unknown"]
    assert run("recover")[0] == 0


def test_a_server_that_is_down(bench: EditBench, run: Run) -> None:
    """A server that can't be reached is one line and 1; another way to it can be given."""
    bench.save(b"k", b"1")
    lost = ServerIdentity(host="127.0.0.1", port=1, redacted_url="redis://127.0.0.1:1/0")
    edits = KeyWriter(bench.server, bench.journal, bench.journal.begin_session(SessionMetadata(lost)))
    edits.save(KeyRef(b"j"), Blob.from_bytes(b"1"), precondition=Precondition.absent(), path=b"j")
    id = str(bench.last_change.id)
    status, _, err = run("rollback", id)
    assert status == 1
    assert len(err.splitlines()) == 1
    assert run("rollback", id, "--url", bench.server.address.url)[0] == 0
    assert bench.redis.exists("j") == 0


def test_controls_in_keys_and_values_are_never_printed(bench: EditBench, run: Run) -> None:
    """Terminal escapes in keys, values and paths come out as text."""
    bench.save(b"\x1b[31mk", b"\x1b]0;title\x07")
    bench.redis.set(b"\x1b[31mk", b"\x1b[2Jother")
    status, out, err = run("rollback", str(bench.last_change.id))
    assert status == 1
    assert "\x1b" not in out + err


def test_more_than_one_change_is_asked_about_on_a_terminal(bench: EditBench) -> None:
    """On a terminal two changes need a yes; no leaves everything as it is and ends with 1."""
    for key in (b"a", b"b"):
        bench.save(key, b"1")
    bench.journal.flush()
    words = ["-m", "redisfuse.cli.main", "rollback", "--last", "2", "--journal-file", str(bench.journal.path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "dumb"}
    for answer, left, status in (("n", 2, 1), ("y", 0, 0)):
        child = pexpect.spawn(sys.executable, words, env=environment, timeout=30)
        child.expect("Take back 2 changes")
        child.sendline(answer)
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == status
        assert bench.redis.exists("a", "b") == left
