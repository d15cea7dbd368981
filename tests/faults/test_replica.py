"""A mount of a replica: it follows through a full resync, and reports that the link to the master is down."""

from pathlib import Path

import pytest

from tests.support.mounts import MountedServer, mount_server, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer, find_free_port
from tests.unit.test_monitor import keyspace_of, names, until

LINK_DOWN = r"the link to the master 127\.0\.0\.1:\d+ is down"


def replicate(replica: RedisServer, master: RedisServer) -> None:
    """Make a server the replica of another one, and wait until it is in sync."""
    client = replica.client()
    client.replicaof("127.0.0.1", master.port)
    wait_until(lambda: client.info("replication")["master_link_status"] == "up")


def diverge(replica: RedisServer, master: RedisServer) -> None:
    """Cut the replica off, and change the master so that only a full resync helps."""
    replica.client().replicaof("127.0.0.1", find_free_port())
    client = master.client()
    client.set("target", "B")
    client.delete("k:1")
    client.set("k:new", "1")
    client.execute_command("DEBUG", "CHANGE-REPL-ID")


@pytest.mark.parametrize("load", ["disabled", "swapdb"])
def test_a_full_resync(load: str) -> None:
    """All keys are scanned again, although most of them survive the resync and no message names the others."""
    debug = ["--enable-debug-command", "yes"]
    with (
        RedisServer(tcp=True, arguments=["--repl-diskless-sync-delay", "0", *debug]) as master,
        RedisServer(tcp=True, arguments=["--repl-diskless-load", load]) as replica,
    ):
        master.client().mset({**{f"k:{number}": str(number) for number in range(200)}, "target": "A"})
        replicate(replica, master)
        with keyspace_of(replica) as (keyspace, listener, _):
            keyspace.wait_until_ready(10)
            diverge(replica, master)
            wait_until(lambda: keyspace.master_link is not None and not keyspace.master_link.is_up)
            resets = listener.resets
            replicate(replica, master)
            expected = set(master.client().scan_iter(count=1000))
            assert b"k:new" in expected
            until(lambda: keyspace.is_ready and names(keyspace) == expected, 10.0)
            assert listener.resets > resets
            until(lambda: keyspace.master_link is not None and keyspace.master_link.is_up, 5.0)


def test_a_promotion(own_redis: RedisServer) -> None:
    """A replica that becomes a master has no link any more, and keeps its keys."""
    with RedisServer(tcp=True) as replica:
        own_redis.client().mset({"a": "1", "b": "2"})
        replicate(replica, own_redis)
        with keyspace_of(replica) as (keyspace, _, _):
            until(lambda: keyspace.is_ready and keyspace.master_link is not None, 10.0)
            replica.client().replicaof("NO", "ONE")
            until(lambda: keyspace.master_link is None, 5.0)
            assert names(keyspace) == {b"a", b"b"}


@pytest.mark.expected_log(LINK_DOWN)
@pytest.mark.possible_log(
    "the link to the master .* is up", "scanning the keys failed", "changes by other clients appear"
)
@pytest.mark.parametrize("tracking", [True, False])
def test_a_mount_reports_the_link(tmp_path: Path, own_redis: RedisServer, tracking: bool) -> None:
    """`status` and the log say that the link is down, also for a user who may not track changes."""
    with RedisServer(tcp=True) as replica:
        own_redis.client().set("k", "1")
        replicate(replica, own_redis)
        user = ""
        if not tracking:
            rules = ["on", ">pw", "~*", "&*", "+@all", "-client|tracking", "-subscribe"]
            replica.client().execute_command("ACL", "SETUSER", "untracked", *rules)
            user = "untracked:pw@"
        url = replica.tcp_url().replace("redis://", f"redis://{user}")
        with mount_server(tmp_path, url, "--rescan-seconds", "1", write=True) as mount:
            wait_until(lambda: (mount.status()["master_link"] or {}).get("is_up"))
            assert "is up" in status_row(tmp_path, mount)
            replica.client().replicaof("127.0.0.1", find_free_port())
            wait_until(lambda: not mount.status()["master_link"]["is_up"])
            assert "what is shown may be old" in status_row(tmp_path, mount)
            assert (mount.path / "k").read_text() == "1"
            replicate(replica, own_redis)
            wait_until(lambda: mount.status()["master_link"]["is_up"])


def status_row(folder: Path, mount: MountedServer) -> str:
    """Return what `redisfuse status` prints about the replica."""
    output = run_redisfuse(folder, "status", str(mount.path)).stdout
    return next(line for line in output.splitlines() if line.split()[0] == "replica")
