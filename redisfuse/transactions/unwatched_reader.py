"""Reads the states of many keys in pipelines, on read connections, without WATCH.

For commands that only read. Strings are not DUMPed: their bytes are the value.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from redisfuse.client.client import RedisClient, RedisCommand
from redisfuse.errors import AccessError, NotFoundError, ServerReplyError, WrongTypeError
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.state_reader import CurrentState, ReadRequest, StateReader

MAX_KEYS_PER_READ = 500

_INITIAL_TYPICAL_BYTES = 64 * 1024
_MIN_TYPICAL_BYTES = 4096
_MAX_ATTEMPTS = 3  # at a key that changes while it is read


class _ReadPipeline:
    """Sends the commands of a StateReader on the client's pool."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def execute(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """Return the replies, in order."""
        return self._client.execute_many(commands)


class UnwatchedReader:
    """Reads keys of one server.

    As many share a pipeline as the sizes of the previous ones permit. `on_denied` is called for each key that the ACL
    denies. Such keys, and keys that are gone, are not in the results.
    """

    def __init__(
        self,
        client: RedisClient,
        *,
        dump_limit: int,
        on_denied: Callable[[AccessError], None] = lambda _error: None,
    ) -> None:
        """Create a reader.

        `dump_limit`: the number of elements above which a collection is not DUMPed.
        """
        self.server_info = client.server_info
        self._on_denied = on_denied
        self._reader = StateReader(client, _ReadPipeline(client), dump_limit=dump_limit, watch=False)
        self._typical_bytes = _INITIAL_TYPICAL_BYTES

    def read(self, keys: Sequence[bytes]) -> dict[bytes, CurrentState]:
        """Return the states of up to MAX_KEYS_PER_READ keys that exist, in their order."""
        try:
            found = self._read_together(keys)
        except (AccessError, NotFoundError, ServerReplyError, WrongTypeError):  # of one key: read each alone
            found = {}
            for key in keys:
                found |= self._read_alone(key)
        for key in [key for key, current in found.items() if _is_torn(current)]:
            found.pop(key)
            found |= self._read_alone(key)
        self._learn_sizes(found.values())
        return found

    def _read_together(self, keys: Sequence[bytes]) -> dict[bytes, CurrentState]:
        requests = [ReadRequest(KeyRef(key), typical_bytes=self._typical_bytes) for key in keys]
        states = self._reader.read(requests)
        found = {key: states[KeyRef(key)] for key in keys}
        return {key: current for key, current in found.items() if current.state.kind != "absent"}

    def _read_alone(self, key: bytes) -> dict[bytes, CurrentState]:
        for attempt in range(_MAX_ATTEMPTS):
            try:
                found = self._read_together([key])
            except AccessError as error:
                self._on_denied(error)
                return {}
            except NotFoundError:
                continue
            except (ServerReplyError, WrongTypeError):
                if attempt == _MAX_ATTEMPTS - 1:
                    raise
                continue
            if not any(_is_torn(current) for current in found.values()):
                return found
        return {}

    def _learn_sizes(self, states: Iterable[CurrentState]) -> None:
        sizes = [current.state.content.size for current in states if current.state.content is not None]
        if sizes:
            self._typical_bytes = max(_MIN_TYPICAL_BYTES, 2 * sum(sizes) // len(sizes))


def _is_torn(current: CurrentState) -> bool:
    """Whether the key vanished between two reads.

    Then it is not DUMPed, and no reason is noted.
    """
    state = current.state
    return state.kind == "object" and state.content is None and "not DUMPed" not in (state.note or "")
