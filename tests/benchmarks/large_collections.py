"""The price of exact sizes: `stat` of collections whose text is read to learn its length.

`--render-limit` bounds the number of elements; its default follows from these figures.
"""

from __future__ import annotations

import os
from pathlib import Path

import redis

from tests.benchmarks.baseline import BenchmarkRun, measure_seconds
from tests.benchmarks.report import ResultTable, format_goal, format_number, format_seconds
from tests.support.mounts import MountedServer, mount_server
from tests.support.redis_server import RedisServer

TYPES = ("list", "set", "zset", "hash", "stream")
DEFAULT_ELEMENTS = 10_000  # of a collection at the default limit
LARGE_ELEMENTS = 100_000
LISTED_COLLECTIONS = 20
MAX_STAT_SECONDS = 0.1
"""A `stat` that takes longer is felt in an interactive `ls -l`."""


def measure_large_collections(bench: BenchmarkRun) -> ResultTable:
    """Measure the first `stat` of collections, and of a folder of them."""
    table = ResultTable(
        "Reading: sizes of collections",
        ("work", "elements", "this mount", "commands", "goal"),
        notes=[
            f"Each mount has --render-limit {LARGE_ELEMENTS}; what was measured is cached until it changes.",
            "Larger collections than the limit are not read; their size is 0.",
        ],
    )
    with RedisServer() as server:
        for elements in (DEFAULT_ELEMENTS, LARGE_ELEMENTS):
            for type in TYPES:
                _create_collection(server.client(), f"{elements}:{type}", type, elements)
            for number in range(LISTED_COLLECTIONS):
                _create_collection(server.client(), f"many{elements}:{number}", TYPES[number % len(TYPES)], elements)
        options = ("--hashes", "files", "--render-limit", str(LARGE_ELEMENTS))
        with mount_server(bench.new_folder(), server.url(), *options) as mount:
            for elements in (DEFAULT_ELEMENTS, LARGE_ELEMENTS):
                for type in TYPES:
                    paths = [mount.path / str(elements) / type]
                    _add_row(table, mount, f"`stat` of a {type}", elements, paths)
                folder = mount.path / f"many{elements}"
                paths = [folder / name for name in os.listdir(folder)]
                _add_row(table, mount, f"`ls -l` of {LISTED_COLLECTIONS} collections", elements, paths)
    return table


def _add_row(table: ResultTable, mount: MountedServer, work: str, elements: int, paths: list[Path]) -> None:
    before = mount.status()["commands"]
    seconds = measure_seconds(lambda: [os.stat(path) for path in paths])
    commands = mount.status()["commands"] - before
    goal = ""
    if len(paths) == 1 and elements == DEFAULT_ELEMENTS:
        goal = format_goal("≤ 100 ms", seconds <= MAX_STAT_SECONDS)
    table.add_row(work, format_number(elements), format_seconds(seconds), format_number(commands), goal)


def _create_collection(client: redis.Redis, key: str, type: str, elements: int) -> None:
    for start in range(0, elements, 1000):
        names = [f"element:{number:06}" for number in range(start, start + 1000)]
        with client.pipeline(transaction=False) as pipeline:
            if type == "list":
                pipeline.rpush(key, *names)
            elif type == "set":
                pipeline.sadd(key, *names)
            elif type == "zset":
                pipeline.zadd(key, {name: float(number) for number, name in enumerate(names, start)})
            elif type == "hash":
                pipeline.hset(key, mapping={name: name for name in names})
            else:
                for number in range(start, start + 1000):
                    pipeline.xadd(key, {"field": "value"}, id=f"{number + 1}-0")
            pipeline.execute()
