"""A mount whose connections end: the reason in its log, a changed password, and the status of other users' mounts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.support.errno_of import errno_name
from tests.support.mount_logs import INTERRUPTED
from tests.support.mounts import isolated_environment, mount_server, run_redisfuse, wait_until
from tests.support.other_users import needs_open_checkout
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer

NEW_PASSWORD = "the server refused the password; a new one was read from"


@pytest.fixture
def client(own_redis: RedisServer) -> redis.Redis:
    """Return a client of the server, with a user `app` whose password is `one`."""
    client = own_redis.client()
    client.execute_command("ACL", "SETUSER", "app", "on", ">one", "~*", "+@all", "&*")
    client.mset({"k": "v", "a:b": "2"})
    return client


def drop_connections(client: redis.Redis) -> None:
    """Close the connections of all mounts."""
    for each in client.client_list():
        if each["name"] == "redisfuse":
            client.client_kill_filter(_id=each["id"])


@pytest.mark.expected_log(
    f"{INTERRUPTED}: the connection to .* was lost: the server closed the connection",
    f"{INTERRUPTED}, and reconnecting fails: authentication with .* failed: .*WRONGPASS",
    NEW_PASSWORD,
)
def test_the_password_file_is_read_again(own_redis: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    """When the server refuses the password, it is read again from its file; until it changes, the log has the reason.

    Each reason is logged once.
    """
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text("one\n")
    url = f"redis://app@127.0.0.1:{own_redis.port}/0"
    with mount_server(tmp_path, url, "--password-file", str(file)) as mount:
        client.execute_command("ACL", "SETUSER", "app", "resetpass", ">two")
        drop_connections(client)
        wait_until(lambda: "WRONGPASS" in mount.read_log())
        assert errno_name((mount.path / "k").read_bytes) == "EACCES"
        assert "WRONGPASS" in mount.status()["reason"]
        file.write_text("two\n")
        wait_until(lambda: mount.status()["live"])
        wait_until(lambda: errno_name((mount.path / "k").read_bytes) == "")
        wait_until(lambda: "has resumed" in mount.read_log())
        assert mount.read_log().count("WRONGPASS") == 1
        assert "two" not in mount.read_log()
        # Changed on both sides before a connection ends, it costs one refused attempt.
        client.execute_command("ACL", "SETUSER", "app", "resetpass", ">three")
        file.write_text("three\n")
        drop_connections(client)
        wait_until(lambda: mount.read_log().count("has resumed") == 2)
        assert mount.read_log().count("WRONGPASS") == 1


@pytest.mark.expected_log(INTERRUPTED, "reading the password again failed: the password file .* is not private")
def test_a_password_file_that_was_opened_to_others(own_redis: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    """The rule of trusted files holds for each reading."""
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text("one\n")
    url = f"redis://app@127.0.0.1:{own_redis.port}/0"
    with mount_server(tmp_path, url, "--password-file", str(file)) as mount:
        file.write_text("two\n")
        file.chmod(0o644)
        client.execute_command("ACL", "SETUSER", "app", "resetpass", ">two")
        drop_connections(client)
        wait_until(lambda: "is not private" in mount.read_log())
        assert not mount.status()["live"]


@pytest.mark.expected_log(INTERRUPTED, "reconnecting fails: authentication with .*WRONGPASS")
def test_the_password_of_a_url_is_not_replaced(own_redis: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    """A password in the URL has priority over the file, at the start and later."""
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text("two\n")
    url = f"redis://app:one@127.0.0.1:{own_redis.port}/0"
    with mount_server(tmp_path, url, "--password-file", str(file)) as mount:
        client.execute_command("ACL", "SETUSER", "app", "resetpass", ">two")
        drop_connections(client)
        wait_until(lambda: "WRONGPASS" in mount.read_log())
        assert NEW_PASSWORD not in mount.read_log()


@pytest.mark.expected_log(f"{INTERRUPTED}: .* was lost: the server reset the connection")
def test_a_reset_connection(own_redis: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    """A reset is named as such, and so is the moment from which changes are tracked again."""
    with Proxy(own_redis.socket_path, tcp=True) as proxy, mount_server(tmp_path, proxy.url()) as mount:
        mount.wait_coherent()
        proxy.inject("reset", "INFO", times=1)
        wait_until(lambda: "has resumed" in mount.read_log())
        client.set("k", "new")
        wait_until(lambda: (mount.path / "k").read_bytes() == b"new")


@pytest.mark.expected_log("changes by other clients appear after up to 30 s: .*client.tracking")
@pytest.mark.possible_log(INTERRUPTED)
def test_a_permission_that_is_revoked(own_redis: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    """The missing permission is in the log; `refresh` resumes tracking when the user has it again."""
    with mount_server(tmp_path, f"redis://app:one@127.0.0.1:{own_redis.port}/0") as mount:
        mount.wait_coherent()
        client.execute_command("ACL", "SETUSER", "app", "-client|tracking")
        drop_connections(client)
        wait_until(lambda: "appear after up to 30 s" in mount.read_log())
        client.execute_command("ACL", "SETUSER", "app", "+client|tracking")
        assert run_redisfuse(tmp_path, "refresh", str(mount.path)).returncode == 0
        wait_until(lambda: "has resumed" in mount.read_log())
        mount.wait_coherent()


STATUS_AS_ANOTHER_USER = """
import os, sys
from redisfuse.cli.main import main
assert main(["status", sys.argv[1]]) == 0  # imports all that the other user may not be able to read
os.environ["XDG_CONFIG_HOME"] = "/nonexistent"
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
sys.exit(main(sys.argv[2:]))
"""


@needs_open_checkout
def test_the_status_of_other_users_mounts(own_redis: RedisServer, tmp_path: Path) -> None:
    """An ordinary user's `status` names the mounts of others and does not fail; asked for one of them, it does."""

    def status(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", STATUS_AS_ANOTHER_USER, str(mount.path), "status", *words]
        environment = isolated_environment(tmp_path)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    with mount_server(tmp_path, own_redis.url()) as mount:
        done = status()
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{mount.path} is a mount of another user (uid 0), and only that user can see its status" in done.stdout
        done = status("--json")
        assert (done.returncode, done.stderr) == (0, "")
        done = status(str(mount.path))
        assert done.returncode == 1
        assert done.stderr.endswith("is a mount of another user (uid 0), and only that user can see its status\n")
