"""Reading by several programs at once, beside one alone."""

from __future__ import annotations

from tests.benchmarks.baseline import Run, fill, in_parallel, read_all, spent
from tests.benchmarks.report import Table, rate, seconds
from tests.support.mounts import Mount
from tests.support.redis_server import RedisServer

PROGRAMS = 8


def several_at_once(bench: Run) -> Table:
    """Small strings, never read before (cold), and again where each open is told to the mount (write mode)."""
    table = Table(
        "Reading: several programs at once",
        ("open + read + close", "one program", f"{PROGRAMS} programs", "ratio", "mount CPU", f"of {PROGRAMS}"),
        notes=["Each program opens, reads and closes files of its own, one after the other; mount CPU: for each file."],
    )
    for binding in bench.bindings:
        with RedisServer() as server:
            fill(
                server.client(),
                (PROGRAMS + 1) * bench.sizes.opened,
                lambda number: (f"d{number % (PROGRAMS + 1)}:f{number // (PROGRAMS + 1)}", b"x" * 100),
            )
            with bench.mount(server, binding) as mount:
                _add(bench, table, f"cold, read-only, {binding}", mount)
            with bench.mount(server, binding, write=True) as mount:
                _add(bench, table, f"cold, write mode, {binding}", mount)
                _add(bench, table, f"warm, write mode, {binding}", mount)
    return table


def _add(bench: Run, table: Table, name: str, mount: Mount) -> None:
    each = bench.sizes.opened

    def read(folder: int) -> None:
        read_all(f"{mount.path}/d{folder}/f{number}" for number in range(each))

    alone = spent(mount, lambda: in_parallel(1, lambda _: read(PROGRAMS)))
    many = spent(mount, lambda: in_parallel(PROGRAMS, read))
    files = PROGRAMS * each
    table.add(
        name,
        rate(each / alone.seconds, "files"),
        rate(files / many.seconds, "files"),
        f"{files / many.seconds / (each / alone.seconds):.1f} times one",
        seconds(alone.mount_cpu / each),
        seconds(many.mount_cpu / files),
    )
