"""A rename over a key is a save: it does not overwrite a version that the program has not had before it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.support.bindings import BINDINGS
from tests.support.changes import journal_rows, last_change_id
from tests.support.errno_of import errno_name
from tests.support.mounts import MountedServer, flush_and_wait, mount_server, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer

MIB = 1024 * 1024
TTL_MS = 3_600_000


@pytest.fixture(scope="module", params=BINDINGS)
def mount(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedServer]:
    options = ("--binding", request.param, "--park-seconds", "600")
    with mount_server(tmp_path_factory.mktemp("renames"), server.tcp_url(), *options, write=True) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    flush_and_wait(server, mount)
    client = server.client()
    client.set("d:k", "base")
    client.set("d:notes.txt", "base")
    client.hset("d:h", "f", "base")
    wait_until(lambda: mount.status()["keys"] == 3 and (mount.path / "d" / "h.f").exists())
    return client


def create_held(directory: Path, content: bytes) -> Path:
    """Create a temporary file as `sed -i` and most programs do: it is held back."""
    descriptor, name = tempfile.mkstemp(dir=directory)
    os.write(descriptor, content)
    os.close(descriptor)
    return Path(name)


def create_key(directory: Path, content: bytes) -> Path:
    """Create a file that is a key at once."""
    path = directory / "new"
    path.write_bytes(content)
    return path


def create_junk(directory: Path, content: bytes) -> Path:
    """Create a temporary file as GNOME does: it is in memory only."""
    path = directory / ".goutputstream-AB12CD"
    path.write_bytes(content)
    return path


CREATORS = [create_held, create_key, create_junk]
OTHERS: dict[str, Callable[[redis.Redis, str], object]] = {
    "SET": lambda client, key: client.set(key, "theirs"),
    "APPEND": lambda client, key: client.append(key, "+"),
    "DEL": lambda client, key: client.delete(key),
    "RENAME": lambda client, key: client.rename(key, "elsewhere"),
}
FIELD_OTHERS: dict[str, Callable[[redis.Redis, str], object]] = {
    "SET": lambda client, key: client.hset(key, "f", "theirs"),
    "HDEL": lambda client, key: client.hdel(key, "f"),
    "DEL": lambda client, key: client.delete(key),
    "RENAME": lambda client, key: client.rename(key, "elsewhere"),
}
CASES = [
    *(("d/k", "d:k", act) for act in OTHERS.values()),
    *(("d/notes.txt", "d:notes.txt", act) for act in OTHERS.values()),
    *(("d/h.f", "d:h", act) for act in FIELD_OTHERS.values()),
]


def dump(client: redis.Redis) -> dict[bytes, object]:
    return {
        key: client.get(key) if client.type(key) == b"string" else client.hgetall(key) for key in client.scan_iter("*")
    }


@pytest.mark.parametrize("create", CREATORS)
@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_others_changes_stay(
    client: redis.Redis, mount: MountedServer, create: Callable[[Path, bytes], Path], pause: float
) -> None:
    """Whatever another client has done to the key since the program read it, the rename fails with EBUSY."""
    for name, key, act in CASES:
        client.delete("d:k", "d:notes.txt", "d:h", "elsewhere")
        client.set("d:k", "base")
        client.set("d:notes.txt", "base")
        client.hset("d:h", "f", "base")
        path = mount.path / name
        wait_until(lambda: path.exists() and path.read_bytes() == b"base")  # noqa: B023 - called in this pass
        new = create(path.parent, path.read_bytes() + b" edited")
        act(client, key)
        time.sleep(pause)
        before, content = last_change_id(mount), dump(client)
        assert errno_name(os.rename, new, path) == "EBUSY", name
        assert dump(client) == content
        [row] = journal_rows(mount, before)
        assert row["state"] == "refused"
        shown = run_redisfuse(mount.path.parent, "show", str(row["id"]), "--new", "--journal-file", str(mount.journal))
        assert shown.stdout == "base edited", shown.stderr
        assert new.read_bytes() == b"base edited"
        assert errno_name(os.rename, new, path) == "EBUSY"  # as long as the program does not read it again
        if path.exists():
            path.read_bytes()
            os.rename(new, path)
            assert path.read_bytes() == b"base edited"
        else:
            new.unlink()


def test_the_refused_version_can_be_applied(client: redis.Redis, mount: MountedServer) -> None:
    """`redisfuse apply` writes the version whose rename was refused."""
    path = mount.path / "d" / "k"
    new = create_held(path.parent, path.read_bytes() + b" edited")
    client.set("d:k", "theirs")
    before = last_change_id(mount)
    assert errno_name(os.rename, new, path) == "EBUSY"
    new.unlink()
    [row] = journal_rows(mount, before)
    process = run_redisfuse(mount.path.parent, "apply", str(row["id"]), "--journal-file", str(mount.journal))
    assert process.returncode == 0, process.stderr
    assert client.get("d:k") == b"base edited"


# -- what is not a conflict --------------------------------------------------------------------------------------------


def save(path: Path, content: bytes, create: Callable[[Path, bytes], Path]) -> None:
    os.rename(create(path.parent, content), path)
    assert path.parent.joinpath(path.name).stat().st_size == len(content)


@pytest.mark.parametrize("create", CREATORS)
@pytest.mark.parametrize("name", ["d/k", "d/h.f"])
def test_ones_own_changes_are_no_conflict(
    client: redis.Redis, mount: MountedServer, create: Callable[[Path, bytes], Path], name: str
) -> None:
    """A program may save again and again, in place and by rename, move the file away, and remove it."""
    path = mount.path / name

    def get() -> bytes | None:
        return client.get("d:k") if name == "d/k" else client.hget("d:h", "f")  # type: ignore[return-value]

    assert path.read_bytes() == b"base"
    for content in (b"1", b"22"):
        save(path, content, create)
        assert get() == content
    path.write_bytes(b"in place")
    save(path, b"333", create)
    with path.open("r+b") as file:
        file.truncate(1)
    save(path, b"4444", create)
    os.rename(path, path.with_name("old"))
    save(path, b"55555", create)
    path.unlink()
    save(path, b"666666", create)
    path.unlink()
    path.write_bytes(b"created")
    save(path, b"7777777", create)
    os.rename(path, path.with_name(path.name + "~"))
    save(path, b"8", create)
    path.with_name(path.name + "~").unlink()
    assert get() == b"8"
    client.set("d:k", "theirs")
    client.hset("d:h", "f", "theirs")
    assert errno_name(os.rename, create(path.parent, b"9"), path) == "EBUSY"
    assert get() == b"theirs"


def test_another_program_of_the_same_mount_is_another_client(client: redis.Redis, mount: MountedServer) -> None:
    """A program's rename does not overwrite what another program has saved through the same mount."""
    path = mount.path / "d" / "k"
    new = create_held(path.parent, path.read_bytes() + b" edited")
    subprocess.run(["sed", "-i", "s/base/theirs/", path], check=True, timeout=20)
    assert errno_name(os.rename, new, path) == "EBUSY"
    assert client.get("d:k") == b"theirs"
    new.unlink()


@pytest.mark.parametrize("create", CREATORS)
def test_a_program_that_has_not_read_the_key(
    client: redis.Redis, mount: MountedServer, create: Callable[[Path, bytes], Path]
) -> None:
    """A program that never read the key, such as `mv` or one that only writes, may replace it."""
    path = mount.path / "d" / create.__name__
    for number in range(3):
        client.set(f"d:{path.name}", f"theirs {number}")
        time.sleep(0.2)
        save(path, b"%d" % number, create)
        assert client.get(f"d:{path.name}") == b"%d" % number
    path.read_bytes()
    client.set(f"d:{path.name}", "theirs")
    time.sleep(0.2)
    subprocess.run(["mv", create(path.parent, b"moved"), path], check=True, timeout=20)
    assert client.get(f"d:{path.name}") == b"moved"


def test_a_change_just_before_the_temporary_file(client: redis.Redis, mount: MountedServer) -> None:
    """A change before the temporary file was created is no conflict, although its message may come later."""
    path = mount.path / "d" / "never read"
    for number in range(100):
        client.set("d:never read", f"theirs {number}")
        save(path, b"%d" % number, create_held)
        assert client.get("d:never read") == b"%d" % number


def test_a_field_whose_hash_became_a_string(client: redis.Redis, mount: MountedServer) -> None:
    """A rename to the name of a former field makes a key where the hash became a string."""
    directory = mount.path / "d"
    assert (directory / "h.f").read_bytes() == b"base"
    os.rename(directory / "h.f", directory / "moved")
    create_held(directory, b"string").replace(directory / "h")
    os.rename(directory / "moved", directory / "h.f")
    wait_until(lambda: client.get("d:h.f") == b"base")
    assert client.get("d:h") == b"string"
    assert {"h", "h.f"} < {path.name for path in directory.iterdir()}


def test_a_key_that_changes_while_the_new_version_is_written(client: redis.Redis, mount: MountedServer) -> None:
    """A program that never read the key does not overwrite a change since it created its temporary file."""
    for name, act in OTHERS.items():
        path = mount.path / "d" / f"never read {name}"
        client.set(f"d:{path.name}", "base")
        wait_until(path.exists)
        time.sleep(0.2)
        new = create_held(path.parent, b"mine")
        act(client, f"d:{path.name}")
        time.sleep(0.3)
        content = dump(client)
        assert errno_name(os.rename, new, path) == "EBUSY"
        assert dump(client) == content
        new.unlink()
        client.delete("elsewhere")


def test_an_expiry_is_no_change_of_the_content(client: redis.Redis, mount: MountedServer) -> None:
    """Another client's EXPIRE is no conflict, and the expiry stays."""
    path = mount.path / "d" / "k"
    path.read_bytes()
    client.pexpire("d:k", TTL_MS)
    time.sleep(0.2)
    save(path, b"mine", create_held)
    assert client.get("d:k") == b"mine"
    assert client.pttl("d:k") > 0


@pytest.mark.parametrize("create", CREATORS)
def test_large_values(client: redis.Redis, mount: MountedServer, create: Callable[[Path, bytes], Path]) -> None:
    """A string of more than 1 MiB is checked as a small one is."""
    path = mount.path / "d" / "k"
    client.set("d:k", os.urandom(3 * MIB))
    wait_until(lambda: path.stat().st_size == 3 * MIB)
    data = path.read_bytes()
    save(path, data + b"1", create)
    new = create(path.parent, path.read_bytes() + b"2")
    client.setrange("d:k", 2 * MIB, "theirs")
    time.sleep(0.3)
    assert errno_name(os.rename, new, path) == "EBUSY"
    assert client.getrange("d:k", 2 * MIB, 2 * MIB + 5) == b"theirs"
    new.unlink()


def test_without_the_conflict_check(server: RedisServer, tmp_path: Path) -> None:
    """--no-conflict-check lets a rename overwrite, too."""
    client = server.client()
    client.flushall()
    client.set("d:k", "base")
    with mount_server(tmp_path, server.tcp_url(), "--no-conflict-check", write=True) as mount:
        path = mount.path / "d" / "k"
        new = create_held(path.parent, path.read_bytes() + b" edited")
        client.set("d:k", "theirs")
        os.rename(new, path)
        assert client.get("d:k") == b"base edited"


READ_MODIFY_RENAME = """
import os, sys, tempfile
path, number, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
made = 0
while made < count:
    try:
        text = open(path).read()
    except OSError:
        continue
    descriptor, name = tempfile.mkstemp(dir=os.path.dirname(path))
    os.write(descriptor, f"{text}{number}.{made} ".encode())
    os.close(descriptor)
    try:
        os.rename(name, path)
        made += 1
    except OSError:
        os.unlink(name)
"""


def test_no_update_is_lost(client: redis.Redis, mount: MountedServer) -> None:
    """Programs that read, modify and rename at the same time keep the updates of all others."""
    client.set("d:k", "")
    wait_until(lambda: (mount.path / "d" / "k").stat().st_size == 0)
    programs = [
        subprocess.Popen([sys.executable, "-c", READ_MODIFY_RENAME, mount.path / "d" / "k", str(number), "15"])
        for number in range(3)
    ]
    for program in programs:
        assert program.wait(60) == 0
    tokens = client.get("d:k").decode().split()  # type: ignore[union-attr]
    assert sorted(tokens) == sorted(f"{number}.{made}" for number in range(3) for made in range(15))


def save_as_jetbrains(path: Path) -> str:
    temporary, backup = path.with_name("k___jb_tmp___"), path.with_name("k___jb_old___")
    temporary.write_bytes(b"mine")
    path.rename(backup)
    errno = errno_name(temporary.rename, path)
    temporary.unlink(missing_ok=True)
    backup.unlink()
    return errno


def save_with_backup(path: Path) -> str:
    backup = path.with_name("k~")
    path.rename(backup)
    errno = errno_name(path.write_bytes, b"mine")
    backup.unlink()
    return errno


@pytest.mark.parametrize(("save", "expected"), [(save_as_jetbrains, "EBUSY"), (save_with_backup, "ESTALE")])
def test_a_change_before_the_file_became_a_backup(
    client: redis.Redis, mount: MountedServer, save: Callable[[Path], str], expected: str
) -> None:
    """A save by two renames is checked against what the program read, and the key stays if it is refused."""
    path = mount.path / "d" / "k"
    assert path.read_bytes() == b"base"
    client.set("d:k", "theirs")
    before = last_change_id(mount)
    assert save(path) == expected
    assert client.get("d:k") == b"theirs"
    assert [(row["state"], row["op"]) for row in journal_rows(mount, before)] == [("refused", "write")]
    assert path.read_bytes() == b"theirs"
    assert save(path) == ""  # it has been read again
    assert client.get("d:k") == b"mine"
