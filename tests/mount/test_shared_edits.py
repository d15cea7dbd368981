"""Descriptors of one file share its edits, and each close reports the commit that contained its own writes."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.bindings import BINDINGS
from tests.support.changes import journal_rows, last_change_id
from tests.support.errno_of import errno_name
from tests.support.mounts import MountedServer, flush_and_wait, mount_server, wait_until
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer

APPEND = os.O_WRONLY | os.O_APPEND


@pytest.fixture(scope="module", params=BINDINGS)
def mount(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedServer]:
    with mount_server(
        tmp_path_factory.mktemp("shared"), server.tcp_url(), "--binding", request.param, write=True
    ) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    flush_and_wait(server, mount)
    client = server.client()
    client.set("k", "0")
    wait_until((mount.path / "k").exists)
    return client


def open_and_append(path: Path, data: bytes) -> int:
    file = os.open(path, APPEND)
    os.write(file, data)
    return file


def test_writes_that_another_close_has_saved_are_saved(client: redis.Redis, mount: MountedServer) -> None:
    """A conflict of later writes by others is not reported to a descriptor whose writes are in Redis."""
    path = mount.path / "k"
    first, second = open_and_append(path, b"1"), open_and_append(path, b"2")
    os.close(first)
    assert client.get("k") == b"012"
    third = open_and_append(path, b"3")
    client.append("k", "x")
    assert errno_name(os.close, third) == "ESTALE"
    os.close(second)
    assert client.get("k") == b"012x"


def test_writes_that_were_refused_together_are_reported_to_each(client: redis.Redis, mount: MountedServer) -> None:
    """A close that meets a conflict discards the edits of all descriptors, and each close reports it."""
    before, path = last_change_id(mount), mount.path / "k"
    first, second = open_and_append(path, b"1"), open_and_append(path, b"2")
    client.append("k", "x")
    assert errno_name(os.close, first) == "ESTALE"
    assert errno_name(os.write, second, b"3") == "ESTALE"
    assert errno_name(os.fsync, second) == "ESTALE"
    assert errno_name(os.close, second) == "ESTALE"
    assert client.get("k") == b"0x"
    assert [row["state"] for row in journal_rows(mount, before)] == ["refused"]
    os.close(open_and_append(path, b"4"))
    assert client.get("k") == b"0x4"


def test_a_descriptor_that_wrote_nothing_reports_nothing(client: redis.Redis, mount: MountedServer) -> None:
    """The close of an idle descriptor saves the edits of others, but leaves it to them to report a conflict."""
    path = mount.path / "k"
    idle, writer = os.open(path, os.O_RDWR), open_and_append(path, b"1")
    client.append("k", "x")
    os.close(idle)
    assert errno_name(os.close, writer) == "ESTALE"
    assert client.get("k") == b"0x"


def test_a_truncation_of_another_descriptor_is_reported(client: redis.Redis, mount: MountedServer) -> None:
    """O_TRUNC is a write of the descriptor that is opened with it."""
    path = mount.path / "k"
    truncating = os.open(path, os.O_WRONLY | os.O_TRUNC)
    writer = open_and_append(path, b"1")
    client.append("k", "x")
    assert errno_name(os.close, writer) == "ESTALE"
    assert errno_name(os.close, truncating) == "ESTALE"
    assert client.get("k") == b"0x"


def test_a_truncation_by_name_is_reported_to_the_writers(client: redis.Redis, mount: MountedServer) -> None:
    """truncate(2) of a file that is open for writing is saved by a close, which reports a conflict."""
    path = mount.path / "k"
    file = os.open(path, os.O_RDWR)
    os.truncate(path, 0)
    client.append("k", "x")
    assert errno_name(os.close, file) == "ESTALE"
    assert client.get("k") == b"0x"


def test_refused_writes_of_a_mapping_are_reported(client: redis.Redis, mount: MountedServer) -> None:
    """The kernel guesses the descriptor of what was written through a mapping, so each that has one reports it."""
    files = [os.open(mount.path / "k", os.O_RDWR) for _ in range(2)]
    mappings = [mmap.mmap(file, 1) for file in files]
    for mapping in mappings:
        mapping[:] = b"1"
    client.append("k", "x")
    for file in files:
        assert errno_name(os.fsync, file) == "ESTALE"
        assert errno_name(os.close, file) == "ESTALE"
    for mapping in mappings:
        mapping.close()
    assert client.get("k") == b"0x"


@pytest.mark.expected_log("the server is out of memory")
def test_what_a_close_could_not_save_is_in_no_later_save(client: redis.Redis, mount: MountedServer) -> None:
    """A close that fails discards the edits; the journal has them, and other descriptors report the same error."""
    path = mount.path / "k"
    first, second, idle = open_and_append(path, b"1"), open_and_append(path, b"2"), os.open(path, os.O_RDWR)
    client.config_set("maxmemory", 1)
    try:
        assert errno_name(os.close, first) == "ENOSPC"
    finally:
        client.config_set("maxmemory", 0)
    assert path.read_bytes() == b"0"
    assert errno_name(os.close, second) == "ENOSPC"
    os.close(idle)
    assert client.get("k") == b"0"
    os.close(open_and_append(path, b"3"))
    assert client.get("k") == b"03"
    wait_until(lambda: "out of memory" in mount.read_log())


def test_what_an_fsync_could_not_save_is_saved_by_the_close(client: redis.Redis, mount: MountedServer) -> None:
    """A program may try again after an fsync that failed."""
    file = open_and_append(mount.path / "k", b"1")
    client.config_set("maxmemory", 1)
    try:
        assert errno_name(os.fsync, file) == "ENOSPC"
    finally:
        client.config_set("maxmemory", 0)
    os.close(file)
    assert client.get("k") == b"01"


@pytest.mark.possible_log("tracking the server's changes was interrupted", "the server answers again")
@pytest.mark.parametrize(("change", "expected"), [(b"", ""), (b"x", "EIO")])
@pytest.mark.parametrize("binding", BINDINGS)
def test_writes_of_a_commit_in_doubt_are_not_refused(
    own_redis: RedisServer, tmp_path: Path, binding: str, change: bytes, expected: str
) -> None:
    """After a commit whose outcome is unknown, a close reports EIO unless the outcome can be determined.

    It reports no ESTALE, which would mean that its writes are not in Redis.
    """
    client = own_redis.client()
    client.set("k", "0")
    with Proxy(own_redis.socket_path) as proxy:
        options = ("--binding", binding, "--timeout", "1")
        with mount_server(tmp_path, proxy.url(), *options, write=True) as mount:
            first, second = open_and_append(mount.path / "k", b"1"), open_and_append(mount.path / "k", b"2")
            proxy.inject("lost_reply", "EXEC", skip=1)
            proxy.inject("drop", "WATCH", skip=1)
            assert errno_name(os.close, first) == "EIO"
            client.append("k", change)
            proxy.clear()
            assert errno_name(os.close, second) == expected
            assert client.get("k") == b"012" + change


# -- descriptors that are open for writing and idle ------------------------------------------------------------------


@pytest.mark.parametrize("has_saved", [False, True], ids=["never wrote", "has saved"])
@pytest.mark.parametrize("flags", [os.O_RDWR, APPEND], ids=["r+", "append"])
@pytest.mark.parametrize("name", ["k", "h.field"])
def test_an_idle_descriptor_keeps_no_old_value(
    client: redis.Redis, mount: MountedServer, name: str, flags: int, has_saved: bool
) -> None:
    """Programs that open the file after a change by another client read it, and their saves succeed."""
    path, key = mount.path / name, name.partition(".")[0]
    client.hset("h", "field", "0")
    wait_until(path.exists)
    idle = os.open(path, flags)
    if has_saved:
        os.write(idle, b"1")
        os.fsync(idle)
    client.set("k", "theirs") if key == "k" else client.hset("h", "field", "theirs")
    wait_until(lambda: path.stat().st_size == len("theirs"))
    assert path.read_bytes() == b"theirs"
    path.write_bytes(b"mine")
    assert read_value(client, key) == b"mine"
    assert errno_name(os.write, idle, b"x") == "ESTALE"  # its program has not read what there is now
    os.close(idle)
    assert read_value(client, key) == b"mine"
    assert path.read_bytes() == b"mine"


def read_value(client: redis.Redis, key: str) -> bytes | None:
    return client.get(key) if key == "k" else client.hget("h", "field")


def test_an_idle_descriptor_and_a_key_that_another_client_removed(client: redis.Redis, mount: MountedServer) -> None:
    """A program that opens the file creates it again."""
    path = mount.path / "k"
    idle = os.open(path, os.O_RDWR)
    client.delete("k")
    wait_until(lambda: not path.exists())
    path.write_bytes(b"mine")
    assert client.get("k") == b"mine"
    assert errno_name(os.write, idle, b"x") == "ESTALE"
    os.close(idle)


def test_an_idle_descriptor_and_a_reader(client: redis.Redis, mount: MountedServer) -> None:
    """A reader reads what there was at its open, also if another program opens the file after a change."""
    path = mount.path / "k"
    idle, reader = os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY)
    client.set("k", "theirs")
    wait_until(lambda: path.read_bytes() == b"theirs")
    assert os.pread(reader, 100, 0) == b"0"
    os.close(reader)
    os.close(idle)


def test_an_idle_descriptor_and_a_change_of_another_field(client: redis.Redis, mount: MountedServer) -> None:
    """Only a change of the field itself counts."""
    path = mount.path / "h.field"
    client.hset("h", "field", "0")
    wait_until(path.exists)
    idle = os.open(path, APPEND)
    client.hset("h", "other", "1")
    wait_until((mount.path / "h.other").exists)
    assert path.read_bytes() == b"0"
    os.write(idle, b"1")
    os.close(idle)
    assert client.hget("h", "field") == b"01"
