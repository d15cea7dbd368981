"""What a server is and can do, from one INFO (or HELLO, where INFO is not allowed)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ServerVersion = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What is known of a server since it was first reached. Fields that could not be learnt are empty or 0."""

    vendor: str = "redis"  # "redis" or "valkey"
    version: ServerVersion = (0, 0, 0)  # the maker's own numbering
    run_id: str = ""  # changes with each start of the server
    mode: str = "standalone"  # or "cluster", "sentinel"
    role: str = ""  # "master" or "slave", in the server's words
    modules: frozenset[str] = frozenset()  # lower case: "rejson", "search"...
    loading: bool = False

    @property
    def is_cluster(self) -> bool:
        """Whether it is one node of a Redis Cluster."""
        return self.mode == "cluster"

    @property
    def is_replica(self) -> bool:
        """Whether it follows a master, and so usually takes no writes."""
        return self.role == "slave"

    @property
    def is_valkey(self) -> bool:
        """Whether it is Valkey, whose versions count for themselves (7.2.4 was the common ancestor)."""
        return self.vendor == "valkey"

    def version_at_least(self, redis: tuple[int, int], valkey: tuple[int, int] = (7, 2)) -> bool:
        """Whether the version is this or later; `redis` for Redis, `is_valkey` for Valkey."""
        return self.version[:2] >= (valkey if self.is_valkey else redis)

    @property
    def has_pexpiretime(self) -> bool:
        """PEXPIRETIME, the absolute expiry; before it PTTL must do."""
        return self.version_at_least((7, 0))

    @property
    def has_no_touch(self) -> bool:
        """CLIENT NO-TOUCH: reading does not disturb LRU and LFU."""
        return self.version_at_least((7, 2))

    @property
    def has_hash_field_ttl(self) -> bool:
        """HPEXPIRETIME, HPEXPIREAT, HPERSIST: a time to live of a hash's field."""
        return self.version_at_least((7, 4), (9, 0))

    @property
    def has_hsetex(self) -> bool:
        """HSETEX with KEEPTTL: writing a field without dropping its own time to live."""
        return self.version_at_least((8, 0), (9, 0))

    @property
    def has_hscan_novalues(self) -> bool:
        """HSCAN NOVALUES: the fields of a hash without their values."""
        return self.version_at_least((7, 4), (8, 0))

    @property
    def has_tracking(self) -> bool:
        """CLIENT TRACKING BCAST: being told of changed keys."""
        return self.version_at_least((6, 0))

    @property
    def has_json(self) -> bool:
        """The JSON module's commands."""
        return bool(self.modules & {"rejson", "json"})

    @property
    def label(self) -> str:
        """For people: `redis 7.0.15`."""
        return f"{self.vendor} {'.'.join(map(str, self.version))}"


def parse_version(text: str) -> ServerVersion:
    """(7, 0, 15) of "7.0.15"; missing or odd parts are 0."""
    numbers = [int(number) for number in re.findall(r"\d+", text)[:3]]
    return (*numbers, 0, 0, 0)[:3]  # type: ignore[return-value]  # exactly three, by the slice


def parse_info(info: bytes) -> ServerInfo:
    """Facts from the text that INFO answered."""
    values: dict[str, str] = {}
    modules: set[str] = set()
    for line in info.decode("utf-8", "replace").splitlines():
        name, colon, value = line.partition(":")
        if not colon or name.startswith("#"):
            continue
        if name == "module":
            modules.add(value.partition("name=")[2].partition(",")[0].lower())
        else:
            values[name] = value
    maker = "valkey" if "valkey_version" in values else "redis"
    mode = values.get("server_mode") or values.get("redis_mode") or "standalone"
    return ServerInfo(
        vendor=maker,
        version=parse_version(values.get(f"{maker}_version", "")),
        run_id=values.get("run_id", ""),
        mode="cluster" if values.get("cluster_enabled") == "1" else mode,
        role=values.get("role", ""),
        modules=frozenset(modules),
        loading=values.get("loading") == "1",
    )


def parse_hello(reply: Sequence[Any] | Mapping[bytes, Any]) -> ServerInfo:
    """Facts from HELLO's answer (any client may ask it); its role is "master" or "replica"."""
    pairs = reply if isinstance(reply, Mapping) else dict(zip(reply[::2], reply[1::2], strict=False))

    def text(name: bytes) -> str:
        value = pairs.get(name, b"")
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    return ServerInfo(
        vendor="valkey" if text(b"server") == "valkey" else "redis",
        version=parse_version(text(b"version")),
        mode=text(b"mode") or "standalone",
        role=text(b"role").replace("replica", "slave"),
    )
