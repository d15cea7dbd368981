"""The complete list of deliberate differences between a mount and an ordinary filesystem, each with a test.

All other behaviour that this folder tests is the same.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.expected_state import call_outcome, read_tree, renameat2, tmpfs_folder
from tests.support.mounts import MountedServer, flush_and_wait
from tests.support.redis_server import RedisServer

RENAME_EXCHANGE = 2


@dataclass(frozen=True)
class Difference:
    """A difference, and a function that shows it.

    `do` is called with a folder that has the files `f` (b"0123456789") and `g`, and an empty directory `d`.
    """

    subject: str
    reason: str
    do: Callable[[Path], Any]
    ordinary: Any
    on_mount: Any


def on_descriptor(path: Path, flags: int, call: Callable[[int], Any]) -> Any:
    fd = os.open(path, flags, 0o644)
    try:
        return call_outcome(call, fd)
    finally:
        os.close(fd)


def mode_after_chmod(root: Path) -> str:
    os.chmod(root / "f", 0o751)
    return oct(stat.S_IMODE(os.stat(root / "f").st_mode))


def execution(root: Path) -> bool:
    os.chmod(root / "f", 0o755)
    return os.access(root / "f", os.X_OK)


def age_after_utime(root: Path) -> str:
    os.utime(root / "f", (1_000_000_000, 1_000_000_000))
    return "old" if os.stat(root / "f").st_mtime < time.time() - 10_000 else "new"


def mode_of_new(root: Path) -> str:
    os.close(os.open(root / "new", os.O_CREAT | os.O_WRONLY, 0o444))
    return oct(stat.S_IMODE(os.stat(root / "new").st_mode))


def exchange(root: Path) -> Any:
    return call_outcome(renameat2, root / "f", root / "g", RENAME_EXCHANGE), read_tree(root)["f"]


def a_file_beside_its_field(root: Path) -> Any:
    (root / "readme.md").write_bytes(b"1")
    return call_outcome((root / "readme").write_bytes, b"2")


DIFFERENCES = (
    Difference("link(2)", "Redis has no hard links", lambda r: call_outcome(os.link, r / "f", r / "l"), None, "EPERM"),
    Difference(
        "symlink(2)", "Redis has no symbolic links", lambda r: call_outcome(os.symlink, "f", r / "l"), None, "EPERM"
    ),
    Difference("mkfifo(3)", "Redis has no pipes", lambda r: call_outcome(os.mkfifo, r / "p"), None, "EPERM"),
    Difference("chmod(2)", "modes are the mount's", mode_after_chmod, "0o751", "0o600"),
    Difference("the mode of a new file", "modes are the mount's", mode_of_new, "0o444", "0o600"),
    Difference("utime(2)", "mtime is the last change that the mount noticed", age_after_utime, "old", "new"),
    Difference("execution", "no file is executable", execution, True, False),
    Difference(
        "setxattr(2)",
        "only user.redis.ttl can be set",
        lambda r: call_outcome(os.setxattr, r / "f", "user.mine", b"1"),
        None,
        "ENOTSUP",
    ),
    Difference(
        "the end of a directory",
        "FUSE leaves offsets of directories to the kernel, and their size is 0",
        lambda r: on_descriptor(r / "d", os.O_RDONLY, lambda fd: os.lseek(fd, 2, os.SEEK_END)),
        "EINVAL",
        2,
    ),
    Difference("RENAME_EXCHANGE", "two keys can't swap names", exchange, (None, b"g"), ("EINVAL", b"0123456789")),
    Difference(
        "`readme` beside `readme.md`",
        "the second is a field of the hash `readme` (see docs/names.md; not with --new-files string)",
        a_file_beside_its_field,
        1,
        "EACCES",
    ),
)


def test_differences(server: RedisServer, mount: MountedServer) -> None:
    """Each deliberate difference has the listed results on an ordinary filesystem and on the mount."""
    flush_and_wait(server, mount)
    for number, difference in enumerate(DIFFERENCES):
        with tmpfs_folder() as ordinary:
            for root, expected in ((ordinary, difference.ordinary), (mount.path / f"t{number}", difference.on_mount)):
                root.mkdir(exist_ok=True)
                (root / "f").write_bytes(b"0123456789")
                (root / "g").write_bytes(b"g")
                (root / "d").mkdir()
                assert difference.do(root) == expected, f"{difference.subject} in {root}"


def test_space_is_the_servers_memory(server: RedisServer, mount: MountedServer) -> None:
    """statfs(2) returns the size of the server's memory (maxmemory, or the machine's), and its free part."""
    memory = server.client().info("memory")
    statistics = os.statvfs(mount.path)
    assert statistics.f_namemax == 255
    assert statistics.f_files == 1 << 32
    assert statistics.f_files - statistics.f_ffree == server.client().dbsize()
    assert statistics.f_favail == statistics.f_ffree
    total = statistics.f_blocks * statistics.f_frsize
    assert abs(total - memory["total_system_memory"]) <= statistics.f_frsize
    assert abs(total - statistics.f_bfree * statistics.f_frsize - memory["used_memory"]) < 64 * 1024 * 1024
