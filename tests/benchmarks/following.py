"""Following: a server under a full load of writes, and the cost to the mount and the server."""

from __future__ import annotations

import shutil
import subprocess
import time

import psutil  # type: ignore[import-untyped]
import redis

from tests.benchmarks.baseline import MIB, BenchmarkRun
from tests.benchmarks.report import ResultTable, format_goal, format_rate, format_size
from tests.support.mounts import MountedServer
from tests.support.redis_server import RedisServer

POLL_INTERVAL_SECONDS = 0.1  # seconds
MAX_RECOVERY_SECONDS = 60.0  # seconds until the mount must be live again


def measure(bench: BenchmarkRun) -> list[ResultTable]:
    """Run all measurements of this topic."""
    table = ResultTable(
        "Following: a server written to as fast as redis-benchmark does",
        (
            "work",
            "writes",
            "without the mount",
            "mount CPU",
            "mount memory",
            "server's buffers",
            "was live",
            "live again after",
            "goal",
        ),
        notes=[
            "mount CPU: cores in use, on average; server's buffers: the most memory that the server held for the "
            "mount's connections (`CLIENT LIST`, tot-mem).",
            "was live: the part of the time in which every change was followed; `status` gives the reason otherwise.",
        ],
    )
    if not shutil.which("redis-benchmark"):
        table.notes.append("redis-benchmark is missing.")
        return [table]
    for name, words in (
        ("SET of existing keys", ["-r", "100000", "SET", "bench:__rand_int__", "value"]),
        ("SET of ever new keys", ["-r", "1000000000", "SET", "new:__rand_int__", "value"]),
    ):
        for pipeline in (1, 32):
            _add_row(bench, table, f"{name}, pipeline {pipeline}", ["-P", str(pipeline), *words])
    return [table]


def _add_row(bench: BenchmarkRun, table: ResultTable, name: str, words: list[str]) -> None:
    with RedisServer() as server:
        client = server.client()
        alone, _, _, _ = _run_load(server, client, words, bench.sizes.following_seconds / 4, None)
        client.flushall()
        client.mset({f"bench:{number:012}": "value" for number in range(100_000)})
        with bench.mount(server, bench.bindings[0]) as mount:
            process = psutil.Process(mount.process.pid)
            before, idle = process.cpu_times(), mount.status()["memory_bytes"]
            began = time.monotonic()
            written, live, buffers, reason = _run_load(server, client, words, bench.sizes.following_seconds, mount)
            cores = (sum(process.cpu_times()[:2]) - sum(before[:2])) / (time.monotonic() - began)
            memory = process.memory_info().rss - idle
            ended = time.monotonic()
            while not mount.status()["live"] and time.monotonic() < ended + MAX_RECOVERY_SECONDS:
                time.sleep(POLL_INTERVAL_SECONDS)
            again = time.monotonic() - ended if mount.status()["live"] else None
        if reason:
            table.notes.append(f"{name}: reason while not live: {reason}")
        table.add_row(
            name,
            format_rate(written),
            format_rate(alone),
            f"{cores:.2f} cores",
            format_size(memory),
            format_size(buffers),
            f"{live:.0%}",
            "" if live == 1 else "never" if again is None else f"{again:.1f} s",
            format_goal("≤ 1 core, buffers ≤ 40 MiB", cores <= 1.0 and buffers <= 40 * MIB),
        )


def _run_load(
    server: RedisServer, client: redis.Redis, words: list[str], seconds: float, mount: MountedServer | None
) -> tuple[float, float, int, str]:
    """Write as fast as redis-benchmark does, and watch the mount.

    Returns the writes per second, the fraction of polls in which the mount was live, the most memory that the server
    held for its connections, and the first reason for not being live.
    """
    command = ["redis-benchmark", "-s", server.socket_path, "-q", "-c", "16", "-n", "1000000000", *words]
    polls, live, buffers, reason = 0, 0, 0, ""
    before = _count_sets(client)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        began = time.monotonic()
        try:
            while time.monotonic() < began + seconds:
                time.sleep(POLL_INTERVAL_SECONDS)
                if mount is not None:
                    status = mount.status()
                    polls += 1
                    live += status["live"]
                    reason = reason or ("" if status["live"] else str(status["reason"]))
                    buffers = max(buffers, _mount_buffer_bytes(client))
            written = (_count_sets(client) - before) / (time.monotonic() - began)
        finally:
            process.kill()
    return written, live / polls if polls else 1.0, buffers, reason


def _count_sets(client: redis.Redis) -> int:
    statistics = client.info("commandstats").get("cmdstat_set", {"calls": 0})
    return int(statistics["calls"])


def _mount_buffer_bytes(client: redis.Redis) -> int:
    """Return the bytes that the server holds for the connections named redisfuse."""
    return sum(
        int(connection["tot-mem"]) for connection in client.client_list() if connection.get("name") == "redisfuse"
    )
