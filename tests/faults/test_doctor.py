"""`redisfuse doctor` on real servers: its output, its exit status, and that it discloses no secret."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.redis_server import RedisServer, find_free_port


def doctor(*arguments: str, password: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run `redisfuse doctor`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REDISFUSE_")}
    if password is not None:
        environment["REDISFUSE_PASSWORD"] = password
    code = "import sys; from redisfuse.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "doctor", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def rows(result: "subprocess.CompletedProcess[str]") -> dict[str, dict[str, object]]:
    """Return the JSON lines, by their check."""
    return {row["check"]: row for row in map(json.loads, result.stdout.splitlines())}


def test_all_is_well(redis_server: RedisServer) -> None:
    """On a server where the user may do everything all checks are ok, and the rules are printed."""
    result = doctor("127.0.0.1", str(redis_server.port))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\tok\t") == 5
    assert "ACL SETUSER redisfuse on >PASSWORD resetchannels %R~* +@read -pfcount -keys" in result.stdout
    findings = rows(doctor("--json", redis_server.url()))
    assert list(findings) == ["fuse", "server", "read-only", "following", "write"]
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


@pytest.mark.parametrize("arguments", [[], ["127.0.0.1"], ["127.0.0.1", "x"], ["a", "1", "b"], ["http://x"]])
def test_usage(arguments: list[str]) -> None:
    """An invalid address is a usage error, in one line."""
    result = doctor(*arguments)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_no_server_and_a_wrong_password(own_redis: RedisServer) -> None:
    """A server that is down, and a wrong password, are one line and status 1, without the password."""
    result = doctor("127.0.0.1", str(find_free_port()), "--timeout", "2")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    result = doctor(f"unix://:hunter2@{own_redis.socket_path}")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "hunter2" not in result.stderr + result.stdout
