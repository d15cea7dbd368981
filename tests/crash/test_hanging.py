"""Kills of a mount after which programs would hang in the kernel without the abort watchdog."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import mount_server, wait_until
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer

HUNG = 30.0  # seconds of the time-out: longer than the test takes


@pytest.fixture
def proxy(own_redis: RedisServer) -> Iterator[Proxy]:
    with Proxy(own_redis.socket_path) as proxy:
        yield proxy


def notifier_hangs(pid: int) -> bool:
    """Return whether a thread of a process waits in the kernel for a request to end."""
    states = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            states.append((task / "stat").read_bytes().rpartition(b")")[2].split()[0])
    return b"D" in states


@pytest.mark.parametrize(("binding", "then"), [("fusepy", "nothing"), ("mfusepy", "nothing"), ("mfusepy", "umount -l")])
def test_killed_while_a_notification_waits_for_a_request(
    own_redis: RedisServer, proxy: Proxy, tmp_path: Path, binding: str, then: str
) -> None:
    """A mount that is killed during an unlink, with a pending notification for the directory, unblocks the program.

    It may be unmounted lazily before its watchdog has acted.
    """
    client = own_redis.client()
    client.mset({f"k{number}": "v" for number in range(8)})
    errors: list[OSError] = []
    with mount_server(tmp_path, proxy.url(), "--timeout", str(HUNG), "--binding", binding, write=True) as mount:
        mount.wait_coherent()
        for number in range(8):
            os.stat(mount.path / f"k{number}")
        proxy.inject("hang", "EXEC", skip=1)  # the first one comes from the test of the permission

        def remove() -> None:
            try:
                os.unlink(mount.path / "k0")
            except OSError as error:
                errors.append(error)

        thread = threading.Thread(target=remove, daemon=True)
        thread.start()
        wait_until(lambda: proxy.commands.count("EXEC") > 1)
        client.delete(*(f"k{number}" for number in range(1, 8)))
        wait_until(lambda: notifier_hangs(mount.process.pid))
        mount.process.kill()
        if then == "umount -l":
            subprocess.run(["umount", "-l", mount.path], check=True, timeout=10)
        thread.join(10)
        assert not thread.is_alive()
        assert mount.process.wait(10) == -9
    assert len(errors) == 1
    with mount_server(tmp_path, own_redis.tcp_url(), write=True) as mount:
        assert os.listdir(mount.path) == ["k0"]
