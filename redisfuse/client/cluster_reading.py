"""The reading half of the client of a cluster.

A pipeline is split by node: all nodes are sent their commands before any reply is read. MOVED and ASK are followed.
What a node did not answer is read again until the time-out, from the node that owns the slot by then, because reads
have no effect.
"""

from __future__ import annotations

import time
from binascii import crc_hqx
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from redisfuse.client.channel import Channel, RedisCommand
from redisfuse.client.client import ChannelOperation
from redisfuse.client.cluster_errors import FollowableRedirection, MovedWhileReadError, have_unavailable
from redisfuse.client.cluster_node import NodeClient
from redisfuse.client.command_keys import bind_cursor, command_cursor, command_key, is_cursor_command
from redisfuse.client.slot_map import key_slot, parse_target
from redisfuse.errors import AccessError, RedirectedError, RedisFuseError, TryAgainError, UnavailableError

if TYPE_CHECKING:
    from redisfuse.client.cluster_client import ClusterClient

T = TypeVar("T")

_ASKING: RedisCommand = (b"ASKING",)
_MIN_RETRY_DELAY_SECONDS = 0.02  # before what failed is sent again; doubled up to the maximum
_MAX_RETRY_DELAY_SECONDS = 0.25
_MIN_TIMEOUT_SECONDS = 0.05
_IMMEDIATE_REDIRECTIONS = 4  # redirections that are followed without a delay


@dataclass(slots=True)
class _NodeCommands:
    """The commands for one node, by their positions in the pipeline."""

    client: NodeClient
    positions: list[int]
    asking: bool = False  # whether the node is only about to get the slots


class ClusterPipeline:
    """Commands to the nodes of a cluster, and their replies.

    One thread uses it, once.
    """

    def __init__(self, client: ClusterClient, commands: Sequence[RedisCommand]) -> None:
        self._client = client
        self._topology = client.topology
        self._commands = commands
        self._replies: list[Any] = [None] * len(commands)

    def execute(self, timeout: float, *, is_patient: bool = True) -> list[Any]:
        """Return the replies, in order; all errors are replies, too.

        Commands that failed are repeated for `timeout` seconds; without `is_patient`, only redirected ones.
        """
        commands, replies = self._commands, self._replies
        deadline = time.monotonic() + timeout
        self._exchange(self._group_by_owner(range(len(commands))), deadline)
        if not have_unavailable(replies):
            return replies
        self._client.report_wait()  # for other nodes, and for a refresh of the topology
        delay, immediate = _MIN_RETRY_DELAY_SECONDS, _IMMEDIATE_REDIRECTIONS
        while failed := [position for position, reply in enumerate(replies) if isinstance(reply, UnavailableError)]:
            redirected = [position for position in failed if isinstance(replies[position], RedirectedError)]
            retried = [
                position
                for position in (failed if is_patient else redirected)
                if self._client.may_retry(command_key(commands[position]), replies[position])
            ]
            if not retried or time.monotonic() >= deadline:
                break
            if len(redirected) < len(retried) or not immediate:
                if time.monotonic() + delay >= deadline:
                    break
                time.sleep(delay)
                delay = min(2 * delay, _MAX_RETRY_DELAY_SECONDS)
                self._topology.refresh_soon()
            else:
                immediate -= 1
            self._exchange(self._group_again(retried), deadline)
        return replies

    def _group_by_owner(self, positions: Sequence[int]) -> list[_NodeCommands]:
        commands, replies = self._commands, self._replies
        owners = self._client.slot_map.owners
        groups: dict[str | None, list[int]] = {}
        anywhere: list[int] = []
        for position in positions:
            command = commands[position]
            key = command_key(command)
            if key is None:
                anywhere.append(position)
                continue
            owner = owners[crc_hqx(key, 0) & 0x3FFF if b"{" not in key else key_slot(key)]  # mostly without a call
            if is_cursor_command(command) and (cursor := command_cursor(command)) and cursor.node_id != owner:
                replies[position] = MovedWhileReadError()
            elif owner in groups:
                groups[owner].append(position)
            else:
                groups[owner] = [position]
        requests: list[_NodeCommands] = []
        if anywhere:
            requests.append(_NodeCommands(self._client.any_node(), anywhere))
        for owner, own_positions in groups.items():
            client = None if owner is None else self._topology.client_of_primary(owner)
            if client is None:
                for position in own_positions:
                    replies[position] = TryAgainError("no node of the cluster serves this slot; try again later")
            else:
                requests.append(_NodeCommands(client, own_positions))
        return requests

    def _group_again(self, positions: Sequence[int]) -> list[_NodeCommands]:
        """Group commands whose last replies were errors; follow redirections."""
        asking: dict[tuple[str, int], list[int]] = {}
        others: list[int] = []
        for position in positions:
            error = self._replies[position]
            if isinstance(error, FollowableRedirection) and error.reply_code == "ASK" and error.endpoint is not None:
                asking.setdefault(error.endpoint, []).append(position)
                continue
            if isinstance(error, FollowableRedirection):
                self._topology.record_move(error, error.sender)
            others.append(position)
        requests = self._group_by_owner(others)
        for endpoint, own_positions in asking.items():
            try:
                requests.append(_NodeCommands(self._topology.client_at(*endpoint), own_positions, asking=True))
            except TryAgainError as error:
                for position in own_positions:
                    self._replies[position] = error
        return requests

    def _exchange(self, requests: list[_NodeCommands], deadline: float) -> None:
        """Send all nodes their commands, then receive all replies.

        Nodes that failed come last. Channels are acquired in the order of the nodes, so that threads can't wait for
        each other in a circle.
        """
        if len(requests) > 1:
            requests.sort(key=lambda request: (request.client.unreachable_since is not None, request.client.node.id))
        with ExitStack() as stack:
            sent: list[tuple[_NodeCommands, Channel]] = []
            for request in requests:
                own = [self._commands[position] for position in request.positions]
                if request.asking:
                    own = [each for command in own for each in (_ASKING, command)]
                remaining = max(_MIN_TIMEOUT_SECONDS, deadline - time.monotonic())
                try:
                    channel = stack.enter_context(request.client.read_channel(remaining))
                    channel.send(own)
                    sent.append((request, channel))
                except (UnavailableError, AccessError) as error:
                    self._record_failure(request, error)
            for request, channel in sent:
                channel.timeout = max(_MIN_TIMEOUT_SECONDS, deadline - time.monotonic())
                count = len(request.positions)
                try:
                    received = channel.receive_many(2 * count)[1::2] if request.asking else channel.receive_many(count)
                except UnavailableError as error:
                    self._record_failure(request, error)
                    continue
                self._store_replies(request, received)

    def _record_failure(self, request: _NodeCommands, error: RedisFuseError) -> None:
        if isinstance(error, UnavailableError):
            request.client.record_failure(error)
        for position in request.positions:
            self._replies[position] = error

    def _store_replies(self, request: _NodeCommands, received: list[Any]) -> None:
        commands, replies = self._commands, self._replies
        if len(received) == len(replies):
            replies[:] = received  # the usual case of a single command
        else:
            for position, reply in zip(request.positions, received, strict=True):
                replies[position] = reply
        if self._topology.transit is not None:
            self._topology.transit.revise(commands, request.positions, replies)
        if not have_unavailable(received) and not any(is_cursor_command(commands[each]) for each in request.positions):
            return
        for position in request.positions:
            reply = replies[position]
            if isinstance(reply, RedirectedError):
                is_bound = command_cursor(commands[position]) is not None
                replies[position] = MovedWhileReadError() if is_bound else FollowableRedirection(reply, request.client)
            elif is_cursor_command(commands[position]):
                replies[position] = bind_cursor(reply, request.client.node.id)


def run_on_owner(client: ClusterClient, key: bytes, operation: ChannelOperation[T]) -> T:
    """Call `operation`, which only reads, with a channel to a key's owner.

    Follows redirections. Calls it again until the time-out, as `execute` sends a command again.
    """
    deadline = time.monotonic() + client.limits.timeout
    delay = _MIN_RETRY_DELAY_SECONDS
    asking: tuple[str, int] | None = None
    while True:
        node = client.topology.client_at(*asking) if asking else client.owner_client(key)
        try:
            with node.read_channel(max(_MIN_TIMEOUT_SECONDS, deadline - time.monotonic())) as channel:
                if asking:
                    channel.execute([_ASKING])
                asking = None
                return operation(channel)
        except RedirectedError as error:
            client.report_wait()
            if time.monotonic() >= deadline:
                raise
            if error.reply_code == "ASK":
                asking = parse_target(error.target, node.node.host)
            else:
                client.topology.record_move(error, node)
        except UnavailableError as error:
            if time.monotonic() + delay >= deadline or not client.may_retry(key, error):
                raise
            client.report_wait()
            time.sleep(delay)
            delay = min(2 * delay, _MAX_RETRY_DELAY_SECONDS)
            client.topology.refresh_soon()
