"""Looks up which keys exist, in few commands."""

from collections.abc import Sequence

from more_itertools import chunked

from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.errors import RedisFuseError, UnavailableError

_KEYS_PER_EXISTS = 100


def exists_many(client: RedisClient, keys: Sequence[bytes]) -> list[bool | None]:
    """Return whether each of these distinct keys exists.

    None: the ACL denies the answer. Raises UnavailableError.
    """
    existence: list[bool | None] = []
    for reply in exists_each(client, keys):
        if isinstance(reply, UnavailableError):
            raise reply
        existence.append(reply)
    return existence


def exists_each(client: RedisClient, keys: Sequence[bytes]) -> list[bool | UnavailableError | None]:
    """Return the same, or an UnavailableError for a key of a cluster.

    That is the reply for a key whose node can't be reached. Of keys that change together, mostly all exist or none
    does. So EXISTS, which returns a count, is sent for whole groups, and for single keys only where the count is
    neither 0 nor all. A cluster takes no groups.
    """
    groups = list(chunked(keys, 1 if client.is_partitioned else _KEYS_PER_EXISTS))
    commands: list[RedisCommand] = [(b"EXISTS", *group) for group in groups]
    existence: dict[bytes, bool | UnavailableError | None] = {}
    single_keys: list[bytes] = []
    for group, reply in zip(groups, client.execute_each(commands), strict=True):
        if reply == len(group) or reply == 0:
            existence.update(dict.fromkeys(group, reply != 0))
        elif len(group) == 1:
            existence[group[0]] = reply if isinstance(reply, UnavailableError) else None
        else:
            single_keys += group
    replies = client.execute_each([(b"EXISTS", key) for key in single_keys]) if single_keys else []
    for key, reply in zip(single_keys, replies, strict=True):
        if isinstance(reply, UnavailableError):
            existence[key] = reply
        else:
            existence[key] = None if isinstance(reply, RedisFuseError) else reply == 1
    return [existence[key] for key in keys]
