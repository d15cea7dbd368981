"""Listeners of the keyspace and of writes that record or fix what a mount's coherence would decide."""

import math
from collections.abc import Mapping

from redisfuse.keyspace.listener import NullListener


class FixedFreshness(NullListener):
    """A freshness with settable answers. `deadlines` collects what is scheduled."""

    def __init__(self, max_age: float = math.inf, *, may_expire: bool = False) -> None:
        self.age = max_age
        self._may_expire = may_expire
        self.deadlines: dict[bytes, float] = {}

    def max_age(self) -> float:
        return self.age

    def may_expire(self) -> bool:
        return self._may_expire

    def expires_at(self, key: bytes, deadline: float) -> None:
        self.deadlines[key] = deadline


class RecordingWrites(NullListener):
    """Collects the keys that were written, in order."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []

    def keys_written(self, keys: Mapping[bytes, bool | None]) -> None:
        self.keys.extend(keys)
