"""client/acl.py against a real server: the rules are enough and no more, and the report tells the truth."""

import contextlib
from collections.abc import Iterator

import pytest
import redis

from redisfuse.client.acl import MODES, Mode, inspect, rule
from redisfuse.client.address import Address
from redisfuse.client.allowlist import INVALIDATIONS, READS, WRITES
from redisfuse.client.capabilities import Facts
from redisfuse.client.client import Server
from redisfuse.errors import AccessError
from tests.support.redis_server import RedisServer


@contextlib.contextmanager
def as_user(own: RedisServer, words: str, *, db: int = 0) -> Iterator[Server]:
    """A writable Server that logs in as a new user with this rule."""
    client = own.client()
    client.execute_command("ACL", "DELUSER", "redisfuse")
    client.execute_command("ACL", "SETUSER", "redisfuse", "on", ">secret", *words.split())
    address = Address.parse(own.url(db), username="redisfuse", password="secret")
    with contextlib.closing(Server(address, writable=True)) as server:
        yield server


def denials(client: redis.Redis) -> int:
    """How many entries the server's ACL LOG has."""
    return len(client.execute_command("ACL", "LOG"))


@pytest.fixture
def facts(own_redis: RedisServer) -> Facts:
    """What the server is."""
    with contextlib.closing(Server(Address.parse(own_redis.url()))) as server:
        return server.facts


def test_the_default_user_may_everything(own_redis: RedisServer) -> None:
    """For the default user all modes are allowed, found by ACL DRYRUN, and nothing is left in the keyspace."""
    with contextlib.closing(Server(Address.parse(own_redis.url()))) as server:
        report = inspect(server)
    assert (report.user, report.method) == ("default", "dry run")
    assert [verdict.allowed for verdict in report.verdicts] == [True] * 3
    assert all(verdict.missing == () for verdict in report.verdicts)
    assert own_redis.client().dbsize() == 0
    assert denials(own_redis.client()) == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("db", [0, 2])
def test_a_rule_is_enough(own_redis: RedisServer, facts: Facts, mode: Mode, db: int) -> None:
    """A user with exactly the rule of a mode is allowed that mode, told without an administrator's rights."""
    with as_user(own_redis, rule(mode, facts), db=db) as server:
        report = inspect(server, rehearse_writes=mode == "write")
        assert (report.user, report.method) == ("redisfuse", "rehearsal")
        assert report.verdict(mode).allowed is True
        assert report.verdict(mode).missing == ()
        assert report.verdict("read-only").allowed is True
    assert own_redis.client().dbsize() == 0


def test_a_read_only_rule_is_no_more(own_redis: RedisServer, facts: Facts) -> None:
    """A user with the read-only rule can't write, configure or run scripts; the report names what it lacks."""
    client = own_redis.client()
    client.set("k", "old")
    with as_user(own_redis, rule("read-only", facts)) as server:
        report = inspect(server, rehearse_writes=True)
        assert report.verdict("following").allowed is False
        assert set(report.verdict("following").missing) == {"+client|tracking", "+subscribe"}
        missing = report.verdict("write").missing
        assert {"+set", "+restore", "+xgroup|create", "+hset"} <= set(missing)
        with server.writer() as writer:
            answers = writer.exchange([("SET", "k", "v"), ("DEL", "k"), ("RESTORE", "k2", 0, "x")])
            assert all(isinstance(answer, AccessError) for answer in answers)
        user = own_redis.client(username="redisfuse", password="secret", protocol=2)
        for command in ("FLUSHALL", "CONFIG GET *", "EVAL x 0", "KEYS *", "PFCOUNT k", "ACL WHOAMI", "CLIENT LIST"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                user.execute_command(*command.split())
    assert client.get("k") == b"old"


def test_following_needs_the_channel(own_redis: RedisServer, facts: Facts) -> None:
    """A user who lacks only the channel is told just that."""
    words = rule("following", facts).replace("&__redis__:invalidate", "")
    with as_user(own_redis, words) as server:
        assert inspect(server).verdict("following").missing == ("&__redis__:invalidate",)
        assert inspect(server).verdict("read-only").allowed is True


@pytest.mark.parametrize("word", ["+info", "+time", "+client|setname", "+watch", "+multi"])
def test_each_missing_word_is_named(own_redis: RedisServer, facts: Facts, word: str) -> None:
    """Without one word of the rule, the report says that word."""
    words = " ".join(each for each in rule("read-only", facts).split() if each != word)
    with as_user(own_redis, words) as server:
        verdict = inspect(server).verdict("read-only")
        assert word in verdict.missing
        assert verdict.allowed is False


def test_some_keys_only(own_redis: RedisServer, facts: Facts) -> None:
    """A user who may see a prefix only is allowed to mount that prefix, and told the pattern that all keys need."""
    with as_user(own_redis, rule("following", facts, "config:*")) as server:
        assert inspect(server, prefix=b"config:").verdict("following").allowed is True
        verdict = inspect(server).verdict("read-only")
        assert (verdict.allowed, verdict.missing) == (False, ("%R~*",))
    with as_user(own_redis, rule("write", facts, "config:*") + " %R~*") as server:
        assert inspect(server, rehearse_writes=True).verdict("write").missing == ("~*",)
        report = inspect(server, prefix=b"config:", rehearse_writes=True)
        assert report.verdict("write").allowed is True
        assert report.verdict("write").rule == rule("write", facts, "config:*")


def test_writes_are_not_tried_unasked(own_redis: RedisServer, facts: Facts) -> None:
    """Unless asked, writes are not tried: denials would make the user look like an intruder in the ACL LOG."""
    with as_user(own_redis, rule("following", facts)) as server:
        report = inspect(server)
        assert report.verdict("write").allowed is None
        assert report.verdict("write").missing == ()
    log = own_redis.client().execute_command("ACL", "LOG")
    assert len(log) == 1  # the attempt at ACL DRYRUN


def test_what_else_keeps_from_writing(own_redis: RedisServer) -> None:
    """On a replica writes are allowed by the ACL, and the report notes why they fail all the same."""
    client = own_redis.client()
    client.execute_command("ACL", "SETUSER", "redisfuse", "on", ">secret", "+@all", "~*", "&*", "-acl")
    client.replicaof("127.0.0.1", "1")
    address = Address.parse(own_redis.url(), username="redisfuse", password="secret")
    with contextlib.closing(Server(address)) as server:
        report = inspect(server, rehearse_writes=True)
    assert report.method == "rehearsal"
    assert report.verdict("write").allowed is True
    assert any("replica" in note for note in report.notes)


@pytest.mark.parametrize(
    ("facts", "without", "within"),
    [
        (Facts(version=(6, 0, 0)), ("%R~", "&", "resetchannels", "no-touch", "hsetex"), ("~*", "+client|tracking")),
        (Facts(version=(6, 2, 0)), ("%R~",), ("&__redis__:invalidate",)),
        (Facts(version=(7, 2, 0)), ("hpersist",), ("+client|no-touch",)),
        (Facts(version=(8, 0, 0), modules=frozenset({"rejson"})), (), ("+hsetex", "+hpersist", "+json.set")),
    ],
)
def test_rules_of_other_versions(facts: Facts, without: tuple[str, ...], within: tuple[str, ...]) -> None:
    """A rule has only words that the server's version knows, and those that it needs."""
    text = rule("write", facts) + " " + rule("following", facts)
    assert all(word in text for word in within)
    assert not any(word in text for word in without)


def test_rules_cover_the_allow_lists(own_redis: RedisServer) -> None:
    """Every command that a connection may send is in the rule: by its category @read, or by name."""
    latest = Facts(version=(99, 0, 0), modules=frozenset({"rejson"}))
    words = rule("write", latest).split()
    named = {word[1:] for word in words if word[0] == "+"}
    client = own_redis.client()
    read = {name.decode() for name in client.execute_command("ACL", "CAT", "read")}
    known = {
        name.decode()
        for category in client.execute_command("ACL", "CAT")
        for name in client.execute_command("ACL", "CAT", category)
    }
    for name in sorted(word.decode().lower() for word in READS.commands):
        if name in ("auth", "hello") or name not in known:  # allowed before any rule; of a later version
            continue
        assert name in read | named
    assert {word.decode().lower() for word in WRITES.commands - READS.commands} <= named
    for container, seconds in (READS.containers | WRITES.containers).items():
        for second in seconds - {INVALIDATIONS}:
            full = f"{container.decode()}|{second.decode()}".lower()
            assert full in named or container in (b"OBJECT", b"XINFO"), full  # those two are @read
