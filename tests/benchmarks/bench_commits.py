"""Mounts of two checkouts, this one and another, in turn in one run.

    git worktree add /tmp/older COMMIT && (cd /tmp/older && bash .ci/setup test)
    python -m tests.benchmarks.bench_commits /tmp/older [--rounds 3] [--binding NAME] [--write]

Each round starts new mounts of both checkouts, in alternating order, on one server with the same keys. A cell has the
least figure of all rounds; the ratios are those of the least figures and of the medians.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.benchmarks import host_info
from tests.benchmarks.__main__ import write_results
from tests.benchmarks.baseline import fill_strings, measure_cost, read_files, run_in_processes, run_program
from tests.benchmarks.report import ResultTable, format_number
from tests.support.mounts import MountedServer, clean_up_mount, is_mounted, isolated_environment, wait_until
from tests.support.redis_server import RedisServer

HERE = Path(__file__).parents[2]
SMALL_FILES = 3000  # opened and read one after the other
LISTED_FILES = 20_000
SEARCHED_FOLDERS, FILES_PER_SEARCHED_FOLDER = 100, 1000
SAVES = 1000
SAVED_AGAIN = 10  # files that are saved in turn
PROGRAMS = 8

Figures = dict[str, float]
"""Names, which end in a comma and the unit -> figures."""


def main() -> int:
    """Measure and print; write with `--write`."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_commits", description=__doc__)
    parser.add_argument("other", type=Path, help="a checkout with its .venv")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--binding", help="this one only")
    parser.add_argument("--write", action="store_true", help="write tests/benchmarks/RESULTS.md")
    options = parser.parse_args()
    facts = [*host_info.describe_host(), ("Load before the run", host_info.format_load())]
    began = time.time()
    tables = []
    with RedisServer() as server:
        _fill(server)
        for binding in (options.binding,) if options.binding else host_info.list_bindings():
            tables.append(_compare(server, options.other.resolve(), binding, options.rounds))
    facts += [
        ("Run", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began))),
        ("Took", f"{time.time() - began:.0f} s, {options.rounds} rounds"),
    ]
    for table in tables:
        print(table.to_markdown())
    if options.write:
        write_results({"commits": tables}, facts)
    return 0


def _fill(server: RedisServer) -> None:
    client = server.client()
    content = b"x" * 100
    fill_strings(client, SMALL_FILES, lambda number: (f"small:{number}", content))
    fill_strings(client, LISTED_FILES, lambda number: (f"listed:{number}", content))
    for folder in range(SEARCHED_FOLDERS):
        fill_strings(
            client,
            FILES_PER_SEARCHED_FOLDER,
            lambda number: (f"searched:{folder}:{number}", content),  # noqa: B023 - called at once
        )
    for program in range(PROGRAMS):
        fill_strings(client, SMALL_FILES // 4, lambda number: (f"p{program}:{number}", content))  # noqa: B023


def _compare(server: RedisServer, other: Path, binding: str, rounds: int) -> ResultTable:
    figures: dict[Path, dict[str, list[float]]] = {HERE: defaultdict(list), other: defaultdict(list)}
    for round_number in range(rounds):
        for checkout in (other, HERE) if round_number % 2 == 0 else (HERE, other):
            for name, value in _measure_checkout(server, checkout, binding).items():
                figures[checkout][name].append(value)
    commits = [_name_commit(checkout) for checkout in (other, HERE)]
    table = ResultTable(f"Commits: by {binding}", ("work", "unit", *commits, "least / least", "median / median"))
    for name, new in figures[HERE].items():
        work, _, unit = name.rpartition(", ")
        old = figures[other][name]
        best = max if unit.endswith("/s") else min
        table.add_row(
            work,
            unit,
            format_number(best(old)),
            format_number(best(new)),
            f"{best(new) / best(old):.2f}",
            f"{statistics.median(new) / statistics.median(old):.2f}",
        )
    table.notes += [
        "µs of CPU: processor time of the mount's process, for each file. Of rates, the greatest counts.",
        f"{rounds} rounds of new mounts, in alternating order, on one server.",
    ]
    return table


def _name_commit(checkout: Path) -> str:
    words = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def _measure_checkout(server: RedisServer, checkout: Path, binding: str) -> Figures:
    figures: Figures = {}
    with _mount_checkout(checkout, server, binding, write=False) as mount:
        small = [f"{mount.path}/small/{number}" for number in range(SMALL_FILES)]
        _add_costs(figures, mount, "read-only, cold: open + read + close", lambda: read_files(small), len(small))
    with _mount_checkout(checkout, server, binding, write=False) as mount:
        took = measure_cost(mount, lambda: run_program("ls", "-l", mount.path / "listed"))
        figures[f"`ls -l` of {LISTED_FILES} files, cold, µs of CPU"] = took.mount_cpu * 1e6 / LISTED_FILES
        figures[f"`ls -l` of {LISTED_FILES} files, cold, files/s"] = LISTED_FILES / took.seconds
        files = SEARCHED_FOLDERS * FILES_PER_SEARCHED_FOLDER
        took = measure_cost(mount, lambda: run_program("grep", "-r", "absent", mount.path / "searched"))
        figures["`grep -r` of 100 000 files, cold, µs of CPU"] = took.mount_cpu * 1e6 / files
        figures["`grep -r` of 100 000 files, cold, files/s"] = files / took.seconds
    with _mount_checkout(checkout, server, binding, write=True) as mount:
        small = [f"{mount.path}/small/{number}" for number in range(SMALL_FILES)]
        _add_costs(figures, mount, "write mode, cold: open + read + close", lambda: read_files(small), len(small))
        _add_costs(figures, mount, "write mode, warm: open + read + close", lambda: read_files(small), len(small))
        programs = [[f"{mount.path}/p{p}/{n}" for n in range(SMALL_FILES // 4)] for p in range(PROGRAMS)]
        for state in ("cold", "warm"):
            took = measure_cost(mount, lambda: run_in_processes(PROGRAMS, lambda number: read_files(programs[number])))
            figures[f"write mode, {state}: {PROGRAMS} readers, files/s"] = sum(map(len, programs)) / took.seconds
        again = small[:SAVED_AGAIN] * (SAVES // SAVED_AGAIN)
        _add_costs(figures, mount, "save, the same files again", lambda: _save(again), SAVES)
        _add_costs(figures, mount, "save, files not read before", lambda: _save(small[SAVES : 2 * SAVES]), SAVES)
        (mount.path / "new").mkdir()
        new = [f"{mount.path}/new/{number}" for number in range(SAVES)]
        _add_costs(figures, mount, "save, new files", lambda: _save(new), SAVES)
        took = measure_cost(
            mount, lambda: run_in_processes(PROGRAMS, lambda number: _save(again, number % SAVED_AGAIN, PROGRAMS))
        )
        figures[f"save, {PROGRAMS} writers, files/s"] = len(again[::PROGRAMS]) * PROGRAMS / took.seconds
        run_program("rm", "-r", mount.path / "new")
    return figures


def _add_costs(figures: Figures, mount: MountedServer, name: str, work: Callable[[], object], files: int) -> None:
    took = measure_cost(mount, work)
    figures[f"{name}, µs of CPU"] = took.mount_cpu * 1e6 / files
    figures[f"{name}, files/s"] = files / took.seconds


def _save(names: Sequence[str], start: int = 0, step: int = 1) -> None:
    for name in names[start::step]:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(file, b"y" * 100)
        os.close(file)


@contextlib.contextmanager
def _mount_checkout(checkout: Path, server: RedisServer, binding: str, *, write: bool) -> Iterator[MountedServer]:
    """Mount with the command of another checkout, which may be of any version."""
    with tempfile.TemporaryDirectory(prefix="redisfuse-bench-") as name:
        folder = Path(name)
        path, log = folder / "mnt", folder / "mount.log"
        path.mkdir()
        words = [str(checkout / ".venv/bin/redisfuse"), *(["--write", "--journal"] if write else [])]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*words, "--binding", binding, server.url(), str(path)],
                cwd=checkout,
                env=isolated_environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        mount = MountedServer(path, process, log, folder / "state" / "redisfuse" / "journal.db")
        try:
            wait_until(lambda: is_mounted(path) or process.poll() is not None)
            mount.wait_coherent()
            yield mount
        finally:
            clean_up_mount(mount)


if __name__ == "__main__":
    sys.exit(main())
