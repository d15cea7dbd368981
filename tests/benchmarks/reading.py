"""Reading: listings, stats, opens, `cat`, `grep -r` and a long string; warm and cold, with both bindings."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import redis

from tests.benchmarks.baseline import (
    MIB,
    BenchmarkRun,
    PeakMemory,
    best_seconds,
    count_requests,
    fill_strings,
    measure_cost,
    measure_seconds,
    read_files,
    run_program,
)
from tests.benchmarks.bench_index import layout_key, run_in_subprocess
from tests.benchmarks.concurrency import measure_concurrent_reads
from tests.benchmarks.large_collections import measure_large_collections
from tests.benchmarks.report import ResultTable, format_goal, format_number, format_rate, format_seconds, format_size
from tests.support.memory_mount import MemoryMount
from tests.support.mounts import MountedServer, is_mounted, mount_server
from tests.support.redis_server import RedisServer

COLUMNS = (
    "work",
    "this mount",
    "direct",
    "tmpfs",
    "ratio",
    "commands",
    "round trips",
    "to server",
    "mount CPU",
    "goal",
)
RANGE_BYTES = MIB  # bytes of one command of the direct way
MAX_SMALL_BYTES = 100  # bytes of the longest small string
LAYOUTS = {"sessions": "session:N", "mixed": "half of them user:N:profile.json, cache:page:M:N"}
RANDOM_READS = 2_000  # at random offsets of the long string
BINDING_DIRECTORIES = 20  # of files_per_grep_directory files each, in memory


def measure(bench: BenchmarkRun) -> list[ResultTable]:
    """Run all measurements of this topic."""
    tables = [_measure_first_listings(bench)]
    for binding in bench.bindings:
        tables.append(_measure_small_strings(bench, binding))
    tables.append(measure_concurrent_reads(bench))
    tables.append(_measure_long_string(bench))
    tables.append(measure_large_collections(bench))
    return tables


# -- the first listing -----------------------------------------------------------------------------------------------


def _measure_first_listings(bench: BenchmarkRun) -> ResultTable:
    table = ResultTable(
        "Reading: the first `ls` of the root, and the index",
        ("keys", "this mount", "direct", "ratio", "commands", "index", "process", "index alone", "goal"),
        notes=[
            "direct: a bare redis-py loop of `SCAN COUNT 1000` that keeps nothing; the better of the turns, in turns.",
            "this mount: from when it appears until `ls` of its root is done (`ls` waits for the whole index).",
            "index: estimated bytes a key; process: resident bytes a key beyond an empty mount's.",
            "index alone: a process of its own builds the same index; its time as a multiple of the bare loop's, "
            "and resident bytes a key.",
        ],
    )
    idle = _measure_idle_memory(bench)
    for keys in bench.sizes.first_ls_keys:
        for layout in LAYOUTS:
            _add_first_listing(bench, table, keys, layout, idle)
    return table


def _add_first_listing(bench: BenchmarkRun, table: ResultTable, keys: int, layout: str, idle: int) -> None:
    """Add a row. `idle` is the memory of a mount without keys."""
    bare, listed, alone = float("inf"), float("inf"), float("inf")
    resident = commands = index = memory = 0.0
    with RedisServer() as server:
        fill_strings(server.client(), keys, lambda number: (layout_key(layout, number).decode(), b""))
        for _turn in range(5 if keys < 1_000_000 else 2):
            bare = min(bare, run_in_subprocess("bare", server.socket_path)["seconds"])
            took, status = _time_first_listing(bench, server)
            if took < listed:
                listed, commands = took, status["commands"]
                index, memory = status["index_bytes"], status["memory_bytes"] - idle
            built = run_in_subprocess("index", server.socket_path, 1 << 40)
            if built["seconds"] < alone:
                alone, resident = built["seconds"], built["resident"]
    goal = ""
    if keys <= 100_000:
        goal = format_goal("≤ 1.5x", listed <= 1.5 * bare)
    elif keys >= 5_000_000:
        goal = format_goal("index alone ≤ 1.4x, ≤ 130 B", alone <= 1.4 * bare and resident <= 130 * keys)
    table.add_row(
        f"{format_number(keys)}, {LAYOUTS[layout]}",
        format_seconds(listed),
        format_seconds(bare),
        f"{listed / bare:.2f}x",
        format_number(commands),
        f"{index / keys:.0f} B",
        f"{memory / keys:.0f} B",
        f"{alone / bare:.2f}x, {resident / keys:.0f} B",
        goal,
    )


def _time_first_listing(bench: BenchmarkRun, server: RedisServer) -> tuple[float, dict[str, int]]:
    folder = bench.new_folder()
    appeared: list[float] = []

    def watch() -> None:
        while not is_mounted(folder / "mnt"):
            time.sleep(0.001)
        appeared.append(time.perf_counter())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with mount_server(folder, server.url(), "--binding", bench.bindings[0], wait=False) as mount:
        run_program("ls", mount.path)
        done = time.perf_counter()
        watcher.join(20)
        return done - appeared[0], mount.status()


def _measure_idle_memory(bench: BenchmarkRun) -> int:
    with RedisServer() as server, bench.mount(server, bench.bindings[0]) as mount:
        os.listdir(mount.path)
        memory: int = mount.status()["memory_bytes"]
        return memory


# -- many small files ------------------------------------------------------------------------------------------------


def _measure_small_strings(bench: BenchmarkRun, binding: str) -> ResultTable:
    sizes = bench.sizes
    table = ResultTable(
        f"Reading: small strings, by {binding}",
        COLUMNS,
        notes=[
            "direct: the same with redis-py: SCAN, then TYPE and STRLEN, or GET, in pipelines of 1000; of single files "
            "one GET after the other.",
            "mount CPU: processor time of the mount's process, for each file where there are many.",
            "binding alone: the same requests answered from a tree in memory (tests/support/kernel_tree.py).",
        ],
    )
    folder = bench.memory_folder / "small"
    if not folder.exists():
        _copy_to_memory(bench, folder)
    with RedisServer() as server:
        client = server.client()
        fill_strings(client, sizes.directory_files, lambda number: (f"many:{number}", _small_value(number)))
        fill_strings(
            client,
            sizes.grep_files,
            lambda number: (f"grep:{number % sizes.grep_directories}:{number}", _small_value(number)),
        )
        with bench.mount(server, binding) as mount:
            _add_listing_rows(bench, table, mount, client, folder / "many")
            _add_open_rows(bench, table, mount, client, folder / "many")
            _add_cat_rows(bench, table, mount, client, folder / "many")
            _add_grep_rows(bench, table, mount, client, folder / "grep")
        _add_request_row(bench, table, server, binding)
    _add_binding_rows(bench, table, binding)
    return table


def _small_value(number: int) -> bytes:
    return b"x" * (number % MAX_SMALL_BYTES) if number % 10 else b"hello world %d\n" % number


def _copy_to_memory(bench: BenchmarkRun, folder: Path) -> None:
    """Write the same files to memory."""
    sizes = bench.sizes
    (folder / "many").mkdir(parents=True)
    for number in range(sizes.directory_files):
        (folder / "many" / str(number)).write_bytes(_small_value(number))
    for number in range(sizes.grep_files):
        parent = folder / "grep" / str(number % sizes.grep_directories)
        if number < sizes.grep_directories:
            parent.mkdir(parents=True)
        (parent / str(number)).write_bytes(_small_value(number))


def _add_listing_rows(
    bench: BenchmarkRun, table: ResultTable, mount: MountedServer, client: redis.Redis, memory: Path
) -> None:
    files = bench.sizes.directory_files
    directory = mount.path / "many"
    cold = measure_cost(mount, lambda: run_program("ls", "-l", directory))
    direct = best_seconds(lambda: _scan_types_and_sizes(client, "many:*"))
    tmpfs = best_seconds(lambda: run_program("ls", "-l", memory))
    table.add_row(
        f"`ls -l` of {format_number(files)}, cold",
        format_seconds(cold.seconds),
        format_seconds(direct),
        format_seconds(tmpfs),
        f"{cold.seconds / direct:.1f}x direct, {cold.seconds / tmpfs:.1f}x tmpfs",
        format_number(cold.commands),
        format_number(cold.round_trips),
        format_size(cold.sent),
        format_seconds(cold.mount_cpu / files),
        format_goal("≤ 2 commands a key", cold.commands <= 2 * files + 20),
    )
    warm = min(
        (measure_cost(mount, lambda: run_program("ls", "-l", directory)) for _ in range(5)),
        key=lambda cost: cost.seconds,
    )
    table.add_row(
        f"`ls -l` of {format_number(files)}, warm",
        format_seconds(warm.seconds),
        "",
        format_seconds(tmpfs),
        f"{warm.seconds / tmpfs:.1f}x tmpfs",
        format_number(warm.commands),
        format_number(warm.round_trips),
        format_size(warm.sent),
        format_seconds(warm.mount_cpu / files),
        format_goal("≤ 3x tmpfs, 0 commands", warm.seconds <= 3 * tmpfs and warm.commands <= 2),
    )


def _scan_types_and_sizes(client: redis.Redis, pattern: str) -> None:
    cursor = 0
    while True:
        cursor, keys = client.scan(cursor, match=pattern, count=1000)
        pipeline = client.pipeline(transaction=False)
        for key in keys:
            pipeline.type(key)
            pipeline.strlen(key)
        pipeline.execute()
        if not cursor:
            return


def _add_open_rows(
    bench: BenchmarkRun, table: ResultTable, mount: MountedServer, client: redis.Redis, memory: Path
) -> None:
    count = bench.sizes.opened_files
    names = [f"{mount.path}/many/{number}" for number in range(count)]
    plain = [f"{memory}/{number}" for number in range(count)]
    _stat_all(names)
    warm = min(
        (measure_cost(mount, lambda: _run_ten_times(_stat_all, names)) for _ in range(3)), key=lambda cost: cost.seconds
    )
    tmpfs = best_seconds(lambda: _run_ten_times(_stat_all, plain))
    work = 10 * count
    table.add_row(
        "`stat`, warm",
        format_rate(work / warm.seconds),
        "",
        format_rate(work / tmpfs),
        f"{tmpfs / warm.seconds:.2f} of tmpfs",
        format_number(warm.commands),
        mount_CPU=format_seconds(warm.mount_cpu / work),
        goal=format_goal("≥ 1/2 of tmpfs", tmpfs >= warm.seconds / 2),
    )
    for _ in range(2):
        read_files(names)
    warm = min(
        (measure_cost(mount, lambda: _run_ten_times(read_files, names)) for _ in range(3)),
        key=lambda cost: cost.seconds,
    )
    tmpfs = best_seconds(lambda: _run_ten_times(read_files, plain))
    direct = best_seconds(lambda: [client.get(f"many:{number}") for number in range(count)])
    table.add_row(
        "open + read + close, warm",
        format_rate(work / warm.seconds),
        format_rate(count / direct, "GET"),
        format_rate(work / tmpfs),
        f"{tmpfs / warm.seconds:.2f} of tmpfs",
        format_number(warm.commands),
        mount_CPU=format_seconds(warm.mount_cpu / work),
        goal=format_goal("≥ 1/5 of tmpfs", tmpfs >= warm.seconds / 5),
    )


def _run_ten_times(work: Callable[[Sequence[str]], None], names: Sequence[str]) -> None:
    for _ in range(10):
        work(names)


def _stat_all(names: Sequence[str]) -> None:
    for name in names:
        os.stat(name)


def _add_cat_rows(
    bench: BenchmarkRun, table: ResultTable, mount: MountedServer, client: redis.Redis, memory: Path
) -> None:
    first = bench.sizes.directory_files - min(1000, bench.sizes.directory_files // 2)
    numbers = range(first, bench.sizes.directory_files)  # of files that were not opened before
    words = [f"{mount.path}/many/{number}" for number in numbers]
    direct = best_seconds(lambda: [client.get(f"many:{number}") for number in numbers])
    tmpfs = best_seconds(lambda: run_program("cat", *[f"{memory}/{number}" for number in numbers]))
    for name in ("after `ls -l`", "warm"):
        took = measure_cost(mount, lambda: run_program("cat", *words))
        table.add_row(
            f"`cat` of {len(words)}, {name}",
            format_seconds(took.seconds),
            format_seconds(direct),
            format_seconds(tmpfs),
            f"{took.seconds / direct:.2f}x direct, {took.seconds / tmpfs:.1f}x tmpfs",
            format_number(took.commands),
            format_number(took.round_trips),
            format_size(took.sent),
            format_seconds(took.mount_cpu / len(words)),
            format_goal("≤ 1 command a key", took.commands <= len(words) + 5)
            if name != "warm"
            else format_goal("0 commands", took.commands <= 2),
        )


def _add_grep_rows(
    bench: BenchmarkRun, table: ResultTable, mount: MountedServer, client: redis.Redis, memory: Path
) -> None:
    files = bench.sizes.grep_files
    direct = measure_seconds(lambda: _scan_and_search(client, "grep:*", b"nothing"))
    tmpfs = best_seconds(lambda: run_program("grep", "-r", "nothing", memory))
    for name in ("cold", "warm"):
        took = measure_cost(mount, lambda: run_program("grep", "-r", "nothing", mount.path / "grep"))
        table.add_row(
            f"`grep -r` over {format_number(files)}, {name}",
            format_rate(files / took.seconds, "files"),
            format_rate(files / direct, "keys"),
            format_rate(files / tmpfs, "files"),
            f"{took.seconds / direct:.1f}x direct, {took.seconds / tmpfs:.1f}x tmpfs",
            f"{took.commands / files:.2f} a key",
            format_number(took.round_trips),
            format_size(took.sent),
            format_seconds(took.mount_cpu / files),
            format_goal("≤ 3 commands a key", took.commands <= 3 * files + 100) if name == "cold" else "",
        )


def _scan_and_search(client: redis.Redis, pattern: str, text: bytes) -> int:
    cursor, matches = 0, 0
    while True:
        cursor, keys = client.scan(cursor, match=pattern, count=1000)
        matches += sum(text in (value or b"") for value in (client.mget(keys) if keys else ()))
        if not cursor:
            return matches


def _add_binding_rows(bench: BenchmarkRun, table: ResultTable, binding: str) -> None:
    """Measure the binding with immediate replies; the goal in the row of `grep -r` is based on it."""
    each = bench.sizes.files_per_grep_directory
    tree = {f"d{number}": each for number in range(min(BINDING_DIRECTORIES, bench.sizes.grep_directories))}
    files = each * len(tree)
    settings: dict[str, Any] = {"read_only": True, "keep_cache": True, "valid": 3600}
    with MemoryMount(binding, tree=tree, **settings) as memory:
        took = measure_seconds(lambda: run_program("grep", "-r", "nothing", *[memory.path / name for name in tree]))
        names = [f"{memory.path}/d0/f{number:06}" for number in range(each)]
        for _ in range(2):
            read_files(names)
        opened = best_seconds(lambda: _run_ten_times(read_files, names))
    floor = files / took
    table.add_row(f"binding alone: `grep -r` over {format_number(files)}, cold", format_rate(floor, "files"))
    table.add_row("binding alone: open + read + close, warm, each open requested", format_rate(10 * each / opened))
    for row in table.rows:
        if row[0].startswith("`grep -r`") and row[0].endswith("cold"):
            reached = float(row[1].partition("files")[0].replace(" ", ""))
            row[-1] += "; " + format_goal(
                f"≥ {format_number(min(5_000, 0.7 * floor))} files/s (here {reached / floor:.0%} of the binding)",
                reached >= min(5_000, 0.7 * floor),
            )


def _add_request_row(bench: BenchmarkRun, table: ResultTable, server: RedisServer, binding: str) -> None:
    """Count the kernel's requests in one cold `ls -l`."""
    with bench.mount(server, binding) as mount:
        mount.status()
        counts = count_requests(mount, bench.new_folder(), lambda: run_program("ls", "-l", mount.path / "many"))
    if counts is None:
        table.notes.append("strace is missing: the kernel's requests were not counted.")
        return
    attribute_requests = counts.get("GETATTR", 0) + counts.get("LOOKUP", 0)
    all_requests = ", ".join(f"{format_number(number)} {name}" for name, number in sorted(counts.items()))
    table.add_row(
        "requests of the kernel in a cold `ls -l`",
        f"{format_number(attribute_requests)} for attributes",
        goal=format_goal("≤ 10", attribute_requests <= 10) if binding == "mfusepy" else "",
    )
    table.notes.append(
        f"The kernel's requests in a cold `ls -l` of {format_number(bench.sizes.directory_files)}: {all_requests}."
    )


# -- one long string -------------------------------------------------------------------------------------------------


def _measure_long_string(bench: BenchmarkRun) -> ResultTable:
    length = bench.sizes.large_bytes
    table = ResultTable(
        f"Reading: a string of {length // MIB} MiB",
        ("work", "this mount", "direct", "tmpfs", "ratio", "commands", "from server", "memory above idle", "goal"),
        notes=["direct: redis-py, GETRANGE of 1 MiB pieces one after the other; at random places, of 4 KiB."],
    )
    chance = random.Random(1)
    places = [chance.randrange(length // 4096) * 4096 for _ in range(RANDOM_READS)]
    with RedisServer() as server:
        client = server.client(socket_read_size=131072)
        piece = os.urandom(MIB)
        for _ in range(length // MIB):
            client.append("long", piece)
        plain = bench.memory_folder / "long"
        plain.write_bytes(piece * (length // MIB))
        direct = best_seconds(
            lambda: [client.getrange("long", at, at + RANGE_BYTES - 1) for at in range(0, length, RANGE_BYTES)], 2
        )
        tmpfs = best_seconds(lambda: run_program("dd", f"if={plain}", "of=/dev/null", "bs=128k"), 2)
        scattered = measure_seconds(lambda: [client.getrange("long", at, at + 4095) for at in places])
        scattered_plain = measure_seconds(lambda: _read_offsets(plain, places))
        for binding in bench.bindings:
            with bench.mount(server, binding) as mount:
                path = mount.path / "long"
                with PeakMemory(mount.process.pid) as peak:
                    took = measure_cost(mount, lambda: _read_offsets(path, places))  # noqa: B023
                table.add_row(
                    f"{RANDOM_READS} reads of 4 KiB at random places, {binding}",
                    format_rate(RANDOM_READS / took.seconds),
                    format_rate(RANDOM_READS / scattered),
                    format_rate(RANDOM_READS / scattered_plain),
                    f"{scattered / took.seconds:.2f} of direct",
                    format_number(took.commands),
                    format_size(took.received),
                    format_size(peak.bytes_above_idle),
                )
                _drop_page_cache(path)
                with PeakMemory(mount.process.pid) as peak:
                    took = measure_cost(mount, lambda: run_program("dd", f"if={path}", "of=/dev/null", "bs=128k"))  # noqa: B023
                reached = direct / took.seconds
                table.add_row(
                    f"`dd bs=128k`, {binding}",
                    format_rate(length / MIB / took.seconds, "MiB"),
                    format_rate(length / MIB / direct, "MiB"),
                    format_rate(length / MIB / tmpfs, "MiB"),
                    f"{reached:.2f} of direct",
                    format_number(took.commands),
                    format_size(took.received),
                    format_size(peak.bytes_above_idle),
                    format_goal("≥ 1/2 of direct, ≤ 64 MiB", reached >= 0.5 and peak.bytes_above_idle <= 64 * MIB),
                )
    plain.unlink()
    return table


def _read_offsets(path: Path, offsets: Sequence[int]) -> None:
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    for at in offsets:
        assert len(os.pread(file, 4096, at)) == 4096
    os.close(file)


def _drop_page_cache(path: Path) -> None:
    """Drop the kernel's cached pages of a file."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
