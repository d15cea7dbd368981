"""Review and rollback of changes made through a real mount, while it is mounted."""

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.support.changes import journal_rows, last_change_id
from tests.support.mounts import MountedServer, flush_and_wait, mount_server, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer
from tests.unit.test_rollback import contents, create_one_of_each

AT = int(time.time() * 1000) + 3_600_000


@pytest.fixture(scope="module")
def mount(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedServer]:
    with mount_server(
        tmp_path_factory.mktemp("rollback"), server.tcp_url(), "--park-seconds", "0.2", write=True
    ) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    flush_and_wait(server, mount)
    return server.client()


def prepare(client: redis.Redis, mount: MountedServer) -> dict[bytes, tuple[object, int]]:
    """Create keys of all types, some of which expire, and return all contents."""
    for key in create_one_of_each(client, "d:"):
        client.pexpireat(key, AT)
    client.mset({"a": "1", "b": "2", "e:f:g": "deep"})
    client.pexpireat("b", AT + 1)
    wait_until(lambda: (mount.path / "e" / "f" / "g").exists() and (mount.path / "d" / "stream").exists())
    return contents(client)


def roll_back(mount: MountedServer, *words: str) -> tuple[int, str]:
    """Run `rollback` on the mount's journal, and return its exit status and output."""
    done = run_redisfuse(mount.path.parent, "rollback", *words, "--yes", "--journal-file", str(mount.journal))
    return done.returncode, done.stdout + done.stderr


def test_a_session_is_rolled_back_while_it_is_mounted(client: redis.Redis, mount: MountedServer) -> None:
    """Edits of every kind are rolled back at once, TTLs included, and then redone.

    The mount shows the rollback within a second.
    """
    root = mount.path
    before = prepare(client, mount)
    first = last_change_id(mount)
    (root / "a").write_text("new")
    with (root / "b").open("a") as file:
        file.write("more")
    os.truncate(root / "a", 1)
    (root / "d" / "hash.f").write_text("other")
    (root / "d" / "list").unlink()
    (root / "d" / "hash.f").rename(root / "moved")
    (root / "e").rename(root / "z")
    os.setxattr(root / "a", "user.redis.ttl", b"50000000")
    (root / "new").write_text("fresh")
    after = contents(client)
    ids = [row["id"] for row in journal_rows(mount, first)]
    status, output = roll_back(mount, *map(str, ids))
    assert status == 0, output
    assert contents(client) == before
    wait_until(lambda: (root / "e" / "f" / "g").exists() and not (root / "new").exists())
    wait_until(lambda: (root / "a").read_text() == "1")
    assert (root / "d" / "list").exists()
    redone = [row["id"] for row in journal_rows(mount, ids[-1])]
    status, output = roll_back(mount, *map(str, redone))
    assert status == 0, output
    assert contents(client) == after


def test_a_directory_with_an_empty_one_is_renamed(client: redis.Redis, mount: MountedServer) -> None:
    """The rename is one group: a rollback of one change rolls all of it back, and a second rollback redoes it."""
    client.set("d:x", "1")
    root = mount.path
    wait_until(lambda: (root / "d" / "x").exists())
    (root / "d" / "empty").mkdir()
    before = last_change_id(mount)
    (root / "d").rename(root / "renamed")
    rows = journal_rows(mount, before)
    assert len(rows) == 4
    assert len({row["group"] for row in rows}) == 1
    status, output = roll_back(mount, str(rows[-1]["id"]))
    assert status == 0, output
    assert client.keys("*") == [b"d:x"]
    wait_until(lambda: sorted(os.listdir(root / "d")) == ["empty", "x"])
    wait_until(lambda: not (root / "renamed").exists())
    status, output = roll_back(mount, *(str(row["id"]) for row in journal_rows(mount, rows[-1]["id"])))
    assert status == 0, output
    assert client.keys("*") == [b"renamed:x"]
    wait_until(lambda: (root / "renamed").exists())
    wait_until(lambda: sorted(os.listdir(root / "renamed")) == ["empty", "x"])


def test_the_rename_of_a_directory_is_in_the_histories_of_its_files(client: redis.Redis, mount: MountedServer) -> None:
    """A file is found by its path of before the rename and of after it; the operation is one line."""
    client.mset({"old:x": "1", "old:a:y": "2"})
    wait_until(lambda: (mount.path / "old" / "a" / "y").exists() and (mount.path / "old" / "x").exists())
    (mount.path / "old").rename(mount.path / "new")
    (mount.path / "new" / "x").write_text("written")
    words = ("--journal-file", str(mount.journal))
    for path in ("new/a/y", "old/a/y"):
        for selected in ((path,), ("--path", path)):
            rows = run_redisfuse(mount.path.parent, "log", *selected, *words).stdout.splitlines()
            assert [row.split("\t")[3] for row in rows] == ["rename"], (selected, rows)
    rows = run_redisfuse(mount.path.parent, "log", "new/x", "--keys", *words).stdout.splitlines()
    assert [row.split("\t")[3] for row in rows] == ["write", "rename", "rename"]
    (row,) = run_redisfuse(mount.path.parent, "log", "--path", "new", "--op", "rename", *words).stdout.splitlines()
    assert "\told/ → new/\t" in row, row


def test_a_refused_edit_is_shown_and_applied(client: redis.Redis, mount: MountedServer) -> None:
    """A change refused for a conflict is listed by `log`, shown by `diff` and written by `apply`."""
    client.set("k", "old", pxat=AT)
    wait_until(lambda: (mount.path / "k").exists())
    descriptor = os.open(mount.path / "k", os.O_RDWR)
    os.write(descriptor, b"mine")
    client.set("k", "theirs", keepttl=True)
    with pytest.raises(OSError, match="Stale"):
        os.close(descriptor)
    id = str(last_change_id(mount))
    journal = ("--journal-file", str(mount.journal))
    [row] = run_redisfuse(
        mount.path.parent, "log", "--keys", "--state", "refused", "--limit", "1", "--json", *journal
    ).stdout.splitlines()
    assert json.loads(row)["id"] == int(id)
    assert "theirs" in run_redisfuse(mount.path.parent, "diff", id, *journal).stdout
    assert run_redisfuse(mount.path.parent, "apply", id, *journal).returncode == 0
    assert client.get("k") == b"mine"
    assert client.pexpiretime("k") == AT
    wait_until(lambda: (mount.path / "k").read_text() == "mine")


def random_edits(root: Path, random: random.Random) -> list[Callable[[], object]]:
    """Return edits as programs make them; not each is possible at each time."""
    names = ["a", "b", "c", "d/string", "d/hash.f", "d/new", "d/hash.g", "e/f/g"]
    any_name = lambda: root / random.choice([*names, "d/list", "d/set", "d/zset", "d/stream"])  # noqa: E731
    file = lambda: root / random.choice(names)  # noqa: E731

    def append(path: Path) -> None:
        with path.open("ab") as out:
            out.write(random.randbytes(5))

    def patch(path: Path) -> None:
        with path.open("r+b") as out:
            out.seek(random.randrange(6))
            out.write(b"patch")

    return [
        lambda: file().write_bytes(random.randbytes(random.randrange(20))),
        lambda: append(file()),
        lambda: patch(file()),
        lambda: os.truncate(file(), random.randrange(10)),
        lambda: any_name().unlink(),
        lambda: file().rename(file()),
        lambda: os.setxattr(file(), "user.redis.ttl", b"%d" % random.choice([-1, 10**8, 2 * 10**8])),
        lambda: (root / "e").rename(root / "y"),
        lambda: (root / "y").rename(root / "e"),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_a_rollback_restores_each_earlier_state(client: redis.Redis, mount: MountedServer, seed: int) -> None:
    """A rollback of the newest of several random edits restores the exact state before them."""
    generator = random.Random(seed)
    states = [(last_change_id(mount), prepare(client, mount))]
    edits = random_edits(mount.path, generator)
    for _ in range(30):
        try:
            generator.choice(edits)()
        except OSError:
            continue
        time.sleep(0.3 if mount.status().get("parked") else 0)
        states.append((last_change_id(mount), contents(client)))
    for index in sorted(generator.sample(range(len(states)), min(4, len(states))), reverse=True):
        id, before = states[index]
        rows = [
            row for row in journal_rows(mount, id) if row["state"] in ("applied", "pending") and row["reverts"] is None
        ]
        status, output = roll_back(mount, *(str(row["id"]) for row in rows)) if rows else (0, "")
        assert status == 0, output
        assert contents(client) == before
    rest = [row for row in journal_rows(mount, states[0][0]) if row["state"] != "refused" and row["reverts"] is None]
    status, output = roll_back(mount, *(str(row["id"]) for row in rest))
    assert status == 0, output
    assert contents(client) == states[0][1]
