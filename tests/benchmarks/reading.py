"""Reading: first listing, listings, stats, opens, `cat`, `grep -r`, and a long string; warm and cold, both bindings."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import redis

from tests.benchmarks.baseline import MIB, Peak, Run, best, clock, fill, read_all, requests, run, spent
from tests.benchmarks.bench_index import in_process, key
from tests.benchmarks.concurrency import several_at_once
from tests.benchmarks.report import Table, count, goal, rate, seconds, size
from tests.support.memory_mount import MemoryMount
from tests.support.mounts import Mount, is_mounted, mounted
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
PIECE = MIB  # bytes that the direct way asks for at once
SMALL = 100  # bytes of the longest small string
LAYOUTS = {"sessions": "session:N", "mixed": "half of them user:N:profile.json, cache:page:M:N"}
READS = 2_000  # at random places of the long string
FLOOR_DIRECTORIES = 20  # of as many files as grep_each, in memory


def measure(bench: Run) -> list[Table]:
    """All of it."""
    tables = [_first_listings(bench)]
    for binding in bench.bindings:
        tables.append(_small(bench, binding))
    tables.append(several_at_once(bench))
    tables.append(_long(bench))
    return tables


# -- the first listing -----------------------------------------------------------------------------------------------


def _first_listings(bench: Run) -> Table:
    table = Table(
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
    idle = _idle_memory(bench)
    for keys in bench.sizes.first_ls:
        for layout in LAYOUTS:
            _add_first_listing(bench, table, keys, layout, idle)
    return table


def _add_first_listing(bench: Run, table: Table, keys: int, layout: str, idle: int) -> None:
    """One row; `idle`: the memory of a mount without keys."""
    bare, listed, alone = float("inf"), float("inf"), float("inf")
    resident = commands = index = memory = 0.0
    with RedisServer() as server:
        fill(server.client(), keys, lambda number: (key(layout, number).decode(), b""))
        for _turn in range(5 if keys < 1_000_000 else 2):
            bare = min(bare, in_process("bare", server.socket_path)["seconds"])
            took, status = _first_listing(bench, server)
            if took < listed:
                listed, commands = took, status["commands"]
                index, memory = status["index_bytes"], status["memory_bytes"] - idle
            built = in_process("index", server.socket_path, 1 << 40)
            if built["seconds"] < alone:
                alone, resident = built["seconds"], built["resident"]
    aim = ""
    if keys <= 100_000:
        aim = goal("≤ 1.5x", listed <= 1.5 * bare)
    elif keys >= 5_000_000:
        aim = goal("index alone ≤ 1.4x, ≤ 130 B", alone <= 1.4 * bare and resident <= 130 * keys)
    table.add(
        f"{count(keys)}, {LAYOUTS[layout]}",
        seconds(listed),
        seconds(bare),
        f"{listed / bare:.2f}x",
        count(commands),
        f"{index / keys:.0f} B",
        f"{memory / keys:.0f} B",
        f"{alone / bare:.2f}x, {resident / keys:.0f} B",
        aim,
    )


def _first_listing(bench: Run, server: RedisServer) -> tuple[float, dict[str, int]]:
    folder = bench.new_folder()
    appeared: list[float] = []

    def watch() -> None:
        while not is_mounted(folder / "mnt"):
            time.sleep(0.001)
        appeared.append(time.perf_counter())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with mounted(folder, server.url(), "--binding", bench.bindings[0], wait=False) as mount:
        run("ls", mount.path)
        done = time.perf_counter()
        watcher.join(20)
        return done - appeared[0], mount.status()


def _idle_memory(bench: Run) -> int:
    with RedisServer() as server, bench.mount(server, bench.bindings[0]) as mount:
        os.listdir(mount.path)
        memory: int = mount.status()["memory_bytes"]
        return memory


# -- many small files ------------------------------------------------------------------------------------------------


def _small(bench: Run, binding: str) -> Table:
    sizes = bench.sizes
    table = Table(
        f"Reading: small strings, by {binding}",
        COLUMNS,
        notes=[
            "direct: the same with redis-py: SCAN, then TYPE and STRLEN, or GET, in pipelines of 1000; of single files "
            "one GET after the other.",
            "mount CPU: processor time of the mount's process, for each file where there are many.",
            "binding alone: the same callbacks answered from a dictionary in memory (tests/support/memory_calls.py).",
        ],
    )
    folder = bench.memory / "small"
    if not folder.exists():
        _fill_folder(bench, folder)
    with RedisServer() as server:
        client = server.client()
        fill(client, sizes.directory, lambda number: (f"many:{number}", _text(number)))
        fill(client, sizes.grepped, lambda number: (f"grep:{number % sizes.grep_directories}:{number}", _text(number)))
        with bench.mount(server, binding) as mount:
            _listings(bench, table, mount, client, folder / "many")
            _opens(bench, table, mount, client, folder / "many")
            _cats(bench, table, mount, client, folder / "many")
            _grep(bench, table, mount, client, folder / "grep")
        _kernel_requests(bench, table, server, binding)
    _floor(bench, table, binding)
    return table


def _text(number: int) -> bytes:
    return b"x" * (number % SMALL) if number % 10 else b"hello world %d\n" % number


def _fill_folder(bench: Run, folder: Path) -> None:
    """The same files in memory."""
    sizes = bench.sizes
    (folder / "many").mkdir(parents=True)
    for number in range(sizes.directory):
        (folder / "many" / str(number)).write_bytes(_text(number))
    for number in range(sizes.grepped):
        parent = folder / "grep" / str(number % sizes.grep_directories)
        if number < sizes.grep_directories:
            parent.mkdir(parents=True)
        (parent / str(number)).write_bytes(_text(number))


def _listings(bench: Run, table: Table, mount: Mount, client: redis.Redis, memory: Path) -> None:
    files = bench.sizes.directory
    there = mount.path / "many"
    cold = spent(mount, lambda: run("ls", "-l", there))
    direct = best(lambda: _describe(client, "many:*"))
    tmpfs = best(lambda: run("ls", "-l", memory))
    table.add(
        f"`ls -l` of {count(files)}, cold",
        seconds(cold.seconds),
        seconds(direct),
        seconds(tmpfs),
        f"{cold.seconds / direct:.1f}x direct, {cold.seconds / tmpfs:.1f}x tmpfs",
        count(cold.commands),
        count(cold.round_trips),
        size(cold.sent),
        seconds(cold.mount_cpu / files),
        goal("≤ 2 commands a key", cold.commands <= 2 * files + 20),
    )
    warm = min((spent(mount, lambda: run("ls", "-l", there)) for _ in range(5)), key=lambda each: each.seconds)
    table.add(
        f"`ls -l` of {count(files)}, warm",
        seconds(warm.seconds),
        "",
        seconds(tmpfs),
        f"{warm.seconds / tmpfs:.1f}x tmpfs",
        count(warm.commands),
        count(warm.round_trips),
        size(warm.sent),
        seconds(warm.mount_cpu / files),
        goal("≤ 3x tmpfs, 0 commands", warm.seconds <= 3 * tmpfs and warm.commands <= 2),
    )


def _describe(client: redis.Redis, pattern: str) -> None:
    cursor = 0
    while True:
        cursor, keys = client.scan(cursor, match=pattern, count=1000)
        pipeline = client.pipeline(transaction=False)
        for each in keys:
            pipeline.type(each)
            pipeline.strlen(each)
        pipeline.execute()
        if not cursor:
            return


def _opens(bench: Run, table: Table, mount: Mount, client: redis.Redis, memory: Path) -> None:
    number = bench.sizes.opened
    names = [f"{mount.path}/many/{each}" for each in range(number)]
    plain = [f"{memory}/{each}" for each in range(number)]
    _stat_all(names)
    warm = min((spent(mount, lambda: _repeat(_stat_all, names)) for _ in range(3)), key=lambda each: each.seconds)
    tmpfs = best(lambda: _repeat(_stat_all, plain))
    work = 10 * number
    table.add(
        "`stat`, warm",
        rate(work / warm.seconds),
        "",
        rate(work / tmpfs),
        f"{tmpfs / warm.seconds:.2f} of tmpfs",
        count(warm.commands),
        mount_CPU=seconds(warm.mount_cpu / work),
        goal=goal("≥ 1/2 of tmpfs", tmpfs >= warm.seconds / 2),
    )
    for _ in range(2):
        read_all(names)
    warm = min((spent(mount, lambda: _repeat(read_all, names)) for _ in range(3)), key=lambda each: each.seconds)
    tmpfs = best(lambda: _repeat(read_all, plain))
    direct = best(lambda: [client.get(f"many:{each}") for each in range(number)])
    table.add(
        "open + read + close, warm",
        rate(work / warm.seconds),
        rate(number / direct, "GET"),
        rate(work / tmpfs),
        f"{tmpfs / warm.seconds:.2f} of tmpfs",
        count(warm.commands),
        mount_CPU=seconds(warm.mount_cpu / work),
        goal=goal("≥ 1/5 of tmpfs", tmpfs >= warm.seconds / 5),
    )


def _repeat(work: Callable[[Sequence[str]], None], names: Sequence[str]) -> None:
    for _ in range(10):
        work(names)


def _stat_all(names: Sequence[str]) -> None:
    for name in names:
        os.stat(name)


def _cats(bench: Run, table: Table, mount: Mount, client: redis.Redis, memory: Path) -> None:
    first = bench.sizes.directory - min(1000, bench.sizes.directory // 2)
    numbers = range(first, bench.sizes.directory)  # none that was opened before
    words = [f"{mount.path}/many/{number}" for number in numbers]
    direct = best(lambda: [client.get(f"many:{number}") for number in numbers])
    tmpfs = best(lambda: run("cat", *[f"{memory}/{number}" for number in numbers]))
    for name in ("after `ls -l`", "warm"):
        took = spent(mount, lambda: run("cat", *words))
        table.add(
            f"`cat` of {len(words)}, {name}",
            seconds(took.seconds),
            seconds(direct),
            seconds(tmpfs),
            f"{took.seconds / direct:.2f}x direct, {took.seconds / tmpfs:.1f}x tmpfs",
            count(took.commands),
            count(took.round_trips),
            size(took.sent),
            seconds(took.mount_cpu / len(words)),
            goal("≤ 1 command a key", took.commands <= len(words) + 5)
            if name != "warm"
            else goal("0 commands", took.commands <= 2),
        )


def _grep(bench: Run, table: Table, mount: Mount, client: redis.Redis, memory: Path) -> None:
    files = bench.sizes.grepped
    direct = clock(lambda: _search(client, "grep:*", b"nothing"))
    tmpfs = best(lambda: run("grep", "-r", "nothing", memory))
    for name in ("cold", "warm"):
        took = spent(mount, lambda: run("grep", "-r", "nothing", mount.path / "grep"))
        table.add(
            f"`grep -r` over {count(files)}, {name}",
            rate(files / took.seconds, "files"),
            rate(files / direct, "keys"),
            rate(files / tmpfs, "files"),
            f"{took.seconds / direct:.1f}x direct, {took.seconds / tmpfs:.1f}x tmpfs",
            f"{took.commands / files:.2f} a key",
            count(took.round_trips),
            size(took.sent),
            seconds(took.mount_cpu / files),
            goal("≤ 3 commands a key", took.commands <= 3 * files + 100) if name == "cold" else "",
        )


def _search(client: redis.Redis, pattern: str, wanted: bytes) -> int:
    cursor, found = 0, 0
    while True:
        cursor, keys = client.scan(cursor, match=pattern, count=1000)
        found += sum(wanted in (value or b"") for value in (client.mget(keys) if keys else ()))
        if not cursor:
            return found


def _floor(bench: Run, table: Table, binding: str) -> None:
    """What the binding delivers when the answers cost nothing; the row of `grep -r` has its goal from this."""
    each = bench.sizes.grep_each
    tree = {f"d{number}": each for number in range(min(FLOOR_DIRECTORIES, bench.sizes.grep_directories))}
    files = each * len(tree)
    settings: dict[str, Any] = {"read_only": True, "keep_cache": True, "entry_timeout": 3600, "attr_timeout": 3600}
    with MemoryMount(binding, tree=tree, **settings) as memory:
        took = clock(lambda: run("grep", "-r", "nothing", *[memory.path / name for name in tree]))
        names = [f"{memory.path}/d0/f{number:06}" for number in range(each)]
        for _ in range(2):
            read_all(names)
        opened = best(lambda: _repeat(read_all, names))
    floor = files / took
    table.add(f"binding alone: `grep -r` over {count(files)}, cold", rate(floor, "files"))
    table.add("binding alone: open + read + close, warm, each open told", rate(10 * each / opened))
    for row in table.rows:
        if row[0].startswith("`grep -r`") and row[0].endswith("cold"):
            reached = float(row[1].partition("files")[0].replace(" ", ""))
            row[-1] += "; " + goal(
                f"≥ {count(min(5_000, 0.7 * floor))} files/s (here {reached / floor:.0%} of the binding)",
                reached >= min(5_000, 0.7 * floor),
            )


def _kernel_requests(bench: Run, table: Table, server: RedisServer, binding: str) -> None:
    """What the kernel asks for in one cold `ls -l`."""
    with bench.mount(server, binding) as mount:
        mount.status()
        found = requests(mount, bench.new_folder(), lambda: run("ls", "-l", mount.path / "many"))
    if found is None:
        table.notes.append("strace is missing: the kernel's requests were not counted.")
        return
    asked = found.get("GETATTR", 0) + found.get("LOOKUP", 0)
    named = ", ".join(f"{count(number)} {name}" for name, number in sorted(found.items()))
    table.add(
        "requests of the kernel in a cold `ls -l`",
        f"{count(asked)} for attributes",
        goal=goal("≤ 10", asked <= 10) if binding == "mfusepy" else "",
    )
    table.notes.append(f"The kernel's requests in a cold `ls -l` of {count(bench.sizes.directory)}: {named}.")


# -- one long string -------------------------------------------------------------------------------------------------


def _long(bench: Run) -> Table:
    length = bench.sizes.large
    table = Table(
        f"Reading: a string of {length // MIB} MiB",
        ("work", "this mount", "direct", "tmpfs", "ratio", "commands", "from server", "memory above idle", "goal"),
        notes=["direct: redis-py, GETRANGE of 1 MiB pieces one after the other; at random places, of 4 KiB."],
    )
    chance = random.Random(1)
    places = [chance.randrange(length // 4096) * 4096 for _ in range(READS)]
    with RedisServer() as server:
        client = server.client(socket_read_size=131072)
        piece = os.urandom(MIB)
        for _ in range(length // MIB):
            client.append("long", piece)
        plain = bench.memory / "long"
        plain.write_bytes(piece * (length // MIB))
        direct = best(lambda: [client.getrange("long", at, at + PIECE - 1) for at in range(0, length, PIECE)], 2)
        tmpfs = best(lambda: run("dd", f"if={plain}", "of=/dev/null", "bs=128k"), 2)
        scattered = clock(lambda: [client.getrange("long", at, at + 4095) for at in places])
        scattered_plain = clock(lambda: _read_places(plain, places))
        for binding in bench.bindings:
            with bench.mount(server, binding) as mount:
                path = mount.path / "long"
                with Peak(mount.process.pid) as peak:
                    took = spent(mount, lambda: _read_places(path, places))  # noqa: B023
                table.add(
                    f"{READS} reads of 4 KiB at random places, {binding}",
                    rate(READS / took.seconds),
                    rate(READS / scattered),
                    rate(READS / scattered_plain),
                    f"{scattered / took.seconds:.2f} of direct",
                    count(took.commands),
                    size(took.received),
                    size(peak.above_idle),
                )
                _drop_pages(path)
                with Peak(mount.process.pid) as peak:
                    took = spent(mount, lambda: run("dd", f"if={path}", "of=/dev/null", "bs=128k"))  # noqa: B023
                reached = direct / took.seconds
                table.add(
                    f"`dd bs=128k`, {binding}",
                    rate(length / MIB / took.seconds, "MiB"),
                    rate(length / MIB / direct, "MiB"),
                    rate(length / MIB / tmpfs, "MiB"),
                    f"{reached:.2f} of direct",
                    count(took.commands),
                    size(took.received),
                    size(peak.above_idle),
                    goal("≥ 1/2 of direct, ≤ 64 MiB", reached >= 0.5 and peak.above_idle <= 64 * MIB),
                )
    plain.unlink()
    return table


def _read_places(path: Path, places: Sequence[int]) -> None:
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    for at in places:
        assert len(os.pread(file, 4096, at)) == 4096
    os.close(file)


def _drop_pages(path: Path) -> None:
    """Let the kernel forget what it has of a file."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
