"""A server's address and credentials, from redis-py's URL forms or HOST PORT.

Pure: no host name is resolved here.

    redis://[[user]:password@]host[:port][/db]      rediss:// the same, over TLS
    unix://[[user]:password@]/path/to/socket[?db=N]
    redis+sentinel://[...@]host[:port][,host[:port]...]/service[/db]
    redis+cluster://[...@]host[:port][,host[:port]...][/db]      rediss+cluster:// the same, over TLS

No password appears in str(), repr(), `redacted_url`, `url` or an error message.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from redisfuse.errors import UsageError

AddressKind = Literal["tcp", "tls", "unix", "sentinel", "cluster"]

_KIND_BY_SCHEME: dict[str, AddressKind] = {
    "redis": "tcp",
    "rediss": "tls",
    "unix": "unix",
    "redis+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
_SCHEME_BY_KIND = {kind: scheme for scheme, kind in reversed(_KIND_BY_SCHEME.items())}
_DEFAULT_PORT = 6379
_DEFAULT_SENTINEL_PORT = 26379
_FORMS_HELP = (
    "use HOST PORT, redis://HOST:PORT/DB, rediss://, unix:///PATH?db=N, redis+cluster://HOST:PORT,HOST:PORT or "
    "redis+sentinel://HOST:PORT/SERVICE/DB"
)


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """How TLS certificates are verified; the names are redis-py's, without `ssl_`."""

    ca_certs: str | None = None  # path of the certificate authorities in PEM; None: the system's
    certfile: str | None = None  # path of the client's certificate
    keyfile: str | None = None  # path of its key
    cert_reqs: str = "required"  # or "optional", "none"
    check_hostname: bool = True


@dataclass(frozen=True, slots=True)
class Address:
    """One server or cluster, database and user.

    Addresses are equal if all fields are.
    """

    kind: AddressKind = "tcp"
    host: str = ""
    port: int = 0
    unix_path: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinels: tuple[tuple[str, int], ...] = ()  # the Sentinels to query, in order
    service_name: str = ""  # the Sentinels' name for the master
    seeds: tuple[tuple[str, int], ...] = ()  # nodes of the cluster to ask for the others, in order
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: TlsOptions | None = None  # None: no TLS
    via: tuple[str, int] | str | None = None  # where it is reached from here: an address or a socket; None: directly

    @staticmethod
    def parse(
        url: str, *, username: str | None = None, password: str | None = None, db: int | None = None
    ) -> "Address":
        """Parse a URL.

        `username` and `password` apply where the URL has none; `db` overrides the URL's. Raises UsageError, whose
        message never quotes the URL, since it may contain a password.
        """
        scheme, colon, rest = url.partition("://")
        if not colon or scheme.lower() not in _KIND_BY_SCHEME:
            raise UsageError(f"not an address of a Redis server: {_FORMS_HELP}")
        kind = _KIND_BY_SCHEME[scheme.lower()]
        uses_tls = scheme.lower().startswith("rediss")
        try:
            authority = re.split("[/?#]", rest, maxsplit=1)[0]  # newer urlsplit refuses an IPv6 address after another
            parts = urlsplit(f"{scheme}://{rest[len(authority) :]}")
            userinfo, _, hosts = authority.rpartition("@")
            if hosts.count("[") != hosts.count("]"):
                raise ValueError
            options = _parse_query(parts.query)
        except ValueError:
            raise UsageError(
                f"the address can't be parsed: {_FORMS_HELP}; write @ : / ? # in a password as %40 ..."
            ) from None
        user, colon, secret = userinfo.partition(":")
        address = Address(
            kind=kind,
            username=unquote(user) or options.pop("username", None) or username,
            password=(unquote(secret) or None) if colon else None,
            tls=_parse_tls(options) if uses_tls or options.pop("ssl", "") in ("1", "true", "True") else None,
        )
        address = replace(
            address,
            password=address.password or options.pop("password", None) or password,
            sentinel_username=options.pop("sentinel_username", None),
            sentinel_password=options.pop("sentinel_password", None),
        )
        query_db = options.pop("db", None)
        options.pop("password", None), options.pop("username", None)
        if options:
            names = ", ".join(sorted(name[:40] for name in options))
            raise UsageError(
                f"unknown options in the address: ?{names}; time-outs and the like are command-line options"
            )
        address, path_db = _HOST_PARSERS[kind](address, hosts, unquote(parts.path))
        return replace(address, db=_parse_number("database", db if db is not None else query_db or path_db or 0, 2**31))

    @staticmethod
    def from_host_port(
        host: str, port: str | int, db: int = 0, *, username: str | None = None, password: str | None = None
    ) -> "Address":
        """Parse HOST PORT, as given on the command line."""
        if not host or any(character in host for character in "/@ "):
            raise UsageError(f"not a host name: {_FORMS_HELP}")
        return Address(
            host=host.strip("[]"),
            port=_parse_number("port", port, 65535),
            db=_parse_number("database", db, 2**31),
            username=username,
            password=password,
        )

    @property
    def endpoint(self) -> str:
        """The server, as messages name it.

        `127.0.0.1:6379`, a socket's path, or a Sentinel's service.
        """
        if self.kind == "unix":
            return self.unix_path
        if self.kind == "sentinel":
            return f"{self.service_name} of {', '.join(format_host_port(*node) for node in self.sentinels)}"
        if self.kind == "cluster":
            return ",".join(format_host_port(*node) for node in self.seeds)
        return format_host_port(self.host, self.port)

    @property
    def url(self) -> str:
        """A URL for `parse` without any password.

        The journal stores it, and its reader adds the password.
        """
        return self._format_url(f"{quote(self.username, safe='')}@" if self.username else "")

    @property
    def redacted_url(self) -> str:
        """A URL to display, with `***` in place of the password."""
        if not self.password:
            return self.url
        return self._format_url(f"{quote(self.username or '', safe='')}:***@")

    def _format_url(self, userinfo: str) -> str:
        scheme = f"{_SCHEME_BY_KIND[self.kind]}://"
        if self.kind == "cluster" and self.tls is not None:
            scheme = "rediss+cluster://"
        query = [f"{name}={quote(str(value), safe='/')}" for name, value in self._tls_options()]
        if self.kind == "unix":
            query[:0] = [f"db={self.db}"] if self.db else []
            text = f"{scheme}{userinfo}{quote(self.unix_path)}"
        elif self.kind == "sentinel":
            if self.sentinel_username:
                query.append(f"sentinel_username={quote(self.sentinel_username, safe='')}")
            hosts = ",".join(format_host_port(*node) for node in self.sentinels)
            text = f"{scheme}{userinfo}{hosts}/{quote(self.service_name, safe='')}/{self.db}"
        elif self.kind == "cluster":
            text = f"{scheme}{userinfo}{self.endpoint}/{self.db}"
        else:
            text = f"{scheme}{userinfo}{format_host_port(self.host, self.port)}/{self.db}"
        return f"{text}?{'&'.join(query)}" if query else text

    def _tls_options(self) -> list[tuple[str, str]]:
        if self.tls is None:
            return []
        defaults = TlsOptions()
        values = [(f"ssl_{name}", getattr(self.tls, name), getattr(defaults, name)) for name in TlsOptions.__slots__]
        options = [(name, str(value)) for name, value, default in values if value != default]
        return options if self.kind in ("tls", "cluster") else [("ssl", "true"), *options]

    def redact(self, text: str) -> str:
        """Replace the passwords in another library's message by `***`.

        They are found in plain, percent-encoded and escaped form.
        """
        for secret in (self.password, self.sentinel_password):
            if secret:
                for form in {secret, quote(secret, safe=""), quote(secret), repr(secret)[1:-1]}:
                    text = text.replace(form, "***")
        return text

    def __str__(self) -> str:
        return self.redacted_url


def _parse_query(query: str) -> dict[str, str]:
    return dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))


def _parse_tls(options: dict[str, str]) -> TlsOptions:
    requirement = options.pop("ssl_cert_reqs", "required")
    if requirement not in ("required", "optional", "none"):
        raise UsageError("ssl_cert_reqs in the address must be required, optional or none")
    return TlsOptions(
        ca_certs=options.pop("ssl_ca_certs", None),
        certfile=options.pop("ssl_certfile", None),
        keyfile=options.pop("ssl_keyfile", None),
        cert_reqs=requirement,
        check_hostname=options.pop("ssl_check_hostname", "true").lower() not in ("0", "f", "false", "n", "no"),
    )


def _parse_number(name: str, value: Any, maximum: int) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number <= maximum or (name == "port" and number == 0):
        raise UsageError(f"the {name} must be a number up to {maximum}")
    return number


def format_host_port(host: str, port: int) -> str:
    """Return `HOST:PORT`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_host_port(text: str, default_port: int) -> tuple[str, int]:
    """Parse `HOST`, `HOST:PORT` or `[IPv6]:PORT`. Raises UsageError."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
    else:
        host, colon, port = text.partition(":")
        rest = colon + port
    port = rest.removeprefix(":")
    return unquote(host) or "localhost", _parse_number("port", port or default_port, 65535)


_AddressAndDb = tuple[Address, str]


def _parse_tcp(address: Address, hosts: str, path: str) -> _AddressAndDb:
    host, port = parse_host_port(hosts, _DEFAULT_PORT)
    return replace(address, host=host, port=port), path.strip("/")


def _parse_cluster(address: Address, hosts: str, path: str) -> _AddressAndDb:
    seeds = tuple(parse_host_port(host, _DEFAULT_PORT) for host in hosts.split(","))
    return replace(address, seeds=seeds), path.strip("/")


def _parse_unix(address: Address, hosts: str, path: str) -> _AddressAndDb:
    if hosts:
        raise UsageError("the address of a Unix socket has three slashes: unix:///PATH?db=N")
    if not path.strip("/"):
        raise UsageError("the address names no socket: use unix:///PATH?db=N")
    return replace(address, unix_path=path), ""


def _parse_sentinel(address: Address, hosts: str, path: str) -> _AddressAndDb:
    service, _, db = path.strip("/").partition("/")
    if not service or not hosts:
        raise UsageError(
            "the address must name Sentinels and a service: redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB"
        )
    nodes = tuple(parse_host_port(host, _DEFAULT_SENTINEL_PORT) for host in hosts.split(","))
    return replace(address, sentinels=nodes, service_name=service), db


_HOST_PARSERS = {
    "tcp": _parse_tcp,
    "tls": _parse_tcp,
    "unix": _parse_unix,
    "sentinel": _parse_sentinel,
    "cluster": _parse_cluster,
}
