"""Fail-overs by three real Sentinels, planned, by a crash and by a hang: no acknowledged save is lost."""

from __future__ import annotations

import contextlib
import errno
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from redisfuse.client.address import Address
from redisfuse.client.address_map import AddressMap
from redisfuse.client.client import RedisClient
from redisfuse.client.limits import Limits
from redisfuse.errors import TryAgainError, UnavailableError, UnconfirmedWriteError
from tests.support.mounts import MountedServer, mount_server, run_redisfuse, wait_until
from tests.support.sentinels import SentinelService, find_low_port

FAILOVER_LOG = (
    "a fail-over of mymaster (is in progress|has ended)",
    "mymaster has a new master",
    "was interrupted",
    "changes are followed again",
    "has not answered for 2 s",
    "scanning the keys failed",
    "connecting to .* failed",
    "did not reply in time",
    "the connection to .* was lost",
    "a fail-over is in progress",
    "the outcome of the change",
    "its bytes are kept as change",
)


class Saver:
    """Saves ever new files in a mount, in a thread, and notes which of them were acknowledged."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ending = threading.Event()
        self.acknowledged: dict[str, str] = {}
        self.errors: list[int] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        number = 0
        while not self._ending.is_set():
            number += 1
            try:
                (self._folder / f"saved-{number}").write_text(f"content {number}")
                self.acknowledged[f"saved-{number}"] = f"content {number}"
            except OSError as error:
                self.errors.append(error.errno or 0)
            time.sleep(0.002)

    def __enter__(self) -> Saver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()


@contextlib.contextmanager
def mounts(folder: Path, url: str) -> Iterator[tuple[MountedServer, MountedServer]]:
    """Mount the service twice, to read and to write."""
    for name in ("read", "write"):
        (folder / name).mkdir()
    with (
        mount_server(folder / "read", url) as reader,
        mount_server(folder / "write", url, write=True) as writer,
    ):
        reader.wait_coherent()
        writer.wait_coherent()
        yield reader, writer


@pytest.mark.possible_log(*FAILOVER_LOG)
@pytest.mark.parametrize("cause", ["planned", "crash", "hang"])
def test_a_fail_over_loses_nothing_acknowledged(tmp_path: Path, cause: str) -> None:
    """Each acknowledged save is in the new master, and reads are those of the new master within 2 s."""
    with SentinelService() as service:
        old = service.master
        old.client().set("read", "before")
        with mounts(tmp_path, service.url) as (reader, writer), Saver(writer.path) as saver:
            assert (reader.path / "read").read_text() == "before"
            wait_until(lambda: len(saver.acknowledged) > 50)
            {"planned": service.fail_over, "crash": old.kill, "hang": old.pause}[cause]()
            new = service.wait_switched(old)
            switched_at, count = time.monotonic(), len(saver.acknowledged)
            new.client().set("read", "after")
            for mount in (reader, writer):
                wait_until(lambda: (mount.path / "read").read_text() == "after", 2.0)  # noqa: B023
            assert time.monotonic() < switched_at + 2.0
            wait_until(lambda: len(saver.acknowledged) > count + 50)
            if cause == "hang":
                old.resume()
            acknowledged = {*saver.acknowledged}  # more are saved meanwhile
            for mount in (reader, writer):
                wait_until(lambda: {entry.name for entry in mount.path.iterdir()} >= acknowledged)  # noqa: B023
        assert set(saver.errors) <= {errno.EAGAIN, errno.EIO}
        stored = {key.decode(): value.decode() for key, value in _read_all(new.client())}
        lost = {name for name, content in saver.acknowledged.items() if stored.get(name) != content}
        assert not lost
        rows = run_redisfuse(tmp_path / "write", "log", "--json").stdout
        assert '"pending"' not in rows
        assert '"unknown"' not in rows


def _read_all(client: object) -> Iterator[tuple[bytes, bytes]]:
    keys = list(client.scan_iter("saved-*", count=1000))  # type: ignore[attr-defined]
    return zip(keys, client.mget(keys), strict=True)  # type: ignore[attr-defined]


def test_a_write_during_a_fail_over() -> None:
    """A write waits for the end of a fail-over, or is refused with EAGAIN; one that it overtook is not confirmed."""
    with SentinelService() as service:
        client = RedisClient(Address.parse(service.url), Limits(timeout=0.3), writable=True)
        with contextlib.closing(client):
            client.connect()
            sentinels = client.sentinels
            assert sentinels is not None
            old = service.master
            with client.write_channel() as channel:
                assert channel.execute([("SET", "k", "1")]) == [b"OK"]
                client.confirm_write(channel)
                assert channel.execute([("SET", "k", "2")]) == [b"OK"]
                service.fail_over()
                with pytest.raises(UnconfirmedWriteError, match="a fail-over"):
                    client.confirm_write(channel)
            with pytest.raises(TryAgainError, match="in progress"), client.write_channel():
                pass
            new = service.wait_switched(old)
            sentinels.check_writable(10)
            with client.write_channel() as channel:
                assert channel.endpoint == ("127.0.0.1", new.port)
                assert channel.execute([("GETRANGE", "k", "0", "-1")]) == [b"2"]


def test_too_few_sentinels() -> None:
    """With one of three Sentinels, a fail-over could pass unnoticed: reads work, writes are EAGAIN."""
    with SentinelService() as service:
        client = RedisClient(Address.parse(service.url), Limits(timeout=0.3), writable=True)
        with contextlib.closing(client):
            client.connect()
            sentinels = client.sentinels
            assert sentinels is not None
            wait_until(lambda: sentinels.count_sentinels() == (3, 3))
            service.sentinels[0].kill()
            service.sentinels[1].pause()
            wait_until(lambda: sentinels.count_sentinels() == (1, 3), 6.0)
            assert client.execute("PING") == b"PONG"
            with pytest.raises(TryAgainError, match="only 1 of 3 Sentinels answer"), client.write_channel():
                pass
            service.sentinels[1].resume()
            sentinels.check_writable(10)
            with client.write_channel() as channel:
                assert channel.execute([("SET", "k", "1")]) == [b"OK"]
                client.confirm_write(channel)


def test_an_unnamed_sentinel_and_mapped_addresses(tmp_path: Path) -> None:
    """Sentinels that the URL doesn't name are polled too, and announced addresses are reached as mapped."""
    with SentinelService(sentinels=2) as service:
        first, second = service.sentinels
        url = f"redis+sentinel://127.0.0.1:{first.port}/mymaster/0"
        with contextlib.closing(RedisClient(Address.parse(url), Limits(timeout=2))) as client:
            client.connect()
            sentinels = client.sentinels
            assert sentinels is not None
            wait_until(lambda: sentinels.count_sentinels() == (2, 2))
        result = run_redisfuse(tmp_path, "doctor", "--json", url)
        assert result.returncode == 0, result.stdout + result.stderr
        findings = [(row["check"], row["ok"], row["says"]) for row in map(json.loads, result.stdout.splitlines())]
        master = f"127.0.0.1:{service.master_port()}"
        for sentinel in (first, second):
            assert ("sentinel", True, f"127.0.0.1:{sentinel.port}: the master of mymaster is {master}") in findings
        assert ("sentinels", True, "2 of 2 answer") in findings
        (replica,) = [says for check, ok, says in findings if check == "replica" and ok]
        assert replica.startswith(f"127.0.0.1:{service.servers[1].port}: online")
        closed = find_low_port()
        entries = [f"127.0.0.1:{service.master_port()}=127.0.0.1:{closed}"]
        address_map = AddressMap.parse(entries)
        with (
            contextlib.closing(RedisClient(Address.parse(url), Limits(timeout=1), address_map=address_map)) as client,
            pytest.raises(UnavailableError, match=f"through 127.0.0.1:{closed} failed"),
        ):
            client.connect()
        url = "redis+sentinel://sentinel.invalid:26379/mymaster/0"
        address_map = AddressMap.parse([f"sentinel.invalid:26379=127.0.0.1:{second.port}"])
        with contextlib.closing(RedisClient(Address.parse(url), Limits(timeout=2), address_map=address_map)) as client:
            client.connect()
