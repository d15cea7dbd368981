"""The Redis users that SECURITY.md gives: enough for what redisfuse sends, and for nothing that could hurt."""

import re
from pathlib import Path

import pytest
import redis

from redisfuse.server.allowlist import READS, WRITES, AllowList
from tests.support.redis_server import RedisServer

SECURITY = (Path(__file__).parents[2] / "SECURITY.md").read_text()
USERS = {"redisfuse-reader": READS, "redisfuse-editor": WRITES}
NEEDS_NO_PERMISSION = {"AUTH", "HELLO"}  # the server lets everybody send them
UNBOUNDED = {"KEYS", "SORT", "FLUSHALL", "FLUSHDB", "SWAPDB", "MIGRATE", "EVAL", "PFCOUNT"}


def rules(user: str) -> list[str]:
    """The words of the user's line in SECURITY.md."""
    (line,) = re.findall(rf"^ACL SETUSER ({user} .*)$", SECURITY, re.MULTILINE)
    return line.replace(">PASSWORD", "nopass").split()


def names(allowed: AllowList) -> set[str]:
    """Each command, container commands as `CLIENT|SETNAME`."""
    single = {command.decode() for command in allowed.commands}
    double = {f"{first.decode()}|{second.decode()}" for first, rest in allowed.containers.items() for second in rest}
    return (single | {name for name in double if not name.startswith("SUBSCRIBE")}) - NEEDS_NO_PERMISSION


def allowed(client: redis.Redis, user: str, command: str, info: dict[str, dict[str, object]]) -> bool:
    """Whether the server would let the user run the command (ACL DRYRUN), with as many words as it needs."""
    words = command.split("|")
    needed = abs(int(str(info[command]["arity"]))) - len(words)
    filler = {"XGROUP|CREATE": ["k", "g", "$"], "CLIENT|TRACKING": ["on"], "SUBSCRIBE": ["__redis__:invalidate"]}
    answer = client.execute_command("ACL", "DRYRUN", user, *words, *filler.get(command, ["1"] * max(needed, 0)))
    assert isinstance(answer, bytes)
    return answer == b"OK"


@pytest.fixture
def info(redis_server: RedisServer) -> dict[str, dict[str, object]]:
    """All commands of this server, container commands as `CLIENT|SETNAME`, with what COMMAND says."""
    found: dict[str, dict[str, object]] = {}

    def note(answers: list[list[object]]) -> None:
        for name, arity, flags, *rest in answers:
            assert isinstance(name, bytes)
            found[name.decode().upper()] = {"arity": arity, "flags": flags, "children": rest[-1]}
            children = rest[-1]
            assert isinstance(children, list)
            note(children)

    client = redis_server.client()
    client.response_callbacks.clear()
    note(client.execute_command("COMMAND"))
    return found


@pytest.mark.parametrize("user", USERS)
def test_the_users_may_do_what_redisfuse_does(
    user: str, redis_server: RedisServer, info: dict[str, dict[str, object]]
) -> None:
    """With the rules of SECURITY.md a server allows every command on the allow-lists that it knows."""
    client = redis_server.client()
    client.execute_command("ACL", "SETUSER", *rules(user))
    wanted = names(USERS[user]) & info.keys()
    assert len(wanted) > 30
    assert {command for command in wanted if not allowed(client, user, command, info)} == set()
    assert allowed(client, user, "SUBSCRIBE", info)
    client.execute_command("ACL", "DELUSER", user)


def test_the_reader_can_change_nothing(redis_server: RedisServer, info: dict[str, dict[str, object]]) -> None:
    """With the rules of SECURITY.md a server refuses the reader every command that writes, administers or scripts."""
    client = redis_server.client()
    client.execute_command("ACL", "SETUSER", *rules("redisfuse-reader"))
    risky = {name for name, facts in info.items() if re.search(r"write|admin", str(facts["flags"]))}
    assert len(risky) > 100
    assert {
        name for name in (risky | UNBOUNDED) & info.keys() if allowed(client, "redisfuse-reader", name, info)
    } == set()
    client.execute_command("ACL", "DELUSER", "redisfuse-reader")
