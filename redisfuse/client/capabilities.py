"""The server's version and capabilities, from one INFO.

If the ACL forbids INFO, they are taken from HELLO.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ServerVersion = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The values that INFO reported on the first connection.

    Fields that are unknown are empty or 0.
    """

    vendor: str = "redis"  # "redis" or "valkey"
    version: ServerVersion = (0, 0, 0)  # in the vendor's own numbering
    run_id: str = ""  # changes with each start of the server
    replication_id: str = ""  # master_replid: of the data, equal on a master and its replicas
    previous_replication_id: str = ""  # master_replid2: of the master that this server replaced; empty if none
    mode: str = "standalone"  # or "cluster", "sentinel"
    role: str = ""  # "master" or "slave", as INFO spells it
    modules: frozenset[str] = frozenset()  # lower case: "rejson", "search"...
    loading: bool = False

    @property
    def is_cluster(self) -> bool:
        """Whether the server is one node of a Redis Cluster."""
        return self.mode == "cluster"

    @property
    def is_replica(self) -> bool:
        """Whether the server replicates a master, and so usually rejects writes."""
        return self.role == "slave"

    @property
    def is_valkey(self) -> bool:
        """Whether the server is Valkey, which has version numbers of its own.

        7.2.4 is the common ancestor.
        """
        return self.vendor == "valkey"

    def version_at_least(self, redis: tuple[int, int], valkey: tuple[int, int] = (7, 2)) -> bool:
        """Return whether the version is at least `redis` on Redis, or `valkey` on Valkey."""
        return self.version[:2] >= (valkey if self.is_valkey else redis)

    @property
    def has_asking_replicas(self) -> bool:
        """Whether a replica redirects to the target of a moving slot (ASK)."""
        return self.is_valkey and self.version >= (8, 0)

    @property
    def has_scan_type(self) -> bool:
        """Whether SCAN can select keys by type."""
        return self.version_at_least((6, 0))

    @property
    def has_pexpiretime(self) -> bool:
        """Whether there is PEXPIRETIME, the absolute expiry time.

        Older servers have only PTTL.
        """
        return self.version_at_least((7, 0))

    @property
    def has_no_touch(self) -> bool:
        """Whether CLIENT NO-TOUCH can be used: reads do not affect LRU and LFU.

        It is in 7.2 and newer, but before Redis 8.4 and Valkey 9.0 a server can crash when a client that has used it
        wakes a blocked client, or reads a slot that is moving.
        """
        return self.version_at_least((8, 4), (9, 0))

    @property
    def has_hash_field_ttl(self) -> bool:
        """Whether hash fields can expire (HPEXPIRETIME, HPEXPIREAT, HPERSIST)."""
        return self.version_at_least((7, 4), (9, 0))

    @property
    def has_hsetex(self) -> bool:
        """Whether there is HSETEX with KEEPTTL.

        It writes a field and keeps its time to live.
        """
        return self.version_at_least((8, 0), (9, 0))

    @property
    def has_hscan_novalues(self) -> bool:
        """Whether there is HSCAN NOVALUES, which returns fields without their values."""
        return self.version_at_least((7, 4), (8, 0))

    @property
    def has_tracking(self) -> bool:
        """Whether there is CLIENT TRACKING BCAST, which sends invalidation messages."""
        return self.version_at_least((6, 0))

    @property
    def has_json(self) -> bool:
        """Whether the JSON module is loaded."""
        return bool(self.modules & {"rejson", "json"})

    @property
    def label(self) -> str:
        """The vendor and version for messages: `redis 7.0.15`."""
        return f"{self.vendor} {'.'.join(map(str, self.version))}"


def parse_version(text: str) -> ServerVersion:
    """Parse "7.0.15" into (7, 0, 15); missing or malformed parts are 0."""
    numbers = [int(number) for number in re.findall(r"\d{1,9}", text)[:3]]
    return (*numbers, 0, 0, 0)[:3]  # type: ignore[return-value]  # exactly three, by the slice


def parse_info(info: bytes) -> ServerInfo:
    """Parse the reply to INFO."""
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
    vendor = "valkey" if "valkey_version" in values else "redis"
    mode = values.get("server_mode") or values.get("redis_mode") or "standalone"
    return ServerInfo(
        vendor=vendor,
        version=parse_version(values.get(f"{vendor}_version", "")),
        run_id=values.get("run_id", ""),
        replication_id=_parse_replication_id(values.get("master_replid", "")),
        previous_replication_id=_parse_replication_id(values.get("master_replid2", "")),
        mode="cluster" if values.get("cluster_enabled") == "1" else mode,
        role=values.get("role", ""),
        modules=frozenset(modules),
        loading=values.get("loading") == "1",
    )


def _parse_replication_id(text: str) -> str:
    return text if text.strip("0") else ""  # zeros only: there is none


def parse_hello(reply: Sequence[Any] | Mapping[bytes, Any]) -> ServerInfo:
    """Parse the reply to HELLO, which no ACL can forbid.

    Its role is "master" or "replica".
    """
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


def role_command(server_info: ServerInfo) -> tuple[bytes, ...]:
    """Return the command whose reply `parse_role` takes. No ACL can forbid HELLO."""
    return (b"HELLO",) if server_info.version_at_least((6, 0)) else (b"INFO", b"replication")


def parse_role(reply: Any) -> str:
    """Return "master" or "slave", as INFO spells it; empty if the reply is an error."""
    if isinstance(reply, bytes | str):
        return parse_info(reply if isinstance(reply, bytes) else reply.encode()).role
    return parse_hello(reply).role if isinstance(reply, Mapping | list) else ""
