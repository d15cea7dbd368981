"""Changes of one program through a real mount are one operation of the journal."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.mounts import MountedServer, flush_and_wait, mount_server, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer
from tests.unit.test_rollback import contents


@pytest.fixture(scope="module")
def mount(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedServer]:
    with mount_server(tmp_path_factory.mktemp("operations"), server.tcp_url(), write=True) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    flush_and_wait(server, mount)
    return server.client()


def run_program(*words: str | Path) -> None:
    """Run a program in a process of its own."""
    subprocess.run(words, check=True, timeout=60)


def list_operations(mount: MountedServer, *words: str) -> list[dict[str, Any]]:
    """Return what `redisfuse log --json` prints, newest first."""
    done = run_redisfuse(mount.path.parent, "log", "--json", *words, "--journal-file", str(mount.journal))
    return [json.loads(line) for line in done.stdout.splitlines()]


def roll_back(mount: MountedServer, *words: str) -> None:
    done = run_redisfuse(mount.path.parent, "rollback", *words, "--yes", "--journal-file", str(mount.journal))
    assert done.returncode == 0, done.stderr


def test_each_program_is_one_operation(client: redis.Redis, mount: MountedServer, tmp_path: Path) -> None:
    """`cp -r`, `mv` and `rm -r` of a folder are an operation each, with the name of the program."""
    source = tmp_path / "tree"
    (source / "sub").mkdir(parents=True)
    for number in range(30):
        (source / "sub" / f"file{number}").write_text(f"content {number}\n")
    (source / "top").write_text("top\n")
    run_program("cp", "-r", source, mount.path)
    copied = contents(client)
    assert len(copied) == 31
    run_program("mv", mount.path / "tree", mount.path / "moved")
    run_program("rm", "-r", mount.path / "moved")
    assert client.keys() == []
    removal, rename, copy = list_operations(mount, "--limit", "3")
    assert [each["command"] for each in (removal, rename, copy)] == ["rm", "mv", "cp"]
    assert (copy["path"], removal["path"], rename["new_path"]) == ("tree", "moved", "moved")
    assert sum("remove" in row["op"] for row in list_operations(mount, f"{removal['operation']}+", "--keys")) == 31
    assert removal["pid"] != copy["pid"]
    roll_back(mount, "--last", "2")
    assert contents(client) == copied
    wait_until(lambda: (mount.path / "tree" / "sub" / "file29").exists())
    assert [each["rolled_back"] == each["changes"] for each in list_operations(mount, "--limit", "4")][1:] == [
        True,
        True,
        False,
    ]


def test_the_newest_operation_is_rolled_back_whole(client: redis.Redis, mount: MountedServer) -> None:
    """`rollback --last` takes back an `rm -r`, and not what another program changed meanwhile."""
    client.mset({f"folder:{number}": str(number) for number in range(40)} | {"other": "old"})
    wait_until(lambda: (mount.path / "folder" / "39").exists() and (mount.path / "other").exists())
    before = contents(client)
    run_program("sh", "-c", f"echo new > {mount.path}/other")
    run_program("rm", "-r", mount.path / "folder")
    assert client.keys() == [b"other"]
    roll_back(mount, "--last")
    assert contents(client) == {**before, b"other": (b"new\n", -1)}


def test_programs_that_take_turns(client: redis.Redis, mount: MountedServer) -> None:
    """Two programs that change keys at the same time are two operations."""
    script = "for number in $(seq 25); do echo $number > {path}/{name}/$number; done"
    for name in "ab":
        (mount.path / name).mkdir()
    programs = [subprocess.Popen(["sh", "-c", script.format(path=mount.path, name=name)]) for name in ("a", "b")]
    for program in programs:
        assert program.wait(60) == 0
    operations = {each["pid"]: each for each in list_operations(mount, "--limit", "4") if each["command"] == "sh"}
    for program, name in zip(programs, "ab", strict=True):
        operation = operations[program.pid]
        assert (operation["path"], operation["keys"]) == (name, 25)
    assert client.dbsize() == 50


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
def test_a_file_that_is_renamed_into_place_has_its_program(
    client: redis.Redis, mount: MountedServer, tmp_path: Path
) -> None:
    """rsync writes temporary files and renames them: the changes name rsync."""
    for number in range(5):
        (tmp_path / f"f{number}").write_text("x")
    run_program("rsync", "-a", f"{tmp_path}/", mount.path / "copy")
    assert client.dbsize() == 5
    [operation] = [each for each in list_operations(mount, "--limit", "3", "--op", "create") if each["path"] == "copy"]
    assert (operation["command"], operation["keys"]) == ("rsync", 5)
