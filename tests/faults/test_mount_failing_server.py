"""A write mount on a failing server: the program's errno, the journal's rows and the data in Redis.

Every fault is real, on a real server or on the wire to it. Each test uses the same mount again afterwards.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.faults.conftest import TIMEOUT, MakeMount
from tests.support.changes import monitor_writes
from tests.support.errno_of import change_states, errno_name, journal_changes, save_file, time_call
from tests.support.mount_logs import INTERRUPTED, KEPT
from tests.support.mounts import MountedServer, run_redisfuse, wait_until
from tests.support.proxy import FaultKind, Proxy
from tests.support.redis_server import RedisServer, find_free_port

MOST_SECONDS = 3 * TIMEOUT  # of a call: an attempt, the check of its result, and a slow machine
UNAVAILABLE = ("EIO", "ETIMEDOUT")


@pytest.fixture
def proxy(own_redis: RedisServer) -> Iterator[Proxy]:
    with Proxy(own_redis.socket_path) as proxy:
        yield proxy


@pytest.fixture
def proxied(proxy: Proxy, client: redis.Redis, make_mount: MakeMount) -> MountedServer:
    """Mount the server through the proxy, and let the mount connect."""
    mount = make_mount(proxy.url())
    assert save_file(mount.path / "warm", b"up") == ""
    client.delete("warm")
    wait_until(lambda: not (mount.path / "warm").exists())
    return mount


def assert_states(mount: MountedServer, key: bytes, *expected: str) -> None:
    """Check the states of a key's rows, oldest first; `applied` is recorded a little later than the change."""
    wait_until(lambda: change_states(mount, key) == list(expected))


def assert_works(mount: MountedServer, client: redis.Redis) -> None:
    """Check that the mount reads and saves shortly after the fault."""
    wait_until(lambda: save_file(mount.path / "again", b"value") == "", 10)
    assert client.get("again") == b"value"
    wait_until(lambda: (mount.path / "again").read_bytes() == b"value", 5)
    wait_until(lambda: "again" in os.listdir(mount.path), 10)
    client.delete("again")


# -- servers that are down -------------------------------------------------------------------------------------------


@pytest.mark.expected_log(INTERRUPTED)
def test_a_server_restarts_with_its_data(make_mount: MakeMount) -> None:
    """Reads, saves and listings fail in time while the server is down, and succeed after it restarts with its data.

    An edit that was open is saved after the restart, and the mount need not be mounted again.
    """
    with RedisServer(tcp=True, persist=True) as server:
        server.client().set("k", "old")
        mount = make_mount(server.tcp_url())
        with (mount.path / "k").open("r+b", buffering=0) as file:
            file.write(b"new")
            server.kill()
            wait_until(lambda: not mount.status()["live"], 5)
            for act in (lambda: (mount.path / "other").read_bytes(), lambda: os.listdir(mount.path)):
                error, took = time_call(errno_name, act)
                assert error in UNAVAILABLE
                assert took < MOST_SECONDS
            error, took = time_call(errno_name, os.fsync, file.fileno())
            assert error in UNAVAILABLE
            assert took < MOST_SECONDS
            server.start()
            wait_until(lambda: errno_name(os.fsync, file.fileno()) == "", 10)
        assert server.client().get("k") == b"new"
        assert_states(mount, b"k", "applied")
        assert_works(mount, server.client())


@pytest.mark.expected_log(INTERRUPTED, KEPT)
def test_a_save_to_a_server_that_is_down_is_journaled(make_mount: MakeMount) -> None:
    """A save that failed because the server was down is in the journal."""
    with RedisServer(tcp=True, persist=True) as server:
        server.client().set("k", "old")
        mount = make_mount(server.tcp_url())
        descriptor = os.open(mount.path / "k", os.O_WRONLY)
        os.write(descriptor, b"new")
        server.kill()
        assert errno_name(os.close, descriptor) in UNAVAILABLE
        wait_until(lambda: change_states(mount, b"k") == ["refused"], 5)
        [change] = journal_changes(mount, b"k")
        assert change.new.content is not None
        assert change.new.content.size == 3
        server.start()
        assert server.client().get("k") == b"old"
        assert_works(mount, server.client())


@pytest.mark.expected_log(INTERRUPTED, KEPT)
def test_an_edit_of_a_large_value_is_journaled(make_mount: MakeMount, tmp_path: Path) -> None:
    """The journal keeps the written parts of a large value, and `apply` writes them later.

    The other parts are only on the server.
    """
    large = bytes(range(256)) * 8192
    with RedisServer(tcp=True, persist=True) as server:
        server.client().set("k", large)
        mount = make_mount(server.tcp_url())
        descriptor = os.open(mount.path / "k", os.O_WRONLY)
        os.pwrite(descriptor, b"first", 100)
        os.pwrite(descriptor, b"second", len(large))
        server.kill()
        assert errno_name(os.close, descriptor) in UNAVAILABLE
        wait_until(lambda: change_states(mount, b"k") == ["refused", "refused"], 10)
        server.start()
        assert server.client().get("k") == large
        for change in journal_changes(mount, b"k"):
            done = run_redisfuse(tmp_path, "apply", str(change.id), "--journal-file", str(mount.journal))
            assert done.returncode == 0, done.stderr
        assert server.client().get("k") == large[:100] + b"first" + large[105:] + b"second"


@pytest.mark.expected_log(INTERRUPTED)
def test_a_server_restarts_empty(own_redis: RedisServer, client: redis.Redis, mount: MountedServer) -> None:
    """After the server restarts empty, a file is ENOENT, and an edit of a missing key is a conflict."""
    descriptor = os.open(mount.path / "k", os.O_RDWR)
    os.write(descriptor, b"new")
    own_redis.restart()
    wait_until(lambda: mount.status()["live"] and mount.status()["ready"], 10)
    assert errno_name(lambda: (mount.path / "other").read_bytes()) == "ENOENT"
    assert errno_name(os.close, descriptor) == "ESTALE"
    assert errno_name(lambda: (mount.path / "k").read_bytes()) == "ENOENT"
    assert client.dbsize() == 0
    assert change_states(mount, b"k") == ["refused"]
    assert_works(mount, client)


@pytest.mark.expected_log(f"did not reply in time.*{KEPT}")
@pytest.mark.possible_log(INTERRUPTED)
def test_a_server_hangs(own_redis: RedisServer, client: redis.Redis, mount: MountedServer) -> None:
    """Each call fails within the time-out while the server hangs (SIGSTOP), and succeeds when it continues.

    The edit is then applied or not, as its row records.
    """
    descriptor = os.open(mount.path / "k", os.O_WRONLY)
    os.write(descriptor, b"new")
    own_redis.pause()
    try:
        error, took = time_call(errno_name, os.close, descriptor)
        assert error in UNAVAILABLE
        assert took < MOST_SECONDS
        error, took = time_call(errno_name, (mount.path / "other").read_bytes)
        assert error in (*UNAVAILABLE, "EAGAIN")
        assert took < MOST_SECONDS
    finally:
        own_redis.resume()
    assert_works(mount, client)
    wait_until(lambda: "pending" not in change_states(mount, b"k"), 5)
    assert client.get("k") == (b"new" if "applied" in change_states(mount, b"k") else b"old")


@pytest.mark.expected_log(f"change 2.*{KEPT}")
@pytest.mark.possible_log(INTERRUPTED)
def test_a_server_hangs_after_a_write(
    own_redis: RedisServer, client: redis.Redis, proxy: Proxy, proxied: MountedServer
) -> None:
    """When the reply to a write is lost and the server hangs, the save fails and its row is pending.

    When the server continues, the row becomes `applied`, and there is no second row.
    """
    fault = proxy.inject("hang_reply", "EXEC", times=1)
    result: list[str] = []
    saver = threading.Thread(target=lambda: result.append(save_file(proxied.path / "k", b"new")))
    saver.start()
    wait_until(lambda: fault.hits and client.get("k") == b"new")
    own_redis.pause()
    try:
        saver.join(3 * MOST_SECONDS)
        assert result[0] in UNAVAILABLE
        assert change_states(proxied, b"k") == ["pending"]
    finally:
        own_redis.resume()
    assert_works(proxied, client)
    assert_states(proxied, b"k", "applied")
    assert client.get("k") == b"new"


@pytest.mark.parametrize("size", [3, 3_000_000])
@pytest.mark.parametrize("more", [b"", b" and more"])
@pytest.mark.parametrize("flags", [os.O_TRUNC, os.O_APPEND])
def test_a_second_fsync_after_a_lost_reply(
    client: redis.Redis, proxy: Proxy, proxied: MountedServer, size: int, more: bytes, flags: int
) -> None:
    """A save that the server applied without a reply does not conflict with the program's next save."""
    client.set("other", b"o" * size)
    wait_until(lambda: (proxied.path / "other").exists())
    descriptor = os.open(proxied.path / "other", os.O_WRONLY | flags)
    written = b"n" * size
    os.write(descriptor, written)
    proxy.inject("lost_reply", "EXEC", times=1)
    proxy.refuse_connections()
    assert errno_name(os.fsync, descriptor) in UNAVAILABLE
    assert change_states(proxied, b"other") == ["pending"]
    proxy.clear()
    if more:
        os.write(descriptor, more)
    wait_until(lambda: errno_name(os.fsync, descriptor) == "")
    assert errno_name(os.close, descriptor) == ""
    expected = (b"" if flags & os.O_TRUNC else b"o" * size) + written + more
    assert client.get("other") == expected
    assert_states(proxied, b"other", *["applied"] * (1 + bool(more)))


@pytest.mark.parametrize(
    "call", ["STRLEN", pytest.param("EXEC", marks=pytest.mark.expected_log(f"did not reply in time.*{KEPT}"))]
)
def test_a_hanging_request_does_not_block_others(
    client: redis.Redis, proxy: Proxy, proxied: MountedServer, call: str
) -> None:
    """While one file's request hangs, other files are read at once, in its directory and elsewhere."""
    client.mset({name: "x" for number in range(8) for name in (f"other{number}", f"d:{number}")})
    wait_until(lambda: proxied.status()["keys"] == 17)
    fault = proxy.inject("hang", call, times=1)
    act = (proxied.path / "k").read_bytes if call == "STRLEN" else lambda: save_file(proxied.path / "k", b"new")
    hanging = threading.Thread(target=errno_name, args=(act,))
    hanging.start()
    wait_until(lambda: fault.hits)
    for number in range(8):
        assert (proxied.path / f"other{number}").read_bytes() == b"x"
    assert len(os.listdir(proxied.path / "d")) == 8
    assert hanging.is_alive()
    hanging.join(20)
    if call == "EXEC":  # else an unmount before the release could save it after all
        wait_until(lambda: "kept as change" in proxied.read_log())


@pytest.mark.parametrize("is_synced", [False, True])
def test_a_rename_of_a_held_file_whose_reply_is_lost(
    client: redis.Redis, proxy: Proxy, proxied: MountedServer, is_synced: bool
) -> None:
    """The server has renamed it, so its content is not saved again under the temporary name, nor held for recovery."""
    client.set("k", "old")
    wait_until(lambda: (proxied.path / "k").read_bytes() == b"old")
    temporary = proxied.path / ".k.AbC123"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, b"new")
    proxy.inject("lost_reply", "EXEC", times=1)
    proxy.refuse_connections()
    assert errno_name(os.rename, temporary, proxied.path / "k") in UNAVAILABLE
    if is_synced:
        os.fsync(descriptor)
    os.close(descriptor)
    proxy.clear()
    assert_works(proxied, client)
    assert proxied.stop() == 0
    assert (client.get("k"), client.keys()) == (b"new", [b"k"])
    assert {change.outcome for change in journal_changes(proxied)} == {"applied"}


# -- replies that are lost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lost_reply", "lost_reset", "partial", "garbage", "hang_reply"])
def test_the_reply_to_a_write_is_lost(
    client: redis.Redis, proxy: Proxy, proxied: MountedServer, kind: FaultKind
) -> None:
    """A write whose reply was lost succeeds, because the mount reads the key: it was made once and has one row."""
    client.set("log", "a")
    wait_until(lambda: (proxied.path / "log").exists())
    proxy.inject(kind, "EXEC", times=1)
    with (proxied.path / "log").open("ab", buffering=0) as file:
        file.write(b"b")
    assert client.get("log") == b"ab"
    assert_states(proxied, b"log", "applied")
    assert_works(proxied, client)


@pytest.mark.expected_log(f"(was lost|did not reply in time).*{KEPT}")
@pytest.mark.parametrize("kind", ["drop", "reset", "hang"])
def test_a_write_is_lost(client: redis.Redis, proxy: Proxy, proxied: MountedServer, kind: FaultKind) -> None:
    """A write that did not reach the server fails and is not sent again; its row is `failed`, the old value is kept."""
    proxy.inject(kind, "EXEC", times=1)
    error, took = time_call(save_file, proxied.path / "k", b"new")
    assert error in UNAVAILABLE
    assert took < MOST_SECONDS
    assert client.get("k") == b"old"
    assert change_states(proxied, b"k") == ["failed"]
    assert_works(proxied, client)
    assert client.get("k") == b"old"


def test_garbage_for_a_read(client: redis.Redis, proxy: Proxy, proxied: MountedServer) -> None:
    """Bytes that are no reply are EIO, close the connection, and are never cached."""
    client.set("fresh", "value")
    wait_until(lambda: proxied.status()["keys"] == 2)
    proxy.inject("garbage", "GETRANGE", times=1)
    assert errno_name((proxied.path / "fresh").read_bytes) == "EIO"
    assert (proxied.path / "fresh").read_bytes() == b"value"


def test_slow_server(client: redis.Redis, proxy: Proxy, proxied: MountedServer) -> None:
    """A save waits for a reply that takes half the time-out."""
    proxy.inject("delay", "EXEC", times=1, seconds=TIMEOUT / 2)
    assert save_file(proxied.path / "k", b"new") == ""
    assert client.get("k") == b"new"


# -- servers that refuse ---------------------------------------------------------------------------------------------


@pytest.mark.expected_log(f"out of memory.*{KEPT}")
def test_out_of_memory(client: redis.Redis, mount: MountedServer) -> None:
    """OOM is ENOSPC, with a failed row and the old value kept; a removal succeeds and is journaled."""
    client.config_set("maxmemory", "1")
    assert save_file(mount.path / "k", b"new") == "ENOSPC"
    assert client.get("k") == b"old"
    assert_states(mount, b"k", "failed")
    (mount.path / "k").unlink()
    assert not client.exists("k")
    assert_states(mount, b"k", "failed", "applied")
    client.config_set("maxmemory", "0")
    assert_works(mount, client)


@pytest.mark.expected_log(f"read-only replica.*{KEPT}")
def test_replica(own_redis: RedisServer, client: redis.Redis, mount: MountedServer) -> None:
    """READONLY is EROFS, with a failed row and without retries; after the promotion a save succeeds."""
    client.replicaof("127.0.0.1", str(find_free_port()))
    with monitor_writes(own_redis, b"k") as commands:
        assert save_file(mount.path / "k", b"new") == "EROFS"
    assert len(commands) <= 1
    assert change_states(mount, b"k") == ["failed"]
    assert (mount.path / "k").read_bytes() == b"old"
    client.replicaof("no", "one")
    assert_works(mount, client)


def test_a_refused_removal_of_an_open_file(client: redis.Redis, mount: MountedServer) -> None:
    """An unlink fails if the server refuses it, and a descriptor of the file remains usable."""
    with (mount.path / "k").open("r+b", buffering=0) as file:
        client.replicaof("127.0.0.1", str(find_free_port()))
        assert errno_name((mount.path / "k").unlink) == "EROFS"
        client.replicaof("no", "one")
        assert file.read() == b"old"
        file.write(b"!")
    wait_until(lambda: client.get("k") == b"old!")
    assert "k" in os.listdir(mount.path)
    assert client.keys("*fuse*") == []


@pytest.mark.possible_log("the link to the master")
def test_replica_without_its_master(client: redis.Redis, mount: MountedServer) -> None:
    """MASTERDOWN is an error of reads, saves and listings: a listing is never empty."""
    client.config_set("replica-serve-stale-data", "no")
    client.replicaof("127.0.0.1", str(find_free_port()))
    try:
        assert errno_name((mount.path / "other").read_bytes) in (*UNAVAILABLE, "EAGAIN")
        assert save_file(mount.path / "k", b"new") in (*UNAVAILABLE, "EAGAIN")
        wait_until(lambda: errno_name(os.listdir, mount.path) in (*UNAVAILABLE, "EAGAIN"), 10)
    finally:
        client.replicaof("no", "one")
    assert_works(mount, client)
    assert client.get("k") == b"old"


@pytest.mark.expected_log(f"(NOREPLICAS|MISCONF).*{KEPT}")
@pytest.mark.possible_log(INTERRUPTED)  # the server ends before the mount
@pytest.mark.parametrize(
    ("setting", "errors"),
    [(("min-replicas-to-write", "3"), UNAVAILABLE), (("save", "1 1"), ("EROFS", "ENOSPC"))],
)
@pytest.mark.possible_log("its bytes are kept as change")
def test_writes_are_refused(make_mount: MakeMount, setting: tuple[str, str], errors: tuple[str, ...]) -> None:
    """NOREPLICAS and MISCONF change nothing, and the row is `failed`."""
    with RedisServer(tcp=True, arguments=["--enable-protected-configs", "yes"]) as server:
        client = server.client()
        client.set("k", "old")
        mount = make_mount(server.tcp_url())
        if setting[0] == "save":  # a snapshot that can't be written
            client.config_set("dir", "/proc")
            client.bgsave()
            wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        client.config_set(*setting)
        assert save_file(mount.path / "k", b"new") in errors
        assert client.get("k") == b"old"
        assert change_states(mount, b"k") == ["failed"]


@pytest.mark.expected_log(f"ACL.*{KEPT}")
@pytest.mark.parametrize("rules", [["+@all", "-set", "~*", "&*"], ["+@all", "%R~*", "&*"]])
def test_denied_by_the_acl(
    own_redis: RedisServer, client: redis.Redis, make_mount: MakeMount, rules: list[str]
) -> None:
    """NOPERM for a command or a key is EACCES; nothing is written, and there is a failed row or none."""
    client.execute_command("ACL", "SETUSER", "writer", "on", ">s3cr3t", *rules)
    mount = make_mount(f"redis://writer:s3cr3t@127.0.0.1:{own_redis.port}/0")
    assert save_file(mount.path / "k", b"new") == "EACCES"
    assert client.get("k") == b"old"
    assert change_states(mount, b"k") in ([], ["failed"])
    assert "s3cr3t" not in mount.read_log()


def test_keys_that_the_acl_hides(own_redis: RedisServer, client: redis.Redis, make_mount: MakeMount) -> None:
    """Keys that the ACL hides are listed with mode 000; to read, save or remove them is EACCES. Others work."""
    client.mset({"app:a": "1", "secret:b": "2"})
    client.execute_command("ACL", "SETUSER", "app", "on", ">x", "+@all", "~app:*", "&*")
    mount = make_mount(f"redis://app:x@127.0.0.1:{own_redis.port}/0")
    assert os.listdir(mount.path / "secret") == ["b"]
    assert os.stat(mount.path / "secret" / "b").st_mode & 0o777 == 0
    assert errno_name((mount.path / "secret" / "b").read_bytes) == "EACCES"
    assert save_file(mount.path / "secret" / "b", b"new") == "EACCES"
    assert errno_name((mount.path / "secret" / "b").unlink) == "EACCES"
    assert save_file(mount.path / "app" / "a", b"new") == ""
    assert client.mget("app:a", "secret:b") == [b"new", b"2"]


@pytest.mark.expected_log(INTERRUPTED)
def test_password_changed(client: redis.Redis, mount: MountedServer) -> None:
    """Calls are EACCES after the password was changed, and succeed when it is changed back."""
    client.config_set("requirepass", "s3cr3t")
    for connection in client.client_list():
        if connection["name"] == "redisfuse":
            client.client_kill_filter(_id=connection["id"])
    assert errno_name((mount.path / "other").read_bytes) == "EACCES"
    assert save_file(mount.path / "k", b"new") == "EACCES"
    assert errno_name(os.listdir, mount.path) == "EACCES"
    client.config_set("requirepass", "")
    assert_works(mount, client)
    assert client.get("k") == b"old"
    assert "s3cr3t" not in mount.read_log()


@pytest.mark.expected_log(INTERRUPTED, "scanning the keys failed")
def test_loading(make_mount: MakeMount) -> None:
    """While the server loads its data, reads and listings are EAGAIN or EIO after the time-out, never empty."""
    with RedisServer(tcp=True, persist=True) as server:
        server.client().mset({f"k{number}": os.urandom(1500) for number in range(150)})
        server.client().bgrewriteaof()
        server.wait_until_saved()
        mount = make_mount(server.tcp_url())
        server.kill()
        server.arguments = ["--key-load-delay", "30000", "--loading-process-events-interval-bytes", "1024"]
        server.start(wait=False)
        wait_until(lambda: errno_name((mount.path / "other").read_bytes) == "EAGAIN", 10)
        assert errno_name(os.listdir, mount.path) in ("EAGAIN", "EIO")
        assert save_file(mount.path / "k1", b"new") in ("EAGAIN", "EIO")
        server.wait_until_answering()
        assert_works(mount, server.client())
        wait_until(lambda: len(os.listdir(mount.path)) == 150, 10)


@pytest.mark.possible_log("scanning the keys failed")
def test_busy_with_a_script(own_redis: RedisServer, client: redis.Redis, mount: MountedServer) -> None:
    """While a long script runs, calls are EAGAIN or EIO after the time-out; after SCRIPT KILL they succeed."""
    client.config_set("busy-reply-threshold", "10")
    script = threading.Thread(target=errno_name, args=(_run_forever, own_redis.client()))
    script.start()
    try:
        wait_until(lambda: _is_busy(client))
        error, took = time_call(errno_name, (mount.path / "other").read_bytes)
        assert error in ("EAGAIN", *UNAVAILABLE)
        assert took < MOST_SECONDS
        assert save_file(mount.path / "k", b"new") in ("EAGAIN", *UNAVAILABLE)
    finally:
        client.script_kill()
        script.join(10)
    assert_works(mount, client)
    assert client.get("k") == b"old"


def _run_forever(client: redis.Redis) -> None:
    try:
        client.eval("while true do end", 0)
    except redis.RedisError:
        return


def _is_busy(client: redis.Redis) -> bool:
    try:
        client.ping()
    except redis.RedisError as error:
        return "BUSY" in str(error) or "busy" in str(error).lower()
    return False


@pytest.mark.expected_log(f"was lost.*{KEPT}")
def test_maxclients(client: redis.Redis, mount: MountedServer) -> None:
    """At the server's limit of clients, open connections remain usable, and a save is applied or fails.

    A refused connection is EIO, with the reason in the log.
    """
    (mount.path / "k").read_bytes()
    client.config_set("maxclients", str(len(client.client_list())))
    client.set("fresh", "1")
    wait_until(lambda: errno_name((mount.path / "fresh").read_bytes) == "", 5)
    assert save_file(mount.path / "k", b"new") in ("", *UNAVAILABLE)
    client.config_set("maxclients", "100")
    assert_works(mount, client)


@pytest.mark.expected_log(f"value of this size.*{KEPT}")
def test_a_value_over_the_servers_limit(client: redis.Redis, mount: MountedServer) -> None:
    """A value over proto-max-bulk-len is EFBIG, with a failed row and the old value kept."""
    client.config_set("proto-max-bulk-len", str(1024 * 1024))
    assert save_file(mount.path / "k", os.urandom(3 * 1024 * 1024)) == "EFBIG"
    assert client.get("k") == b"old"
    assert change_states(mount, b"k") == ["failed"]
    assert_works(mount, client)


def test_a_reply_over_the_output_limit(client: redis.Redis, mount: MountedServer) -> None:
    """A reply that the server aborts is EIO; other files work."""
    client.hset("h", "f", os.urandom(20 * 1024 * 1024))
    wait_until(lambda: mount.status()["keys"] == 2)
    client.config_set("client-output-buffer-limit", "normal 1000000 1000000 1")
    assert errno_name((mount.path / "h.f").read_bytes) == "EIO"
    assert_works(mount, client)


# -- other clients ---------------------------------------------------------------------------------------------------


def test_type_changed_under_an_open_file(client: redis.Redis, mount: MountedServer) -> None:
    """A key that became a hash while its file was open is kept: ESTALE at close, and the edit is journaled."""
    descriptor = os.open(mount.path / "k", os.O_WRONLY)
    os.write(descriptor, b"new")
    client.delete("k")
    client.hset("k", "f", "v")
    assert errno_name(os.close, descriptor) == "ESTALE"
    assert client.hgetall("k") == {b"f": b"v"}
    assert change_states(mount, b"k") == ["refused"]


@pytest.mark.parametrize("how", ["expired", "evicted"])
def test_a_key_is_removed_during_an_edit(client: redis.Redis, mount: MountedServer, how: str) -> None:
    """A key that expired or was evicted during an edit is not created again: ESTALE, and the edit is journaled."""
    descriptor = os.open(mount.path / "k", os.O_WRONLY)
    os.write(descriptor, b"new")
    if how == "expired":
        client.pexpire("k", 30)
    else:
        client.config_set("maxmemory-policy", "allkeys-random")
        client.config_set("maxmemory", "1")
        with pytest.raises(redis.RedisError):
            client.set("x", "y")
        client.config_set("maxmemory", "0")
    wait_until(lambda: not client.exists("k"))
    assert errno_name(os.close, descriptor) == "ESTALE"
    assert not client.exists("k")
    assert change_states(mount, b"k") == ["refused"]


def test_a_refused_save_stays_refused(client: redis.Redis, mount: MountedServer) -> None:
    """After an fsync was ESTALE, fsync and close are ESTALE too: no later success hides the refused save."""
    descriptor = os.open(mount.path / "k", os.O_WRONLY)
    os.write(descriptor, b"new")
    client.set("k", "theirs")
    assert errno_name(os.fsync, descriptor) == "ESTALE"
    assert errno_name(os.fsync, descriptor) == "ESTALE"
    assert errno_name(os.close, descriptor) == "ESTALE"
    assert client.get("k") == b"theirs"
    assert change_states(mount, b"k") == ["refused"]


def test_a_refused_descriptor_does_not_write(client: redis.Redis, mount: MountedServer) -> None:
    """After a save was refused, only a descriptor of a later open can overwrite the other client's value."""
    first, second, idle = (os.open(mount.path / "k", os.O_RDWR) for _ in range(3))
    os.write(first, b"one")
    os.pwrite(second, b"two", 3)
    client.set("k", "theirs")
    assert errno_name(os.fsync, first) == "ESTALE"
    for descriptor in (first, second, idle):
        assert errno_name(os.write, descriptor, b"more") == "ESTALE"
        assert errno_name(os.ftruncate, descriptor, 1) == "ESTALE"
    with (mount.path / "k").open("ab") as file:
        file.write(b"!")
    assert errno_name(os.close, first) == errno_name(os.close, second) == "ESTALE"
    assert errno_name(os.close, idle) == ""
    assert client.get("k") == b"theirs!"
    assert_states(mount, b"k", "refused", "applied")


@pytest.mark.parametrize("place", ["k2", "e/k", "k~"])
def test_a_refused_file_is_renamed(client: redis.Redis, mount: MountedServer, place: str) -> None:
    """A rename of a file with a conflicting edit is EBUSY, and its fsync and close are ESTALE.

    EBUSY is no errno on which the kernel retries the rename, which would hide the error.
    """
    client.set("d:k", "old")
    wait_until(lambda: (mount.path / "d" / "k").exists())
    descriptor = os.open(mount.path / "d" / "k", os.O_RDWR)
    os.write(descriptor, b"MINE")
    client.set("d:k", "theirs")
    if "/" in place:
        assert errno_name(os.rename, mount.path / "d", mount.path / "e") == "EBUSY"
    else:
        assert errno_name(os.rename, mount.path / "d" / "k", mount.path / "d" / place) == "EBUSY"
    assert errno_name(os.fsync, descriptor) == "ESTALE"
    assert errno_name(os.close, descriptor) == "ESTALE"
    assert client.keys("d:*") == [b"d:k"]
    assert client.get("d:k") == b"theirs"
    assert_states(mount, b"d:k", "refused")


def test_another_field_is_no_conflict(client: redis.Redis, mount: MountedServer) -> None:
    """A large field is saved although other fields of its hash were changed, on the mount and by another client."""
    client.hset("h", mapping={"f": "a" * 1_200_000, "g": "x"})
    wait_until(lambda: (mount.path / "h.f").exists())
    descriptor = os.open(mount.path / "h.f", os.O_RDWR)
    os.pwrite(descriptor, b"EDIT", 0)
    (mount.path / "h.g").write_bytes(b"other")
    client.hset("h", "g", "outside")
    time.sleep(0.2)
    assert errno_name(os.fsync, descriptor) == ""
    os.pwrite(descriptor, b"MORE", 4)
    client.hset("h", "f", "b" * 1_200_000)
    assert errno_name(os.close, descriptor) == "ESTALE"


def test_close_after_a_failed_fsync(client: redis.Redis, mount: MountedServer) -> None:
    """After an fsync that the server refused, each close saves again: it succeeds, or fails again."""
    descriptor = os.open(mount.path / "k", os.O_WRONLY)
    os.write(descriptor, b"new")
    client.config_set("maxmemory", "1")
    assert errno_name(os.fsync, descriptor) == "ENOSPC"
    spare = os.dup(descriptor)
    assert errno_name(os.close, spare) == "ENOSPC"
    client.config_set("maxmemory", "0")
    assert errno_name(os.close, descriptor) == ""
    assert client.get("k") == b"new"
    assert_states(mount, b"k", "failed", "failed", "applied")


def test_the_journal_has_the_replaced_value(client: redis.Redis, own_redis: RedisServer, make_mount: MakeMount) -> None:
    """Without the conflict check, the prior value in the journal is the one that the save replaced."""
    mount = make_mount(own_redis.tcp_url(), "--no-conflict-check")
    descriptor = os.open(mount.path / "k", os.O_WRONLY)
    os.write(descriptor, b"new")
    client.set("k", "theirs")
    os.close(descriptor)
    assert client.get("k") == b"new"
    assert_states(mount, b"k", "applied")
    [change] = journal_changes(mount, b"k")
    assert change.prior.content is not None
    assert change.prior.content.size == len(b"theirs")


def test_databases_swapped(client: redis.Redis, mount: MountedServer) -> None:
    """After SWAPDB, which the server does not announce, the other database's keys show within seconds."""
    client.set("k2", "2")
    client.execute_command("SWAPDB", "0", "1")
    client.set("other", "1")
    wait_until(lambda: os.listdir(mount.path) == ["other"], 10)
    wait_until(lambda: errno_name((mount.path / "k").read_bytes) == "ENOENT", 5)
