"""Edits of values over 1 MiB are checked as exactly as those of small ones, with and without tracking."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.support.changes import journal_rows, last_change_id
from tests.support.mounts import MountedServer, mount_server, wait_until
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.possible_log("this user or server can't track changes")

MIB = 1 << 20
SIZE = 3 * MIB
BODY = os.urandom(SIZE)
FAR = 2 * MIB + 12345


@pytest.fixture(scope="module", params=["tracking", "no tracking"])
def mount(
    server: RedisServer, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[MountedServer]:
    """Mount the server as a user that may track changes, or as one that may not."""
    url = server.tcp_url()
    if request.param == "no tracking":
        server.client().execute_command(
            "ACL", "SETUSER", "untracked", "on", "nopass", "~*", "&*", "+@all", "-client|tracking", "-subscribe"
        )
        url = url.replace("redis://", "redis://untracked:x@")
    with mount_server(tmp_path_factory.mktemp("large"), url, write=True) as mount:
        mount.wait_ready()
        yield mount


@pytest.fixture
def client(server: RedisServer) -> redis.Redis:
    return server.client()


@pytest.fixture
def path(client: redis.Redis, mount: MountedServer, request: pytest.FixtureRequest) -> Path:
    """Return the path of a key of the test's own, which holds BODY."""
    key = f"large-{abs(hash(request.node.name))}"
    client.set(key, BODY)
    path = mount.path / key
    wait_until(lambda: path.exists() and path.stat().st_size == SIZE)
    return path


Edit = Callable[[int], object]


def rewrite(fd: int) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"M" * SIZE, 0)


def rewrite_shorter(fd: int) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"M" * MIB, 0)


def cut(fd: int) -> None:
    os.ftruncate(fd, 100)


EDITS: dict[str, tuple[Edit, Edit]] = {
    "patch what was read": (lambda fd: os.pread(fd, 10, 0), lambda fd: os.pwrite(fd, b"M", 1)),
    "patch elsewhere than was read": (lambda fd: os.pread(fd, 10, 0), lambda fd: os.pwrite(fd, b"M", FAR)),
    "patch unread bytes, before": (lambda fd: os.pwrite(fd, b"M", 1), lambda _fd: None),
    "append to what was read": (lambda fd: os.pread(fd, 10, 0), lambda fd: os.pwrite(fd, b"M" * 10, SIZE)),
    "rewrite what was read": (lambda fd: os.pread(fd, 10, 0), rewrite),
    "rewrite unread bytes, before": (rewrite, lambda _fd: None),
    "rewrite below 1 MiB": (lambda fd: os.pread(fd, 10, 0), rewrite_shorter),
    "cut what was read": (lambda fd: os.pread(fd, 10, 0), cut),
    "cut unread bytes, before": (cut, lambda _fd: None),
    "patch, sync, patch": (
        lambda fd: (os.pwrite(fd, b"M", 1), os.fsync(fd)),
        lambda fd: os.pwrite(fd, b"N", 3),
    ),
    "patch, sync, patch elsewhere": (
        lambda fd: (os.pread(fd, 10, 0), os.pwrite(fd, b"M", 1), os.fsync(fd)),
        lambda fd: os.pwrite(fd, b"N", FAR),
    ),
}
"""The program's steps before and after another client's change of the first byte."""

edits = pytest.mark.parametrize("edit", EDITS.values(), ids=list(EDITS))


@edits
def test_a_change_of_the_same_length_is_a_conflict(
    client: redis.Redis, mount: MountedServer, path: Path, edit: tuple[Edit, Edit]
) -> None:
    """The close is ESTALE, the server keeps the other client's bytes, and the journal has the refused ones."""
    before, after = edit
    newest = last_change_id(mount)
    fd = os.open(path, os.O_RDWR)
    before(fd)
    client.setrange(path.name, 0, bytes([BODY[0] ^ 1]))
    expected = client.get(path.name)
    after(fd)
    with pytest.raises(OSError, match="Stale"):
        os.close(fd)
    assert client.get(path.name) == expected
    assert journal_rows(mount, newest)[-1]["state"] == "refused"


@edits
def test_a_change_of_only_the_expiry_is_none(client: redis.Redis, path: Path, edit: tuple[Edit, Edit]) -> None:
    """The save succeeds and keeps the expiry that the other client has set."""
    before, after = edit
    fd = os.open(path, os.O_RDWR)
    before(fd)
    client.pexpire(path.name, 10**8)
    after(fd)
    os.close(fd)
    assert client.get(path.name) != BODY
    assert client.pttl(path.name) > 0


def test_a_program_that_truncates_when_it_opens(client: redis.Redis, path: Path) -> None:
    """With O_TRUNC nothing is read, and a change of the same length is a conflict all the same."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
    client.setrange(path.name, FAR, b"theirs")
    os.write(fd, b"M" * SIZE)
    with pytest.raises(OSError, match="Stale"):
        os.close(fd)
    assert client.getrange(path.name, FAR, FAR + 5) == b"theirs"


def test_a_small_value_that_grows_over_the_limit(client: redis.Redis, path: Path) -> None:
    """A value of less than 1 MiB is compared whole also if its edit is saved as a patch."""
    body = BODY[: MIB - 1000]
    client.set(path.name, body)
    wait_until(lambda: path.stat().st_size == len(body))
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"M" * 3000, len(body) - 1000)
    client.setrange(path.name, 0, bytes([body[0] ^ 1]))
    with pytest.raises(OSError, match="Stale"):
        os.close(fd)
    assert client.strlen(path.name) == len(body)


@pytest.mark.parametrize("size", [300_000, 2 * MIB], ids=["below 1 MiB", "above"])
@pytest.mark.parametrize("synced", [False, True])
def test_a_patch_near_the_end_is_cut_off(client: redis.Redis, path: Path, size: int, synced: bool) -> None:
    """All of it succeeds, and so do later writes of the descriptor."""
    expected = bytearray(BODY[:size])
    fd = os.open(path, os.O_RDWR)
    os.pread(fd, 100, FAR)
    os.pwrite(fd, b"x", FAR)
    os.ftruncate(fd, size)
    if synced:
        os.fsync(fd)
        assert client.get(path.name) == bytes(expected)
        os.pwrite(fd, b"MORE", 10)
        expected[10:14] = b"MORE"
        assert os.pread(fd, 20, 5) == bytes(expected[5:25])
        os.fsync(fd)
        os.pwrite(fd, b"END", size)
        expected += b"END"
    os.close(fd)
    assert client.get(path.name) == bytes(expected)


def test_a_change_elsewhere_than_what_an_append_depends_on(client: redis.Redis, path: Path) -> None:
    """An append that has read nothing keeps the other client's change of the same length."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"mine")
    os.fsync(fd)
    client.setrange(path.name, SIZE, b"MINE")
    os.write(fd, b"more")
    try:
        os.close(fd)
    except OSError:
        assert client.getrange(path.name, SIZE, -1) == b"MINE"
    else:
        assert client.getrange(path.name, SIZE, -1) == b"MINEmore"


def test_an_editor_that_renames_the_old_file(client: redis.Redis, path: Path) -> None:
    """A value that is renamed to a backup and then written again is compared with the one that was renamed."""
    path.rename(path.with_name(path.name + "~"))
    client.setrange(path.name, FAR, b"theirs")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(fd, b"M" * SIZE)
    with pytest.raises(OSError, match="Stale"):
        os.close(fd)
    assert client.getrange(path.name, FAR, FAR + 5) == b"theirs"
