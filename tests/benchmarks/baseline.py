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

from tests.support.mounts import MountedServer, mount_server
from tests.support.redis_server import RedisServer

KEYS_PER_MSET = 20_000  # keys of one MSET
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class BenchmarkSizes:
    """How much is measured."""

    name: str
    first_ls_keys: tuple[int, ...]  # keys
    directory_files: int  # files of the directory that is listed
    opened_files: int  # of those, how many are opened and read
    grep_directories: int
    files_per_grep_directory: int  # files in each
    large_bytes: int  # bytes of the long string
    appended_bytes: int  # bytes of the string that is appended to
    written_bytes: int  # bytes of the string that is written
    save_count: int
    cloned_files: int  # files of the repository
    rolled_back_changes: int  # changes
    journal_rows: int  # rows
    following_seconds: float  # seconds of writing as fast as can be

    @property
    def grep_files(self) -> int:
        return self.grep_directories * self.files_per_grep_directory


_NORMAL = BenchmarkSizes(
    "normal",
    first_ls_keys=(100_000, 1_000_000),
    directory_files=20_000,
    opened_files=2_000,
    grep_directories=100,
    files_per_grep_directory=1_000,
    large_bytes=500 * MIB,
    appended_bytes=100 * MIB,
    written_bytes=200 * MIB,
    save_count=2_000,
    cloned_files=500,
    rolled_back_changes=10_000,
    journal_rows=200_000,
    following_seconds=8.0,
)
SIZES = {
    "quick": BenchmarkSizes(
        "quick", (20_000,), 2_000, 500, 10, 200, 20 * MIB, 5 * MIB, 10 * MIB, 200, 40, 500, 5_000, 2.0
    ),
    "normal": _NORMAL,
    "large": replace(
        _NORMAL,
        name="large",
        first_ls_keys=(100_000, 1_000_000, 5_000_000),
        journal_rows=1_000_000,
        following_seconds=20.0,
    ),
}


@dataclass(frozen=True, slots=True)
class BenchmarkRun:
    """One run of the benchmarks."""

    sizes: BenchmarkSizes
    bindings: tuple[str, ...]  # the preferred one first
    folder: Path  # temporary, on the disk that is measured
    memory_folder: Path  # temporary, in memory if there is a tmpfs

    def new_folder(self) -> Path:
        """An empty one, for a mount and its state."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    @contextlib.contextmanager
    def mount(self, server: RedisServer, binding: str, *options: str, write: bool = False) -> Iterator[MountedServer]:
        """A mount whose caches may be believed."""
        with mount_server(self.new_folder(), server.url(), "--binding", binding, *options, write=write) as mount:
            mount.wait_coherent()
            yield mount


@contextlib.contextmanager
def temporary_folders() -> Iterator[tuple[Path, Path, str]]:
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
class MeasuredCost:
    """What something took. `mount_cpu`: processor seconds of the mount's process; `sent`: bytes to the server."""

    seconds: float
    mount_cpu: float
    commands: int
    round_trips: int
    sent: int
    received: int


def measure_seconds(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def best_seconds(work: Callable[[], object], times: int = 3) -> float:
    """The least of several."""
    return min(measure_seconds(work) for _ in range(times))


def measure_cost(mount: MountedServer, work: Callable[[], object]) -> MeasuredCost:
    """What something takes, and what the mount spent meanwhile."""
    process = psutil.Process(mount.process.pid)
    before, cpu = mount.status(), process.cpu_times()
    seconds = measure_seconds(work)
    after, later = mount.status(), process.cpu_times()
    return MeasuredCost(
        seconds,
        later.user + later.system - cpu.user - cpu.system,
        after["commands"] - before["commands"],
        after["round_trips"] - before["round_trips"],
        after["bytes_sent"] - before["bytes_sent"],
        after["bytes_received"] - before["bytes_received"],
    )


def run_in_processes(processes: int, work: Callable[[int], None]) -> None:
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


def read_files(names: Iterable[str]) -> None:
    """Open, read and close each file."""
    for name in names:
        file = os.open(name, os.O_RDONLY)
        os.read(file, 4096)
        os.close(file)


def run_program(*words: object) -> None:
    """A program to its end, unseen; CalledProcessError unless its status is 0 (or 1, as grep's that finds nothing)."""
    done = subprocess.run([str(word) for word in words], capture_output=True, check=False, timeout=600)
    if done.returncode not in (0, 1):
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)


def fill_strings(client: redis.Redis, count: int, item: Callable[[int], tuple[str, bytes]]) -> None:
    """Set so many strings."""
    for start in range(0, count, KEYS_PER_MSET):
        client.mset(dict(item(number) for number in range(start, min(start + KEYS_PER_MSET, count))))


class PeakMemory:
    """The most memory that a process had while in the `with` block, in bytes beyond what it had before."""

    def __init__(self, pid: int) -> None:
        self._status_path = Path(f"/proc/{pid}/status")
        self._clear_refs_path = Path(f"/proc/{pid}/clear_refs")
        self.bytes_above_idle = 0

    def __enter__(self) -> PeakMemory:
        self._clear_refs_path.write_text("5")  # the peak begins anew (proc(5))
        self._idle_bytes = self._read_bytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes_above_idle = self._read_bytes("VmHWM") - self._idle_bytes

    def _read_bytes(self, name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+) kB", self._status_path.read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024


OPCODE_NAMES = {1: "LOOKUP", 3: "GETATTR", 14: "OPEN", 15: "READ", 16: "WRITE", 18: "RELEASE", 28: "READDIR"}
OPCODE_NAMES |= {22: "GETXATTR", 27: "OPENDIR", 29: "RELEASEDIR", 44: "READDIRPLUS"}  # of <linux/fuse.h>
_READ_PATTERN = re.compile(r'"((?:\\x[0-9a-f]{2}){8})"\.*, \d+\)\s+= (\d+)')


@contextlib.contextmanager
def _trace_mount(mount: MountedServer, log: Path, *options: str) -> Iterator[None]:
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


def count_requests(mount: MountedServer, folder: Path, work: Callable[[], object]) -> Mapping[str, int] | None:
    """How often the kernel asked the mount for what, seen by strace in what it reads; None without strace."""
    if not shutil.which("strace"):
        return None
    log = folder / "requests"
    with _trace_mount(mount, log, "-e", "trace=read", "-xx", "-s", "8"):
        work()
    found: collections.Counter[str] = collections.Counter()
    for digits, length in _READ_PATTERN.findall(log.read_text(errors="replace")):
        size, opcode = struct.unpack("<II", bytes.fromhex(digits.replace("\\x", "")))
        if size == int(length):
            found[OPCODE_NAMES.get(opcode, str(opcode))] += 1
    return found


def count_fsyncs(mount: MountedServer, folder: Path, work: Callable[[], object]) -> tuple[int, float] | None:
    """How many fsyncs the mount made, and the seconds in them; None without strace (which slows all this down)."""
    if not shutil.which("strace"):
        return None
    log = folder / "fsyncs"
    with _trace_mount(mount, log, "-e", "trace=fsync,fdatasync", "-T"):
        work()
    found = re.findall(r"(?:fsync|fdatasync)(?:\(| resumed).*= 0 <([\d.]+)>", log.read_text(errors="replace"))
    return len(found), sum(map(float, found))


def database_bytes(path: Path) -> int:
    """The size of a database and what SQLite keeps beside it."""
    return sum(os.path.getsize(each) for each in (path, path.with_name(path.name + "-wal")) if each.exists())
