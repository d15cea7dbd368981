"""What every topic stands on: how much is measured, servers and mounts, a clock, and what a mount spent meanwhile."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import redis

from tests.support.mounts import Mount, mounted
from tests.support.redis_server import RedisServer

BATCH = 20_000  # keys of one MSET
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    name: str
    first_ls: tuple[int, ...]  # keys
    directory: int  # files of the directory that is listed
    opened: int  # of those, how many are opened and read
    grep_directories: int
    grep_each: int  # files in each
    large: int  # bytes of the long string
    appended: int  # bytes of the string that is appended to
    written: int  # bytes of the string that is written
    saves: int
    cloned: int  # files of the repository
    rolled_back: int  # changes
    journal: int  # rows
    following: float  # seconds of writing as fast as can be

    @property
    def grepped(self) -> int:
        return self.grep_directories * self.grep_each


_NORMAL = Sizes(
    "normal",
    first_ls=(100_000, 1_000_000),
    directory=20_000,
    opened=2_000,
    grep_directories=100,
    grep_each=1_000,
    large=500 * MIB,
    appended=100 * MIB,
    written=200 * MIB,
    saves=2_000,
    cloned=500,
    rolled_back=10_000,
    journal=200_000,
    following=8.0,
)
SIZES = {
    "quick": Sizes("quick", (20_000,), 2_000, 500, 10, 200, 20 * MIB, 5 * MIB, 10 * MIB, 200, 40, 500, 5_000, 2.0),
    "normal": _NORMAL,
    "large": replace(
        _NORMAL, name="large", first_ls=(100_000, 1_000_000, 5_000_000), journal=1_000_000, following=20.0
    ),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the benchmarks."""

    sizes: Sizes
    bindings: tuple[str, ...]  # the preferred one first
    folder: Path  # temporary, on the disk that is measured
    memory: Path  # temporary, in memory if there is a tmpfs

    def new_folder(self) -> Path:
        """An empty one, for a mount and its state."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    @contextlib.contextmanager
    def mount(self, server: RedisServer, binding: str, *options: str, write: bool = False) -> Iterator[Mount]:
        """A mount whose caches may be believed."""
        with mounted(self.new_folder(), server.url(), "--binding", binding, *options, write=write) as mount:
            mount.wait_coherent()
            yield mount


@contextlib.contextmanager
def folders() -> Iterator[tuple[Path, Path, str]]:
    """A temporary folder on disk, one in memory, and what that one is."""
    in_memory = Path("/dev/shm")
    if any(part.mountpoint == str(in_memory) and part.fstype == "tmpfs" for part in psutil.disk_partitions(all=True)):
        parent, kind = in_memory, "tmpfs"
    else:
        parent, kind = Path(tempfile.gettempdir()), "a temporary directory, as there is no tmpfs at /dev/shm"
    with (
        tempfile.TemporaryDirectory(prefix="redisfuse-bench-", ignore_cleanup_errors=True) as disk,
        tempfile.TemporaryDirectory(prefix="redisfuse-bench-", dir=parent) as memory,
    ):
        yield Path(disk), Path(memory), kind


@dataclass(frozen=True, slots=True)
class Spent:
    """What something took. `mount_cpu`: processor seconds of the mount's process; `sent`: bytes to the server."""

    seconds: float
    mount_cpu: float
    commands: int
    round_trips: int
    sent: int
    received: int


def clock(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def best(work: Callable[[], object], times: int = 3) -> float:
    """The least of several."""
    return min(clock(work) for _ in range(times))


def spent(mount: Mount, work: Callable[[], object]) -> Spent:
    """What something takes, and what the mount spent meanwhile."""
    process = psutil.Process(mount.process.pid)
    before, cpu = mount.status(), process.cpu_times()
    seconds = clock(work)
    after, later = mount.status(), process.cpu_times()
    return Spent(
        seconds,
        later.user + later.system - cpu.user - cpu.system,
        after["commands"] - before["commands"],
        after["round_trips"] - before["round_trips"],
        after["bytes_sent"] - before["bytes_sent"],
        after["bytes_received"] - before["bytes_received"],
    )


def in_parallel(processes: int, work: Callable[[int], None]) -> None:
    """Each in a process of its own; `work` is told which it is."""
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(number)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    assert not failed, "a process failed"


def read_all(names: Iterable[str]) -> None:
    """Open, read and close each file."""
    for name in names:
        file = os.open(name, os.O_RDONLY)
        os.read(file, 4096)
        os.close(file)


def run(*words: object) -> None:
    """A program to its end, unseen; CalledProcessError unless its status is 0 (or 1, as grep's that finds nothing)."""
    done = subprocess.run([str(word) for word in words], capture_output=True, check=False, timeout=600)
    if done.returncode not in (0, 1):
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)


def fill(client: redis.Redis, count: int, item: Callable[[int], tuple[str, bytes]]) -> None:
    """Set so many strings."""
    for start in range(0, count, BATCH):
        client.mset(dict(item(number) for number in range(start, min(start + BATCH, count))))


class Peak:
    """The most memory that a process had while in the `with` block, in bytes beyond what it had before."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._clear = Path(f"/proc/{pid}/clear_refs")
        self.above_idle = 0

    def __enter__(self) -> Peak:
        self._clear.write_text("5")  # the peak begins anew (proc(5))
        self._idle = self._read("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.above_idle = self._read("VmHWM") - self._idle

    def _read(self, name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+) kB", self._status.read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024


REQUESTS = {1: "LOOKUP", 3: "GETATTR", 14: "OPEN", 15: "READ", 16: "WRITE", 18: "RELEASE", 28: "READDIR"}
REQUESTS |= {22: "GETXATTR", 27: "OPENDIR", 29: "RELEASEDIR", 44: "READDIRPLUS"}  # of <linux/fuse.h>
_READ = re.compile(r'"((?:\\x[0-9a-f]{2}){8})"\.*, \d+\)\s+= (\d+)')


@contextlib.contextmanager
def _traced(mount: Mount, log: Path, *options: str) -> Iterator[None]:
    """strace on the mount's process and all its threads."""
    words = ["strace", "-f", "-o", str(log), *options, "-p", str(mount.process.pid)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "attached" in line, line
        time.sleep(0.2)  # it says so before it has attached to all threads
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


def requests(mount: Mount, folder: Path, work: Callable[[], object]) -> Mapping[str, int] | None:
    """How often the kernel asked the mount for what, seen by strace in what it reads; None without strace."""
    if not shutil.which("strace"):
        return None
    log = folder / "requests"
    with _traced(mount, log, "-e", "trace=read", "-xx", "-s", "8"):
        work()
    found: collections.Counter[str] = collections.Counter()
    for digits, length in _READ.findall(log.read_text(errors="replace")):
        size, opcode = struct.unpack("<II", bytes.fromhex(digits.replace("\\x", "")))
        if size == int(length):
            found[REQUESTS.get(opcode, str(opcode))] += 1
    return found


def fsyncs(mount: Mount, folder: Path, work: Callable[[], object]) -> tuple[int, float] | None:
    """How many fsyncs the mount made, and the seconds in them; None without strace (which slows all this down)."""
    if not shutil.which("strace"):
        return None
    log = folder / "fsyncs"
    with _traced(mount, log, "-e", "trace=fsync,fdatasync", "-T"):
        work()
    found = re.findall(r"(?:fsync|fdatasync)(?:\(| resumed).*= 0 <([\d.]+)>", log.read_text(errors="replace"))
    return len(found), sum(map(float, found))


def file_bytes(path: Path) -> int:
    """The size of a database and what SQLite keeps beside it."""
    return sum(os.path.getsize(each) for each in (path, path.with_name(path.name + "-wal")) if each.exists())
