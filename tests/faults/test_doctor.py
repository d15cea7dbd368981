"""`redisfuse doctor` on real servers: its output, its exit status, and that it discloses no secret."""

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import redis

from tests.support.forkserver import run_forked
from tests.support.mounts import redisfuse_command
from tests.support.redis_server import RedisServer, find_free_port

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces and other users need root")


def doctor(*arguments: str, password: str | None = None, shell: str = "") -> "subprocess.CompletedProcess[str]":
    """Run `redisfuse doctor`; `shell`: by a script in a mount namespace of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REDISFUSE_")}
    if password is not None:
        environment["REDISFUSE_PASSWORD"] = password
    if shell:
        command = ["unshare", "--mount", "sh", "-ec", shell, "sh", *redisfuse_command("doctor", *arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    done = run_forked(["doctor", *arguments], environment)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def rows(result: "subprocess.CompletedProcess[str]") -> dict[str, dict[str, object]]:
    """Return the JSON lines, by their check."""
    return {row["check"]: row for row in map(json.loads, result.stdout.splitlines())}


def test_all_is_well(redis_server: RedisServer) -> None:
    """On a server where the user may do everything all checks are ok, and the rules are printed."""
    result = doctor("127.0.0.1", str(redis_server.port))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\tok\t") == 6
    assert "ACL SETUSER redisfuse on '>PASSWORD' resetchannels '%R~*' +@read -pfcount -keys" in result.stdout
    findings = rows(doctor("--json", redis_server.url()))
    assert list(findings) == ["fuse", "decoders", "server", "read-only", "following", "write"]
    assert all(row["ok"] for row in findings.values())


def test_the_printed_rules_are_sufficient(own_redis: RedisServer) -> None:
    """A user with the printed rules passes; with fewer, the missing rules are printed, and the exit status is 1."""
    client = own_redis.client()
    printed = rows(doctor("--json", own_redis.url()))
    for mode, options in (("following", []), ("write", ["--write"])):
        words = str(printed[mode]["rule"]).split()
        client.execute_command("ACL", "SETUSER", "redisfuse", "reset", "on", ">hunter2", *words)
        result = doctor(own_redis.url(), "--user", "redisfuse", "--json", *options, password="hunter2")
        assert result.returncode == 0, result.stdout
        assert rows(result)[mode]["ok"] is True
    client.execute_command("ACL", "SETUSER", "redisfuse", "-scan", "-set")
    result = doctor(own_redis.url(), "--user", "redisfuse", "--json", "--write", password="hunter2")
    assert result.returncode == 1
    assert rows(result)["read-only"]["missing"] == ["+scan"]
    assert rows(result)["write"]["missing"] == ["+scan", "+set"]
    assert "hunter2" not in result.stdout + result.stderr


@pytest.mark.parametrize("prefix", ["", "app:", "a b*[x]?'", "caf\u00e9:"])
def test_the_printed_commands_can_be_pasted(own_redis: RedisServer, tmp_path: Path, prefix: str) -> None:
    """Both printed commands do in a shell what they say: the user may read, or write, the keys of the prefix."""
    result = doctor(own_redis.url(), "--prefix", prefix)
    lines = [line.strip() for line in result.stdout.splitlines() if line.startswith("  redis-cli ")]
    assert len(lines) == 2
    client = own_redis.client()
    client.mset({f"{prefix}k": "1", "other": "2"})
    for line, mode in zip(lines, ("following", "write"), strict=True):
        client.execute_command("ACL", "SETUSER", "redisfuse", "reset")
        script = f'redis-cli() {{ command redis-cli -s {own_redis.socket_path} "$@"; }}; {line}'
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=30)
        assert (done.stdout, done.stderr, os.listdir(tmp_path)) == ("OK\n", "", [])
        options = ["--write"] if mode == "write" else []
        result = doctor(own_redis.url(), "--user", "redisfuse", "--prefix", prefix, *options, password="PASSWORD")
        assert result.returncode == 0, result.stdout
        user = own_redis.client(username="redisfuse", password="PASSWORD")
        assert user.get(f"{prefix}k") == b"1"
        if prefix:
            with pytest.raises(redis.exceptions.NoPermissionError):
                user.get("other")


@needs_root
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ('mount -t tmpfs tmpfs /dev; mknod /dev/null c 1 3; mknod /dev/urandom c 1 9; exec "$@"', "modprobe fuse"),
        ('exec setpriv --bounding-set -sys_admin --inh-caps -sys_admin "$@"', "lacks CAP_SYS_ADMIN"),
    ],
)
def test_a_mount_that_can_not_work(redis_server: RedisServer, script: str, reason: str) -> None:
    """Without the device, or the capability, `fuse` is trouble with the remedy, and the exit status is 1."""
    result = doctor(redis_server.url(), "--json", shell=script)
    assert result.returncode == 1, result.stderr
    assert rows(result)["fuse"]["ok"] is False
    assert reason in str(rows(result)["fuse"]["says"])


CHECK_AS_USER = """
import os, sys
from redisfuse.errors import MountError
from redisfuse.mount.preflight import check_mount_permission
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
try: print("ok", check_mount_permission())
except MountError as error: print(error)
"""


@needs_root
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('exec "$@"', "ok through "),
        ('exec setpriv --no-new-privs "$@"', "no_new_privs"),
        ('exec setpriv --bounding-set -sys_admin --inh-caps -sys_admin "$@"', "can't get CAP_SYS_ADMIN"),
        ('PATH=/nonexistent exec "$@"', "fusermount is missing"),
        ('chmod 600 /dev/fuse; exec "$@"', "may not be opened by this user"),
        ('cp "$(command -v fusermount3)" "$COPY"; PATH=$(dirname "$COPY") exec "$@"', "is not setuid root"),
        ('mount -o bind,nosuid /usr/bin /usr/bin; exec "$@"', "mounted with nosuid"),
    ],
)
def test_an_ordinary_user(script: str, expected: str) -> None:
    """An ordinary user needs the device and a fusermount that gets root's permissions."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        os.mknod(f"{folder}/fuse", 0o666 | stat.S_IFCHR, os.makedev(10, 229))
        environment = {**os.environ, "FUSE": f"{folder}/fuse", "COPY": f"{folder}/fusermount3"}
        script = f'chmod 666 "$FUSE"; mount --bind "$FUSE" /dev/fuse; {script}'
        words = ["unshare", "--mount", "sh", "-ec", script, "sh", sys.executable, "-c", CHECK_AS_USER]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert expected in done.stdout, done.stderr


def test_writes_are_checked_only_with_write(own_redis: RedisServer) -> None:
    """For a user that may only read, write mode is unknown and no failure, unless --write is given."""
    words = str(rows(doctor("--json", own_redis.url()))["following"]["rule"]).split()
    own_redis.client().execute_command("ACL", "SETUSER", "redisfuse", "on", ">hunter2", *words)
    result = doctor(own_redis.url(), "--user", "redisfuse", password="hunter2")
    assert result.returncode == 0
    assert "write\tunknown" in result.stdout
    result = doctor(own_redis.url(), "--user", "redisfuse", "--write", password="hunter2")
    assert result.returncode == 1
    assert "+set" in result.stdout
    assert own_redis.client().dbsize() == 0


@pytest.mark.parametrize("arguments", [[], ["/run/redis.sock"], ["127.0.0.1", "x"], ["a", "1", "b"], ["http://x"]])
def test_usage(arguments: list[str]) -> None:
    """An invalid address is a usage error, in one line."""
    result = doctor(*arguments)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_no_server_and_a_wrong_password(own_redis: RedisServer) -> None:
    """A server that is down, and a wrong password, are one line and status 1, without the password.

    What was found of this machine is printed before.
    """
    result = doctor("127.0.0.1", str(find_free_port()), "--timeout", "2")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert [line.partition("\t")[0] for line in result.stdout.splitlines()] == ["fuse", "decoders"]
    result = doctor(f"unix://:hunter2@{own_redis.socket_path}")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "hunter2" not in result.stderr + result.stdout
