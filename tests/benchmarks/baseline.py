"""The basis of all topics: sizes, servers, mounts, times, and the cost to a mount."""

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
    """The sizes of the data that is measured."""

    name: str
    first_ls_keys: tuple[int, ...]  # keys
    directory_files: int  # files of the directory that is listed
    opened_files: int  # of those, the ones that are opened and read
    grep_directories: int
    files_per_grep_directory: int  # files in each
    large_bytes: int  # bytes of the long string
    appended_bytes: int  # bytes of the string that is appended to
    written_bytes: int  # bytes of the string that is written
    save_count: int
    cloned_files: int  # files of the repository
    rolled_back_changes: int  # changes
    journal_rows: int  # rows
    following_seconds: float  # seconds of writing at full speed
    cached_keys: tuple[int, ...]  # keys of a folder that is listed and read whole
    survey_keys: int
    searched_keys: int
    archived_keys: int

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
    cached_keys=(100_000, 300_000),
    survey_keys=1_000_000,
    searched_keys=100_000,
    archived_keys=100_000,
)
SIZES = {
    "quick": BenchmarkSizes(
        *("quick", (20_000,), 2_000, 500, 10, 200, 20 * MIB, 5 * MIB, 10 * MIB, 200, 40, 500, 5_000, 2.0, (20_000,)),
        survey_keys=20_000,
        searched_keys=5_000,
        archived_keys=5_000,
    ),
    "normal": _NORMAL,
    "large": replace(
        _NORMAL,
        name="large",
        first_ls_keys=(100_000, 1_000_000, 5_000_000),
        journal_rows=1_000_000,
        following_seconds=20.0,
        archived_keys=1_000_000,
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
        """Create an empty folder for a mount and its state."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    @contextlib.contextmanager
    def mount(self, server: RedisServer, binding: str, *options: str, write: bool = False) -> Iterator[MountedServer]:
        """Mount a server, and yield the mount when its caches are coherent."""
        with mount_server(
            self.new_folder(), server.url(), "--binding", binding, *options, write=write, as_program=True
        ) as mount:
            mount.wait_coherent()
            yield mount


@contextlib.contextmanager
def temporary_folders() -> Iterator[tuple[Path, Path, str]]:
    """Yield a temporary folder on disk, one in memory, and a description of the latter."""
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
    """The time that some work took, and its cost to the mount."""

    seconds: float
    mount_cpu: float  # processor seconds of the mount's process
    commands: int
    round_trips: int
    sent: int  # bytes to the server
    received: int  # bytes from the server


def measure_seconds(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def best_seconds(work: Callable[[], object], times: int = 3) -> float:
    """Return the fewest seconds that some work takes in several runs."""
    return min(measure_seconds(work) for _ in range(times))


def measure_cost(mount: MountedServer, work: Callable[[], object]) -> MeasuredCost:
    """Return the time that some work takes, and its cost to the mount."""
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
    """Run `work` in several processes, each with its own number."""
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
    """Run a program and discard its output.

    Raises CalledProcessError unless its status is 0, or 1 as that of a grep without matches.
    """
    done = subprocess.run([str(word) for word in words], capture_output=True, check=False, timeout=600)
    if done.returncode not in (0, 1):
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)


def fill_strings(client: redis.Redis, count: int, item: Callable[[int], tuple[str, bytes]]) -> None:
    """Set `count` strings."""
    for start in range(0, count, KEYS_PER_MSET):
        client.mset(dict(item(number) for number in range(start, min(start + KEYS_PER_MSET, count))))


class PeakMemory:
    """The peak memory of a process in the `with` block, in bytes above its memory before."""

    def __init__(self, pid: int) -> None:
        self._status_path = Path(f"/proc/{pid}/status")
        self._clear_refs_path = Path(f"/proc/{pid}/clear_refs")
        self.bytes_above_idle = 0

    def __enter__(self) -> PeakMemory:
        self._clear_refs_path.write_text("5")  # resets the peak (proc(5))
        self._idle_bytes = self._read_bytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes_above_idle = self._read_bytes("VmHWM") - self._idle_bytes

    def _read_bytes(self, name: str) -> int:
        match = re.search(rf"^{name}:\s+(\d+) kB", self._status_path.read_text(), re.MULTILINE)
        assert match is not None
        return int(match[1]) * 1024


OPCODE_NAMES = {1: "LOOKUP", 3: "GETATTR", 14: "OPEN", 15: "READ", 16: "WRITE", 18: "RELEASE", 28: "READDIR"}
OPCODE_NAMES |= {22: "GETXATTR", 27: "OPENDIR", 29: "RELEASEDIR", 44: "READDIRPLUS"}  # of <linux/fuse.h>
_READ_PATTERN = re.compile(r'"((?:\\x[0-9a-f]{2}){8})"\.*, \d+\)\s+= (\d+)')


@contextlib.contextmanager
def _trace_mount(mount: MountedServer, log: Path, *options: str) -> Iterator[None]:
    """Run strace on the mount's process and all its threads."""
    words = ["strace", "-f", "-o", str(log), *options, "-p", str(mount.process.pid)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "attached" in line, line
        time.sleep(0.2)  # the message appears before strace has attached to all threads
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


def count_requests(mount: MountedServer, folder: Path, work: Callable[[], object]) -> Mapping[str, int] | None:
    """Count the kernel's requests to the mount by opcode.

    strace shows them in the mount's reads. Returns None without strace.
    """
    if not shutil.which("strace"):
        return None
    log = folder / "requests"
    with _trace_mount(mount, log, "-e", "trace=read", "-xx", "-s", "8"):
        work()
    counts: collections.Counter[str] = collections.Counter()
    for digits, length in _READ_PATTERN.findall(log.read_text(errors="replace")):
        size, opcode = struct.unpack("<II", bytes.fromhex(digits.replace("\\x", "")))
        if size == int(length):
            counts[OPCODE_NAMES.get(opcode, str(opcode))] += 1
    return counts


def count_fsyncs(mount: MountedServer, folder: Path, work: Callable[[], object]) -> tuple[int, float] | None:
    """Return the number of fsyncs of the mount, and the seconds in them.

    Returns None without strace, which slows the work down.
    """
    if not shutil.which("strace"):
        return None
    log = folder / "fsyncs"
    with _trace_mount(mount, log, "-e", "trace=fsync,fdatasync", "-T"):
        work()
    seconds = re.findall(r"(?:fsync|fdatasync)(?:\(| resumed).*= 0 <([\d.]+)>", log.read_text(errors="replace"))
    return len(seconds), sum(map(float, seconds))


def database_bytes(path: Path) -> int:
    """Return the size of a database and its write-ahead log."""
    return sum(os.path.getsize(file) for file in (path, path.with_name(path.name + "-wal")) if file.exists())
