"""Another server at the address of an earlier session, or the same one, restarted: rollback, apply, recover, mount."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
import redis

from redisfuse.journal.journal import Journal
from redisfuse.journal.models import ChangeIntent, State
from tests.faults.conftest import MakeMount
from tests.support.errno_of import change_states, errno_name, save_file
from tests.support.mounts import (
    MountedServer,
    isolated_environment,
    redisfuse_command,
    run_redisfuse,
    wait_until,
)
from tests.support.redis_server import RedisServer

OTHERS = {f"user:{number}": f"name {number}" for number in range(30)}
"""Keys that no test changes through a mount."""


@pytest.fixture
def lasting_redis() -> Iterator[RedisServer]:
    """Start a server that has its data after a restart."""
    with RedisServer(tcp=True, persist=True) as server:
        yield server


def edit(server: RedisServer, make_mount: MakeMount, **others: str) -> MountedServer:
    """Save the keys k:0 to k:4 on a server that also has others, then end the mount."""
    with server.client() as client:
        client.mset({f"k:{number}": "old" for number in range(5)} | others)
    mount = make_mount(server.tcp_url())
    for number in range(5):
        assert save_file(mount.path / "k" / str(number), b"new") == ""
    assert mount.stop() == 0
    return mount


def edited_values(server: RedisServer) -> set[bytes | None]:
    """Return the distinct values of the keys that were edited."""
    with server.client() as client:
        return set(client.mget([f"k:{number}" for number in range(5)]))


def replace(server: RedisServer, **others: str) -> None:
    """Restart a server without its data, and give the edited keys the values that a rollback expects."""
    server.restart()
    with server.client() as client:
        client.mset({f"k:{number}": "new" for number in range(5)} | others)


@pytest.mark.parametrize(
    ("before", "after"),
    [({}, {}), (OTHERS, {}), (OTHERS, dict.fromkeys(OTHERS, "somebody else")), (OTHERS, {"other": "keys"})],
    ids=["only the edited keys", "the other keys are gone", "they have other values", "there are other keys"],
)
def test_a_replaced_server_is_not_changed(
    own_redis: RedisServer, make_mount: MakeMount, tmp_path: Path, before: dict[str, str], after: dict[str, str]
) -> None:
    """A rollback on another server than the session's is refused without --force, although no key conflicts."""
    edit(own_redis, make_mount, **before)
    replace(own_redis, **after)
    for words in (["--session", "1", "--yes"], ["1"], ["--last", "--json"]):
        done = run_redisfuse(tmp_path, "rollback", *words)
        assert done.returncode == 1
        assert "was restarted or replaced since session 1" in done.stderr
        assert "another server" in done.stderr
        assert "--force" in done.stderr
        assert edited_values(own_redis) == {b"new"}
    dry = run_redisfuse(tmp_path, "rollback", "--session", "1", "--dry-run")
    assert (dry.returncode, len(dry.stdout.splitlines())) == (0, 5)
    assert "was restarted or replaced since session 1" in dry.stderr
    done = run_redisfuse(tmp_path, "rollback", "--session", "1", "--force")
    assert done.returncode == 0, done.stderr
    assert edited_values(own_redis) == {b"old"}


def test_a_restarted_server_is_recognized(lasting_redis: RedisServer, make_mount: MakeMount, tmp_path: Path) -> None:
    """A rollback on the session's server after a restart reports the restart and does it."""
    edit(lasting_redis, make_mount, **OTHERS)
    lasting_redis.restart()
    with lasting_redis.client() as client:
        client.mset(dict.fromkeys(list(OTHERS)[:7], "changed meanwhile"))
    done = run_redisfuse(tmp_path, "rollback", "--session", "1", "--yes")
    assert done.returncode == 0, done.stderr
    assert "was restarted or replaced since session 1" in done.stderr
    assert "keys that no change touched are as they were" in done.stderr
    assert edited_values(lasting_redis) == {b"old"}
    with lasting_redis.client() as client:
        client.delete(*OTHERS)  # it was recognized, and stays so
    assert run_redisfuse(tmp_path, "apply", "1").returncode == 0
    assert edited_values(lasting_redis) == {b"old", b"new"}
    assert run_redisfuse(tmp_path, "rollback", "--last").returncode == 0
    again = run_redisfuse(tmp_path, "rollback", "--session", "2", "--yes")  # of the same run: nothing to report
    assert (again.returncode, again.stderr) == (0, "")
    assert edited_values(lasting_redis) == {b"new"}


def test_a_running_server_is_not_questioned(own_redis: RedisServer, make_mount: MakeMount, tmp_path: Path) -> None:
    """A server that was never restarted is the session's, even if all its other keys are gone."""
    edit(own_redis, make_mount, **OTHERS)
    with own_redis.client() as client:
        client.delete(*OTHERS)
    done = run_redisfuse(tmp_path, "rollback", "--session", "1", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert edited_values(own_redis) == {b"old"}


def test_a_promoted_replica_is_recognized(own_redis: RedisServer, make_mount: MakeMount, tmp_path: Path) -> None:
    """A rollback on the replica that took over from the session's server reports that and does it."""
    with RedisServer(tcp=True, arguments=["--replicaof", "127.0.0.1", str(own_redis.port)]) as replica:
        with own_redis.client() as client:
            wait_until(lambda: client.info("replication")["connected_slaves"] == 1, 20)
        edit(own_redis, make_mount)
        wait_until(lambda: edited_values(replica) == {b"new"}, 20)
        own_redis.kill()
        with replica.client() as client:
            client.replicaof("NO", "ONE")
        words = ["rollback", "--session", "1", "--yes", "--url", replica.tcp_url()]
        done = run_redisfuse(tmp_path, *words)
        assert done.returncode == 0, done.stderr
        assert "it continues that server's replication" in done.stderr
        assert edited_values(replica) == {b"old"}


@pytest.mark.parametrize("answer", ["n", "y"])
def test_the_user_decides_on_a_terminal(
    own_redis: RedisServer, make_mount: MakeMount, tmp_path: Path, answer: str
) -> None:
    """On a terminal the user decides about another server; with --yes the command is refused."""
    edit(own_redis, make_mount, **OTHERS)
    replace(own_redis)
    environment = {**isolated_environment(tmp_path), "TERM": "dumb"}
    command = redisfuse_command("rollback", "1")
    child = pexpect.spawn(command[0], command[1:], env=environment, timeout=30, cwd=Path(__file__).parents[2])
    child.expect("seems to be another one")
    child.expect("Change this server all the same")
    child.sendline(answer)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == (0 if answer == "y" else 1)
    assert edited_values(own_redis) == ({b"new", b"old"} if answer == "y" else {b"new"})
    command = redisfuse_command("rollback", "2", "--yes")
    child = pexpect.spawn(command[0], command[1:], env=environment, timeout=30, cwd=Path(__file__).parents[2])
    child.expect("--force")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 1


def test_an_edit_is_not_applied_to_another_server(
    own_redis: RedisServer, client: redis.Redis, make_mount: MakeMount, tmp_path: Path
) -> None:
    """A refused edit is not written to another server without --force."""
    client.mset(OTHERS)
    mount = make_mount(own_redis.tcp_url())
    descriptor = os.open(mount.path / "k", os.O_WRONLY)
    os.write(descriptor, b"mine")
    client.set("k", "theirs")
    assert errno_name(os.close, descriptor) == "ESTALE"
    assert mount.stop() == 0
    own_redis.restart()
    client.set("k", "theirs")
    done = run_redisfuse(tmp_path, "apply", "1")
    assert done.returncode == 1
    assert "seems to be another one" in done.stderr
    assert client.get("k") == b"theirs"
    done = run_redisfuse(tmp_path, "apply", "1", "--force")
    assert done.returncode == 0, done.stderr
    assert client.get("k") == b"mine"


def leave_pending(mount: MountedServer) -> None:
    """Record a change of the ended session 1 that is pending, as a crash leaves it."""
    state = [State.from_value(value) for value in (b"new", b"newest")]
    with Journal.open(mount.journal) as journal:
        journal.record_intents(1, [ChangeIntent(b"k/0", "write", b"k:0", None, *state)])


@pytest.mark.expected_log("changes stay pending")
def test_pending_changes_are_not_settled_by_another_server(
    own_redis: RedisServer, make_mount: MakeMount, tmp_path: Path
) -> None:
    """Neither `recover` nor a rollback nor a mount settles changes by the keys of another server; --force does."""
    mount = edit(own_redis, make_mount, **OTHERS)
    leave_pending(mount)
    replace(own_redis)
    done = run_redisfuse(tmp_path, "recover")
    assert done.returncode == 1
    assert "0 changes settled\n1 change not settled yet" in done.stdout
    assert "seems to be another one" in done.stderr
    assert "--force" in done.stderr
    run_redisfuse(tmp_path, "rollback", "1", "--force")
    again = make_mount(own_redis.tcp_url())
    wait_until(lambda: "changes stay pending" in again.read_log(), 5)
    assert again.stop() == 0
    assert change_states(mount, b"k:0")[1] == "pending"
    done = run_redisfuse(tmp_path, "recover", "--force")
    assert "1 change settled\n" in done.stdout
    assert change_states(mount, b"k:0")[1] != "pending"


def test_pending_changes_are_settled_after_a_restart(
    lasting_redis: RedisServer, make_mount: MakeMount, tmp_path: Path
) -> None:
    """Changes are settled by the session's server after a restart, also if there is no other key to recognize it by."""
    mount = edit(lasting_redis, make_mount)
    leave_pending(mount)
    lasting_redis.restart()
    done = run_redisfuse(tmp_path, "recover")
    assert (done.returncode, done.stderr) == (0, "")
    assert change_states(mount, b"k:0")[1] == "failed"
