"""The writing half of the client of a cluster.

A transaction is of one slot: WATCH, reads, MULTI and EXEC go to the slot's owner on one connection, which no other
transaction uses meanwhile, because the first EXEC ends the WATCH of all. Nothing is sent twice here: a redirection is
raised, and the caller begins again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from redisfuse.client.channel import Channel, RedisCommand
from redisfuse.client.cluster_node import NodeClient
from redisfuse.client.connection_id import ConnectionId
from redisfuse.client.slot_map import parse_target
from redisfuse.errors import ReadOnlyError, RedirectedError, UnavailableError

if TYPE_CHECKING:
    from redisfuse.client.cluster_client import ClusterClient

_RETRY_DELAY_SECONDS = 0.05


@contextmanager
def lend_write_channel(client: ClusterClient, key: bytes, after: RedirectedError | None) -> Iterator[Channel]:
    """Lend a channel to the owner of a key's slot, for the body of `with`.

    `after`: the redirection with which the last attempt ended. Waits for an owner that can be reached until the
    time-out. Raises ReadOnlyError, and the last attempt's UnavailableError.
    """
    if not client.writable:
        raise ReadOnlyError("the mount is read-only: it was made without --write")
    deadline = time.monotonic() + client.limits.timeout
    node, is_asking = _choose_node(client, key, after)
    while True:
        try:
            lending = node.write_channel()
            channel = lending.__enter__()
            break
        except UnavailableError as error:
            node.record_failure(error)
            if time.monotonic() + _RETRY_DELAY_SECONDS >= deadline or not client.may_retry(key, error):
                raise
        time.sleep(_RETRY_DELAY_SECONDS)
        client.topology.refresh_soon()
        node, is_asking = client.owner_client(key), False
    channel.is_asking = is_asking
    try:
        yield channel
    except BaseException as error:
        channel.is_asking = False
        if isinstance(error, UnavailableError):
            node.record_failure(error)
        if not lending.__exit__(type(error), error, error.__traceback__):
            raise
    else:
        channel.is_asking = False
        lending.__exit__(None, None, None)


def _choose_node(client: ClusterClient, key: bytes, after: RedirectedError | None) -> tuple[NodeClient, bool]:
    """Return the node for a transaction.

    Also whether each of its commands needs ASKING.
    """
    owner = client.owner_client(key)
    if after is None:
        return owner, False
    if after.reply_code != "ASK":
        client.topology.record_move(after, owner)
        return client.owner_client(key), False
    endpoint = parse_target(after.target, owner.node.host)
    return (owner, False) if endpoint is None else (client.topology.client_at(*endpoint), True)


def terminate_on_all(
    client: ClusterClient, connections: Collection[ConnectionId], *, only_check: bool
) -> set[ConnectionId]:
    """Make the primaries close connections, as `RedisClient.terminate_connections`.

    A connection of a process that is no primary any more can change nothing that lasts: a former primary takes over
    the data of its successor. Raises UnavailableError if a primary can't be reached.
    """
    client.topology.refresh_soon()
    gone = set(connections)
    for server in client.servers:
        gone &= server.terminate_connections(connections, only_check=only_check)
    return gone


class RoutedReader:
    """Executes reading commands of any keys, where one channel would.

    WATCH is not sent: nothing is written afterwards.
    """

    def __init__(self, client: ClusterClient) -> None:
        self._client = client

    def execute(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """Return all replies, errors among them as values. Raises UnavailableError."""
        sent = [command for command in commands if command[0] not in ("WATCH", b"WATCH")]
        replies = iter(self._client.execute_many(sent))
        return [b"OK" if command[0] in ("WATCH", b"WATCH") else next(replies) for command in commands]
