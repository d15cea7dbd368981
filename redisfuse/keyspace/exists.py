"""Looks up which keys exist, in few commands."""

from collections.abc import Sequence

from redisfuse.batching import batched
from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.errors import RedisFuseError

_KEYS_PER_EXISTS = 100


def exists_many(client: RedisClient, keys: Sequence[bytes]) -> list[bool | None]:
    """Return whether each of these distinct keys exists.

    None: the ACL denies the answer. Of keys that change together, mostly all exist or none does. So EXISTS, which
    returns a count, is sent for whole groups, and for single keys only where the count is neither 0 nor all. Raises
    UnavailableError.
    """
    groups = list(batched(keys, _KEYS_PER_EXISTS))
    commands: list[RedisCommand] = [(b"EXISTS", *group) for group in groups]
    existence: dict[bytes, bool | None] = {}
    single_keys: list[bytes] = []
    for group, count in zip(groups, client.execute_many(commands), strict=True):
        if count == len(group) or count == 0:
            existence.update(dict.fromkeys(group, count != 0))
        elif len(group) == 1:
            existence[group[0]] = None
        else:
            single_keys += group
    replies = client.execute_many([(b"EXISTS", key) for key in single_keys]) if single_keys else []
    for key, reply in zip(single_keys, replies, strict=True):
        existence[key] = None if isinstance(reply, RedisFuseError) else reply == 1
    return [existence[key] for key in keys]
