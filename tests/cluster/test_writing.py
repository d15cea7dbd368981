"""Writing to a cluster: watched saves, renames across slots, rollback and recovery."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from redisfuse.client.address import Address
from redisfuse.client.address_map import AddressMap
from redisfuse.client.cluster_client import ClusterClient
from redisfuse.client.limits import Limits
from redisfuse.client.opening import open_client
from redisfuse.errors import ConflictError, TryAgainError, UnavailableError
from redisfuse.journal.content import Blob
from redisfuse.journal.journal import Journal
from redisfuse.mount.write_mode import build_session_info
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.key_writer import KeyWriter
from redisfuse.transactions.precondition import Precondition
from redisfuse.transactions.session_start import start_session
from tests.support.commands import run_in_process
from tests.support.edit_bench import EditBench
from tests.support.mounts import mount_server, wait_until
from tests.support.proxy import Proxy
from tests.support.redis_cluster import ClusterServer, RedisCluster, slot_of


@contextlib.contextmanager
def bench_of(
    cluster: RedisCluster, folder: Path, *, timeout: float = 8.0, proxies: Sequence[tuple[ClusterServer, Proxy]] = ()
) -> Iterator[EditBench]:
    """Open the cluster for writing; the addresses of some nodes lead to proxies."""
    routes = [f"127.0.0.1:{node.port}=127.0.0.1:{proxy.port}" for node, proxy in proxies]
    client = open_client(
        Address.parse(cluster.url()), Limits(timeout=timeout), writable=True, address_map=AddressMap.parse(routes)
    )
    assert isinstance(client, ClusterClient)
    folder.chmod(0o700)
    with contextlib.closing(client), Journal.open(folder / "journal.db", create=True) as journal:
        session = start_session(journal, client, build_session_info(client, None, {}))
        writer = KeyWriter(client, journal, session, dump_limit=1000)
        yield EditBench(cluster.nodes[0].client(), client, journal, session, writer)


@pytest.fixture
def bench(cluster: RedisCluster, tmp_path: Path) -> Iterator[EditBench]:
    """Open the cluster for writing."""
    with bench_of(cluster, tmp_path) as bench:
        yield bench


def two_keys(cluster: RedisCluster) -> tuple[bytes, bytes]:
    """Return keys of different nodes."""
    keys = [b"key:%d" % number for number in range(50)]
    first = cluster.owner_of_key(keys[0])
    return keys[0], next(key for key in keys if cluster.owner_of_key(key) is not first)


def outcomes(bench: EditBench) -> list[str]:
    """Return the outcomes of all changes, oldest first."""
    return [change.outcome for change in bench.changes()]


# -- operations ------------------------------------------------------------------------------------------------------


def test_operations_and_their_rollback(cluster: RedisCluster, bench: EditBench, tmp_path: Path) -> None:
    """Saves, patches, expiries and removals of many slots are journaled, applied, and can be rolled back."""
    keys = [b"k:%d" % number for number in range(20)]
    for key in keys:
        bench.save(key, b"one")
        bench.save(key, b"two", precondition=Precondition.from_bytes(b"one"))
    with pytest.raises(ConflictError):
        bench.save(keys[0], b"three", precondition=Precondition.from_bytes(b"one"))
    expires_at = (int(time.time()) + 1000) * 1000
    bench.key_writer.expire(KeyRef(keys[1]), expires_at, path=keys[1])
    assert cluster.call(keys[1], "PEXPIRETIME", keys[1]) == expires_at
    bench.save(b"h", b"content", field=b"f")
    assert cluster.call(b"h", "HGET", b"h", "f") == b"content"
    removed = bench.key_writer.remove([KeyRef(key) for key in keys], path=b"k")
    assert len(removed) == 20
    assert list(cluster.iter_keys()) == [b"h"]
    ids = [change.id for change in bench.changes() if change.op == "remove"]
    count = len(set(map(slot_of, keys)))
    options = ["--journal-file", str(tmp_path / "journal.db")]
    shown = run_in_process(tmp_path, "show", str(ids[0]), *options)
    assert f"keys of {count} slots: one transaction for each" in shown.output
    assert json.loads(run_in_process(tmp_path, "show", str(ids[0]), "--json", *options).output)["slots"] == count
    assert "slots" not in run_in_process(tmp_path, "show", "1", *options).output
    assert bench.roll_back(*ids).is_clean
    assert {cluster.call(key, "GET", key) for key in keys} == {b"two"}
    assert cluster.call(keys[1], "PEXPIRETIME", keys[1]) == expires_at
    assert bench.key_writer.remove_independently({KeyRef(key): key for key in keys}) == 20
    assert set(outcomes(bench)) == {"applied", "refused"}


@pytest.mark.parametrize("kind", ["string", "list"])
def test_rename_across_slots(cluster: RedisCluster, bench: EditBench, kind: str) -> None:
    """A rename to another slot copies with the expiry, then removes; a rollback takes it back."""
    old, new = two_keys(cluster)
    cluster.call(old, *(("SET", old, "content") if kind == "string" else ("RPUSH", old, "a", "b")))
    cluster.call(old, "PEXPIREAT", old, 4_000_000_000_000)
    before = cluster.call(old, "DUMP", old)
    ids = bench.key_writer.rename([(KeyRef(old), KeyRef(new))], path=old, new_path=new)
    assert cluster.call(old, "EXISTS", old) == 0
    assert cluster.call(new, "DUMP", new) == before
    assert cluster.call(new, "PEXPIRETIME", new) == 4_000_000_000_000
    assert [(change.key, change.outcome) for change in bench.changes()] == [(new, "applied"), (old, "applied")]
    assert bench.roll_back(*ids).is_clean
    assert cluster.call(new, "EXISTS", new) == 0
    assert cluster.call(old, "DUMP", old) == before
    assert cluster.call(old, "PEXPIRETIME", old) == 4_000_000_000_000


def test_rename_of_a_key_that_changes(cluster: RedisCluster, tmp_path: Path) -> None:
    """If the old key changes after it was copied, the copy is taken away again: nothing is lost or left over."""
    old, new = two_keys(cluster)
    cluster.set(old, b"content")
    owner = cluster.owner_of_key(old)
    with Proxy(owner.socket_path, tcp=True) as proxy, bench_of(cluster, tmp_path, proxies=[(owner, proxy)]) as bench:
        fault = proxy.inject("delay", "EXEC", skip=1, times=1, seconds=5)  # after that of the probe

        def change() -> None:
            wait_until(lambda: fault.hits)
            assert cluster.call(new, "EXISTS", new) == 1
            cluster.set(old, b"changed")
            fault.released.set()

        rival = threading.Thread(target=change)
        rival.start()
        with pytest.raises(ConflictError):
            bench.key_writer.rename([(KeyRef(old), KeyRef(new))], path=old, new_path=new)
        rival.join()
        assert cluster.call(old, "GET", old) == b"changed"
        assert cluster.call(new, "EXISTS", new) == 0
        assert outcomes(bench) == ["applied", "failed", "applied"]  # the copy, the removal, the copy's rollback


# -- concurrency and redirections --------------------------------------------------------------------------------------


def test_no_unguarded_overwrite(cluster: RedisCluster, bench: EditBench) -> None:
    """Concurrent saves over many slots, beside a rival that increments the same keys: no increment is lost."""
    keys = [b"n:%d" % number for number in range(6)]
    for key in keys:
        cluster.set(key, b"0")
    done = dict.fromkeys(keys, 0)
    lock = threading.Lock()
    ending = threading.Event()

    def increment(key: bytes) -> None:
        while not ending.is_set():
            value = bytes(bench.server.execute(b"GETRANGE", key, 0, -1))
            try:
                bench.save(key, b"%d" % (int(value) + 1), precondition=Precondition.from_bytes(value))
            except ConflictError:
                continue
            with lock:
                done[key] += 1

    threads = [threading.Thread(target=increment, args=(key,)) for key in keys for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(300):
        cluster.call(keys[number % 6], "INCR", keys[number % 6])
        time.sleep(0.005)
    ending.set()
    for thread in threads:
        thread.join()
    for key in keys:
        assert int(cluster.call(key, "GET", key)) == done[key] + 50
        assert done[key] > 0


def test_saves_while_a_slot_moves(cluster: RedisCluster, bench: EditBench) -> None:
    """A save is right in each stage of a move: at the source, by ASK, and after MOVED."""
    key = b"moving"
    slot = slot_of(key)
    bench.save(key, b"0")
    source = cluster.owner(slot)
    target = cluster.other_primary(source)
    cluster.begin_move(slot, source, target)
    bench.save(key, b"1", precondition=Precondition.from_bytes(b"0"))
    assert source.call("GET", key) == b"1"
    cluster.move_keys(slot, source, target)
    bench.save(key, b"2", precondition=Precondition.from_bytes(b"1"))
    assert target.call_asking("GET", key) == b"2"
    bench.key_writer.remove([KeyRef(key)], path=key)
    assert target.call_asking("EXISTS", key) == 0
    bench.save(key, b"3", precondition=Precondition.absent())
    assert target.call_asking("GET", key) == b"3"
    cluster.finish_move(slot, source, target)
    bench.save(key, b"4", precondition=Precondition.from_bytes(b"3"))
    assert target.call("GET", key) == b"4"
    assert set(outcomes(bench)) == {"applied"}


def test_a_slot_that_moves_before_exec(cluster: RedisCluster, tmp_path: Path) -> None:
    """If the slot moves between WATCH and EXEC, the save begins again at the new owner, and is applied once."""
    key = b"counter"
    slot = slot_of(key)
    cluster.set(key, b"1")
    source = cluster.owner(slot)
    target = cluster.other_primary(source)
    with Proxy(source.socket_path, tcp=True) as proxy, bench_of(cluster, tmp_path, proxies=[(source, proxy)]) as bench:
        fault = proxy.inject("delay", "MULTI", skip=1, times=1, seconds=5)
        saving = threading.Thread(target=bench.save, args=(key, b"2"))
        saving.start()
        wait_until(lambda: fault.hits)
        cluster.move_slot(slot, target)
        fault.released.set()
        saving.join()
        assert cluster.call(key, "GET", key) == b"2"
        assert outcomes(bench)[-1] == "applied"
        assert set(outcomes(bench)[:-1]) == {"failed"}


def test_temporary_errors(cluster: RedisCluster, tmp_path: Path) -> None:
    """TRYAGAIN and CLUSTERDOWN are tried again until the time-out; then EAGAIN, and nothing was written."""
    key = b"key"
    owner = cluster.owner_of_key(key)
    with (
        Proxy(owner.socket_path, tcp=True) as proxy,
        bench_of(cluster, tmp_path, timeout=1.0, proxies=[(owner, proxy)]) as bench,
    ):
        for text in ("TRYAGAIN Multiple keys request during rehashing of slot", "CLUSTERDOWN The cluster is down"):
            proxy.inject("error", "WATCH", times=2, text=text)
            bench.save(key, b"content")
            for command in ("WATCH", "EXEC"):
                proxy.inject("error", command, text=text)
                with pytest.raises(UnavailableError) as caught:
                    bench.save(key, b"other")
                proxy.clear()
                if command == "WATCH":
                    assert isinstance(caught.value, TryAgainError)
        assert cluster.call(key, "GET", key) == b"content"
        assert set(outcomes(bench)) <= {"applied", "failed"}


@pytest.mark.parametrize("fails_over", [False, True])
def test_a_lost_reply(cluster: RedisCluster, tmp_path: Path, fails_over: bool) -> None:
    """A save whose reply is lost is applied exactly once, also if its primary is replaced meanwhile."""
    key = b"appended"
    owner = cluster.owner_of_key(key)
    with Proxy(owner.socket_path, tcp=True) as proxy, bench_of(cluster, tmp_path, proxies=[(owner, proxy)]) as bench:
        bench.save(key, b"start")
        fault = proxy.inject("hang_reply" if fails_over else "lost_reply", "EXEC", times=1)

        def fail_over() -> None:
            wait_until(lambda: fault.hits)
            cluster.fail_over(owner)
            proxy.disconnect_all()

        replacing = threading.Thread(target=fail_over)
        if fails_over:
            replacing.start()
        bench.key_writer.patch(
            KeyRef(key), 5, Blob.from_bytes(b"+more"), precondition=Precondition.unconditional(), path=key
        )
        if fails_over:
            replacing.join()
        assert cluster.call(key, "GET", key) == b"start+more"
        assert outcomes(bench) == ["applied", "applied"]


def test_a_planned_fail_over_while_saving(cluster: RedisCluster, bench: EditBench) -> None:
    """Saves continue during a planned fail-over; each has one outcome, and those after it are there."""
    key = b"busy"
    cluster.set(key, b"0")
    replaced = cluster.owner_of_key(key)
    failing = threading.Timer(0.1, cluster.fail_over, args=(replaced,))
    failing.start()
    number = 0
    while failing.is_alive() or cluster.owner_of_key(key) is replaced:
        number += 1
        bench.save(key, b"%d" % number)
    assert cluster.call(key, "GET", key) == b"%d" % number
    assert set(outcomes(bench)) <= {"applied", "failed"}


# -- mounts ------------------------------------------------------------------------------------------------------------


@pytest.mark.possible_log("was interrupted", "the cluster's primaries are")
def test_a_writable_mount(cluster: RedisCluster, tmp_path: Path) -> None:
    """Programs edit, rename and remove files and folders of a cluster; commands roll that back."""
    keys = cluster.fill(40, b"user:")
    with mount_server(tmp_path, cluster.url(), write=True) as mount:
        mount.wait_coherent()
        (mount.path / "user" / "0").write_bytes(b"edited")
        assert cluster.call(keys[0], "GET", keys[0]) == b"edited"
        subprocess.run(["sed", "-i", "s/edited/again/", str(mount.path / "user" / "0")], check=True, timeout=20)
        assert cluster.call(keys[0], "GET", keys[0]) == b"again"
        (mount.path / "user" / "new").write_bytes(b"created")
        assert cluster.call(b"user:new", "GET", b"user:new") == b"created"
        subprocess.run(["mv", mount.path / "user", mount.path / "people"], check=True, timeout=20)
        assert len(os.listdir(mount.path / "people")) == 41
        assert {key.partition(b":")[0] for key in cluster.iter_keys()} == {b"people"}
        result = run_in_process(tmp_path, "rollback", "--last", "--yes")
        assert result.exit_code == 0, result.output
        assert {key.partition(b":")[0] for key in cluster.iter_keys()} == {b"user"}
        wait_until(lambda: os.listdir(mount.path) == ["user"])
        assert (mount.path / "user" / "0").read_bytes() == b"again"
        for name in os.listdir(mount.path / "user"):
            os.unlink(mount.path / "user" / name)
        assert list(cluster.iter_keys()) == []


@pytest.mark.possible_log("was interrupted")
def test_a_mount_is_killed_between_two_slots(cluster: RedisCluster, tmp_path: Path) -> None:
    """Killed between the copy and the removal of a rename, both names are there; the journal says so, and undoes it."""
    old, new = two_keys(cluster)
    cluster.set(old, b"content")
    owner = cluster.owner_of_key(old)
    names = [key.decode().replace(":", "/") for key in (old, new)]
    with Proxy(owner.socket_path, tcp=True) as proxy:
        route = f"127.0.0.1:{owner.port}=127.0.0.1:{proxy.port}"
        with mount_server(tmp_path, cluster.url(), "--cluster-map", route, write=True) as mount:
            mount.wait_coherent()
            proxy.inject("hang", "EXEC", skip=1)
            moving = subprocess.Popen(["mv", mount.path / names[0], mount.path / names[1]], stderr=subprocess.DEVNULL)
            wait_until(lambda: cluster.call(new, "EXISTS", new) == 1)
            wait_until(lambda: "pending" in run_in_process(tmp_path, "log").stdout)
            mount.stop(signal.SIGKILL)
            moving.wait(20)
    result = run_in_process(tmp_path, "recover")
    assert result.exit_code == 0, result.output
    assert cluster.call(old, "GET", old) == cluster.call(new, "GET", new) == b"content"
    log = run_in_process(tmp_path, "log").stdout
    assert "pending" not in log
    assert "applied" in log
    assert "failed" in log
    result = run_in_process(tmp_path, "rollback", "--last", "--yes")
    assert result.exit_code == 0, result.output
    assert list(cluster.iter_keys()) == [old]


def test_junk_of_all_nodes(cluster: RedisCluster, tmp_path: Path) -> None:
    """`junk scan` finds junk on every node, and `junk clean` removes it."""
    keys = cluster.fill(30)
    junk = [b".file%d.swp" % number for number in range(30)]
    for key in junk:
        cluster.set(key, b"x")
    assert len({cluster.owner_of_key(key).port for key in junk}) == 3
    url = f"redis://127.0.0.1:{cluster.nodes[0].port}"
    assert len(run_in_process(tmp_path, "junk", "scan", url).stdout.splitlines()) == 30
    result = run_in_process(tmp_path, "junk", "clean", "--yes", "--journal-file", str(tmp_path / "journal.db"), url)
    assert result.exit_code == 0, result.output
    assert sorted(cluster.iter_keys()) == sorted(keys)
