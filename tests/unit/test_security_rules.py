"""The Redis users in SECURITY.md are those of `redisfuse doctor`, and the reader's can't change data.

tests/faults/test_acl.py tests that the rules suffice for all that redisfuse sends.
"""

import re
from pathlib import Path

import pytest

from redisfuse.client.acl import AccessMode, build_required_acl
from redisfuse.client.capabilities import ServerInfo
from tests.support.redis_server import RedisServer

SECURITY = (Path(__file__).parents[2] / "SECURITY.md").read_text()
UNBOUNDED = {"KEYS", "SORT", "FLUSHALL", "FLUSHDB", "SWAPDB", "MIGRATE", "EVAL", "PFCOUNT"}


def words(user: str) -> str:
    """Return the rules after the password in the user's line in SECURITY.md."""
    (line,) = re.findall(rf"^ACL SETUSER {user} on >PASSWORD (.*)$", SECURITY, re.MULTILINE)
    assert isinstance(line, str)
    return line


@pytest.mark.parametrize(("user", "mode"), [("redisfuse-reader", "following"), ("redisfuse-editor", "write")])
def test_the_rules_are_doctors(user: str, mode: AccessMode) -> None:
    """SECURITY.md's rules are what `redisfuse doctor` prints for Redis 7.0."""
    facts = ServerInfo(
        "redis", (7, 0, 15), run_id="", mode="standalone", role="master", modules=frozenset(), loading=False
    )
    assert words(user) == build_required_acl(mode, facts)


def test_the_reader_can_change_nothing(redis_server: RedisServer) -> None:
    """A server refuses the reader of SECURITY.md every command that writes, administers or costs without bound."""
    client = redis_server.client()
    client.execute_command("ACL", "SETUSER", "redisfuse-reader", "on", "nopass", *words("redisfuse-reader").split())
    client.response_callbacks.clear()
    commands = {name: (arity, flags) for name, arity, flags in all_commands(client.execute_command("COMMAND"))}
    risky = {
        name for name, (_, flags) in commands.items() if re.search(r"write|admin", flags)
    } | UNBOUNDED & commands.keys()
    assert len(risky) > 100
    allowed = set()
    for name in risky:
        parts = name.split("|")
        filler = ["1"] * max(abs(commands[name][0]) - len(parts), 0)
        if client.execute_command("ACL", "DRYRUN", "redisfuse-reader", *parts, *filler) == b"OK":
            allowed.add(name)
    client.execute_command("ACL", "DELUSER", "redisfuse-reader")
    assert allowed == set()


def all_commands(reply: list[list[object]]) -> list[tuple[str, int, str]]:
    """Return name, arity and flags of each command in a reply to COMMAND; subcommands as `CLIENT|SETNAME`."""
    commands = []
    for name, arity, flags, *rest in reply:
        assert isinstance(name, bytes)
        assert isinstance(arity, int)
        assert isinstance(rest[-1], list)
        commands += [(name.decode().upper(), arity, str(flags)), *all_commands(rest[-1])]
    return commands
