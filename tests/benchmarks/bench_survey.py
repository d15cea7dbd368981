"""Commands that read many keys beside redis-cli and `grep -r`, in one run.

    python -m tests.benchmarks.bench_survey [KEYS] [GREP_KEYS]

A server of its own is filled with KEYS keys (1 000 000): half strings, the rest small hashes, lists, sets and sorted
sets. The mount that `grep -r` reads has GREP_KEYS keys (100 000) of the same kinds, and has read none of them before.
The same keys are dumped, loaded into another database, and compared.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.mounts import isolated_environment, mount_server, redisfuse_command
from tests.support.redis_server import RedisServer

PATTERN = "job [0-9]*[05]7 3"


def fill(server: RedisServer, count: int) -> None:
    """Write keys in folders of 1000."""
    client = server.client()
    pipeline = client.pipeline(transaction=False)
    for number in range(count):
        folder, kind = number // 1000, number % 10
        if kind < 5:
            pipeline.set(f"str:{folder}:{number}", f"value {number} {'x' * 100}", ex=3600 if kind == 0 else None)
        elif kind < 7:
            pipeline.hset(f"user:{folder}:{number}", mapping={"name": f"n{number}", "mail": "m@x", "age": number})
        elif kind == 7:
            pipeline.rpush(f"q:{folder}:{number}", *(f"job {number} {each}" for each in range(5)))
        elif kind == 8:
            pipeline.sadd(f"s:{folder}:{number}", *(f"m{number}{each}" for each in range(5)))
        else:
            pipeline.zadd(f"z:{folder}:{number}", {f"m{number}{each}": each for each in range(5)})
        if number % 1000 == 999:
            pipeline.execute()
    pipeline.execute()


def measure(server: RedisServer, folder: Path, name: str, words: Sequence[str], cwd: Path | None = None) -> int:
    """Run a command, print a row about it, and return its number of lines."""
    client = server.client()
    client.config_resetstat()
    began = time.perf_counter()
    done = subprocess.run(words, env=isolated_environment(folder), capture_output=True, cwd=cwd, check=False)
    took = time.perf_counter() - began
    stats = client.info("commandstats")
    sent = sum(row["calls"] for command, row in stats.items() if command not in ("cmdstat_config|resetstat",))
    lines = done.stdout.splitlines()
    count = sum(not line.endswith(b":0") for line in lines) if PATTERN in words else len(lines)
    print(f"| {name} | {took:.1f} s | {sent:,} | {count:,} |".replace(",", " "), flush=True)
    return count


def main(count: int, grep_count: int) -> None:
    """Run the benchmark."""
    folder = Path(tempfile.mkdtemp(prefix="bench-survey-"))
    print("| command | time | commands | lines |\n|---|---:|---:|---:|")
    with RedisServer(tcp=True) as server:
        fill(server, count)
        url, cli = server.tcp_url(), ["redis-cli", "-p", str(server.port)]
        scan = " ".join([*cli, "--scan"])
        for name, words in (
            ("`redis-cli --scan`", [*cli, "--scan"]),
            ("`find --keys`", redisfuse_command("find", url, "--keys")),
            ("`find`", redisfuse_command("find", url)),
            ("`redis-cli --bigkeys`", [*cli, "--bigkeys"]),
            ("`find --size +1M`", redisfuse_command("find", url, "--size", "+1M")),
            ("`top --by elements`", redisfuse_command("top", url, "--by", "elements")),
            ("`redis-cli --memkeys`", [*cli, "--memkeys"]),
            ("`find --memory +10K`", redisfuse_command("find", url, "--memory", "+10K")),
            ("`top`", redisfuse_command("top", url)),
            ("`top --sample 10000`", redisfuse_command("top", url, "--sample", "10000")),
            ("`find --ttl -1h --count`", redisfuse_command("find", url, "--ttl", "-1h", "--count")),
            ("`find --type zset --count`", redisfuse_command("find", url, "--type", "zset", "--count")),
            (f"`grep -c '{PATTERN}'`", redisfuse_command("grep", "-c", PATTERN, url)),
            (
                "`redis-cli --scan --pattern 'str:1:*' \\| xargs -n 1 redis-cli TTL` (500 keys)",
                ["sh", "-c", f"{scan} --pattern 'str:1:*' | xargs -n 1 redis-cli -p {server.port} TTL"],
            ),
            (
                "`find --key 'str:1:*' --ttl any --ls`",
                redisfuse_command("find", url, "--key", "str:1:*", "--ttl", "any", "--ls"),
            ),
        ):
            measure(server, folder, name, words)
    with RedisServer(tcp=True) as server:
        fill(server, grep_count)
        url = server.tcp_url()
        words = redisfuse_command("grep", "-c", PATTERN, url)
        mine = measure(server, folder, f"{grep_count:,} keys: `redisfuse grep -c '{PATTERN}'`", words)
        archive, other = str(folder / "all.jsonl"), server.tcp_url(1)
        for name, words in (
            ("dump FILE", redisfuse_command("dump", url, archive)),
            ("load FILE", redisfuse_command("load", archive, other)),
            ("diff --live", redisfuse_command("diff", "--live", url, other)),
        ):
            measure(server, folder, f"{grep_count:,} keys: `redisfuse {name}`", words)
        with mount_server(folder, url) as mount:
            words = ["grep", "-rc", "--exclude=.updater", PATTERN, "."]
            theirs = measure(server, folder, f"{grep_count:,} keys: `grep -rc` on a mount, cold", words, mount.path)
    assert mine == theirs, (mine, theirs)
    print(f"\nLoad after the run: {' '.join(f'{load:.2f}' for load in os.getloadavg())}")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*(int(text) for text in [*sys.argv[1:], *("1000000", "100000")[len(sys.argv) - 1 :]]))
