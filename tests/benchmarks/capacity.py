"""Programs that list and read whole folders of more keys than the cache holds: commands and round trips."""

from __future__ import annotations

import subprocess
from pathlib import Path

import redis

from tests.benchmarks.baseline import BenchmarkRun, measure_seconds
from tests.benchmarks.report import ResultTable, format_goal, format_number, format_seconds
from tests.support.mounts import mount_server
from tests.support.redis_server import RedisServer

MAX_COMMANDS_PER_KEY = 4
MIN_KEYS_PER_ROUND_TRIP = 100
PROGRAMS = {
    "ls -l": ("ls", "-l", "{}/k"),
    "find -size +100c": ("find", "{}", "-size", "+100c"),
    "grep -rl": ("grep", "-rl", "not there", "{}"),
    "getfattr -R -d": ("getfattr", "-R", "-d", "{}"),
}


def measure(bench: BenchmarkRun) -> list[ResultTable]:
    """Run all measurements of this topic."""
    table = ResultTable(
        "Capacity: a folder of many strings, with the default --cache-memory",
        ("work", "keys", "time", "commands", "commands a key", "round trips", "keys a round trip", "evicted", "goal"),
        notes=[
            "Each program begins with an empty cache; each string has 20 bytes.",
            "evicted: keys whose attributes had to be fetched again, and contents.",
        ],
    )
    for keys in bench.sizes.cached_keys:
        with RedisServer() as server:
            _create_strings(server.client(), keys)
            for name, words in PROGRAMS.items():
                _measure_program(bench, table, server, name, words, keys)
    return [table]


def _measure_program(
    bench: BenchmarkRun, table: ResultTable, server: RedisServer, name: str, words: tuple[str, ...], keys: int
) -> None:
    with mount_server(bench.new_folder(), server.url(), "--binding", bench.bindings[0]) as mount:
        mount.wait_coherent()
        before = mount.status()
        seconds = measure_seconds(lambda: _run([word.format(mount.path) for word in words], mount.path))
        after = mount.status()
    commands = after["commands"] - before["commands"]
    round_trips = after["round_trips"] - before["round_trips"]
    is_met = commands <= MAX_COMMANDS_PER_KEY * keys and round_trips * MIN_KEYS_PER_ROUND_TRIP <= keys
    table.add_row(
        *(f"`{name}`", format_number(keys), format_seconds(seconds), format_number(commands)),
        *(f"{commands / keys:.2f}", format_number(round_trips), format_number(keys / round_trips)),
        f"{format_number(after['cache_evicted_keys'])}, {format_number(after['cache_evicted_contents'])}",
        format_goal("≤ 4 commands a key, ≤ n/100 round trips", is_met),
    )


def _run(command: list[str], folder: Path) -> None:
    status = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder.parent, check=False)
    assert status.returncode <= (command[0] == "grep"), status.stderr  # grep returns 1: nothing was found


def _create_strings(client: redis.Redis, count: int) -> None:
    for start in range(0, count, 1000):
        numbers = range(start, min(start + 1000, count))
        client.mset({f"k:{number}": f"content of {number}".ljust(20) for number in numbers})
