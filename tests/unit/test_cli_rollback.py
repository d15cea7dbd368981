"""The commands rollback, apply and recover, on a real journal and server."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pexpect
import pytest

from redisfuse.cli.main import main
from redisfuse.errors import ConflictError
from redisfuse.journal.content import Blob
from redisfuse.journal.models import ChangeIntent, ServerIdentity, SessionMetadata, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.key_writer import KeyWriter
from redisfuse.transactions.precondition import Precondition
from tests.support.edit_bench import EditBench
from tests.support.mounts import wait_until
from tests.support.redis_server import RedisServer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(redis_server: RedisServer, tmp_path: Path) -> Iterator[EditBench]:
    """Create a bench whose session records the server's address, like that of a mount."""
    bench = EditBench.create(tmp_path / "state", redis_server)
    identity = ServerIdentity(host="127.0.0.1", port=redis_server.port, redacted_url=redis_server.tcp_url())
    bench.session = bench.journal.begin_session(SessionMetadata(identity, mountpoint="/mnt"))
    bench.key_writer = KeyWriter(bench.server, bench.journal, bench.session)
    yield bench
    bench.close()


@pytest.fixture
def run(bench: EditBench, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command on the bench's journal.

    It returns the exit status, standard output and standard error.
    """

    def run(*words: str) -> tuple[int, str, str]:
        bench.journal.flush()
        status = main([*words, "--journal-file", str(bench.journal.path)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_rollback_prints_its_plan_and_executes_it(bench: EditBench, run: Run) -> None:
    """A rollback prints the action for each change, executes it and exits with 0; a dry run only prints."""
    bench.redis.set("k", "old")
    bench.save(b"k", b"new")
    id = str(bench.last_change.id)
    status, out, _ = run("rollback", id, "--dry-run")
    assert (status, bench.redis.get("k")) == (0, b"new")
    assert f"{id}  write  k  (k): restore string of 3 bytes" in out
    status, out, _ = run("rollback", id)
    assert (status, bench.redis.get("k")) == (0, b"old")
    assert "1 change rolled back" in out
    status, out, _ = run("rollback", id)
    assert (status, bench.redis.get("k")) == (0, b"old")
    assert "nothing to roll back" in out
    assert run("rollback", str(bench.last_change.id))[0] == 0
    assert bench.redis.get("k") == b"new"


def test_plan_for_an_expiry(bench: EditBench, run: Run) -> None:
    """The plan for a change of expiry shows the restored expiry, or that it is removed."""
    bench.redis.set("k", "v")
    at = 1_900_000_000_000
    bench.key_writer.expire(KeyRef(b"k"), at, path=b"k")
    bench.key_writer.expire(KeyRef(b"k"), None, path=b"k")
    first, second = (str(row.id) for row in bench.changes())
    when = datetime.fromtimestamp(at // 1000)
    assert f"{second}  expire  k  (k): set the expiry to {when:%Y-%m-%d %H:%M:%S}" in run("rollback", second)[1]
    assert bench.redis.pexpiretime("k") == at
    assert f"{first}  expire  k  (k): remove the expiry" in run("rollback", first)[1]
    assert bench.redis.pexpiretime("k") == -1


def test_the_newest_change_needs_no_rollback(bench: EditBench, run: Run) -> None:
    """A key that has expired remains removed; the output explains how to roll back further, which works."""
    bench.redis.mset({"a": "old", "b": "old"})
    bench.save(b"a", b"new")
    bench.redis.pexpire("b", 1000)
    bench.save(b"b", b"new")
    wait_until(lambda: not bench.redis.exists("b"))
    status, out, _ = run("rollback", "--last")
    assert (status, bench.redis.get("a")) == (0, b"new")
    assert "1 needed no change\nto roll back further: redisfuse rollback --last 2\n" in out
    status, out, _ = run("rollback", "--last", "2")
    assert (status, bench.redis.get("a")) == (0, b"old")
    assert "to roll back further" not in out


def test_a_conflict_is_explained(bench: EditBench, run: Run) -> None:
    """A conflict shows the expected and the current value and the later change; --force overwrites."""
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


def test_options_that_select_changes(bench: EditBench, run: Run) -> None:
    """--last, --last N, --key, --since, --session and an operation select changes."""
    for number in range(6):
        bench.save(b"a:%d" % number if number % 2 else b"b:%d" % number, b"v")
    assert run("rollback", "--last")[0] == 0
    assert bench.redis.exists("a:5") == 0
    assert run("rollback", "--last", "2", "--yes")[0] == 0
    assert bench.redis.exists("b:4", "a:3") == 0
    assert run("rollback", "--key", "a:*", "--since", "1h")[0] == 0
    assert sorted(bench.redis.keys()) == [b"b:0", b"b:2"]
    assert run("rollback", f"{bench.changes()[0].id}+")[0] == 0
    assert run("rollback", "--session", str(bench.session), "--yes", "--json")[0] == 0
    assert bench.redis.keys() == []


def test_usage_errors(bench: EditBench, run: Run) -> None:
    """No selection is a usage error; an unknown change and a refused change have their own messages."""
    assert run("rollback")[0] == 2
    assert run("rollback", "999")[0] == 1
    bench.save(b"k", b"1")
    with pytest.raises(ConflictError):
        bench.save(b"k", b"2", precondition=Precondition.absent())
    status, _, err = run("rollback", str(bench.last_change.id))
    assert status == 2
    assert "refused" in err


def test_apply_writes_a_refused_edit(bench: EditBench, run: Run) -> None:
    """Apply writes the journaled bytes and prints the new id; if the key has changed again it exits with 1."""
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


def test_recover_settles_pending_changes(bench: EditBench, run: Run) -> None:
    """Recover prints each outcome; it exits with 1 if one can't be determined, with 0 if nothing is pending."""
    bench.redis.mset({"k": "new", "j": "other"})
    old, new = State.from_value(b"old"), State.from_value(b"new")
    for key in (b"k", b"j"):
        bench.journal.record_intents(bench.session, [ChangeIntent(key, "write", key, None, old, new)])
    status, out, _ = run("recover")
    assert status == 0
    assert "was made" in out
    assert "1 change settled" in out  # the other one may still be in flight
    bench.journal.end_session(bench.session)
    status, out, _ = run("recover")
    assert status == 1
    assert "can't be determined" in out
    assert [row.outcome for row in bench.changes()] == ["applied", "unknown"]
    assert run("recover")[0] == 0


def test_a_server_that_is_down(bench: EditBench, run: Run) -> None:
    """A server that can't be reached exits with 1 and one line; --url gives another address."""
    bench.save(b"k", b"1")
    unreachable = ServerIdentity(host="127.0.0.1", port=1, redacted_url="redis://127.0.0.1:1/0")
    key_writer = KeyWriter(bench.server, bench.journal, bench.journal.begin_session(SessionMetadata(unreachable)))
    key_writer.save(KeyRef(b"j"), Blob.from_bytes(b"1"), precondition=Precondition.absent(), path=b"j")
    id = str(bench.last_change.id)
    status, _, err = run("rollback", id)
    assert status == 1
    assert len(err.splitlines()) == 1
    assert run("rollback", id, "--url", bench.server.address.url)[0] == 0
    assert bench.redis.exists("j") == 0


def test_controls_in_keys_and_values_are_never_printed(bench: EditBench, run: Run) -> None:
    """Escape sequences in keys, values and paths are printed as text."""
    bench.save(b"\x1b[31mk", b"\x1b]0;title\x07")
    bench.redis.set(b"\x1b[31mk", b"\x1b[2Jother")
    status, out, err = run("rollback", str(bench.last_change.id))
    assert status == 1
    assert "\x1b" not in out + err


def test_several_changes_need_confirmation_on_a_terminal(bench: EditBench) -> None:
    """On a terminal two changes need a confirmation; "no" changes nothing and exits with 1."""
    for key in (b"a", b"b"):
        bench.save(key, b"1")
    bench.journal.flush()
    words = ["-m", "redisfuse.cli.main", "rollback", "--last", "2", "--journal-file", str(bench.journal.path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "dumb"}
    for answer, remaining, status in (("n", 2, 1), ("y", 0, 0)):
        child = pexpect.spawn(sys.executable, words, env=environment, timeout=30)
        child.expect("Roll back 2 changes")
        child.sendline(answer)
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == status
        assert bench.redis.exists("a", "b") == remaining


def test_a_long_plan_is_a_summary(bench: EditBench, run: Run) -> None:
    """More than ten changes are summed up by folder and action; --verbose lists them; filters select some of them."""
    bench.redis.mset({"a:gone": "v"})
    for number in range(12):
        bench.save(b"a:%d" % number, b"v")
        bench.save(b"b", b"%d" % number)
    bench.key_writer.remove([KeyRef(b"a:gone")], path=b"a/gone")
    bench.redis.set("a:3", "foreign")
    last = bench.last_change.id
    status, out, _ = run("rollback", "--session", str(bench.session), "--dry-run")
    assert status == 1
    assert out.startswith("25 changes of 14 keys:\n")
    assert "        12  remove     ./  (23 changes)\n" in out
    assert "conflict: its value was changed since" in out
    assert out.count("\n") < 12
    _, out, _ = run("rollback", "--session", str(bench.session), "--dry-run", "--verbose")
    assert "[12 changes]: remove" in out
    assert out.count(": remove") == 12
    assert run("rollback", f"{last}..", "--path", "a", "--op", "remove")[0] == 0
    assert bench.redis.get("a:gone") == b"v"
    assert run("rollback", "--key", "b", "--json", "--yes")[0] == 0
    assert bench.redis.exists("b") == 0


def test_a_summary_of_many_folders_counts_the_folders_above_them(bench: EditBench, run: Run) -> None:
    """A folder for each key says nothing: they are counted as the folder above them."""
    for number in range(25):
        bench.key_writer.save(
            KeyRef(b"cart:%d:item" % number),
            Blob.from_bytes(b"v"),
            precondition=Precondition.unconditional(),
            path=b"cart/%d/item" % number,
        )
    _, out, _ = run("rollback", "--session", str(bench.session), "--dry-run")
    assert out == "25 changes of 25 keys:\n         25  remove     cart/\n"


def spawn(bench: EditBench, *words: str) -> "pexpect.spawn[str]":
    bench.journal.flush()
    arguments = ["-m", "redisfuse.cli.main", *words, "--journal-file", str(bench.journal.path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "dumb"}
    return pexpect.spawn(sys.executable, arguments, env=environment, timeout=30, encoding="utf-8")


def answer(child: "pexpect.spawn[str]", *answers: str) -> str:
    """Answer the questions, and return all output."""
    output = ""
    for each in answers:
        child.expect_exact("[y,n,q,a,d,?]? ")
        output += child.before or ""
        child.sendline(each)
    output += child.read()
    child.close()
    assert child.exitstatus == 0, output
    return output


def test_choosing_interactively(bench: EditBench, run: Run) -> None:
    """--interactive asks for each key, and for each place of a text; only what was chosen is rolled back."""
    before = [b"line %d\n" % number for number in range(30)]
    after = [b"FIRST\n", *before[1:15], b"MIDDLE\n", *before[16:29], b"LAST\n"]
    bench.redis.mset({"text": b"".join(before), "x": "old", "y": "old"})
    for key, value in ((b"x", b"new"), (b"text", b"".join(after)), (b"y", b"new")):
        bench.save(key, value)
    output = answer(spawn(bench, "rollback", "-i", "--session", str(bench.session)), "n", "?", "y", "n", "y", "y")
    assert "end the questions" in output
    assert "+line 15" in output
    assert bench.redis.mget("x", "y") == [b"old", b"new"]
    expected = [*before[:15], b"MIDDLE\n", *before[16:]]
    assert bench.redis.get("text") == b"".join(expected)
    assert bench.last_change.op == "rollback"
    text, part = str(bench.changes()[1].id), str(bench.last_change.id)
    assert f"in part by   {part}\n" in run("show", text)[1]
    assert f"reverts part {text}\n" in run("show", part)[1]
    rows = {row["id"]: row for row in map(json.loads, run("log", "--keys", "--json")[1].splitlines())}
    assert rows[int(text)]["partly_rolled_back"]
    assert not rows[int(text)]["rolled_back"]
    assert rows[int(part)]["reverts_part"] == int(text)
    assert "(partly rolled back)" in spawn(bench, "log", "--no-pager", text).read()
    assert f"(reverts a part of {text})" in spawn(bench, "log", "--no-pager", part).read()
    answer(spawn(bench, "rollback", "-i", "text"), "a")
    assert bench.redis.get("text") == b"".join(before)
    assert not json.loads(run("log", "--keys", "--json", text)[1])["partly_rolled_back"]
    assert run("rollback", "-i", "1")[0] == 2


def test_a_long_line_is_shortened_on_a_terminal(bench: EditBench) -> None:
    """Of a line of 100 000 bytes the beginning is shown; with --full and in a pipe, all of it."""
    bench.save(b"long", b"x" * 100_000)
    words = ("diff", "--no-pager", str(bench.last_change.id))
    shortened = spawn(bench, *words).read()
    assert "more bytes; --full prints all" in shortened
    assert shortened.count("x") < 5000
    assert spawn(bench, *words, "--full").read().count("x") >= 100_000


def test_sessions_fit_a_terminal_of_80_columns(bench: EditBench) -> None:
    """Servers and mount points are shortened; each session is one line."""
    identity = ServerIdentity(host="a-server.with-a-long-name.example", port=6379)
    bench.journal.begin_session(SessionMetadata(identity, mountpoint="/home/ada/mounts/production/redis"))
    lines = spawn(bench, "sessions").read().splitlines()
    assert len(lines) == 1 + len(list(bench.journal.iter_sessions()))
    assert max(map(len, lines)) <= 80
    assert "a-se…" in lines[1]


def test_prune_asks_on_a_terminal(bench: EditBench) -> None:
    """On a terminal prune asks; "no" removes nothing, --yes does not ask."""
    for number in range(3):
        bench.save(b"k", b"%d" % number)
    for reply, remaining in (("n", 3), ("y", 0)):
        child = spawn(bench, "prune", "--older-than", "0s")
        child.expect("Remove 3 changes")
        child.sendline(reply)
        child.read()
        child.close()
        assert child.exitstatus == 0
        assert len(bench.changes()) == remaining
    bench.save(b"k", b"again")
    child = spawn(bench, "prune", "--older-than", "0s", "--yes")
    assert "removed 1 change" in child.read()


def test_blame(bench: EditBench, run: Run) -> None:
    """Each line names the change that wrote it, through renames; lines of others have no id."""
    bench.redis.set("old", "a\nb\nc\n")
    bench.save(b"old", b"a\nB\nc\n")
    bench.key_writer.rename([(KeyRef(b"old"), KeyRef(b"new"))], path=b"old", new_path=b"new")
    bench.save(b"new", b"a\nB\nc\nd\n")
    bench.redis.set("new", "a\nB\nforeign\nd\n")
    bench.save(b"new", b"first\na\nB\nforeign\nd\n")
    status, out, _ = run("blame", "new")
    assert status == 0
    lines = [line.split("\t") for line in out.splitlines()]
    assert [(line[0], line[3]) for line in lines] == [
        ("5", "first"),
        ("", "a"),
        ("1", "B"),
        ("", "foreign"),
        ("4", "d"),
    ]
    first = json.loads(run("blame", "new", "--json")[1].splitlines()[0])
    assert (first["line"], first["change"], first["text"]) == (1, 5, "first")
    bench.save(b"bin", b"\0")
    assert "no text" in run("blame", "bin")[2]
    assert run("blame", "nothing")[0] == 1
    bench.key_writer.remove([KeyRef(b"new")], path=b"new")
    status, _, err = run("blame", "new")
    assert status == 1
    assert f"change {bench.last_change.id} removed new" in err


def save_lines(bench: EditBench, *saves: tuple[bytes, bytes]) -> None:
    for key, value in saves:
        bench.save(key, value)


def test_a_rename_that_was_rolled_back_joins_no_histories(bench: EditBench, run: Run) -> None:
    """Each file's history is its own again: rolling back one of the files leaves the other as it is."""
    save_lines(bench, (b"a", b"A0\n"), (b"b", b"B0\n"), (b"a", b"A1\n"), (b"b", b"B1\n"))
    written = {name: [str(id) for id in ids] for name, ids in ((b"a", (1, 3)), (b"b", (2, 4)))}
    bench.key_writer.rename([(KeyRef(b"a"), KeyRef(b"b"))], path=b"a", new_path=b"b")
    assert run("rollback", "5", "--yes")[0] == 0
    assert bench.redis.mget("a", "b") == [b"A1\n", b"B1\n"]
    for name, ids in written.items():
        rows = [line.split("\t") for line in run("log", name.decode(), "--keys")[1].splitlines()]
        assert {row[8] for row in rows} == {name.decode()}
        assert [row[0] for row in rows][-2:] == ids[::-1]
        assert f"{name.decode().upper()}1" in run("blame", name.decode())[1]
    assert run("rollback", "a", "--yes")[0] == 0
    assert bench.redis.mget("a", "b") == [None, b"B1\n"]
    assert run("rollback", "b", "--yes")[0] == 0
    assert bench.redis.mget("a", "b") == [None, None]


def test_a_file_that_is_written_after_its_rename_was_rolled_back(bench: EditBench, run: Run) -> None:
    """Rolling back the file removes it under its only name."""
    save_lines(bench, (b"a", b"A0\n"))
    bench.key_writer.rename([(KeyRef(b"a"), KeyRef(b"b"))], path=b"a", new_path=b"b")
    assert run("rollback", "2", "--yes")[0] == 0
    save_lines(bench, (b"a", b"A2\n"))
    assert run("rollback", "a", "--yes")[0] == 0
    assert bench.redis.mget("a", "b") == [None, None]


def test_a_rename_in_effect_again_joins_the_histories(bench: EditBench, run: Run) -> None:
    """After the rollback of its rollback, the file's history goes through the rename."""
    save_lines(bench, (b"a", b"A0\n"), (b"b", b"B0\n"))
    bench.key_writer.rename([(KeyRef(b"a"), KeyRef(b"b"))], path=b"a", new_path=b"b")
    assert run("rollback", "3", "--yes")[0] == 0
    assert run("rollback", str(bench.last_change.id), "--yes")[0] == 0
    assert bench.redis.mget("a", "b") == [None, b"A0\n"]
    assert run("rollback", "b", "--yes")[0] == 0
    assert bench.redis.mget("a", "b") == [None, b"B0\n"]
