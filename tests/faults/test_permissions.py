"""client/acl.py against a real server: the rules are enough and no more, and the report tells the truth."""

import contextlib
from collections.abc import Iterator

import pytest
import redis

from redisfuse.client.acl import ACCESS_MODES, AccessMode, build_required_acl, check_acl
from redisfuse.client.address import Address
from redisfuse.client.allowlist import INVALIDATION_CHANNEL, READ_ALLOWLIST, WRITE_ALLOWLIST
from redisfuse.client.capabilities import ServerInfo
from redisfuse.client.client import RedisClient
from redisfuse.errors import AccessError
from tests.support.redis_server import RedisServer


@contextlib.contextmanager
def as_user(own: RedisServer, words: str, *, db: int = 0) -> Iterator[RedisClient]:
    """A writable Server that logs in as a new user with this rule."""
    client = own.client()
    client.execute_command("ACL", "DELUSER", "redisfuse")
    client.execute_command("ACL", "SETUSER", "redisfuse", "on", ">secret", *words.split())
    address = Address.parse(own.url(db), username="redisfuse", password="secret")
    with contextlib.closing(RedisClient(address, writable=True)) as server:
        yield server


def denials(client: redis.Redis) -> int:
    """How many entries the server's ACL LOG has."""
    return len(client.execute_command("ACL", "LOG"))


@pytest.fixture
def facts(own_redis: RedisServer) -> ServerInfo:
    """What the server is."""
    with contextlib.closing(RedisClient(Address.parse(own_redis.url()))) as server:
        return server.server_info


def test_the_default_user_may_everything(own_redis: RedisServer) -> None:
    """For the default user all modes are allowed, found by ACL DRYRUN, and nothing is left in the keyspace."""
    with contextlib.closing(RedisClient(Address.parse(own_redis.url()))) as server:
        report = check_acl(server)
    assert (report.user, report.method) == ("default", "dry run")
    assert [verdict.allowed for verdict in report.modes] == [True] * 3
    assert all(verdict.missing_rules == () for verdict in report.modes)
    assert own_redis.client().dbsize() == 0
    assert denials(own_redis.client()) == 0


@pytest.mark.parametrize("mode", ACCESS_MODES)
@pytest.mark.parametrize("db", [0, 2])
def test_a_rule_is_enough(own_redis: RedisServer, facts: ServerInfo, mode: AccessMode, db: int) -> None:
    """A user with exactly the rule of a mode is allowed that mode, told without an administrator's rights."""
    with as_user(own_redis, build_required_acl(mode, facts), db=db) as server:
        report = check_acl(server, queue_writes=mode == "write")
        assert (report.user, report.method) == ("redisfuse", "discarded transaction")
        assert report.get_mode_access(mode).allowed is True
        assert report.get_mode_access(mode).missing_rules == ()
        assert report.get_mode_access("read-only").allowed is True
    assert own_redis.client().dbsize() == 0


def test_a_read_only_rule_is_no_more(own_redis: RedisServer, facts: ServerInfo) -> None:
    """A user with the read-only rule can't write, configure or run scripts; the report names what it lacks."""
    client = own_redis.client()
    client.set("k", "old")
    with as_user(own_redis, build_required_acl("read-only", facts)) as server:
        report = check_acl(server, queue_writes=True)
        assert report.get_mode_access("following").allowed is False
        assert set(report.get_mode_access("following").missing_rules) == {"+client|tracking", "+subscribe"}
        missing = report.get_mode_access("write").missing_rules
        assert {"+set", "+restore", "+xgroup|create", "+hset"} <= set(missing)
        with server.write_channel() as writer:
            answers = writer.execute([("SET", "k", "v"), ("DEL", "k"), ("RESTORE", "k2", 0, "x")])
            assert all(isinstance(answer, AccessError) for answer in answers)
        user = own_redis.client(username="redisfuse", password="secret", protocol=2)
        for command in ("FLUSHALL", "CONFIG GET *", "EVAL x 0", "KEYS *", "PFCOUNT k", "ACL WHOAMI", "CLIENT LIST"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                user.execute_command(*command.split())
    assert client.get("k") == b"old"


def test_following_needs_the_channel(own_redis: RedisServer, facts: ServerInfo) -> None:
    """A user who lacks only the channel is told just that."""
    words = build_required_acl("following", facts).replace("&__redis__:invalidate", "")
    with as_user(own_redis, words) as server:
        assert check_acl(server).get_mode_access("following").missing_rules == ("&__redis__:invalidate",)
        assert check_acl(server).get_mode_access("read-only").allowed is True


@pytest.mark.parametrize("word", ["+info", "+time", "+client|setname", "+watch", "+multi"])
def test_each_missing_word_is_named(own_redis: RedisServer, facts: ServerInfo, word: str) -> None:
    """Without one word of the rule, the report says that word."""
    words = " ".join(each for each in build_required_acl("read-only", facts).split() if each != word)
    with as_user(own_redis, words) as server:
        verdict = check_acl(server).get_mode_access("read-only")
        assert word in verdict.missing_rules
        assert verdict.allowed is False


def test_some_keys_only(own_redis: RedisServer, facts: ServerInfo) -> None:
    """A user who may see a prefix only is allowed to mount that prefix, and told the pattern that all keys need."""
    with as_user(own_redis, build_required_acl("following", facts, "config:*")) as server:
        assert check_acl(server, prefix=b"config:").get_mode_access("following").allowed is True
        verdict = check_acl(server).get_mode_access("read-only")
        assert (verdict.allowed, verdict.missing_rules) == (False, ("%R~*",))
    with as_user(own_redis, build_required_acl("write", facts, "config:*") + " %R~*") as server:
        assert check_acl(server, queue_writes=True).get_mode_access("write").missing_rules == ("~*",)
        report = check_acl(server, prefix=b"config:", queue_writes=True)
        assert report.get_mode_access("write").allowed is True
        assert report.get_mode_access("write").required_acl == build_required_acl("write", facts, "config:*")


def test_writes_are_not_tried_unasked(own_redis: RedisServer, facts: ServerInfo) -> None:
    """Unless asked, writes are not tried: denials would make the user look like an intruder in the ACL LOG."""
    with as_user(own_redis, build_required_acl("following", facts)) as server:
        report = check_acl(server)
        assert report.get_mode_access("write").allowed is None
        assert report.get_mode_access("write").missing_rules == ()
    log = own_redis.client().execute_command("ACL", "LOG")
    assert len(log) == 1  # the attempt at ACL DRYRUN


def test_what_else_keeps_from_writing(own_redis: RedisServer) -> None:
    """On a replica writes are allowed by the ACL, and the report notes why they fail all the same."""
    client = own_redis.client()
    client.execute_command("ACL", "SETUSER", "redisfuse", "on", ">secret", "+@all", "~*", "&*", "-acl")
    client.replicaof("127.0.0.1", "1")
    address = Address.parse(own_redis.url(), username="redisfuse", password="secret")
    with contextlib.closing(RedisClient(address)) as server:
        report = check_acl(server, queue_writes=True)
    assert report.method == "discarded transaction"
    assert report.get_mode_access("write").allowed is True
    assert any("replica" in note for note in report.notes)


@pytest.mark.parametrize(
    ("facts", "without", "within"),
    [
        (
            ServerInfo(version=(6, 0, 0)),
            ("%R~", "&", "resetchannels", "no-touch", "hsetex"),
            ("~*", "+client|tracking"),
        ),
        (ServerInfo(version=(6, 2, 0)), ("%R~",), ("&__redis__:invalidate",)),
        (ServerInfo(version=(7, 2, 0)), ("hpersist",), ("+client|no-touch",)),
        (ServerInfo(version=(8, 0, 0), modules=frozenset({"rejson"})), (), ("+hsetex", "+hpersist", "+json.set")),
    ],
)
def test_rules_of_other_versions(facts: ServerInfo, without: tuple[str, ...], within: tuple[str, ...]) -> None:
    """A rule has only words that the server's version knows, and those that it needs."""
    text = build_required_acl("write", facts) + " " + build_required_acl("following", facts)
    assert all(word in text for word in within)
    assert not any(word in text for word in without)


def test_rules_cover_the_allow_lists(own_redis: RedisServer) -> None:
    """Every command that a connection may send is in the rule: by its category @read, or by name."""
    latest = ServerInfo(version=(99, 0, 0), modules=frozenset({"rejson"}))
    words = build_required_acl("write", latest).split()
    named = {word[1:] for word in words if word[0] == "+"}
    client = own_redis.client()
    read = {name.decode() for name in client.execute_command("ACL", "CAT", "read")}
    known = {
        name.decode()
        for category in client.execute_command("ACL", "CAT")
        for name in client.execute_command("ACL", "CAT", category)
    }
    for name in sorted(word.decode().lower() for word in READ_ALLOWLIST.commands):
        if name in ("auth", "hello") or name not in known:  # allowed before any rule; of a later version
            continue
        assert name in read | named
    assert {word.decode().lower() for word in WRITE_ALLOWLIST.commands - READ_ALLOWLIST.commands} <= named
    for container, seconds in (READ_ALLOWLIST.subcommands | WRITE_ALLOWLIST.subcommands).items():
        for second in seconds - {INVALIDATION_CHANNEL}:
            full = f"{container.decode()}|{second.decode()}".lower()
            assert full in named or container in (b"OBJECT", b"XINFO"), full  # those two are @read
