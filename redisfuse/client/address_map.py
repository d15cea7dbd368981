"""The map from announced to reachable addresses (`--cluster-map`).

Sentinels, and the nodes of a cluster, announce addresses of their own network. Behind NAT or a tunnel those are not
reachable; each entry `HOST:PORT=HOST:PORT` maps one to the address to connect to. Messages and TLS continue to use the
announced one, which is the name in the server's certificate. Pure.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Self

from redisfuse.client.address import Address, parse_host_port
from redisfuse.errors import UsageError


class AddressMap:
    """The entries, by announced address. Immutable."""

    def __init__(self, targets: dict[tuple[str, int], tuple[str, int]] | None = None) -> None:
        self._targets = targets or {}

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Self:
        """Parse entries `HOST:PORT=HOST:PORT`. Raises UsageError."""
        targets: dict[tuple[str, int], tuple[str, int]] = {}
        for entry in entries:
            announced, equals, reachable = entry.partition("=")
            if not equals:
                raise UsageError(f"--cluster-map {entry!r}: write ANNOUNCED_HOST:PORT=REACHABLE_HOST:PORT")
            source, target = _parse_endpoint(entry, announced), _parse_endpoint(entry, reachable)
            if targets.setdefault(source, target) != target:
                raise UsageError(f"--cluster-map maps {announced} twice, to different addresses")
        return cls(targets)

    def translate(self, host: str, port: int) -> tuple[str, int]:
        """Return where an announced address is reached; by default, at itself."""
        return self._targets.get((host.lower(), port), (host, port))

    @property
    def error_text(self) -> str:
        """The reason why an address may not be reached, as another program gives it."""
        return ""

    def close(self) -> None:
        """End what makes the addresses reachable."""

    def apply(self, address: Address) -> Address:
        """Return the address, with the host and port of its entry in `via`."""
        target = self._targets.get((address.host.lower(), address.port))
        return address if target is None or address.kind == "unix" else replace(address, via=target)


def _parse_endpoint(entry: str, text: str) -> tuple[str, int]:
    host, colon, port = text.strip().rpartition(":")
    if not host or not colon or not port.isascii() or not port.isdigit() or (":" in host and host[0] != "["):
        raise UsageError(f"--cluster-map {entry!r}: {text!r} is not HOST:PORT")
    host, number = parse_host_port(text.strip(), 0)
    return host.lower(), number
