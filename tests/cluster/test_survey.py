"""`find`, `grep`, `top`, `dump` and `load` on a cluster: every key once, whichever node has it."""

import json
from pathlib import Path

import pytest

from tests.support.commands import read_lines as run
from tests.support.commands import run_in_process
from tests.support.mount_logs import SILENT
from tests.support.mounts import mount_server
from tests.support.redis_cluster import RedisCluster

pytestmark = pytest.mark.timeout(120)


def fill(cluster: RedisCluster) -> None:
    """Write 300 strings, 30 hashes beside them, and a list."""
    for number in range(300):
        cluster.set(b"s:%d" % number, b"value %d" % number)
    for number in range(30):
        key = b"h:%d" % number
        cluster.call(key, "HSET", key, "name", f"n{number}", "a.b", "x")
        cluster.set(key + b".name", b"shadowed by the field")
    cluster.call(b"queue", "RPUSH", "queue", *range(40))


def test_a_cluster_by_url(cluster: RedisCluster, tmp_path: Path) -> None:
    """The keys of all nodes are found once, with the paths that neighbours on other nodes require."""
    fill(cluster)
    url = cluster.url()
    assert len(run(tmp_path, "find", url)) == 361
    assert run(tmp_path, "find", url, "--count", "--type", "hash") == ["30"]
    assert run(tmp_path, "find", url, "--name", "7.name") == ["h/7%2Ename"]
    assert run(tmp_path, "find", url, "--field", "name", "--key", "h:1*") == sorted(
        f"h/{number}.name" for number in range(30) if str(number).startswith("1")
    )
    done = run_in_process(tmp_path, "find", url, "--elements", "+1", "--sort", "elements", "--limit", "1", "--json")
    assert json.loads(done.stdout)["key"] == "queue"
    assert run(tmp_path, "grep", "value 29.$", url) == [f"s/{number}:value {number}" for number in range(290, 300)]
    total = run(tmp_path, "top", url, "--by", "keys", "--depth", "0", "--limit", "0")
    assert total[0].split("\t")[0] == "361"
    assert run(tmp_path, "top", url, "--queues") == ["list\t40\t\t\t\t\t\tqueue"]
    sampled = run_in_process(tmp_path, "top", url, "--by", "keys", "--sample", "90", "--depth", "1")
    rows = {row[-1]: int(row[0]) for row in (line.split("\t") for line in sampled.stdout.splitlines()) if len(row) > 1}
    assert rows["total"] == 361
    assert 200 < rows["s/"] < 361


@pytest.mark.possible_log(SILENT, "answers again")
def test_a_path_in_a_mounted_cluster(cluster: RedisCluster, tmp_path: Path) -> None:
    """A path in the mount of a cluster leads to the cluster; one key is found once."""
    fill(cluster)
    with mount_server(tmp_path, cluster.url()) as mount:
        assert run(tmp_path, "find", str(mount.path / "s"), "--limit", "1000") == sorted(
            f"{mount.path}/s/{number}" for number in range(300)
        )
        for number in range(3):
            assert run(tmp_path, "find", f"{mount.path}/s/{number}") == [f"{mount.path}/s/{number}"]
            assert run(tmp_path, "grep", "value", f"{mount.path}/s/{number}") == [
                f"{mount.path}/s/{number}:value {number}"
            ]


def test_an_archive_of_a_cluster(cluster: RedisCluster, tmp_path: Path) -> None:
    """All keys are written once, and come back on the nodes that own their slots, with their expiries."""
    fill(cluster)
    cluster.call(b"s:1", "PEXPIREAT", b"s:1", 4_000_000_000_000)
    states = {key: cluster.call(key, "DUMP", key) for key in cluster.iter_keys()}
    archive = str(tmp_path / "all.jsonl")
    url = cluster.url()
    run_in_process(tmp_path, "dump", url, archive)
    cluster.flush()
    assert run(tmp_path, "load", archive, url) == ["361 keys: 361 created"]
    assert {key: cluster.call(key, "DUMP", key) for key in cluster.iter_keys()} == states
    assert cluster.call(b"s:1", "PEXPIRETIME", b"s:1") == 4_000_000_000_000
    assert run(tmp_path, "load", archive, url) == ["361 keys: 0 created, 361 unchanged"]
