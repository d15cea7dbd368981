"""Which of some keys exist, in as few commands as can be."""

from collections.abc import Sequence

from redisfuse.batching import batched
from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.errors import RedisFuseError

_KEYS_PER_EXISTS = 100  # keys asked about by one EXISTS


def exists_many(client: RedisClient, keys: Sequence[bytes]) -> list[bool | None]:
    """For each of these different keys, whether it exists; None if the server won't say (an ACL).

    Of keys that were told of together, mostly all exist or none: so whole groups are asked about with one EXISTS, which
    answers how many there are, and one by one only where that is not all or none. Raises UnavailableError.
    """
    groups = list(batched(keys, _KEYS_PER_EXISTS))
    commands: list[RedisCommand] = [(b"EXISTS", *group) for group in groups]
    found: dict[bytes, bool | None] = {}
    single: list[bytes] = []
    for group, count in zip(groups, client.execute_many(commands), strict=True):
        if count == len(group) or count == 0:
            found.update(dict.fromkeys(group, count != 0))
        elif len(group) == 1:
            found[group[0]] = None
        else:
            single += group
    answers = client.execute_many([(b"EXISTS", key) for key in single]) if single else []
    for key, answer in zip(single, answers, strict=True):
        found[key] = None if isinstance(answer, RedisFuseError) else answer == 1
    return [found[key] for key in keys]
