"""Reads targets at the start of a transaction, under its WATCH.

The channel is verified to permit transactions.
"""

import weakref
from collections.abc import Sequence

from redisfuse.client.channel import Channel
from redisfuse.client.client import RedisClient
from redisfuse.errors import UnavailableError
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.state_reader import CurrentState, ReadRequest, StateReader
from redisfuse.transactions.write_command import PipelinedCommands


class NotStartedError(Exception):
    """The connection was lost, or the server not ready, before anything was written."""

    def __init__(self, error: UnavailableError) -> None:
        super().__init__(str(error))
        self.error = error


class WatchedReader:
    """Reads targets on writable channels.

    Thread-safe, for a channel is used by one thread at a time.

    `dump_limit`: the number of elements above which a collection is not DUMPed.
    """

    def __init__(self, client: RedisClient, *, dump_limit: int) -> None:
        self._client = client
        self.dump_limit = dump_limit
        self._verified_channels: weakref.WeakSet[Channel] = weakref.WeakSet()  # on which MULTI and EXEC are permitted

    def read(self, channel: Channel, requests: Sequence[ReadRequest]) -> dict[KeyRef, CurrentState]:
        """Watch and read the targets on this channel.

        Raises NotStartedError, and the server's error replies.
        """
        # A user that may SET but not MULTI would otherwise write outside a transaction, so MULTI is tried once on each
        # channel. If it is forbidden later, the transaction fails visibly (MultiRefusedError).
        is_verified = channel in self._verified_channels
        preamble: PipelinedCommands = [] if is_verified else [("MULTI",), ("EXEC",)]
        try:
            states = StateReader(self._client, channel, dump_limit=self.dump_limit).read(requests, preamble=preamble)
        except UnavailableError as error:
            raise NotStartedError(error) from error
        self._verified_channels.add(channel)
        return states

    def read_unguarded(self, requests: Sequence[ReadRequest]) -> dict[KeyRef, CurrentState]:
        """Read the targets on a channel of their own, for information only.

        No fail-over undoes the states, and the replicas of --wait-replicas have them. Raises UnavailableError.
        """
        if self._client.is_partitioned and not self._client.wait_replicas:
            with self._client.reading_channel() as executor:
                return StateReader(self._client, executor, dump_limit=self.dump_limit).read(requests)
        by_partition: dict[int, list[ReadRequest]] = {}
        for request in requests:
            by_partition.setdefault(self._client.partition(request.target.key), []).append(request)
        states: dict[KeyRef, CurrentState] = {}
        try:
            for own in by_partition.values():
                with self._client.write_channel(own[0].target.key) as channel:
                    states |= self.read(channel, own)
                    self._client.confirm_state(channel)
        except NotStartedError as lost:
            raise lost.error from None
        return states
