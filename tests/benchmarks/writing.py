"""Writing: saves of small strings, alone and in parallel; appending to and writing long strings; `git clone` in."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from pathlib import Path

from tests.benchmarks.baseline import MIB, Peak, Run, best, clock, file_bytes, fsyncs, in_parallel, run, spent
from tests.benchmarks.report import Table, count, goal, rate, seconds, size
from tests.benchmarks.slow_disk import slow_disk
from tests.support.mounts import Mount
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
WRITERS = 8
AGAIN = 10  # files that are saved again and again
SLOWER = (1, 2, 5)  # milliseconds
TRACED = 100  # saves that are made once more under strace


def measure(bench: Run) -> list[Table]:
    """All of it."""
    return [_saves(bench), _long(bench), _clone(bench)]


# -- saves of small strings ------------------------------------------------------------------------------------------


def _saves(bench: Run) -> Table:
    table = Table(
        f"Writing: saves of small strings, by {bench.bindings[0]}",
        COLUMNS,
        notes=[
            "A save: open to overwrite, write 100 bytes, close; each writer a process with files of its own: new ones, "
            f"or {AGAIN} in turn.",
            "direct: redis-py, SET KEEPTTL one after the other: nothing journaled, no conflict check.",
            "disk, fsync: plain files on the disk of the journal, with one fsync a save.",
            "each fsync longer: what sharing one is worth on a slower disk (LD_PRELOAD in the mount's process).",
            "commands, round trips, fsyncs (by strace): of one save, its look-ups and its conflict check included.",
        ],
    )
    for kind, names in (("new files", bench.sizes.saves), ("the same files again", AGAIN)):
        alone = 0.0
        with RedisServer() as server, bench.mount(server, bench.bindings[0], write=True) as mount:
            in_parallel(WRITERS, lambda writer: _save_files(mount.path / f"w{writer}", AGAIN, AGAIN))
            for writers in (1, WRITERS):
                reached = _add_saves(bench, table, server, mount, kind, names, writers, alone)
                alone = alone or reached
    for milliseconds in SLOWER:
        _add_slow(bench, table, milliseconds)
    return table


def _add_slow(bench: Run, table: Table, milliseconds: int) -> None:
    """What sharing an fsync is worth where one takes longer."""
    names, alone = bench.sizes.saves, 0.0
    with RedisServer() as server, slow_disk(bench.folder, milliseconds) as slow:
        if not slow:
            return
        with bench.mount(server, bench.bindings[0], write=True) as mount:
            in_parallel(WRITERS, lambda writer: _save_files(mount.path / f"w{writer}", AGAIN, AGAIN))
            for writers in (1, WRITERS):
                each = names // writers
                took = spent(
                    mount,
                    lambda: in_parallel(
                        writers,  # noqa: B023
                        lambda writer: _save_files(mount.path / f"w{writer}", each, names, f"s{writers}-"),  # noqa: B023
                    ),
                )
                reached = each * writers / took.seconds
                table.add(
                    f"new files, {writers} writer{'s' * (writers > 1)}, each fsync {milliseconds} ms longer",
                    rate(reached),
                    ratio=f"{reached / alone:.1f} times one writer" if alone else "",
                    mount_CPU=seconds(took.mount_cpu / each / writers),
                    goal=goal("≥ 3 times one writer", reached >= 3 * alone) if alone else "",
                )
                alone = alone or reached


def _add_saves(
    bench: Run, table: Table, server: RedisServer, mount: Mount, kind: str, names: int, writers: int, alone: float
) -> float:
    """One row; returns the saves a second. `alone`: those of one writer."""
    each = bench.sizes.saves // writers
    saves = each * writers
    prefix = f"{kind[0]}{writers}-"
    took = spent(
        mount,
        lambda: in_parallel(writers, lambda writer: _save_files(mount.path / f"w{writer}", each, names, prefix)),
    )
    direct = clock(lambda: in_parallel(writers, lambda writer: _set_keys(server, writer, each)))
    reached = saves / took.seconds
    synced = _fsyncs_a_save(bench, mount, names, writers)
    table.add(
        f"{kind}, {writers} writer{'s' * (writers > 1)}",
        rate(reached),
        rate(saves / direct),
        rate(_elsewhere(bench.memory, writers, each, names)),
        rate(_elsewhere(bench.folder, writers, min(each, 250), names, fsync=True)),
        f"{reached / alone:.1f} times one writer" if alone else "",
        f"{took.commands / saves:.1f}",
        f"{took.round_trips / saves:.1f}",
        f"{synced:.2f}" if synced else "",
        seconds(took.mount_cpu / saves),
        goal("≥ 3 times one writer", reached >= 3 * alone) if alone else goal("1 fsync", synced <= 1.05),
    )
    return reached


def _fsyncs_a_save(bench: Run, mount: Mount, names: int, writers: int) -> float:
    """By strace; 0 without it."""
    each = TRACED // writers
    found = fsyncs(
        mount,
        bench.new_folder(),
        lambda: in_parallel(
            writers, lambda writer: _save_files(mount.path / f"w{writer}", each, names, f"traced{names}-{writers}-")
        ),
    )
    return 0.0 if found is None else found[0] / (each * writers)


def _elsewhere(folder: Path, writers: int, each: int, names: int, *, fsync: bool = False) -> float:
    """Saves a second on another filesystem."""
    parent = folder / f"saves{names}-{writers}"
    parent.mkdir()
    return (
        each
        * writers
        / clock(
            lambda: in_parallel(writers, lambda writer: _save_files(parent / f"w{writer}", each, names, fsync=fsync))
        )
    )


def _save_files(folder: Path, times: int, names: int, prefix: str = "key", *, fsync: bool = False) -> None:
    """Save so many files in turn."""
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
        client.set(f"direct:{writer}:{number % AGAIN}", b"v" * 100, keepttl=True)


# -- long strings ----------------------------------------------------------------------------------------------------


def _long(bench: Run) -> Table:
    table = Table(
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
        for _ in range(bench.sizes.appended // MIB):
            client.append("long", piece)
        with bench.mount(server, bench.bindings[0], write=True) as mount:
            (mount.path / "warm").write_bytes(b"x")
            os.stat(mount.path / "long")
            before = file_bytes(mount.journal)
            with Peak(mount.process.pid) as peak:
                took = spent(mount, lambda: _append(mount.path / "long", piece[:1024]))
            time.sleep(1.5)  # its end is written with the next change, or after a second
            grew = file_bytes(mount.journal) - before
            whole = bench.sizes.appended + 1024
            assert client.strlen("long") == whole
            moved = max(took.sent, took.received)
            table.add(
                f"append 1 KiB to {bench.sizes.appended // MIB} MiB",
                seconds(took.seconds),
                seconds(best(lambda: client.append("other", piece[:1024]))),
                seconds(best(lambda: _append(bench.memory / "appended", piece[:1024]))),
                size(took.sent),
                size(took.received),
                size(grew),
                size(peak.above_idle),
                goal("≤ 64 KiB each way, ≤ 64 KiB of journal", moved <= 65536 and grew <= 65536),
            )
            _write_whole(bench, table, mount, server)
    return table


def _append(path: Path, data: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(data)


def _write_whole(bench: Run, table: Table, mount: Mount, server: RedisServer) -> None:
    client = server.client(socket_timeout=60)
    length = bench.sizes.written
    source = bench.memory / "source"
    source.write_bytes(os.urandom(length))
    before = file_bytes(mount.journal)
    with Peak(mount.process.pid) as peak:
        took = spent(mount, lambda: run("dd", f"if={source}", f"of={mount.path / 'whole'}", "bs=1M"))
    content = source.read_bytes()
    direct = clock(lambda: client.set("direct", content))
    same = all(client.getrange("whole", at, at + MIB - 1) == content[at : at + MIB] for at in range(0, length, MIB))
    table.add(
        f"write {length // MIB} MiB (`dd bs=1M`)",
        rate(length / MIB / took.seconds, "MiB"),
        rate(length / MIB / direct, "MiB"),
        rate(length / MIB / clock(lambda: run("dd", f"if={source}", f"of={bench.memory / 'copy'}", "bs=1M")), "MiB"),
        size(took.sent),
        size(took.received),
        size(file_bytes(mount.journal) - before),
        size(peak.above_idle),
        goal("≤ 64 MiB of memory, byte-exact", same and peak.above_idle <= 64 * MIB),
    )
    for name in ("source", "copy"):
        (bench.memory / name).unlink()


# -- git -------------------------------------------------------------------------------------------------------------


def _clone(bench: Run) -> Table:
    files = bench.sizes.cloned
    table = Table(
        f"Writing: `git clone` in of {count(files)} files, by {bench.bindings[0]}",
        ("work", "seconds", "ratio", "changes", "commands", "round trips", "fsyncs", "in fsync"),
        notes=[
            "Counted by strace in a clone of its own, which takes longer for it; in fsync: seconds of that clone. "
            "Changes that come together share an fsync.",
        ],
    )
    repository = bench.folder / "repository"
    _make_repository(repository, files)
    with RedisServer() as server, bench.mount(server, bench.bindings[0], "--new-files", "string", write=True) as mount:
        took = spent(mount, lambda: _git("clone", "-q", repository, mount.path / "clone"))
        memory = clock(lambda: _git("clone", "-q", repository, bench.memory / "clone"))
        disk = clock(lambda: _git("clone", "-q", repository, bench.folder / "clone"))
        assert _git("-C", mount.path / "clone", "status", "--porcelain") == ""
        changes = _changes(mount)
        traced = 0.0

        def once_more() -> None:
            nonlocal traced
            traced = clock(lambda: _git("clone", "-q", repository, mount.path / "again"))

        found = fsyncs(mount, bench.new_folder(), once_more)
    table.add(
        "this mount",
        seconds(took.seconds),
        f"{took.seconds / memory:.0f}x tmpfs, {took.seconds / disk:.0f}x disk",
        count(changes),
        count(took.commands),
        count(took.round_trips),
        "" if found is None else count(found[0]),
        "" if found is None else f"{found[1]:.2f} of {traced:.2f} s",
    )
    table.add("tmpfs", seconds(memory))
    table.add("disk", seconds(disk))
    return table


def _changes(mount: Mount) -> int:
    with sqlite3.connect(f"file:{mount.journal}?mode=ro", uri=True) as database:
        number: int = database.execute("SELECT count(*) FROM changes").fetchone()[0]
    return number


def _make_repository(folder: Path, files: int) -> None:
    for number in range(files):
        path = folder / f"package{number % 20}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"VALUE = {number}\n" * (1 + number % 40))
    _git("-C", folder, "init", "-q")
    _git("-C", folder, "add", ".")
    _git("-C", folder, "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "All")


def _git(*words: object) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    done = subprocess.run(
        ["git", *map(str, words)], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout
