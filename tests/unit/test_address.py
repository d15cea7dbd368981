"""client/address.py: parsing and formatting of addresses, without disclosing passwords."""

import pickle

import pytest

from redisfuse.client.address import Address
from redisfuse.errors import UsageError

SECRET = "p@ss:w/rd #?%"
QUOTED = "p%40ss%3Aw%2Frd%20%23%3F%25"


def test_redis_url() -> None:
    """A redis:// URL gives host, port, database, user and password, decoded."""
    address = Address.parse(f"redis://me:{QUOTED}@db.example:6380/3")
    assert (address.kind, address.host, address.port, address.db) == ("tcp", "db.example", 6380, 3)
    assert (address.username, address.password) == ("me", SECRET)


@pytest.mark.parametrize(
    ("url", "host", "port", "db"),
    [
        ("redis://", "localhost", 6379, 0),
        ("redis://h", "h", 6379, 0),
        ("redis://h/2", "h", 6379, 2),
        ("redis://h?db=4", "h", 6379, 4),
        ("redis://[::1]:7000/1", "::1", 7000, 1),
        ("REDIS://h:1", "h", 1, 0),
    ],
)
def test_defaults(url: str, host: str, port: int, db: int) -> None:
    """Missing parts of a URL have redis-py's defaults: localhost, 6379, database 0."""
    address = Address.parse(url)
    assert (address.host, address.port, address.db) == (host, port, db)


def test_unix_url() -> None:
    """A unix:// URL gives the socket's path, and the database from ?db=."""
    address = Address.parse("unix://me:secret@/run/my%20redis.sock?db=2")
    assert (address.kind, address.unix_path, address.db) == ("unix", "/run/my redis.sock", 2)
    assert (address.username, address.password) == ("me", "secret")


def test_tls_url() -> None:
    """rediss:// verifies certificates unless the URL says otherwise, with redis-py's names."""
    plain = Address.parse("rediss://h").tls
    assert plain is not None
    assert (plain.cert_reqs, plain.check_hostname) == ("required", True)
    loose = Address.parse("rediss://h?ssl_cert_reqs=none&ssl_ca_certs=/a/b.pem&ssl_check_hostname=false").tls
    assert loose is not None
    assert (loose.cert_reqs, loose.ca_certs, loose.check_hostname) == ("none", "/a/b.pem", False)


def test_sentinel_url() -> None:
    """A Sentinel URL gives the Sentinels, the service and the database."""
    address = Address.parse("redis+sentinel://me:secret@a:1,b/mymaster/5?sentinel_password=other")
    assert address.sentinels == (("a", 1), ("b", 26379))
    assert (address.service_name, address.db, address.password) == ("mymaster", 5, "secret")
    assert address.sentinel_password == "other"


def test_cluster_url() -> None:
    """A cluster URL gives the seeds; rediss+cluster is the same over TLS."""
    address = Address.parse("redis+cluster://me:secret@h:7000,[::1]:7001,other/0")
    assert (address.kind, address.tls) == ("cluster", None)
    assert address.seeds == (("h", 7000), ("::1", 7001), ("other", 6379))
    assert address.url == "redis+cluster://me@h:7000,[::1]:7001,other:6379/0"
    secure = Address.parse("rediss+cluster://h:7000?ssl_ca_certs=/ca.pem")
    assert secure.tls is not None
    assert secure.tls.ca_certs == "/ca.pem"
    assert Address.parse(secure.url) == secure


def test_host_port() -> None:
    """HOST PORT gives the same address as the corresponding URL."""
    assert Address.from_host_port("127.0.0.1", "6379") == Address.parse("redis://127.0.0.1:6379/0")
    assert Address.from_host_port("::1", 6379) == Address.parse("redis://[::1]:6379")


def test_a_given_password_applies_where_the_url_has_none() -> None:
    """A given password completes a URL but does not replace the URL's; a given database replaces the URL's."""
    assert Address.parse("redis://h", password="outer").password == "outer"
    assert Address.parse("redis://:inner@h", password="outer").password == "inner"
    assert Address.parse("redis://h/1", db=2).db == 2


@pytest.mark.parametrize(
    "url",
    [
        f"redis://me:{QUOTED}@h:6380/3",
        f"redis://:{QUOTED}@h",
        f"unix://me:{QUOTED}@/run/r.sock?db=1",
        f"redis://h?password={QUOTED}",
        f"rediss://:{QUOTED}@h",
        f"redis+sentinel://:{QUOTED}@a:1,b:2/m/0?sentinel_password={QUOTED}",
        f"redis+cluster://:{QUOTED}@h",
    ],
)
def test_no_password_in_any_text(url: str) -> None:
    """str, repr, redacted_url, url and endpoint do not contain the password, plain or percent-encoded."""
    address = Address.parse(url)
    assert address.password == SECRET
    for text in (str(address), repr(address), address.redacted_url, address.url, address.endpoint):
        assert SECRET not in text
        assert QUOTED not in text
        assert "w/rd" not in text
    assert "***" in address.redacted_url


def test_url_is_the_address_without_its_password() -> None:
    """url parses to the same address, once the password is given."""
    for text in (
        "redis://me:secret@h:6380/3",
        "unix://:secret@/run/a%20b.sock?db=7",
        "rediss://:secret@h:1/2?ssl_cert_reqs=none&ssl_ca_certs=/x/y.pem",
        "redis+sentinel://me:secret@a:1,b:2/my%20master/4",
        "redis://:secret@[::1]:7000/0",
    ):
        address = Address.parse(text)
        assert Address.parse(address.url, password="secret") == address
        assert "secret" not in address.url


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:6379",
        "http://:hunter2@h",
        "redis://:hunter2@h:port/0",
        "redis://:hun/ter2@h:6379",
        "redis://:hunter2@h/notanumber",
        "redis://:hunter2@h:6379?socket_timeout=3",
        "redis://:hunter2@h:6379?db",
        "redis://:hunter2@h:0",
        "redis://:hunter2@h:65536",
        "redis://:hunter2@[::1/0",
        "unix://:hunter2@host/path",
        "unix://:hunter2@",
        "redis+sentinel://:hunter2@a:1",
        "rediss://:hunter2@h?ssl_cert_reqs=maybe",
    ],
)
def test_bad_addresses(target: str) -> None:
    """An invalid address is a usage error whose message and exception chain never quote the password."""
    with pytest.raises(UsageError) as caught:
        Address.parse(target)
    assert "hunter2" not in str(caught.value)
    assert "hun" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert "\n" not in str(caught.value)


def test_bad_host_or_port() -> None:
    """An invalid HOST or PORT is a usage error."""
    for host, port in (("", "1"), ("h", "x"), ("h", "0"), ("a/b", "1"), ("u:p@h", "1")):
        with pytest.raises(UsageError):
            Address.from_host_port(host, port)


def test_redact() -> None:
    """redact() removes the password from another library's message, in every spelling."""
    address = Address.parse(f"redis://:{QUOTED}@h")
    assert address.redact(f"unknown command 'AUTH', with args '{SECRET}' {QUOTED}") == (
        "unknown command 'AUTH', with args '***' ***"
    )


def test_frozen_and_picklable() -> None:
    """An address is a value: hashable, comparable, and picklable for another process."""
    address = Address.parse("redis://:x@h")
    assert pickle.loads(pickle.dumps(address)) == address
    assert hash(address) == hash(Address.parse("redis://:x@h"))
