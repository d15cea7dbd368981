"""Where announced addresses are reached (`--cluster-map`)."""

import pytest

from redisfuse.client.address import Address
from redisfuse.client.address_map import AddressMap
from redisfuse.errors import UsageError


def test_translate() -> None:
    """An entry is found whatever the case of the host; an address without an entry is its own."""
    address_map = AddressMap.parse(["Redis-1.internal:6379=127.0.0.1:7001", "[fd00::5]:6379=[::1]:7002"])
    assert address_map.translate("redis-1.INTERNAL", 6379) == ("127.0.0.1", 7001)
    assert address_map.translate("fd00::5", 6379) == ("::1", 7002)
    assert address_map.translate("redis-1.internal", 6380) == ("redis-1.internal", 6380)


def test_apply() -> None:
    """The address keeps its name, for messages and certificates, and is equal to the journal's record of it."""
    address_map = AddressMap.parse(["h:6379=127.0.0.1:7001"])
    address = address_map.apply(Address.parse("rediss://h:6379/2"))
    assert (address.host, address.port, address.via) == ("h", 6379, ("127.0.0.1", 7001))
    assert address.url == "rediss://h:6379/2"
    assert address_map.apply(Address.parse("redis://other:6379")).via is None
    assert AddressMap().apply(Address.parse("unix:///s")).via is None


@pytest.mark.parametrize(
    "entry", ["h:1", "h:1=", "=h:1", "h=k:1", "h:1=k", "h:1=k:x", "h:0=k:1", "h:1=k:70000", "::1:5=k:1"]
)
def test_invalid(entry: str) -> None:
    """An entry that is not HOST:PORT=HOST:PORT is refused, and the message shows it."""
    with pytest.raises(UsageError):
        AddressMap.parse([entry])


def test_contradiction() -> None:
    """One address can't be reached at two; the same entry twice is no contradiction."""
    AddressMap.parse(["h:1=k:1", "h:1=k:1"])
    with pytest.raises(UsageError, match="twice"):
        AddressMap.parse(["h:1=k:1", "H:1=k:2"])
