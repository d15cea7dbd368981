"""The session of `redisfuse.fuse` beside the one of `redisfuse.fuse`, each over its tree in memory.

    python -m tests.benchmarks.kernel_transport [--rounds N] [--files N] [--binding NAME] [--only NAME]

In each round every mount does the same work once, in turn, so that a loaded machine slows all alike. Given are the best
and the median round. "processor time" is that of the mount's process, user and system, per file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.memory_mount import MemoryMount

_DIRECTORY = "many"
_GREP_FILES = 20_000
_VALID_SECONDS = 3600
TRANSPORTS = ("fuse", "kernel")


class Cost(NamedTuple):
    """Of one file: microseconds on the clock, and of processor time of the mount."""

    elapsed: float
    processor: float


class Work(NamedTuple):
    """One row: how to mount, what to do with a mount, and how many files that concerns."""

    name: str
    settings: dict[str, Any]
    run: Callable[[Path, int], None]
    is_cold: bool = False


def start_mount(transport: str, binding: str, files: int, settings: dict[str, Any]) -> MemoryMount:
    """Prepare a mount of one directory of `files` small files, for the kernel to cache names and attributes."""
    settings = {"tree": {_DIRECTORY: files}, **settings}
    if transport == "kernel":
        return MemoryMount(binding, module="kernel_tree", valid=_VALID_SECONDS, **settings)
    return MemoryMount(binding, entry_timeout=_VALID_SECONDS, attr_timeout=_VALID_SECONDS, **settings)


def read_each(folder: Path, files: int) -> None:
    """Open, read and close each file once."""
    for index in range(files):
        descriptor = os.open(f"{folder}/f{index:06}", os.O_RDONLY)
        os.read(descriptor, 4096)
        os.close(descriptor)


def grep_all(folder: Path, _files: int) -> None:
    """Search all files."""
    subprocess.run(["grep", "-r", "nothing", folder], check=False)


def list_long(folder: Path, _files: int) -> None:
    """List all files with their attributes."""
    subprocess.run(["ls", "-l", folder], check=True, stdout=subprocess.DEVNULL)


def processor_seconds(pid: int) -> float:
    """Return the processor time of all threads of a process."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def measure(mount: MemoryMount, work: Work, files: int) -> Cost:
    """Do the work once."""
    folder = mount.path / _DIRECTORY
    before, started = processor_seconds(mount.process.pid), time.perf_counter()
    work.run(folder, files)
    elapsed = time.perf_counter() - started
    time.sleep(0.05)  # the last RELEASE
    return Cost(elapsed / files * 1e6, (processor_seconds(mount.process.pid) - before) / files * 1e6)


WORKS = [
    Work("open+read+close, each told (OPEN, READ, RELEASE)", {"read_only": True}, read_each),
    Work("open+read+close, pages kept (OPEN, RELEASE)", {"read_only": True, "keep_cache": True}, read_each),
    Work("open+read+close, read-write mount", {"read_only": False}, read_each),
    Work("grep -r, cold", {"read_only": True, "keep_cache": True}, grep_all, is_cold=True),
    Work("ls -l, cold", {"read_only": True}, list_long, is_cold=True),
]


def run_work(work: Work, binding: str, files: int, rounds: int) -> dict[str, list[Cost]]:
    """Return what each round cost, by transport."""
    costs: dict[str, list[Cost]] = {transport: [] for transport in TRANSPORTS}
    if work.is_cold:
        for _ in range(rounds):
            for transport in TRANSPORTS:
                with start_mount(transport, binding, _GREP_FILES, work.settings) as mount:
                    costs[transport].append(measure(mount, work, _GREP_FILES))
        return costs
    with ExitStack() as stack:
        mounts = {
            transport: stack.enter_context(start_mount(transport, binding, files, work.settings))
            for transport in TRANSPORTS
        }
        for mount in mounts.values():
            read_each(mount.path / _DIRECTORY, files)
        for _ in range(rounds):
            for transport, mount in mounts.items():
                costs[transport].append(measure(mount, work, files))
    return costs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--binding", action="append")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}; microseconds a file, best / median of {options.rounds} rounds")
    for binding in options.binding or ["fusepy", "mfusepy"]:
        for work in WORKS:
            if options.only not in work.name:
                continue
            costs = run_work(work, binding, options.files, options.rounds)
            print(f"{binding}: {work.name}")
            for field in Cost._fields:
                best = {name: min(getattr(cost, field) for cost in costs[name]) for name in TRANSPORTS}
                middle = {name: statistics.median(getattr(cost, field) for cost in costs[name]) for name in TRANSPORTS}
                figures = "; ".join(f"{name} {best[name]:.1f} / {middle[name]:.1f}" for name in TRANSPORTS)
                ratio = f"{best['fuse'] / best['kernel']:.2f} / {middle['fuse'] / middle['kernel']:.2f}"
                print(f"  {field:9} {figures}; {ratio} times better", flush=True)


if __name__ == "__main__":
    main()
