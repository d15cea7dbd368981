"""The commands that read and maintain the journal, run as processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pexpect
import pytest

from redisfuse.journal.content import Blob
from redisfuse.journal.journal import Journal, now_ms
from redisfuse.journal.models import ABSENT, ChangeIntent, State
from redisfuse.journal.processes import CallingProcess
from redisfuse.text import parse_timestamp
from tests.support.forkserver import run_forked
from tests.support.journals import INFO, add, intent

PROGRAM = str(Path(sys.executable).with_name("redisfuse"))
EVIL = b"\x1b]0;owned\x07\x1b[31m\xe2\x80\xae"

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.db"


@pytest.fixture
def run(path: Path, tmp_path: Path) -> Run:
    """Return a function that runs the program on the journal at `path`."""

    def runner(*words: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[bytes]:
        private = {"REDISFUSE_JOURNAL_FILE": str(path), "XDG_CONFIG_HOME": str(tmp_path), "TZ": "UTC"}
        done = run_forked(words, {**os.environ, **private, **environment})
        assert done.returncode == status, done
        assert b"Traceback" not in done.stderr
        return done

    return runner


@pytest.fixture
def filled(path: Path) -> Path:
    """Record seven changes.

    1 is text, 2 bytes under a key with escape sequences, 3+4 a rename, 5 a hash, 6 refused, 7 reverts 1.
    """
    with Journal.open(path, create=True) as journal:
        session = journal.begin_session(INFO)
        add(journal, session, intent(b"cfg:app", b"a\nB\n", State.from_value(b"a\nb\n", expires_at=1_800_000_000_000)))
        add(journal, session, intent(EVIL, EVIL + b"\xff", State.from_value(EVIL), op="append"))
        copy = Blob.from_bytes(b'{"type":"hash","elements":1}\n["f","' + b"v" + b'"]\n')
        state = State.from_object(b"hash", b"\x00dump", copy, dump_version="redis 7.0.15")
        moved = [
            ChangeIntent(b"h", "rename", b"h", None, state, ABSENT, new_path=b"g"),
            ChangeIntent(b"h", "rename", b"g", None, ABSENT, state, new_path=b"g"),
        ]
        add(journal, session, *moved)
        grown = Blob.from_bytes(b'{"type":"hash","elements":2}\n["f","w"]\n["g",{"base64":"/w=="}]\n')
        add(journal, session, ChangeIntent(b"g", "write", b"g", None, state, State.from_object(b"hash", b"d", grown)))
        journal.record_intents(
            session, [intent(b"cfg:b", b"mine", field=b"x")], outcome="refused", error="changed since"
        )
        add(journal, session, intent(b"cfg:app", b"a\nb\n", State.from_value(b"a\nB\n"), op="rollback", reverts=1))
    return path


def rows(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def ids(done: subprocess.CompletedProcess[bytes]) -> list[int]:
    return [row["id"] for row in rows(done)]


@pytest.mark.usefixtures("filled")
def test_log_json(run: Run) -> None:
    """`log --json` prints a line per change, newest first, with at least the documented fields."""
    printed = rows(run("log", "--keys", "--json"))
    assert [row["id"] for row in printed] == [7, 6, 5, 4, 3, 2, 1]
    documented = {"id", "session", "at", "op", "path", "key", "field", "state", "prior_size", "new_size", "reverts"}
    assert all(documented <= row.keys() for row in printed)
    last = printed[0]
    assert (last["op"], last["path"], last["key"], last["field"]) == ("rollback", "cfg/app", "cfg:app", None)
    assert (last["state"], last["prior_size"], last["new_size"], last["reverts"]) == ("applied", 4, 4, 1)
    assert printed[-1]["prior_expires_at"] == "2027-01-15T08:00:00.000Z"
    assert datetime.fromisoformat(last["at"]).tzinfo is not None
    latest = rows(run("log", "--json"))[0]
    assert (latest["id"], latest["last"], latest["state"]) == (7, 7, "applied")


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--limit", "2"], [7, 6]),
        (["--key", "cfg:*"], [7, 6, 1]),
        (["--key", "g", "--op", "rename"], [4]),
        (["--path", "cfg"], [7, 6, 1]),
        (["--path", "/cfg/app"], [7, 1]),
        (["--state", "refused"], [6]),
        (["--op", "write", "--op", "append"], [6, 5, 2, 1]),
        (["--session", "1", "--limit", "1"], [7]),
        (["--session", "9"], []),
        (["--since", "1h"], [7, 6, 5, 4, 3, 2, 1]),
        (["--until", "yesterday"], []),
        (["--since", "2999-01-01"], []),
    ],
)
def test_log_filters(run: Run, words: list[str], expected: list[int]) -> None:
    """Each filter of `log` selects the right changes."""
    assert ids(run("log", "--keys", "--json", *words)) == expected


@pytest.mark.usefixtures("filled")
def test_log_piped(run: Run) -> None:
    """In a pipe, `log` prints tab-separated lines only, without titles or colours."""
    done = run("log", "--keys")
    lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert len(lines) == 7
    assert {len(line) for line in lines} == {15}
    assert lines[0][0] == "7"
    assert lines[0][2:] == ["1", "rollback", "applied", "4", "4", "cfg/app", "cfg:app", "", "1", "1", "0", "", ""]
    assert lines[-1][10:13] == ["", "1", "1"]
    assert lines[3][7] == "h → g"
    assert b"\x1b" not in done.stdout
    assert done.stderr == b""


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    "words", [["log"], ["show", "2"], ["diff", "2"], ["show", "2", "--new"], ["log", "--keys", "--json"]]
)
def test_terminal_gets_no_escapes(path: Path, words: list[str]) -> None:
    """On a terminal, escape sequences of keys and values are escaped."""
    environment = {**os.environ, "REDISFUSE_JOURNAL_FILE": str(path), "TERM": "xterm", "COLUMNS": "100"}
    child = pexpect.spawn(PROGRAM, words, env=environment, timeout=30)
    out = child.read()
    child.close()
    assert child.exitstatus == 0
    assert b"owned" in out
    for forbidden in (b"\x1b]", b"\x07", b"\xe2\x80\xae", b"\xff"):
        assert forbidden not in out
    assert b"\x1b[31m\\x" not in out.replace(b"\x1b[31m-", b"")


def run_on_terminal(path: Path, *words: str, columns: int = 80, **environment: str) -> list[str]:
    """Return the lines that the program prints on a terminal, without colours."""
    private = {"REDISFUSE_JOURNAL_FILE": str(path), "TERM": "xterm", "COLUMNS": str(columns), "TZ": "UTC"}
    child = pexpect.spawn(PROGRAM, [*words], env={**os.environ, **private, **environment}, timeout=30)
    text = child.read().decode()
    child.close()
    assert child.exitstatus == 0, text
    return re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>])", "", text).splitlines()


@pytest.mark.usefixtures("filled")
def test_log_on_a_terminal(path: Path) -> None:
    """On a terminal, `log` prints a table with titles, local times and sizes."""
    lines = run_on_terminal(path, "log", "--no-pager", columns=120)
    assert "TIME +00:00" in lines[0]
    assert "rollback" in lines[1]
    assert "4→4" in lines[1]
    assert "(reverts 1)" in lines[1]
    assert "(refused)" in lines[2]
    assert lines[4].split()[0] == "3+"
    assert "(rolled back)" in lines[-1]


def test_log_fits_the_terminal(path: Path) -> None:
    """A row is as wide as the terminal at most: a long path is shortened, and its notes stay."""
    with Journal.open(path, create=True) as journal:
        session = journal.begin_session(INFO)
        for number in range(1500):
            process = CallingProcess(7, 1, "rm")
            add(journal, session, intent(b"%s:%d" % ("ü".encode() * 200, number), op="remove", process=process))
        add(journal, session, intent(b"k" * 300, op="rollback", reverts=1))
    for columns in (80, 132):
        lines = run_on_terminal(path, "log", "--no-pager", columns=columns)
        assert max(map(len, lines)) <= columns
        assert lines[1].endswith("(reverts 1)")
        assert "  1+  " in lines[2]
        assert ("(1,500 keys, 1 rolled back)" in lines[2]) == (columns == 132)
        assert ("rm[7]" in lines[2]) == (columns == 132)
    words = ("log", "--keys", "--no-pager")
    assert len(run_on_terminal(path, *words)) == 102
    assert "100; --limit N lists more" in run_on_terminal(path, *words)[-1]
    assert len(run_on_terminal(path, *words, "--limit", "120")) == 121


@pytest.mark.usefixtures("filled")
def test_the_pager(path: Path, tmp_path: Path) -> None:
    """On a terminal the output goes through $PAGER, unless --no-pager or the environment turns that off."""
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\nsed 's/^/> /'\n")
    pager.chmod(0o700)
    lines = run_on_terminal(path, "log", PAGER=str(pager))
    assert len(lines) == 7
    assert all(line.startswith("> ") for line in lines)
    assert "TIME" in lines[0]
    for words, environment in ((["--no-pager"], {}), ([], {"REDISFUSE_PAGER": "0"}), ([], {"PAGER": "cat"})):
        assert not run_on_terminal(path, "log", *words, **{"PAGER": str(pager), **environment})[0].startswith(">")
    pager.write_text('#!/bin/sh\nread -r line; echo "first: $line"\n')
    assert run_on_terminal(path, "log", "--limit", "1000", PAGER=str(pager))[0].startswith("first:")
    assert run_on_terminal(path, "log", PAGER="/nonexistent/pager")[0].lstrip().startswith("ID")


@pytest.mark.usefixtures("filled")
def test_log_of_named_changes_and_keys(run: Run) -> None:
    """IDs, ranges, operations and the history of a path or a key select changes."""

    def log(*words: str) -> list[int]:
        return ids(run("log", "--keys", "--json", *words))

    assert log("2", "5-6") == [6, 5, 2]
    assert log("6..") == [7, 6]
    assert log("3+") == [4, 3]
    assert log("3+", "--key", "h") == [3]
    assert log("g") == [5, 4, 3]
    assert log("cfg:app") == log("/mnt/r/cfg/app") == [7, 1]
    assert log("cfg") == [7, 6, 1]
    assert log("--by", INFO.user, "--state", "refused") == [6]
    assert log("--by", "another") == []
    assert b"no change of nothing/here" in run("log", "nothing/here", status=1).stderr
    assert b"give one path" in run("log", "g", "h", status=2).stderr
    assert b"names no changes" in run("log", "7-3", status=2).stderr
    [operation, *_] = rows(run("log", "--json", "3+"))
    assert (operation["operation"], operation["changes"], operation["ops"], operation["path"]) == (
        3,
        2,
        ["rename"],
        "h",
    )
    [reverted] = rows(run("log", "--json", "1"))
    assert reverted["rolled_back"] == 1


@pytest.mark.usefixtures("filled")
def test_show(run: Run) -> None:
    """`show` prints all details of a change; --prior and --new print the raw bytes."""
    text = run("show", "1").stdout.decode()
    for expected in (
        "cfg:app",
        "reverted by  7",
        "later        7",
        "127.0.0.1:7000/2",
        "string of 4 bytes",
        "2027-01-15",
    ):
        assert expected in text
    assert "together     4" in run("show", "3").stdout.decode()
    assert "changed since" in run("show", "6").stdout.decode()
    assert run("show", "1", "--prior").stdout == b"a\nb\n"
    assert run("show", "2", "--new").stdout == EVIL + b"\xff"
    assert run("show", "5", "--prior").stdout == b"\x00dump"
    assert run("show", "5", "--new", "--logical").stdout.endswith(b'["g",{"base64":"/w=="}]\n')
    (row,) = rows(run("show", "2", "--json"))
    assert row["new"]["content"]["data"].keys() == {"base64"}
    assert row["prior"]["content"]["size"] == len(EVIL)


@pytest.mark.usefixtures("filled")
def test_show_errors(run: Run) -> None:
    """A missing change or content exits with 1 and one line; a usage error with 2."""
    assert b"no change 99" in run("show", "99", status=1).stderr
    assert b"there was nothing before" in run("show", "4", "--prior", status=1).stderr
    run("show", "1", "--logical", status=2)
    run("show", "x", status=2)
    run("show", status=2)


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("words", ["show", "diff", "apply", "rollback", "export", "log --session", "log -n"])
@pytest.mark.parametrize("number", [1 << 63, 10**30])
def test_ids_out_of_range(run: Run, words: str, number: int) -> None:
    """An id that no change can have is a usage error."""
    run(*words.split(), str(number), status=2)


@pytest.mark.usefixtures("filled")
def test_diff(run: Run) -> None:
    """`diff` shows text, bytes and elements of single changes, and the net effect of a session in order."""
    lines = run("diff", "1").stdout.decode().splitlines()
    assert "  expiry: 2027-01-15T08:00:00.000Z → none" in lines
    assert lines[3:] == [
        "diff --git a/cfg/app b/cfg/app",
        "--- a/cfg/app",
        "+++ b/cfg/app",
        "@@ -1,2 +1,2 @@",
        *[" a", "-b", "+B"],
    ]
    assert run("diff", "5").stdout.decode().splitlines()[-3:] == ["- f: v", "+ f: w", "+ g: \\xff"]
    titles = [line for line in run("diff", "--session", "1").stdout.splitlines() if line.startswith(b"change")]
    assert [title.decode().split(":")[0] for title in titles] == ["changes 1-7", "change 2", "change 3", "changes 4-5"]
    assert b"+mine" in run("diff", "6").stdout
    assert b"mine" not in run("diff", "--session", "1").stdout
    (row,) = rows(run("diff", "1", "--json"))
    assert {"mark": "+", "text": "B"} in row["difference"]
    run("diff", status=2)
    assert ids(run("diff", "1", "--session", "1", "--json")) == [1]
    assert b"no session 9" in run("diff", "--session", "9", status=1).stderr
    assert b"no change 99" in run("diff", "99", status=1).stderr


@pytest.mark.usefixtures("filled")
def test_export(run: Run) -> None:
    """`export` writes every change with its values, oldest first, so that nothing but the journal's file is lost."""
    exported = rows(run("export", "--session", "1"))
    assert [row["id"] for row in exported] == [1, 2, 3, 4, 5, 6, 7]
    assert (exported[0]["prior"]["content"], exported[0]["new"]["content"]) == ("a\nb\n", "a\nB\n")
    assert exported[1]["new"]["content"].keys() == {"base64"}
    assert exported[4]["new"]["elements"].count("\n") == 3
    assert ids(run("export", "2-3", "--op", "rename")) == [3]
    run("export", status=2)


@pytest.mark.usefixtures("filled")
def test_differences_in_the_log(run: Run) -> None:
    """`log -p` shows each operation's difference below it, `log --stat` its numbers of lines."""
    text = run("log", "-p", "1").stdout.decode()
    assert text.startswith("1\t")
    assert text.endswith("-b\n+B\n\n")
    assert (
        " cfg/app | 2 +-\n 1 file changed, 1 insertions(+), 1 deletions(-)\n"
        in run("log", "--stat", "1").stdout.decode()
    )
    assert run("diff", "1", "--word").stdout.decode().endswith("@@ -1 +1 @@\na\n[-b-]{+B+}\n")


def test_differences_in_the_log_of_a_path(run: Run, path: Path) -> None:
    """`log PATH -p` shows what an operation did to this path, and nothing of the other files that it wrote."""
    with Journal.open(path, create=True) as journal:
        session = journal.begin_session(INFO)
        add(journal, session, *(intent(b"a:%d" % number, b"content\n") for number in range(3)))
    assert run("log", "-p", "a/1").stdout.count(b"diff --git") == 1
    assert b" 1 file changed" in run("log", "--stat", "a/1").stdout


@pytest.mark.usefixtures("filled")
def test_sessions(run: Run) -> None:
    """`sessions` prints server, mount point, user and number of changes."""
    (row,) = rows(run("sessions", "--json"))
    assert {"id", "server", "mountpoint", "started_at", "ended_at", "changes"} <= row.keys()
    assert (row["server"], row["mountpoint"], row["changes"], row["ended_at"]) == (INFO.server.name, "/mnt/r", 7, None)
    assert "ann:***@" in row["url"]
    line = run("sessions").stdout.decode().rstrip("\n").split("\t")
    assert line[0] == "1"
    assert line[3:6] == ["7", INFO.server.name, "/mnt/r"]


@pytest.mark.usefixtures("filled")
def test_prune(run: Run, path: Path) -> None:
    """`prune` removes old settled changes and prints how many; --dry-run only prints."""
    assert b"would remove 6 changes" in run("prune", "--older-than", "now", "-n").stdout
    assert b"no settled change is that old" in run("prune", "--older-than", "30d").stdout
    assert len(ids(run("log", "--keys", "--json"))) == 7
    (result,) = rows(run("prune", "--older-than", "0s", "--keep-last", "2", "--json"))
    assert (result["changes"], result["dry_run"]) == (5, False)
    assert ids(run("log", "--keys", "--json")) == [7, 6]
    run("prune", status=2)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("filled")
def test_journal_check_and_path(run: Run, path: Path) -> None:
    """`journal path` prints the path; `journal check` a summary, or a line per problem and exit status 1."""
    assert run("journal", "path").stdout.decode() == f"{path}\n"
    assert run("journal", "path", "--journal-file", "/x/y.db").stdout == b"/x/y.db\n"
    assert b"sound; 7 changes" in run("journal", "check").stdout
    with Journal.open(path) as journal:
        journal.record_outcome(journal.record_intents(1, [intent()]), "unknown")
    assert run("journal", "check", status=1).stdout == b"change 8 is unknown: look at it with redisfuse show 8\n"
    assert rows(run("journal", "check", "--json", status=1))[0]["problem"].startswith("change 8")


def test_no_journal(run: Run, path: Path) -> None:
    """Without a journal each command prints one line, exits with 1 and does not create one."""
    for words in (
        ["log"],
        ["show", "1"],
        ["diff", "1"],
        ["sessions"],
        ["prune", "--older-than", "1d"],
        ["journal", "check"],
    ):
        done = run(*words, status=1)
        assert done.stdout == b""
        assert done.stderr.decode().startswith(f"redisfuse: there is no journal at {path}")
        assert done.stderr.count(b"\n") == 1
    assert not path.parent.exists()


@pytest.mark.usefixtures("filled")
def test_completion(run: Run, tmp_path: Path) -> None:
    """The shell completes ids and paths; without a journal it offers nothing and prints no error."""

    def complete(*words: str, **more: str) -> list[str]:
        environment = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1), **more}
        done = run(_REDISFUSE_COMPLETE="bash_complete", **environment)
        assert done.stderr == b""
        return [line.partition(",")[2] for line in done.stdout.decode().split()]

    assert complete("redisfuse", "show", "") == ["7", "6", "5", "4", "3", "2", "1"]
    assert complete("redisfuse", "diff", "7") == ["7"]
    assert complete("redisfuse", "log", "--session", "") == ["1"]
    assert complete("redisfuse", "log", "--path", "cfg/a") == ["cfg/app"]
    assert "--since" in complete("redisfuse", "log", "--si")
    assert complete("redisfuse", "show", "", REDISFUSE_JOURNAL_FILE=str(tmp_path / "none.db")) == []


ZONE = timezone(timedelta(hours=2))
NOW = datetime(2026, 7, 4, 15, 30, tzinfo=ZONE)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("now", timedelta()),
        ("2h", timedelta(hours=2)),
        ("90s", timedelta(seconds=90)),
        ("1d12h", timedelta(days=1, hours=12)),
        ("3 weeks", timedelta(weeks=3)),
        ("30 minutes ago", timedelta(minutes=30)),
        ("2026-07-04T12:00:00Z", timedelta(hours=1, minutes=30)),
        ("2026-07-04T15:30:00.250+02:00", timedelta(milliseconds=-250)),
    ],
)
def test_timestamps(text: str, ago: timedelta) -> None:
    """A time is an age or ISO 8601."""
    assert parse_timestamp(text, NOW) == int((NOW - ago).timestamp() * 1000)


def test_local_timestamps() -> None:
    """Dates, times of day, today and yesterday are local."""
    here = datetime.now().astimezone()
    midnight = datetime(here.year, here.month, here.day).astimezone()
    assert parse_timestamp("today", here) == int(midnight.timestamp() * 1000)
    assert parse_timestamp("14:05", here) == int(midnight.replace(hour=14, minute=5).timestamp() * 1000)
    assert parse_timestamp("9:05:07", here) == int(midnight.replace(hour=9, minute=5, second=7).timestamp() * 1000)
    assert parse_timestamp("2026-07-04", here) == int(datetime(2026, 7, 4).timestamp() * 1000)
    assert 0 < parse_timestamp("today", here) - parse_timestamp("yesterday", here) <= 25 * 3600 * 1000
    assert abs(parse_timestamp("now", here) - now_ms()) < 60_000


@pytest.mark.parametrize("text", ["", "2x", "soon", "25:00", "2026-13-01", "h", "999999999w"])
def test_invalid_timestamps(run: Run, text: str) -> None:
    """Any other text is a usage error with examples of times."""
    with pytest.raises((ValueError, OverflowError)):
        parse_timestamp(text, NOW)
    assert b"yesterday" in run("log", "--since", text, status=2).stderr
