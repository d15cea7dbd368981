"""client/acl.py on a real server: the rules are sufficient and minimal, and the report is right."""

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
    """Create a user with these rules; yield a writable client that is authenticated as it."""
    client = own.client()
    client.execute_command("ACL", "DELUSER", "redisfuse")
    client.execute_command("ACL", "SETUSER", "redisfuse", "on", ">secret", *words.split())
    address = Address.parse(own.url(db), username="redisfuse", password="secret")
    with contextlib.closing(RedisClient(address, writable=True)) as server:
        yield server


def denials(client: redis.Redis) -> int:
    """Return the number of entries in the server's ACL LOG."""
    return len(client.execute_command("ACL", "LOG"))


@pytest.fixture
def server_info(own_redis: RedisServer) -> ServerInfo:
    """Return the server's capabilities."""
    with contextlib.closing(RedisClient(Address.parse(own_redis.url()))) as server:
        return server.server_info


def test_the_default_user_may_everything(own_redis: RedisServer) -> None:
    """For the default user all modes are allowed, by ACL DRYRUN, and nothing is left in the keyspace."""
    with contextlib.closing(RedisClient(Address.parse(own_redis.url()))) as server:
        report = check_acl(server)
    assert (report.user, report.method) == ("default", "dry run")
    assert [verdict.allowed for verdict in report.modes] == [True] * 3
    assert all(verdict.missing_rules == () for verdict in report.modes)
    assert own_redis.client().dbsize() == 0
    assert denials(own_redis.client()) == 0


@pytest.mark.parametrize("mode", ACCESS_MODES)
@pytest.mark.parametrize("db", [0, 2])
def test_the_rules_are_sufficient(own_redis: RedisServer, server_info: ServerInfo, mode: AccessMode, db: int) -> None:
    """A user with exactly the rules of a mode is allowed that mode, without an administrator's rights."""
    with as_user(own_redis, build_required_acl(mode, server_info), db=db) as server:
        report = check_acl(server, queue_writes=mode == "write")
        assert (report.user, report.method) == ("redisfuse", "discarded transaction")
        assert report.get_mode_access(mode).allowed is True
        assert report.get_mode_access(mode).missing_rules == ()
        assert report.get_mode_access("read-only").allowed is True
    assert own_redis.client().dbsize() == 0


def test_the_read_only_rules_are_minimal(own_redis: RedisServer, server_info: ServerInfo) -> None:
    """A user with the read-only rules can't write, configure or run scripts; the report names the missing rules."""
    client = own_redis.client()
    client.set("k", "old")
    with as_user(own_redis, build_required_acl("read-only", server_info)) as server:
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


def test_following_needs_the_channel(own_redis: RedisServer, server_info: ServerInfo) -> None:
    """For a user that lacks only the channel, the report names just that."""
    words = build_required_acl("following", server_info).replace("&__redis__:invalidate", "")
    with as_user(own_redis, words) as server:
        assert check_acl(server).get_mode_access("following").missing_rules == ("&__redis__:invalidate",)
        assert check_acl(server).get_mode_access("read-only").allowed is True


@pytest.mark.parametrize("word", ["+info", "+time", "+client|setname", "+watch", "+multi"])
def test_each_missing_rule_is_named(own_redis: RedisServer, server_info: ServerInfo, word: str) -> None:
    """Without one of the rules, the report names it."""
    words = " ".join(rule for rule in build_required_acl("read-only", server_info).split() if rule != word)
    with as_user(own_redis, words) as server:
        verdict = check_acl(server).get_mode_access("read-only")
        assert word in verdict.missing_rules
        assert verdict.allowed is False


def test_some_keys_only(own_redis: RedisServer, server_info: ServerInfo) -> None:
    """A user that may see one prefix may mount that prefix; the report names the pattern for all keys."""
    with as_user(own_redis, build_required_acl("following", server_info, "config:*")) as server:
        assert check_acl(server, prefix=b"config:").get_mode_access("following").allowed is True
        verdict = check_acl(server).get_mode_access("read-only")
        assert (verdict.allowed, verdict.missing_rules) == (False, ("%R~*",))
    with as_user(own_redis, build_required_acl("write", server_info, "config:*") + " %R~*") as server:
        assert check_acl(server, queue_writes=True).get_mode_access("write").missing_rules == ("~*",)
        report = check_acl(server, prefix=b"config:", queue_writes=True)
        assert report.get_mode_access("write").allowed is True
        assert report.get_mode_access("write").required_acl == build_required_acl("write", server_info, "config:*")


def test_writes_are_not_queued_by_default(own_redis: RedisServer, server_info: ServerInfo) -> None:
    """By default writes are not queued: denials would make the user look like an intruder in the ACL LOG."""
    with as_user(own_redis, build_required_acl("following", server_info)) as server:
        report = check_acl(server)
        assert report.get_mode_access("write").allowed is None
        assert report.get_mode_access("write").missing_rules == ()
    log = own_redis.client().execute_command("ACL", "LOG")
    assert len(log) == 1  # the attempt at ACL DRYRUN


def test_a_replica_is_noted(own_redis: RedisServer) -> None:
    """On a replica the ACL allows writes, and the report notes why they fail nevertheless."""
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
    ("server_info", "without", "within"),
    [
        (
            ServerInfo(version=(6, 0, 0)),
            ("%R~", "&", "resetchannels", "no-touch", "hsetex"),
            ("~*", "+client|tracking"),
        ),
        (ServerInfo(version=(6, 2, 0)), ("%R~",), ("&__redis__:invalidate",)),
        (ServerInfo(version=(7, 2, 0)), ("hpersist", "no-touch"), ()),
        (
            ServerInfo(version=(8, 0, 0), modules=frozenset({"rejson"})),
            ("%R~", "no-touch"),
            ("+hsetex", "+hpersist", "+json.get", "+json.set"),
        ),
        (ServerInfo(version=(8, 4, 0)), (), ("+client|no-touch",)),
    ],
)
def test_rules_of_other_versions(server_info: ServerInfo, without: tuple[str, ...], within: tuple[str, ...]) -> None:
    """The rules contain only what the server's version has, and all that it needs."""
    text = build_required_acl("write", server_info) + " " + build_required_acl("following", server_info)
    assert all(word in text for word in within)
    assert not any(word in text for word in without)


def test_rules_cover_the_allow_lists(own_redis: RedisServer) -> None:
    """The rules allow every command that a connection may send: by its category @read, or by name."""
    latest = ServerInfo(version=(99, 0, 0), mode="cluster", modules=frozenset({"rejson"}))
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
    optional = {b"WAIT"}  # only for --wait-replicas
    assert {word.decode().lower() for word in WRITE_ALLOWLIST.commands - READ_ALLOWLIST.commands - optional} <= named
    for container, seconds in (READ_ALLOWLIST.subcommands | WRITE_ALLOWLIST.subcommands).items():
        for second in seconds - {INVALIDATION_CHANNEL}:
            full = f"{container.decode()}|{second.decode()}".lower()
            assert full in named or container in (b"MEMORY", b"OBJECT", b"XINFO"), full  # these are @read
