"""journal-format.md agrees with the schema, and its examples run."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import get_args

import pytest

from redisfuse.config import CHUNK_BYTES
from redisfuse.journal import database
from redisfuse.journal.content import Blob
from redisfuse.journal.filter_options import CHANGE_OPS
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import ABSENT, DIRECTORY, ChangeIntent, Outcome, SessionMetadata, State, StateKind
from tests.support.journals import SERVER, add, intent

PAGE = (Path(__file__).parents[2] / "redisfuse" / "docs" / "journal-format.md").read_text()
SECTIONS = dict(re.findall(r"^##+ ([^\n]*)\n(.*?)(?=^##+ |\Z)", PAGE, re.MULTILINE | re.DOTALL))
TABLES = ("sessions", "changes", "blobs", "chunks", "directories", "fingerprints", "sampled_keys", "recognized_runs")

LARGE = os.urandom(CHUNK_BYTES) + b"compressible " * CHUNK_BYTES
VALUES = {1: b"hello", 2: b"text " * 1000, 3: LARGE, 4: b""}
"""The new values of the journal's first changes, by id."""


def code_blocks(language: str) -> list[str]:
    """Return the blocks of code of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def shell_commands() -> list[str]:
    """Return the lines of the page's shell examples."""
    return [line for block in code_blocks("sh") for line in block.splitlines()]


def table_rows(section: str) -> list[list[str]]:
    """Return the cells of a section's tables, without headings and backquotes."""
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in SECTIONS[section].splitlines()]
    lines = SECTIONS[section].splitlines()
    is_heading = [number + 1 < len(lines) and lines[number + 1].startswith("|---") for number in range(len(lines))]
    return [
        row for row, line, heading in zip(rows, lines, is_heading, strict=True) if line.startswith("| ") and not heading
    ]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a closed journal with a change of each kind."""
    path: Path = tmp_path_factory.mktemp("format") / "state" / "journal.db"
    with Journal.open(path, create=True) as journal:
        session = journal.begin_session(SessionMetadata(SERVER, "abc", "7.0.15", "redis", "/mnt/r"))
        for id, value in VALUES.items():
            assert add(journal, session, intent(b"user:1001", value, op="create" if id == 1 else "write")) == [id]
        expiring = State.from_value(b"a", expires_at=1_800_000_000_000)
        add(journal, session, intent(b"s:1", b"a", op="expire", prior=expiring))
        moved = State.from_object(b"set", b"dump", Blob.from_bytes(b'{"type":"set"}\n["m"]\n'), dump_version="redis 7")
        add(
            journal,
            session,
            ChangeIntent(b"old", "rename", b"old", None, moved, ABSENT, new_path=b"new"),
            ChangeIntent(b"old", "rename", b"new", None, ABSENT, moved, new_path=b"new"),
        )
        end, longer = State.from_slice(b"", 10**8, 10**8), State.from_slice(b"x", 10**8, 10**8 + 1)
        add(journal, session, ChangeIntent(b"log", "append", b"log", None, end, longer))
        add(journal, session, intent(b"full", op="write"), state="failed")
        journal.record_intents(session, [intent(b"lost")], outcome="refused", error="the key has changed")
        made = ChangeIntent(b"d", "mkdir", b"d", None, ABSENT, DIRECTORY)
        journal.update_directories(SERVER.name, add=[(b"d",)], session_id=session, intents=[made])
        journal.end_session(session)
    return path


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the journal as another program does, read-only."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as opened:
        yield opened


# -- the specification -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
def test_the_columns_of_a_table(connection: sqlite3.Connection, table: str) -> None:
    """The page has each column of a table with its type, and no other."""
    documented: list[tuple[str, ...]] = []
    for name, column_type, null, _ in table_rows(f"`{table}`"):
        documented.append((name, column_type, null))
    states = [row for row in documented if row[0].startswith("*")]
    documented = [row for row in documented if row not in states]
    after = [name for name, _, _ in documented].index("reverts") if states else 0
    for when in ("new", "prior"):
        documented[after:after] = [(name.replace("*", when), *rest) for name, *rest in states]
    actual = [
        (name, column_type, "no" if not_null or key else "yes")
        for _, name, column_type, not_null, _, key in connection.execute(f"PRAGMA table_info({table})")
    ]
    assert documented == actual


def test_the_tables_views_and_indexes(connection: sqlite3.Connection) -> None:
    """The page has each table, view and index that the migrations create."""
    objects = connection.execute(
        "SELECT type, name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' AND name NOT LIKE '%_sqlite_%'"
    ).fetchall()
    assert {name for kind, name in objects if kind == "table"} == set(TABLES)
    assert [name for kind, name in objects if kind == "view"] == ["history"]
    for _, name in objects:
        assert f"`{name}`" in PAGE


def test_the_columns_of_history(connection: sqlite3.Connection) -> None:
    """The page has each column of the view, in order."""
    columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(history)")]
    assert [name for name, _ in table_rows("The view `history`")] == columns


def test_the_file(connection: sqlite3.Connection, path: Path) -> None:
    """The properties of the file are those of the page."""
    properties = {name.split()[-1]: value.split()[0] for name, value in table_rows("The file") if "PRAGMA" in name}
    assert len(properties) == 4
    for name, value in properties.items():
        assert str(connection.execute(f"PRAGMA {name}").fetchone()[0]) == value
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_values_of_the_columns() -> None:
    """The page has each operation, state and kind of a state, and each migration."""
    assert tuple(row[0] for row in table_rows("Operations")) == CHANGE_OPS
    assert tuple(row[0] for row in table_rows("States of a change")) == get_args(Outcome)
    assert tuple(row[0] for row in table_rows("Kinds of a recorded state"))[:5] == get_args(StateKind)
    assert [row[0] for row in table_rows("Versions")] == [file.stem for file in database.list_migration_files()]


# -- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sql", code_blocks("sql"))
def test_a_query(connection: sqlite3.Connection, sql: str) -> None:
    """Each query of the page finds something in a journal with a change of each kind."""
    assert connection.execute(sql).fetchall()


@pytest.mark.parametrize("command", shell_commands())
def test_a_shell_command(path: Path, tmp_path: Path, command: str) -> None:
    """Each shell command of the page succeeds and changes no byte of the journal."""
    program = command.split()[0]
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if shutil.which(program, path=programs) is None:
        assert program == "datasette"  # the only one that the tests' environment may lack
        pytest.skip("needs datasette")
    for name in ("journal.db", "copy.db"):
        shutil.copy(path, tmp_path / name)
    before = path.read_bytes()
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PATH": programs},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout or "copy.db" in command
    assert (tmp_path / "journal.db").read_bytes() == before
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("SELECT count(*) FROM history").fetchone() > (0,)


def test_the_program_that_reads_a_value(path: Path, tmp_path: Path) -> None:
    """The page's program reads values of each kind, and detects a damaged one."""
    [program] = code_blocks("python")
    damaged = tmp_path / "damaged.db"
    shutil.copy(path, damaged)
    with closing(sqlite3.connect(damaged)) as raw, raw:
        raw.execute("UPDATE chunks SET data = zeroblob(length(data)) WHERE number = 0")

    def read(file: Path, id: int, side: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-c", program, str(file), str(id), side]
        return subprocess.run(command, capture_output=True, timeout=60, check=False)

    for id, value in VALUES.items():
        done = read(path, id, "new")
        assert (done.returncode, done.stdout) == (0, value), done.stderr
    assert read(path, 5, "prior").stdout == b"a"
    assert read(damaged, 3, "new").returncode == 1
