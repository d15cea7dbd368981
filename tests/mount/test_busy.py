"""Many concurrent programs save at once, and each of their saves reaches the server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.bindings import BINDINGS
from tests.support.mounts import MountedServer, flush_and_wait, mount_server, wait_until
from tests.support.redis_server import RedisServer

PROGRAMS, EACH = 8, 100
SAVE = """
import os, sys
path, each, end = sys.argv[1:]
while True:
    for number in range(int(each)):
        with open(f"{path}-{number}", "wb", buffering=0) as file:
            file.write(b"%d" % number)
    if os.path.exists(end):
        break
"""


@pytest.fixture(scope="module", params=BINDINGS)
def mount(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedServer]:
    folder = tmp_path_factory.mktemp("busy")
    with mount_server(folder, server.url(), "--binding", request.param, write=True) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    flush_and_wait(server, mount)
    return server.client()


def test_many_programs_save_concurrently(client: redis.Redis, mount: MountedServer, tmp_path: Path) -> None:
    """Each acknowledged save is in its key."""
    end = tmp_path / "end"
    programs = [
        subprocess.Popen([sys.executable, "-c", SAVE, mount.path / f"p{number}", str(EACH), end])
        for number in range(PROGRAMS)
    ]
    try:
        wait_until(lambda: client.dbsize() == PROGRAMS * EACH, 60)
    finally:
        end.touch()
        statuses = [program.wait(60) for program in programs]
    assert not any(statuses)
    expected = {b"p%d-%d" % (program, number): b"%d" % number for program in range(PROGRAMS) for number in range(EACH)}
    names = list(expected)
    assert client.mget(names) == [expected[name] for name in names]
    assert client.dbsize() == len(expected)
    assert len(mount.path.joinpath("p0-1").read_bytes()) == 1
