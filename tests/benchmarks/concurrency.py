"""Reading by several programs at once, beside one alone."""

from __future__ import annotations

from tests.benchmarks.baseline import BenchmarkRun, fill_strings, measure_cost, read_files, run_in_processes
from tests.benchmarks.report import ResultTable, format_rate, format_seconds
from tests.support.mounts import MountedServer
from tests.support.redis_server import RedisServer

PROGRAM_COUNT = 8


def measure_concurrent_reads(bench: BenchmarkRun) -> ResultTable:
    """Measure reads of small strings by one program and by several.

    The first reads are cold. In write mode, where the kernel requests each open from the mount, warm ones follow.
    """
    table = ResultTable(
        "Reading: several programs at once",
        (
            "open + read + close",
            "one program",
            f"{PROGRAM_COUNT} programs",
            "ratio",
            "mount CPU",
            f"of {PROGRAM_COUNT}",
        ),
        notes=["Each program opens, reads and closes files of its own, one after the other; mount CPU: for each file."],
    )
    for binding in bench.bindings:
        with RedisServer() as server:
            fill_strings(
                server.client(),
                (PROGRAM_COUNT + 1) * bench.sizes.opened_files,
                lambda number: (f"d{number % (PROGRAM_COUNT + 1)}:f{number // (PROGRAM_COUNT + 1)}", b"x" * 100),
            )
            with bench.mount(server, binding) as mount:
                _add_row(bench, table, f"cold, read-only, {binding}", mount)
            with bench.mount(server, binding, write=True) as mount:
                _add_row(bench, table, f"cold, write mode, {binding}", mount)
                _add_row(bench, table, f"warm, write mode, {binding}", mount)
    return table


def _add_row(bench: BenchmarkRun, table: ResultTable, name: str, mount: MountedServer) -> None:
    files_per_program = bench.sizes.opened_files

    def read(folder: int) -> None:
        read_files(f"{mount.path}/d{folder}/f{number}" for number in range(files_per_program))

    alone = measure_cost(mount, lambda: run_in_processes(1, lambda _: read(PROGRAM_COUNT)))
    many = measure_cost(mount, lambda: run_in_processes(PROGRAM_COUNT, read))
    files = PROGRAM_COUNT * files_per_program
    table.add_row(
        name,
        format_rate(files_per_program / alone.seconds, "files"),
        format_rate(files / many.seconds, "files"),
        f"{files / many.seconds / (files_per_program / alone.seconds):.1f} times one",
        format_seconds(alone.mount_cpu / files_per_program),
        format_seconds(many.mount_cpu / files),
    )
