"""Every combination of open flags, on existing and missing paths, compared with an ordinary filesystem."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.expected_state import call_outcome, comparable_stat, read_tree, tmpfs_folder
from tests.support.mounts import MountedServer, flush_and_wait, wait_until
from tests.support.redis_server import RedisServer

CONTENT = b"0123456789"


def reading(fd: int, _path: Path) -> Iterator[Any]:
    yield call_outcome(os.read, fd, 4)
    yield call_outcome(os.read, fd, 100)
    yield call_outcome(os.pread, fd, 3, 8)
    yield call_outcome(os.read, fd, 1)


def writing(fd: int, _path: Path) -> Iterator[Any]:
    yield call_outcome(os.write, fd, b"WXYZ")
    yield call_outcome(os.lseek, fd, 0, os.SEEK_CUR)
    yield call_outcome(os.write, fd, b"")
    yield call_outcome(os.write, fd, b"!")
    yield comparable_stat(call_outcome(os.fstat, fd))
    yield call_outcome(os.pread, fd, 100, 0)
    yield call_outcome(os.fsync, fd)


def seeking(fd: int, _path: Path) -> Iterator[Any]:
    yield call_outcome(os.lseek, fd, 3, os.SEEK_SET)
    yield call_outcome(os.write, fd, b"seek")
    yield call_outcome(os.lseek, fd, -2, os.SEEK_CUR)
    yield call_outcome(os.read, fd, 5)
    yield call_outcome(os.lseek, fd, -1, os.SEEK_SET)


def at_the_end(fd: int, _path: Path) -> Iterator[Any]:
    yield call_outcome(os.lseek, fd, 2, os.SEEK_END)
    yield call_outcome(os.write, fd, b"gap")
    yield call_outcome(os.lseek, fd, 0, os.SEEK_SET)
    yield call_outcome(os.read, fd, 100)


def writing_at_offsets(fd: int, _path: Path) -> Iterator[Any]:
    yield call_outcome(os.pwrite, fd, b"far", 20)
    yield call_outcome(os.pwrite, fd, b"near", 1)
    yield call_outcome(os.pread, fd, 100, 0)
    yield comparable_stat(call_outcome(os.fstat, fd))


def truncating(fd: int, path: Path) -> Iterator[Any]:
    yield call_outcome(os.ftruncate, fd, 3)
    yield comparable_stat(call_outcome(os.fstat, fd))
    yield call_outcome(os.ftruncate, fd, 15)
    yield comparable_stat(call_outcome(os.stat, path))
    yield call_outcome(os.read, fd, 100)
    yield call_outcome(os.write, fd, b"end")


def querying(fd: int, path: Path) -> Iterator[Any]:
    yield comparable_stat(call_outcome(os.fstat, fd))
    yield comparable_stat(call_outcome(os.stat, path))
    yield call_outcome(os.lseek, fd, 0, os.SEEK_CUR)
    yield call_outcome(os.fchmod, fd, 0o644)
    yield call_outcome(os.utime, fd)
    yield call_outcome(os.fdatasync, fd)


def twice(fd: int, path: Path) -> Iterator[Any]:
    second = call_outcome(os.open, path, os.O_RDWR)
    if isinstance(second, str):
        yield second
        return
    yield call_outcome(os.write, fd, b"first")
    yield call_outcome(os.read, second, 100)
    yield call_outcome(os.pwrite, second, b"second", 2)
    yield call_outcome(os.pread, fd, 100, 0)
    yield comparable_stat(call_outcome(os.fstat, fd))
    yield call_outcome(os.ftruncate, second, 4)
    yield comparable_stat(call_outcome(os.fstat, fd))
    yield call_outcome(os.close, second)
    yield call_outcome(os.write, fd, b"last")
    yield call_outcome(os.pread, fd, 100, 0)


def duplicated(fd: int, _path: Path) -> Iterator[Any]:
    copy = os.dup(fd)
    yield call_outcome(os.write, fd, b"ab")
    yield call_outcome(os.write, copy, b"cd")
    yield call_outcome(os.lseek, fd, 0, os.SEEK_CUR)
    yield call_outcome(os.close, copy)
    yield call_outcome(os.write, fd, b"ef")
    yield call_outcome(os.lseek, fd, 1, os.SEEK_SET)
    yield call_outcome(os.read, fd, 100)


Script = Callable[[int, Path], Iterator[Any]]
SCRIPTS: tuple[Script, ...] = (
    reading,
    writing,
    seeking,
    at_the_end,
    writing_at_offsets,
    truncating,
    querying,
    twice,
    duplicated,
)

ACCESS = {"O_RDONLY": os.O_RDONLY, "O_WRONLY": os.O_WRONLY, "O_RDWR": os.O_RDWR}
OTHERS = {"O_CREAT": os.O_CREAT, "O_EXCL": os.O_EXCL, "O_TRUNC": os.O_TRUNC, "O_APPEND": os.O_APPEND}
EXISTING = {"file": CONTENT, "hash.field": CONTENT, "directory/child": b""}
TARGETS = ("file", "missing", "hash.field", "hash.missing", "directory")
SKIPPED = {("directory", at_the_end)}  # one of the differences


def combinations() -> Iterator[tuple[str, int]]:
    """Yield a name and the flags of each combination of flags."""
    for access, mode in ACCESS.items():
        for count in range(len(OTHERS) + 1):
            for names in itertools.combinations(OTHERS, count):
                yield "|".join((access, *names)), mode | sum(OTHERS[name] for name in names)


def cases(folder: Path) -> Iterator[tuple[str, int, str, Script]]:
    """Yield the name, flags, target and script of each case.

    An open that fails, as tried in `folder`, is one case instead of one for each script.
    """
    for name, flags in combinations():
        for target in TARGETS:
            prepare(folder)
            fd = call_outcome(os.open, folder / target, flags, 0o644)
            if not isinstance(fd, str):
                os.close(fd)
            shutil.rmtree(folder)
            scripts = SCRIPTS[:1] if isinstance(fd, str) else SCRIPTS
            for script in scripts:
                if (target, script) not in SKIPPED:
                    yield f"{name} {target} {script.__name__}", flags, target, script


def prepare(folder: Path) -> None:
    """Create the files that exist before a case."""
    (folder / "directory").mkdir(parents=True)
    for name, content in EXISTING.items():
        (folder / name).write_bytes(content)


def run_case(folder: Path, flags: int, target: str, script: Script) -> list[Any]:
    """Run a case and return all its results, and the tree afterwards."""
    path = folder / target
    fd = call_outcome(os.open, path, flags, 0o644)
    if isinstance(fd, str):
        return [fd, read_tree(folder)]
    try:
        results = list(script(fd, path))
    finally:
        results.append(call_outcome(os.close, fd))
    return [*results, comparable_stat(call_outcome(os.stat, path)), read_tree(folder)]


@pytest.mark.timeout(300)  # 1228 cases, most of them with a journaled save
@pytest.mark.parametrize("first", [0, pytest.param(1, marks=pytest.mark.long("the other half of the combinations"))])
def test_every_combination(first: int, server: RedisServer, mount: MountedServer) -> None:
    """Each combination of flags, target and script has the same results, errnos and files as on tmpfs."""
    client = server.client()
    flush_and_wait(server, mount)
    different = []
    with tmpfs_folder() as ordinary:
        todo = list(cases(ordinary / "try"))[first::2]
        with client.pipeline(transaction=False) as pipe:
            for number in range(len(todo)):
                pipe.mset({f"c{number}:file": CONTENT, f"c{number}:directory:child": b""})
                pipe.hset(f"c{number}:hash", "field", CONTENT)
            pipe.execute()
        wait_until(lambda: mount.status()["ready"] and mount.status()["keys"] == 3 * len(todo))
        for number, (name, flags, target, script) in enumerate(todo):
            folder = ordinary / f"c{number}"
            prepare(folder)
            expected = run_case(folder, flags, target, script)
            results = run_case(mount.path / f"c{number}", flags, target, script)
            if results != expected:
                different.append(f"{name}\n  expected {expected}\n  but got  {results}")
        for number, (name, *_) in enumerate(todo):
            folder = ordinary / f"c{number}"
            files = [folder / "file", folder / "missing", *folder.glob("hash.*")]
            contents = {path.name: path.read_bytes() for path in files if path.exists()}
            seconds = 2 if len(different) < 5 else 0
            if not holds_within(seconds, lambda n=number, contents=contents: read_values(client, n) == contents):
                different.append(f"{name}\n  tmpfs has {contents}\n  but Redis has {read_values(client, number)}")
    assert not different, f"{len(different)} of {len(todo)} cases:\n" + "\n".join(different[:20])


def read_values(client: redis.Redis, number: int) -> dict[str, bytes]:
    """Return the values that Redis has for one case, by the names of their files."""
    files = {name: client.get(f"c{number}:{name}") for name in ("file", "missing")}
    fields = {f"hash.{name.decode()}": value for name, value in client.hgetall(f"c{number}:hash").items()}
    return {name: value for name, value in files.items() if value is not None} | fields


def holds_within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Return whether a condition is true within a time, for a release saves shortly after the close."""
    try:
        wait_until(condition, seconds)
    except AssertionError:
        return False
    return True
