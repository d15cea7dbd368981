"""Commands that read many keys, beside redis-cli and `grep -r`: find, grep, top, dump, load and diff --live.

A server is filled with keys of mixed types: half strings, the rest small hashes, lists, sets and sorted sets.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.baseline import BenchmarkRun
from tests.benchmarks.report import ResultTable, format_goal, format_number, format_seconds
from tests.support.mounts import isolated_environment, mount_server, redisfuse_command
from tests.support.redis_server import RedisServer

TURNS = 2
MAX_TIME_RATIO = 1.5
MIN_GREP_RATIO = 10
PATTERN = "job [0-9]*[05]7 3"


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of a command."""

    seconds: float
    commands: int
    lines: list[bytes]


def measure(bench: BenchmarkRun) -> list[ResultTable]:
    """Run all measurements of this topic."""
    return [_measure_surveys(bench), _measure_grep(bench), _measure_archives(bench)]


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


def _run(server: RedisServer, folder: Path, words: Sequence[str], cwd: Path | None = None) -> _Run:
    client = server.client()
    client.config_resetstat()
    began = time.perf_counter()
    done = subprocess.run(words, env=isolated_environment(folder), capture_output=True, cwd=cwd, check=False)
    seconds = time.perf_counter() - began
    if done.returncode not in (0, 1):
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
    stats = client.info("commandstats")
    commands = sum(row["calls"] for name, row in stats.items() if name != "cmdstat_config|resetstat")
    return _Run(seconds, commands, done.stdout.splitlines())


def _measure_surveys(bench: BenchmarkRun) -> ResultTable:
    count = bench.sizes.survey_keys
    table = ResultTable(
        f"Surveys: {format_number(count)} keys of mixed types, beside redis-cli",
        ("command", "time", "commands", "lines", "time ratio", "goal"),
        notes=[
            "time ratio, goal: beside the command of redis-cli above it that finds the same.",
            f"The better of {TURNS} turns, in turns.",
        ],
    )
    folder = bench.new_folder()
    with RedisServer(tcp=True) as server:
        fill(server, count)
        url, cli = server.tcp_url(), ["redis-cli", "-p", str(server.port)]
        scan = " ".join([*cli, "--scan"])
        each_ttl = ["sh", "-c", f"{scan} --pattern 'str:1:*' | xargs -n 1 redis-cli -p {server.port} TTL"]
        groups: list[dict[str, list[str]]] = [
            {
                "`redis-cli --scan`": [*cli, "--scan"],
                "`redisfuse find --keys`": redisfuse_command("find", url, "--keys"),
            },
            {
                "`redis-cli --bigkeys`": [*cli, "--bigkeys"],
                "`redisfuse find --size +1M`": redisfuse_command("find", url, "--size", "+1M"),
                "`redisfuse top --by elements --no-expiries`": redisfuse_command(
                    *("top", url, "--by", "elements", "--no-expiries")
                ),
            },
            {
                "`redis-cli --memkeys`": [*cli, "--memkeys"],
                "`redisfuse find --memory +10K`": redisfuse_command("find", url, "--memory", "+10K"),
                "`redisfuse top --no-expiries`": redisfuse_command("top", url, "--no-expiries"),
                "`redisfuse top`, with expiries": redisfuse_command("top", url),
                "`redisfuse top --sample 10000`": redisfuse_command("top", url, "--sample", "10000"),
            },
            {
                "`redis-cli --scan --pattern 'str:1:*' | xargs -n 1 redis-cli TTL`": each_ttl,
                "`redisfuse find --key 'str:1:*' --ttl any --ls`": redisfuse_command(
                    *("find", url, "--key", "str:1:*", "--ttl", "any", "--ls")
                ),
            },
        ]
        alone = {
            "`redisfuse find` (paths need all names first)": redisfuse_command("find", url),
            "`redisfuse find --ttl -1h --count`": redisfuse_command("find", url, "--ttl", "-1h", "--count"),
            "`redisfuse find --type zset --count`": redisfuse_command("find", url, "--type", "zset", "--count"),
            "`redisfuse top --by elements`": redisfuse_command("top", url, "--by", "elements"),
            "`redisfuse top --queues`": redisfuse_command("top", url, "--queues"),
            f"`redisfuse grep -c '{PATTERN}'`": redisfuse_command("grep", "-c", PATTERN, url),
        }
        for group in groups:
            runs = _run_in_turns(server, folder, group)
            baseline = next(iter(runs.values()))
            for name, run in runs.items():
                _add_survey(table, name, run, None if run is baseline else baseline)
        for name, run in _run_in_turns(server, folder, alone).items():
            _add_survey(table, name, run, None)
    return table


def _run_in_turns(server: RedisServer, folder: Path, commands: dict[str, list[str]]) -> dict[str, _Run]:
    """Run commands in turns; return the quicker run of each."""
    runs: dict[str, list[_Run]] = {name: [] for name in commands}
    for _ in range(TURNS):
        for name, words in commands.items():
            runs[name].append(_run(server, folder, words))
    return {name: min(all_runs, key=lambda run: run.seconds) for name, all_runs in runs.items()}


def _add_survey(table: ResultTable, name: str, run: _Run, baseline: _Run | None) -> None:
    cells = [name, format_seconds(run.seconds), format_number(run.commands), format_number(len(run.lines))]
    if baseline is not None:
        ratio = run.seconds / baseline.seconds
        is_met = ratio <= MAX_TIME_RATIO and run.commands <= baseline.commands
        cells += [f"{ratio:.2f}", format_goal(f"≤ {MAX_TIME_RATIO} times the time, no more commands", is_met)]
    table.add_row(*cells)


def _measure_grep(bench: BenchmarkRun) -> ResultTable:
    count = bench.sizes.searched_keys
    table = ResultTable(
        f"Surveys: a search of {format_number(count)} keys, beside `grep -r`",
        ("command", "time", "commands", "files with a match", "goal"),
        notes=["The mount has read none of the files before."],
    )
    folder = bench.new_folder()
    with RedisServer(tcp=True) as server:
        fill(server, count)
        ours = _run(server, folder, redisfuse_command("grep", "-c", PATTERN, server.tcp_url()))
        with mount_server(bench.new_folder(), server.tcp_url(), as_program=True) as mount:
            mount.wait_coherent()
            theirs = _run(server, folder, ["grep", "-rc", "--exclude=.updater", PATTERN, "."], mount.path)
    ratio = theirs.seconds / ours.seconds
    goal = format_goal(f"≥ {MIN_GREP_RATIO} times as fast (here {ratio:.1f})", ratio >= MIN_GREP_RATIO)
    matches = [sum(not line.endswith(b":0") for line in run.lines) for run in (ours, theirs)]
    assert matches[0] == matches[1], matches
    for name, run, target in ((f"`redisfuse grep -c '{PATTERN}'`", ours, goal), ("`grep -rc`", theirs, "")):
        cells = format_seconds(run.seconds), format_number(run.commands), format_number(matches[0])
        table.add_row(name, *cells, target)
    return table


def _measure_archives(bench: BenchmarkRun) -> ResultTable:
    count = bench.sizes.archived_keys
    table = ResultTable(
        f"Surveys: {format_number(count)} keys dumped, loaded into another database, and compared",
        ("command", "time", "commands a key", "result"),
    )
    folder = bench.new_folder()
    with RedisServer(tcp=True) as server:
        fill(server, count)
        url, other, archive = server.tcp_url(), server.tcp_url(1), str(folder / "all.jsonl.gz")
        for name, words in (
            ("dump FILE", ("dump", url, archive)),
            ("load FILE --dry-run", ("load", archive, other, "--dry-run")),
            ("load FILE", ("load", archive, other)),
            ("diff --live A B", ("diff", "--live", url, other)),
        ):
            run = _run(server, folder, redisfuse_command(*words))
            result = run.lines[-1].decode() if run.lines else "no difference"
            table.add_row(f"`redisfuse {name}`", format_seconds(run.seconds), f"{run.commands / count:.2f}", result)
    return table
