"""`--wait-replicas`: a change is applied when replicas have it, and pending until then."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.test_replica import replicate
from tests.support.errno_of import change_states, save_file
from tests.support.mounts import mount_server, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer


@pytest.mark.possible_log("confirmed the write", "did not confirm change", "its bytes are kept")
def test_a_replica_that_hangs(tmp_path: Path, own_redis: RedisServer) -> None:
    """A save that no replica confirms fails and stays pending; it is applied as soon as the replica has it."""
    with RedisServer(tcp=True) as replica:
        replicate(replica, own_redis)
        options = ["--wait-replicas", "1", "--timeout", "1"]
        with mount_server(tmp_path, own_redis.tcp_url(), *options, write=True) as mount:
            assert save_file(mount.path / "a", b"1") == ""
            assert replica.client().get("a") == b"1"
            replica.pause()
            try:
                assert save_file(mount.path / "b", b"2") in ("EIO", "EAGAIN")
                assert own_redis.client().get("b") == b"2"
                assert change_states(mount)[1] == "pending"
                assert save_file(mount.path / "c", b"3") in ("EIO", "EAGAIN")
            finally:
                replica.resume()
            wait_until(lambda: "pending" not in change_states(mount))
            assert change_states(mount)[:2] == ["applied", "applied"]
            assert save_file(mount.path / "d", b"4") == ""
            assert replica.client().get("b") == b"2"
            archive = tmp_path / "archive.jsonl"
            result = run_redisfuse(tmp_path, "dump", own_redis.tcp_url(), str(archive))
            assert result.returncode == 0, result.stderr
            waits = count_waits(own_redis)
            result = run_redisfuse(tmp_path, "load", str(archive), str(mount.path), "--rename", "=copy:")
            assert result.returncode == 0, result.stderr
            assert replica.client().get("copy:d") == b"4"
            assert count_waits(own_redis) > waits
        result = run_redisfuse(tmp_path, "rollback", "--wait-replicas", "1", "2")
        assert result.returncode == 0, result.stderr
        assert replica.client().get("b") is None
        result = run_redisfuse(tmp_path, "rollback", "--wait-replicas", "2", "--timeout", "1", "1")
        assert result.returncode == 1
        assert "1 of the 2 replicas" in result.stderr
        load = ["load", str(archive), own_redis.tcp_url(), "--rename", "=more:", "--timeout", "1", "--wait-replicas"]
        result = run_redisfuse(tmp_path, *load, "2")
        assert "1 of the 2 replicas" in result.stderr
        assert result.returncode == 1
        result = run_redisfuse(tmp_path, *load, "1")
        assert result.returncode == 0, result.stderr
        assert replica.client().get("more:d") == b"4"
        own_redis.client().set(".a.swp", "junk")
        result = run_redisfuse(tmp_path, "junk", "clean", "--yes", "--wait-replicas", "1", own_redis.tcp_url())
        assert result.returncode == 0, result.stderr
        assert replica.client().get(".a.swp") is None


def count_waits(redis: RedisServer) -> int:
    """Return the number of WAIT commands that a server received."""
    return int(redis.client().info("commandstats")["cmdstat_wait"]["calls"])


def test_a_user_without_wait(tmp_path: Path, own_redis: RedisServer) -> None:
    """A user that may not use WAIT is refused when the mount starts."""
    own_redis.client().execute_command("ACL", "SETUSER", "nowait", "on", ">pw", "~*", "&*", "+@all", "-wait")
    url = own_redis.tcp_url().replace("redis://", "redis://nowait:pw@")
    folder = tmp_path / "mnt"
    folder.mkdir()
    result = run_redisfuse(tmp_path, "--write", "--wait-replicas", "1", url, str(folder))
    assert result.returncode == 1
    assert "+wait" in result.stderr
