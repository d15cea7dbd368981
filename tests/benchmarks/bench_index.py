"""The index beside a bare SCAN loop: memory per key, and the time of the first index.

Run it manually: `python -m tests.benchmarks.bench_index [KEYS...]` (default 100 000 and 1 000 000; the goals of issue 3
are for 5 000 000). Each measurement has its own process, so that resident memory is comparable. Prints the ratio to
redis-py's `SCAN COUNT 1000` loop on the same server in the same run: the goal is 1.4 for the index.
"""

import gc
import json
import subprocess
import sys
import time

import redis

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.client.limits import Limits
from redisfuse.keyspace.index import Index
from redisfuse.keyspace.monitor import KeyspaceMonitor
from tests.support.redis_server import RedisServer

LAYOUTS = ("sessions", "users", "mixed")


def layout_key(layout: str, number: int) -> bytes:
    """Return the n-th key of a layout, about 26 bytes."""
    if layout == "sessions":
        return b"session:%018d" % number
    if layout == "users":
        return b"user:%010d:%s" % (number // 3, (b"settings_", b"cart:items", b"lastlogin")[number % 3])
    part = number % 4
    if part == 0:
        return b"user:%08d:profile.json" % number
    if part == 1:
        return b"cache:page:%04d:%010d" % (number % 3000, number)
    return b"session:%018d" % number


def resident_bytes() -> int:
    """Return the resident memory of this process, in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def fill_layout(client: redis.Redis, layout: str, keys: int) -> None:
    """Set the keys on the server."""
    for start in range(0, keys, 20_000):
        client.mset({layout_key(layout, number): b"" for number in range(start, min(start + 20_000, keys))})


def measure_bare_scan(path: str) -> dict[str, float]:
    """Measure a redis-py loop that scans all keys and keeps none."""
    client = redis.Redis(unix_socket_path=path)
    began = time.perf_counter()
    cursor, names = client.scan(0, count=1000)
    keys = len(names)
    while cursor:
        cursor, names = client.scan(cursor, count=1000)
        keys += len(names)
    return {"seconds": time.perf_counter() - began, "keys": keys}


def measure_first_index(path: str, *, memory: int, listing: bool) -> dict[str, float]:
    """Measure a KeyspaceMonitor from its start until its index is complete and the root is listed."""
    client = RedisClient(Address.parse(f"unix://{path}"), Limits(timeout=30))
    client.connect()
    gc.collect()
    before = resident_bytes()
    commands = client.stats.commands
    began = time.perf_counter()
    monitor = KeyspaceMonitor(client, index_memory=memory)
    monitor.start()
    monitor.wait_until_ready(600)
    if listing:
        sum(1 for _ in monitor.index.iter_children(()))
    seconds = time.perf_counter() - began
    result = {
        "seconds": seconds,
        "keys": len(monitor.index),
        "commands": client.stats.commands - commands,
        "resident": resident_bytes() - before,
        "estimate": monitor.index.memory_bytes,
        "disk": monitor.index.on_disk,
    }
    monitor.close()
    client.close()
    return result


def measure_index_alone(layout: str, keys: int, *, on_disk: bool) -> dict[str, float]:
    """Measure the index without a server: adds per second, and the time of common queries."""
    index = Index(on_disk=on_disk)
    spent = 0.0
    for start in range(0, keys, 1000):
        names = [layout_key(layout, (number * 7919) % keys) for number in range(start, min(start + 1000, keys))]
        began = time.perf_counter()
        index.add_many(names)
        spent += time.perf_counter() - began
    began = time.perf_counter()
    below = (b"session",) if layout != "users" else (b"user",)
    children = sum(1 for _ in index.iter_children(below))
    list_seconds = time.perf_counter() - began
    began = time.perf_counter()
    for number in range(10_000):
        index.get_child((b"user",), b"%010d" % number)
    lookup_seconds = (time.perf_counter() - began) / 10_000
    return {
        "seconds": spent,
        "keys": len(index),
        "children": children,
        "list_seconds": list_seconds,
        "lookup_seconds": lookup_seconds,
    }


def run_in_subprocess(work: str, *arguments: object) -> dict[str, float]:
    """Return the result of one of the functions above, run in a new process."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_index", "--work", work, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=1200)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    """Print a table."""
    sizes = [int(word.replace("_", "")) for word in sys.argv[1:]] or [100_000, 1_000_000]
    for keys in sizes:
        for layout in LAYOUTS if keys <= 1_000_000 else ("sessions", "mixed"):
            with RedisServer() as server:
                fill_layout(server.client(), layout, keys)
                bare, runs = float("inf"), []
                for _turn in range(5):  # alternately, so that other load on the machine affects both
                    bare = min(bare, run_in_subprocess("bare", server.socket_path)["seconds"])
                    runs.append(run_in_subprocess("index", server.socket_path, 1 << 40))
                best = min(runs, key=lambda run: run["seconds"])
                print(
                    f"{keys:>9} {layout:<9} bare SCAN {bare:6.2f} s | index {best['seconds']:6.2f} s"
                    f" = {best['seconds'] / bare:4.2f} x | {best['resident'] / keys:5.0f} bytes a key resident,"
                    f" {best['estimate'] / keys:4.0f} estimated | {best['commands']:.0f} commands",
                    flush=True,
                )
        for on_disk in (False, True):
            alone = run_in_subprocess("alone", "mixed", keys, int(on_disk))
            print(
                f"{keys:>9} {'disk' if on_disk else 'memory':<9} {keys / alone['seconds'] / 1000:6.0f} k adds/s |"
                f" {alone['children']:.0f} children listed in {alone['list_seconds']:.2f} s |"
                f" child {alone['lookup_seconds'] * 1e6:.1f} us",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work, *rest = sys.argv[2:]
        if work == "bare":
            print(json.dumps(measure_bare_scan(rest[0])))
        elif work == "index":
            print(json.dumps(measure_first_index(rest[0], memory=int(rest[1]), listing=True)))
        else:
            print(json.dumps(measure_index_alone(rest[0], int(rest[1]), on_disk=rest[2] == "1")))
    else:
        main()
