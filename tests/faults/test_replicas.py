"""Mounts with `--replicas`: nothing is sent to a master, and values that are too old are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis

from tests.faults.test_replica import LINK_DOWN, replicate, status_row
from tests.faults.test_sentinel import FAILOVER_LOG
from tests.support.errno_of import errno_name
from tests.support.mounts import MountedServer, mount_server, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer, find_free_port
from tests.support.sentinels import SentinelService

REPLICATION_COMMANDS = {"info", "ping", "psync", "publish", "replconf"}
"""The commands of replicas and Sentinels."""


def count_commands(client: redis.Redis, ignored: set[str]) -> dict[str, Any]:
    """Return how often a server has executed each command."""
    statistics: dict[str, Any] = client.info("commandstats")  # type: ignore[assignment]
    names = {name: name.removeprefix("cmdstat_").partition("|")[0] for name in statistics}
    return {name: statistics[name]["calls"] for name in statistics if names[name] not in ignored}


def look_around(mount: MountedServer) -> None:
    """List, read and inspect what is mounted."""
    for path in mount.path.rglob("*"):
        path.stat()
        if path.is_file():
            path.read_bytes()


@pytest.mark.possible_log(
    "the connection to .* was (lost|closed)", "is a master", "was interrupted", "scanning the keys", LINK_DOWN
)
def test_a_standalone_replica(tmp_path: Path, own_redis: RedisServer) -> None:
    """The replica is followed, the master receives no command, and a replica that is promoted is left."""
    with RedisServer(tcp=True) as replica:
        client = own_redis.client()
        client.mset({f"dir:{number}": "x" for number in range(50)})
        client.hset("hash", mapping={"f": "v"})
        replicate(replica, own_redis)
        ignored = REPLICATION_COMMANDS | {"set"}
        before = count_commands(client, ignored)
        with mount_server(tmp_path, replica.tcp_url(), "--replicas") as mount:
            mount.wait_coherent()
            look_around(mount)
            client.set("dir:new", "1")
            wait_until(lambda: (mount.path / "dir" / "new").exists())
            assert mount.status()["replicas"]
            assert "from replicas" in mount.read_log()
            assert count_commands(client, ignored) == before
            replica.client().replicaof("NO", "ONE")
            wait_until(lambda: errno_name(lambda: (mount.path / "dir" / "1").read_text()) == "EIO")
            assert not [each for each in replica.client().client_list() if each["name"] == "redisfuse"]
            replicate(replica, own_redis)
            wait_until(lambda: errno_name(lambda: (mount.path / "dir" / "1").read_text()) == "")


def test_refusals(tmp_path: Path, own_redis: RedisServer) -> None:
    """A master is refused, and so are options that contradict each other."""
    folder = tmp_path / "mnt"
    folder.mkdir()
    for words, status, message in (
        (["--replicas"], 1, "is a master, and --replicas reads replicas only"),
        (["--replicas", "--write"], 2, "contradict each other"),
        (["--max-lag", "5"], 2, "add --replicas"),
    ):
        result = run_redisfuse(tmp_path, *words, own_redis.tcp_url(), str(folder))
        assert (result.returncode, message in result.stderr) == (status, True), result.stderr


@pytest.mark.expected_log(LINK_DOWN, "reads are refused")
@pytest.mark.possible_log(
    "the link to the master .* is up",
    "values are current again",
    "scanning the keys",
    "changes by other clients appear",
)
@pytest.mark.parametrize("tracking", [True, False])
def test_values_that_are_too_old(
    tmp_path: Path, own_redis: RedisServer, tracking: bool, request: pytest.FixtureRequest
) -> None:
    """Beyond --max-lag, reads and listings are EIO, whatever was cached, until the link is up again."""
    if not tracking:
        request.node.own_markers = [mark for mark in request.node.own_markers if mark.name != "expected_log"]
        request.node.add_marker(pytest.mark.possible_log(LINK_DOWN))
    with RedisServer(tcp=True) as replica:
        own_redis.client().mset({"k": "1", "other": "2"})
        own_redis.client().config_set("repl-ping-replica-period", 1)
        replicate(replica, own_redis)
        user = ""
        if not tracking:
            rules = ["on", ">pw", "~*", "&*", "+@all", "-client|tracking", "-subscribe"]
            replica.client().execute_command("ACL", "SETUSER", "untracked", *rules)
            user = "untracked:pw@"
        url = replica.tcp_url().replace("redis://", f"redis://{user}")
        with mount_server(tmp_path, url, "--replicas", "--max-lag", "3") as mount:
            assert (mount.path / "k").read_text() == "1"
            wait_until(lambda: mount.status()["lag_seconds"] is not None)
            assert "s old" in status_row(tmp_path, mount)
            replica.client().replicaof("127.0.0.1", find_free_port())
            wait_until(lambda: errno_name(lambda: (mount.path / "k").read_text()) == "EIO", 8.0)
            assert errno_name(lambda: (mount.path / "other").read_text()) == "EIO"
            wait_until(lambda: errno_name(lambda: list(mount.path.iterdir())) == "EIO", 4.0)
            assert "so reads are refused (--max-lag 3)" in status_row(tmp_path, mount)
            own_redis.client().set("k", "3")
            replicate(replica, own_redis)
            wait_until(lambda: errno_name(lambda: (mount.path / "k").read_text()) == "", 8.0)
            wait_until(lambda: (mount.path / "k").read_text() == "3", 8.0)
            assert {path.name for path in mount.path.iterdir()} == {"k", "other", "%"} - {"%"}


@pytest.mark.possible_log(*FAILOVER_LOG, "mymaster has a new replica", "is a replica:", "the link to the master")
def test_replicas_of_sentinel(tmp_path: Path) -> None:
    """A replica that the Sentinels name is read, another one after its promotion, and never a master."""
    ignored = REPLICATION_COMMANDS | {"set", "client", "slaveof", "config", "subscribe", "multi", "exec"}
    with SentinelService(replicas=2) as service:
        old = service.master
        client = old.client()
        client.mset({f"dir:{number}": "x" for number in range(20)})
        before = count_commands(client, ignored)
        with mount_server(tmp_path, service.url, "--replicas") as mount:
            mount.wait_coherent()
            look_around(mount)
            assert count_commands(client, ignored) == before
            (used,) = [server for server in service.servers if connections(server)]
            assert used is not old
            other = next(server for server in service.servers if server not in (old, used))
            other.client().config_set("replica-priority", 0)  # so that the replica in use is promoted
            wait_until(lambda: has_priority_zero(service, other), 15.0)
            service.fail_over()
            assert service.wait_switched(old) is used
            wait_until(lambda: not connections(used), 5.0)
            used_client = used.client()
            used_client.ping()
            during = count_commands(used_client, ignored)
            used_client.set("dir:new", "1")
            wait_until(lambda: errno_name(lambda: (mount.path / "dir" / "new").read_text()) == "")
            look_around(mount)
            assert count_commands(used_client, ignored) == during


def connections(server: RedisServer) -> list[dict[str, str]]:
    """Return the connections of mounts to a server."""
    return [each for each in server.client().client_list() if each["name"] == "redisfuse"]


def has_priority_zero(service: SentinelService, replica: RedisServer) -> bool:
    """Return whether the first Sentinel knows that a replica is not to be promoted."""
    replies = service.sentinels[0].client().execute_command("SENTINEL", "REPLICAS", "mymaster")
    state = next(each for each in replies if int(each[b"port"]) == replica.port)
    return bool(state[b"slave-priority"] == b"0")
