"""Writing: saves of small strings, alone and in parallel, appends to and writes of long strings, and `git clone`."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from pathlib import Path

from tests.benchmarks.baseline import (
    MIB,
    BenchmarkRun,
    PeakMemory,
    best_seconds,
    count_fsyncs,
    database_bytes,
    measure_cost,
    measure_seconds,
    run_in_processes,
    run_program,
)
from tests.benchmarks.report import ResultTable, format_goal, format_number, format_rate, format_seconds, format_size
from tests.benchmarks.slow_disk import slow_disk
from tests.support.mounts import MountedServer
from tests.support.redis_server import RedisServer

COLUMNS = (
    "work",
    "this mount",
    "direct",
    "tmpfs",
    "disk, fsync",
    "ratio",
    "commands",
    "round trips",
    "fsyncs",
    "mount CPU",
    "goal",
)
WRITER_COUNT = 8
REUSED_FILES = 10  # files that are saved again and again
FSYNC_DELAYS_MS = (1, 2, 5)  # milliseconds
TRACED_SAVES = 100  # saves that are made once more under strace


def measure(bench: BenchmarkRun) -> list[ResultTable]:
    """Run all measurements of this topic."""
    return [_measure_saves(bench), _measure_long_strings(bench), _measure_clone(bench)]


# -- saves of small strings ------------------------------------------------------------------------------------------


def _measure_saves(bench: BenchmarkRun) -> ResultTable:
    table = ResultTable(
        f"Writing: saves of small strings, by {bench.bindings[0]}",
        COLUMNS,
        notes=[
            "A save: open to overwrite, write 100 bytes, close; each writer a process with files of its own: new ones, "
            f"or {REUSED_FILES} in turn.",
            "direct: redis-py, SET KEEPTTL one after the other: nothing journaled, no conflict check.",
            "disk, fsync: plain files on the disk of the journal, with one fsync a save.",
            "each fsync longer: the gain of sharing one on a slower disk (LD_PRELOAD in the mount's process).",
            "commands, round trips, fsyncs (by strace): of one save, its look-ups and its conflict check included.",
        ],
    )
    for kind, names in (("new files", bench.sizes.save_count), ("the same files again", REUSED_FILES)):
        alone = 0.0
        with RedisServer() as server, bench.mount(server, bench.bindings[0], write=True) as mount:
            run_in_processes(
                WRITER_COUNT, lambda writer: _save_files(mount.path / f"w{writer}", REUSED_FILES, REUSED_FILES)
            )
            for writers in (1, WRITER_COUNT):
                reached = _add_save_row(bench, table, server, mount, kind, names, writers, alone)
                alone = alone or reached
    for milliseconds in FSYNC_DELAYS_MS:
        _add_slow_disk_rows(bench, table, milliseconds)
    return table


def _add_slow_disk_rows(bench: BenchmarkRun, table: ResultTable, milliseconds: int) -> None:
    """Measure the gain of sharing an fsync on a disk where one takes longer."""
    names, alone = bench.sizes.save_count, 0.0
    with RedisServer() as server, slow_disk(bench.folder, milliseconds) as slow:
        if not slow:
            return
        with bench.mount(server, bench.bindings[0], write=True) as mount:
            run_in_processes(
                WRITER_COUNT, lambda writer: _save_files(mount.path / f"w{writer}", REUSED_FILES, REUSED_FILES)
            )
            for writers in (1, WRITER_COUNT):
                each = names // writers
                took = measure_cost(
                    mount,
                    lambda: run_in_processes(
                        writers,  # noqa: B023
                        lambda writer: _save_files(mount.path / f"w{writer}", each, names, f"s{writers}-"),  # noqa: B023
                    ),
                )
                reached = each * writers / took.seconds
                table.add_row(
                    f"new files, {writers} writer{'s' * (writers > 1)}, each fsync {milliseconds} ms longer",
                    format_rate(reached),
                    ratio=f"{reached / alone:.1f} times one writer" if alone else "",
                    mount_CPU=format_seconds(took.mount_cpu / each / writers),
                    goal=format_goal("≥ 3 times one writer", reached >= 3 * alone) if alone else "",
                )
                alone = alone or reached


def _add_save_row(
    bench: BenchmarkRun,
    table: ResultTable,
    server: RedisServer,
    mount: MountedServer,
    kind: str,
    names: int,
    writers: int,
    alone: float,
) -> float:
    """Add a row, and return the saves per second. `alone` is that of one writer."""
    each = bench.sizes.save_count // writers
    saves = each * writers
    prefix = f"{kind[0]}{writers}-"
    took = measure_cost(
        mount,
        lambda: run_in_processes(writers, lambda writer: _save_files(mount.path / f"w{writer}", each, names, prefix)),
    )
    direct = measure_seconds(lambda: run_in_processes(writers, lambda writer: _set_keys(server, writer, each)))
    reached = saves / took.seconds
    synced = _fsyncs_per_save(bench, mount, names, writers)
    table.add_row(
        f"{kind}, {writers} writer{'s' * (writers > 1)}",
        format_rate(reached),
        format_rate(saves / direct),
        format_rate(_plain_save_rate(bench.memory_folder, writers, each, names)),
        format_rate(_plain_save_rate(bench.folder, writers, min(each, 250), names, fsync=True)),
        f"{reached / alone:.1f} times one writer" if alone else "",
        f"{took.commands / saves:.1f}",
        f"{took.round_trips / saves:.1f}",
        f"{synced:.2f}" if synced else "",
        format_seconds(took.mount_cpu / saves),
        format_goal("≥ 3 times one writer", reached >= 3 * alone) if alone else format_goal("1 fsync", synced <= 1.05),
    )
    return reached


def _fsyncs_per_save(bench: BenchmarkRun, mount: MountedServer, names: int, writers: int) -> float:
    """Return the fsyncs per save, counted by strace; 0 without strace."""
    each = TRACED_SAVES // writers
    fsyncs = count_fsyncs(
        mount,
        bench.new_folder(),
        lambda: run_in_processes(
            writers, lambda writer: _save_files(mount.path / f"w{writer}", each, names, f"traced{names}-{writers}-")
        ),
    )
    return 0.0 if fsyncs is None else fsyncs[0] / (each * writers)


def _plain_save_rate(folder: Path, writers: int, times: int, names: int, *, fsync: bool = False) -> float:
    """Return the saves per second on another filesystem."""
    parent = folder / f"saves{names}-{writers}"
    parent.mkdir()
    return (
        times
        * writers
        / measure_seconds(
            lambda: run_in_processes(
                writers, lambda writer: _save_files(parent / f"w{writer}", times, names, fsync=fsync)
            )
        )
    )


def _save_files(folder: Path, times: int, names: int, prefix: str = "key", *, fsync: bool = False) -> None:
    """Save files in turn, `times` in all."""
    folder.mkdir(exist_ok=True)
    data = b"v" * 99
    for number in range(times):
        file = os.open(folder / f"{prefix}{number % names}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(file, data + b"%d" % (number % 10))
        if fsync:
            os.fsync(file)
        os.close(file)


def _set_keys(server: RedisServer, writer: int, times: int) -> None:
    client = server.client()
    for number in range(times):
        client.set(f"direct:{writer}:{number % REUSED_FILES}", b"v" * 100, keepttl=True)


# -- long strings ----------------------------------------------------------------------------------------------------


def _measure_long_strings(bench: BenchmarkRun) -> ResultTable:
    table = ResultTable(
        f"Writing: long strings, by {bench.bindings[0]}",
        (
            "work",
            "this mount",
            "direct",
            "tmpfs",
            "to server",
            "from server",
            "journal grew",
            "memory above idle",
            "goal",
        ),
        notes=["direct: redis-py, APPEND of the same and SET of the whole."],
    )
    with RedisServer() as server:
        client = server.client(socket_timeout=60)
        piece = os.urandom(MIB)
        for _ in range(bench.sizes.appended_bytes // MIB):
            client.append("long", piece)
        with bench.mount(server, bench.bindings[0], write=True) as mount:
            (mount.path / "warm").write_bytes(b"x")
            os.stat(mount.path / "long")
            before = database_bytes(mount.journal)
            with PeakMemory(mount.process.pid) as peak:
                took = measure_cost(mount, lambda: _append_to_file(mount.path / "long", piece[:1024]))
            time.sleep(1.5)  # the outcome is written with the next change, or after a second
            grew = database_bytes(mount.journal) - before
            whole = bench.sizes.appended_bytes + 1024
            assert client.strlen("long") == whole
            moved = max(took.sent, took.received)
            table.add_row(
                f"append 1 KiB to {bench.sizes.appended_bytes // MIB} MiB",
                format_seconds(took.seconds),
                format_seconds(best_seconds(lambda: client.append("other", piece[:1024]))),
                format_seconds(best_seconds(lambda: _append_to_file(bench.memory_folder / "appended", piece[:1024]))),
                format_size(took.sent),
                format_size(took.received),
                format_size(grew),
                format_size(peak.bytes_above_idle),
                format_goal("≤ 64 KiB each way, ≤ 64 KiB of journal", moved <= 65536 and grew <= 65536),
            )
            _add_whole_write_row(bench, table, mount, server)
    return table


def _append_to_file(path: Path, data: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(data)


def _add_whole_write_row(bench: BenchmarkRun, table: ResultTable, mount: MountedServer, server: RedisServer) -> None:
    client = server.client(socket_timeout=60)
    length = bench.sizes.written_bytes
    source = bench.memory_folder / "source"
    source.write_bytes(os.urandom(length))
    before = database_bytes(mount.journal)
    with PeakMemory(mount.process.pid) as peak:
        took = measure_cost(mount, lambda: run_program("dd", f"if={source}", f"of={mount.path / 'whole'}", "bs=1M"))
    content = source.read_bytes()
    direct = measure_seconds(lambda: client.set("direct", content))
    same = all(client.getrange("whole", at, at + MIB - 1) == content[at : at + MIB] for at in range(0, length, MIB))
    table.add_row(
        f"write {length // MIB} MiB (`dd bs=1M`)",
        format_rate(length / MIB / took.seconds, "MiB"),
        format_rate(length / MIB / direct, "MiB"),
        format_rate(
            length
            / MIB
            / measure_seconds(lambda: run_program("dd", f"if={source}", f"of={bench.memory_folder / 'copy'}", "bs=1M")),
            "MiB",
        ),
        format_size(took.sent),
        format_size(took.received),
        format_size(database_bytes(mount.journal) - before),
        format_size(peak.bytes_above_idle),
        format_goal("≤ 64 MiB of memory, byte-exact", same and peak.bytes_above_idle <= 64 * MIB),
    )
    for name in ("source", "copy"):
        (bench.memory_folder / name).unlink()


# -- git -------------------------------------------------------------------------------------------------------------


def _measure_clone(bench: BenchmarkRun) -> ResultTable:
    files = bench.sizes.cloned_files
    table = ResultTable(
        f"Writing: `git clone` in of {format_number(files)} files, by {bench.bindings[0]}",
        ("work", "seconds", "ratio", "changes", "commands", "round trips", "fsyncs", "in fsync"),
        notes=[
            "Counted by strace in a clone of its own, which takes longer for it; in fsync: seconds of that clone. "
            "Changes that come together share an fsync.",
        ],
    )
    repository = bench.folder / "repository"
    _make_repository(repository, files)
    with RedisServer() as server, bench.mount(server, bench.bindings[0], "--new-files", "string", write=True) as mount:
        took = measure_cost(mount, lambda: _run_git("clone", "-q", repository, mount.path / "clone"))
        memory = measure_seconds(lambda: _run_git("clone", "-q", repository, bench.memory_folder / "clone"))
        disk = measure_seconds(lambda: _run_git("clone", "-q", repository, bench.folder / "clone"))
        assert _run_git("-C", mount.path / "clone", "status", "--porcelain") == ""
        changes = _count_changes(mount)
        traced = 0.0

        def once_more() -> None:
            nonlocal traced
            traced = measure_seconds(lambda: _run_git("clone", "-q", repository, mount.path / "again"))

        fsyncs = count_fsyncs(mount, bench.new_folder(), once_more)
    table.add_row(
        "this mount",
        format_seconds(took.seconds),
        f"{took.seconds / memory:.0f}x tmpfs, {took.seconds / disk:.0f}x disk",
        format_number(changes),
        format_number(took.commands),
        format_number(took.round_trips),
        "" if fsyncs is None else format_number(fsyncs[0]),
        "" if fsyncs is None else f"{fsyncs[1]:.2f} of {traced:.2f} s",
    )
    table.add_row("tmpfs", format_seconds(memory))
    table.add_row("disk", format_seconds(disk))
    return table


def _count_changes(mount: MountedServer) -> int:
    with sqlite3.connect(f"file:{mount.journal}?mode=ro", uri=True) as database:
        number: int = database.execute("SELECT count(*) FROM changes").fetchone()[0]
    return number


def _make_repository(folder: Path, files: int) -> None:
    for number in range(files):
        path = folder / f"package{number % 20}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"VALUE = {number}\n" * (1 + number % 40))
    _run_git("-C", folder, "init", "-q")
    _run_git("-C", folder, "add", ".")
    _run_git("-C", folder, "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "All")


def _run_git(*words: object) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    done = subprocess.run(
        ["git", *map(str, words)], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout
