"""Many more keys than the cache has room for: the commands and round trips of programs that list and read them all."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.bindings import BINDINGS
from tests.support.mounts import MountedServer, mount_server, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer

KEY_COUNT = 10_000  # of which entries for less than 2500 fit
CACHE_BYTES = 1 << 20
MAX_ROUND_TRIPS = KEY_COUNT // 100


@pytest.fixture(scope="module")
def filled(server: RedisServer) -> redis.Redis:
    """Fill a server with 10 000 strings in one folder; every second one expires, in a long time."""
    client = server.client()
    pipe = client.pipeline(transaction=False)
    for number in range(KEY_COUNT):
        pipe.set(f"k:{number}", f"content of {number}", ex=100_000 if number % 2 else None)
    pipe.execute()
    return client


@pytest.fixture(params=BINDINGS)
def mount(
    request: pytest.FixtureRequest,
    server: RedisServer,
    filled: redis.Redis,  # noqa: ARG001 - creates the keys
    tmp_path: Path,
) -> Iterator[MountedServer]:
    """Mount it with a small cache."""
    options = ("--binding", str(request.param), "--cache-memory", str(CACHE_BYTES))
    with mount_server(tmp_path, server.url(), *options) as mount:
        mount.wait_coherent()
        yield mount


def keep_alives_since(started: float) -> int:
    """Return how many commands may have followed changes since then, on a machine that can be slow."""
    return 30 + int(2 * (time.monotonic() - started))


def run(mount: MountedServer, *command: str | Path) -> tuple[float, int, bytes]:
    """Run a program; return the commands a key and the round trips that it caused, and its output."""
    before, started = mount.status(), time.monotonic()
    output = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=120).stdout
    after = mount.status()
    assert after["cache_bytes"] <= CACHE_BYTES == after["cache_limit_bytes"]
    keep_alives = keep_alives_since(started)
    sent = after["commands"] - before["commands"] - keep_alives
    return sent / KEY_COUNT, after["round_trips"] - before["round_trips"] - keep_alives, output


@pytest.mark.parametrize("program", ["ls", "find", "grep", "getfattr", "tar"])
def test_programs_stream(mount: MountedServer, program: str) -> None:
    """No program takes more than 4 commands a key, or more than n/100 round trips; a second `ls` sends none."""
    command: tuple[str | Path, ...] = {
        "ls": ("ls", "-l", mount.path / "k"),
        "find": ("find", mount.path, "-size", "+20c"),
        "grep": ("grep", "-rl", "of 999", mount.path),
        "getfattr": ("getfattr", "-R", "-d", mount.path),
        "tar": ("tar", "-c", "-C", mount.path, "."),
    }[program]
    commands, round_trips, output = run(mount, *command)
    assert commands <= 4
    assert round_trips <= MAX_ROUND_TRIPS
    if program == "ls":
        assert output.count(b"\n") == KEY_COUNT + 1
        assert run(mount, *command)[0] <= 0
    elif program == "grep":
        assert len(output.splitlines()) == 11
    elif program == "getfattr":
        assert output.count(b"user.redis.encoding=") == KEY_COUNT
        assert output.count(b'user.redis.ttl="-1"') == KEY_COUNT // 2
    elif program == "tar":
        assert output.count(b"content of ") == KEY_COUNT


def test_changes_are_followed(mount: MountedServer, filled: redis.Redis) -> None:
    """Packed metadata of a key is not used once the key has changed."""
    listed = {entry.name: entry.stat().st_size for entry in os.scandir(mount.path / "k")}
    assert listed["7"] == len("content of 7")
    filled.set("k:7", "longer than it was before")
    filled.rename("k:8", "k:renamed")
    try:
        wait_until(lambda: (mount.path / "k" / "7").stat().st_size == len("longer than it was before"))
        wait_until(lambda: not (mount.path / "k" / "8").exists())
        assert (mount.path / "k" / "7").read_text() == "longer than it was before"
        assert (mount.path / "k" / "renamed").read_text() == "content of 8"
        assert (mount.path / "k" / "9").read_text() == "content of 9"
    finally:
        filled.rename("k:renamed", "k:8")
        filled.set("k:7", "content of 7", ex=100_000)


def test_status_shows_what_did_not_fit(mount: MountedServer, tmp_path: Path) -> None:
    """`redisfuse status` shows how much of the cache is in use, and what it could not hold."""
    subprocess.run(["grep", "-rl", "of 999", mount.path], stdout=subprocess.DEVNULL, check=True, timeout=120)
    status = mount.status()
    assert status["cache_evicted_contents"] > KEY_COUNT // 2
    shown = run_redisfuse(tmp_path, "status", str(mount.path)).stdout
    assert f"{status['cache_evicted_contents']:,} contents, which did not fit into --cache-memory" in shown
    assert "of 1.0 MiB in use" in shown
