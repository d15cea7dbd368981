"""The pure parts of client/: reply_errors.py, capabilities.py, limits.py, rate_limit.py."""

import time

import pytest
import redis

from redisfuse import errors
from redisfuse.client.address import Address
from redisfuse.client.capabilities import ServerInfo, parse_hello, parse_info, parse_version
from redisfuse.client.limits import Limits
from redisfuse.client.rate_limit import TokenBucket
from redisfuse.client.reply_errors import map_error_line, map_redis_exception


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("WRONGTYPE Operation against a key holding the wrong kind of value", errors.WrongTypeError),
        ("NOPERM this user has no permissions to run the 'get' command", errors.AccessError),
        ("NOAUTH Authentication required.", errors.AccessError),
        ("WRONGPASS invalid username-password pair or user is disabled.", errors.AccessError),
        ("DENIED Redis is running in protected mode", errors.AccessError),
        ("READONLY You can't write against a read only replica.", errors.ReadOnlyError),
        ("MISCONF Redis is configured to save RDB snapshots, but ...", errors.ReadOnlyError),
        ("OOM command not allowed when used memory > 'maxmemory'.", errors.NoSpaceError),
        ("LOADING Redis is loading the dataset in memory", errors.TryAgainError),
        ("BUSY Redis is busy running a script.", errors.TryAgainError),
        ("MASTERDOWN Link with MASTER is down", errors.TryAgainError),
        ("TRYAGAIN Multiple keys request during rehashing of slot", errors.TryAgainError),
        ("CLUSTERDOWN Hash slot not served", errors.TryAgainError),
        ("MOVED 3999 127.0.0.1:6381", errors.RedirectedError),
        ("BUSYKEY Target key name already exists.", errors.ServerReplyError),
        ("NOREPLICAS Not enough good replicas to write.", errors.ServerReplyError),
        ("EXECABORT Transaction discarded because of previous errors.", errors.ServerReplyError),
        ("ERR string exceeds maximum allowed size (proto-max-bulk-len)", errors.TooLargeError),
        ("ERR Protocol error: invalid bulk length", errors.TooLargeError),
        ("ERR no such key", errors.NotFoundError),
        ("ERR syntax error", errors.ServerReplyError),
        ("ERR max number of clients reached", errors.UnavailableError),
        ("", errors.ServerReplyError),
        ("nonsense", errors.ServerReplyError),
    ],
)
def test_error_replies(line: str, kind: type[errors.RedisFuseError]) -> None:
    """Each code of an error reply becomes the error with the right errno, in one line."""
    error = map_error_line(line)
    assert type(error) is kind
    assert "\n" not in str(error)


def test_unknown_replies_keep_their_text() -> None:
    """The error of an unknown reply contains the server's text, including the code."""
    assert "BUSYKEY Target key" in str(map_error_line("BUSYKEY Target key name already exists."))


def test_braces_in_a_reply_are_only_text() -> None:
    """Braces in a server's message are not formatted."""
    assert "{text}{0}" in str(map_error_line("NOPERM no access to {text}{0}"))


def test_only_the_servers_words_are_redacted() -> None:
    """A password that is a word of a message is not removed from it, and the server's own text can't contain it."""
    redact = Address.parse("redis://:password@h/0").redact
    refusal = redis.exceptions.AuthenticationError("invalid username-password pair or user is disabled.")
    assert "wrong user name or password (WRONGPASS)" in str(map_redis_exception(refusal, redact))
    for words in (
        "ERR unknown command 'AUTH', with args beginning with: 'password'",
        "NOPERM password",
        "ODD password",
    ):
        assert "password" not in str(map_redis_exception(redis.exceptions.ResponseError(words), redact))


INFO = b"""# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nrun_id:abc\r\n# Replication\r\nrole:slave\r
# Modules\r\nmodule:name=ReJSON,ver=20609,api=1,filters=0\r\n# Cluster\r\ncluster_enabled:0\r\nloading:1\r\n"""


def test_info_of_redis() -> None:
    """INFO gives vendor, version, role, modules."""
    info = parse_info(INFO)
    assert (info.vendor, info.version, info.run_id) == ("redis", (7, 0, 15), "abc")
    assert info.is_replica
    assert info.has_json
    assert info.loading
    assert not info.is_cluster
    assert info.has_pexpiretime
    assert info.has_tracking
    later = (info.has_no_touch, info.has_hash_field_ttl, info.has_hsetex, info.has_hscan_novalues)
    assert later == (False,) * 4


def test_info_of_valkey() -> None:
    """Valkey's own version counts, not the Redis version that it emulates."""
    info = parse_info(b"redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.0\r\nserver_mode:cluster\r\n")
    assert (info.vendor, info.version, info.is_cluster) == ("valkey", (8, 1, 0), True)
    assert info.has_hscan_novalues
    assert not info.has_no_touch
    assert not info.has_hash_field_ttl
    assert ServerInfo(vendor="valkey", version=(9, 1, 2)).has_hsetex


def test_hello() -> None:
    """HELLO's reply, a RESP2 list or a RESP3 map, gives the same as INFO."""
    pairs = [b"server", b"redis", b"version", b"7.4.1", b"mode", b"standalone", b"role", b"replica"]
    info = parse_hello(pairs)
    assert info == parse_hello(dict(zip(pairs[::2], pairs[1::2], strict=True)))
    assert (info.version, info.is_replica, info.has_hash_field_ttl) == ((7, 4, 1), True, True)


def test_malformed_versions() -> None:
    """A version that is not three numbers gives zeros, not an error."""
    assert parse_version("8.6.3") == (8, 6, 3)
    assert parse_version("7.4-rc1") == (7, 4, 1)
    assert parse_version("unstable") == (0, 0, 0)
    assert parse_info(b"\xff\xfe\r\nnonsense").version == (0, 0, 0)


def test_batches_shrink_with_the_rate() -> None:
    """With a rate limit, a batch is a tenth of a second's worth, and at least one command."""
    assert Limits().batch_size == 1000
    assert Limits(rate=500).batch_size == 50
    assert Limits(rate=3).batch_size == 1
    assert Limits(rate=10**6).batch_size == 1000


def test_rate_limit() -> None:
    """At 200 commands a second, 60 take about a quarter of a second more than the bucket holds."""
    bucket = TokenBucket(200)
    start = time.monotonic()
    for _ in range(60):
        bucket.acquire(1)
    assert 0.15 < time.monotonic() - start < 10


def test_no_rate_limit() -> None:
    """Without a rate limit nothing waits."""
    start = time.monotonic()
    TokenBucket(0).acquire(10**9)
    assert time.monotonic() - start < 30
