"""The newline that programs add at the end of a value: dropped with --no-added-newline, and reported in any case."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bindings import BINDINGS
from tests.support.changes import journal_rows, last_change_id
from tests.support.errno_of import errno_name, save_file
from tests.support.mounts import MountedServer, mount_server, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="module", params=BINDINGS)
def mount(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedServer]:
    folder = tmp_path_factory.mktemp(f"added-newline-{request.param}")
    options = ("--no-added-newline", "--binding", request.param)
    with mount_server(folder, server.tcp_url(), *options, write=True) as mount:
        yield mount


@pytest.fixture(scope="module")
def plain_mount(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedServer]:
    """Mount without the option."""
    with mount_server(tmp_path_factory.mktemp("plain"), server.tcp_url(), write=True) as mount:
        yield mount


def show(server: RedisServer, mount: MountedServer, value: bytes) -> Path:
    """Set the key `flag`, and wait until the mount shows its value."""
    server.client().set("flag", value)
    path = mount.path / "flag"
    wait_until(lambda: path.exists() and path.read_bytes() == value)
    return path


@pytest.mark.parametrize(
    ("before", "written", "saved"),
    [
        (b"on", b"off\n", b"off"),
        (b"on", b"off\r\n", b"off"),
        (b"on", b"one\ntwo\n", b"one\ntwo"),
        (b"on", b"\n", b""),
        (b"on", b"off", b"off"),
        (b"on", b"off\n\n", b"off\n\n"),
        (b"on", b"off\r\n\r\n", b"off\r\n\r\n"),
        (b"on\n", b"off\n", b"off\n"),
        (b"", b"off\n", b"off\n"),
        (b"\x00\xff", b"\x00\xfe\n", b"\x00\xfe"),
    ],
)
@pytest.mark.parametrize("how", ["truncate", "overwrite", "rename"])
def test_a_rewritten_value(
    server: RedisServer, mount: MountedServer, how: str, before: bytes, written: bytes, saved: bytes
) -> None:
    """One newline at the end of a rewritten value is saved only if the value had one; the file is as the key."""
    path = show(server, mount, before)
    if how == "truncate":
        path.write_bytes(written)
    elif how == "overwrite":
        descriptor = os.open(path, os.O_RDWR)
        os.pwrite(descriptor, written, 0)
        os.ftruncate(descriptor, len(written))
        os.close(descriptor)
    else:
        temporary = path.with_name("sedAbC123")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, written)
        os.close(descriptor)
        temporary.rename(path)
    assert server.client().get("flag") == saved
    wait_until(lambda: path.read_bytes() == saved and path.stat().st_size == len(saved))


def test_a_field(server: RedisServer, mount: MountedServer) -> None:
    """The value of a hash field is treated like that of a key; its TTL and the other fields stay."""
    client = server.client()
    client.hset("config", mapping={"mode": "on", "other": "x"})
    client.pexpire("config", 3_600_000)
    path = mount.path / "config.mode"
    wait_until(path.exists)
    path.write_bytes(b"off\n")
    assert client.hgetall("config") == {b"mode": b"off", b"other": b"x"}
    assert client.pttl("config") > 0


def test_appended_and_new_newlines_stay(server: RedisServer, mount: MountedServer) -> None:
    """Appended text and the content of a new key are saved as they are."""
    client = server.client()
    client.delete("log", "empty")
    show(server, mount, b"on")
    with (mount.path / "flag").open("ab", buffering=0) as file:
        file.write(b" and on\n")
    assert client.get("flag") == b"on and on\n"
    assert save_file(mount.path / "log", b"first\n") == ""
    assert client.get("log") == b"first\n"
    client.set("empty", "")
    wait_until((mount.path / "empty").exists)
    for line in (b"one\n", b"two\n"):
        with (mount.path / "empty").open("ab", buffering=0) as file:
            file.write(line)
    assert client.get("empty") == b"one\ntwo\n"


def test_a_program_that_writes_on(server: RedisServer, mount: MountedServer) -> None:
    """A program that continues after a sync writes at the offsets that it knows, and has no conflict."""
    client = server.client()
    path = show(server, mount, b"on")
    descriptor = os.open(path, os.O_RDWR | os.O_TRUNC)
    os.write(descriptor, b"one\n")
    os.fsync(descriptor)
    assert client.get("flag") == b"one"
    assert os.fstat(descriptor).st_size == 4
    assert os.pread(descriptor, 10, 0) == b"one\n"
    os.write(descriptor, b"two\n")
    os.fsync(descriptor)
    assert client.get("flag") == b"one\ntwo\n"
    client.set("flag", "theirs")
    os.write(descriptor, b"three\n")
    assert errno_name(os.close, descriptor) == "ESTALE"
    assert client.get("flag") == b"theirs"


def test_saving_again_and_again(server: RedisServer, mount: MountedServer) -> None:
    """Each save is one change without a conflict, and can be rolled back."""
    client = server.client()
    path = show(server, mount, b"0")
    before = last_change_id(mount)
    for number in range(1, 6):
        assert save_file(path, b"%d\n" % number) == ""
        assert client.get("flag") == b"%d" % number
    rows = journal_rows(mount, before)
    assert [row["new_size"] for row in rows] == [1] * 5
    assert run_redisfuse(mount.path.parent, "rollback", str(rows[-1]["id"])).returncode == 0
    assert client.get("flag") == b"4"


@pytest.mark.parametrize(
    "command",
    [
        ["vim", "-u", "NONE", "-N", "-es", "-c", "s/on/off/", "-c", "wq"],
        ["ed", "-s"],
    ],
    ids=lambda command: command[0],
)
def test_a_real_program(server: RedisServer, mount: MountedServer, command: list[str]) -> None:
    """Programs that add a newline save the value without it."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    path = show(server, mount, b"on")
    subprocess.run(
        [*command, str(path)], input=b"s/on/off/\nw\nq\n", cwd=mount.path, capture_output=True, timeout=60, check=False
    )
    wait_until(lambda: server.client().get("flag") == b"off", 5)


def test_it_is_reported(server: RedisServer, plain_mount: MountedServer) -> None:
    """Without the option the newline is saved; `diff` and `show` report it, and only where it was added."""
    path = show(server, plain_mount, b"on")
    assert save_file(path, b"off\n") == ""
    assert server.client().get("flag") == b"off\n"
    added = last_change_id(plain_mount)
    assert save_file(path, b"on\n") == ""
    kept = last_change_id(plain_mount)
    for words in (["diff"], ["show"]):
        for change, expected in ((added, True), (kept, False)):
            done = run_redisfuse(plain_mount.path.parent, *words, str(change))
            assert done.returncode == 0
            assert ("newline added at end" in done.stdout) == expected, done.stdout
