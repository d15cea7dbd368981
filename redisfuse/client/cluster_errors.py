"""Errors of the nodes of a cluster, as replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redisfuse.client.cluster_node import NodeClient
from redisfuse.client.slot_map import parse_target
from redisfuse.errors import RedirectedError, TryAgainError, UnavailableError


def have_unavailable(replies: Sequence[Any]) -> bool:
    """Return whether an UnavailableError is among replies.

    It rarely is, so this is fast.
    """
    return any(issubclass(each, UnavailableError) for each in set(map(type, replies)))


class MovedWhileReadError(TryAgainError):
    """A collection moved to another node between two parts of it."""

    def __init__(self) -> None:
        super().__init__("the key moved to another node of the cluster while it was read; try again")


class FollowableRedirection(RedirectedError):
    """A redirection, and the node that sent it."""

    def __init__(self, error: RedirectedError, sender: NodeClient) -> None:
        super().__init__(*error.args)
        self.reply_code, self.slot, self.target = error.reply_code, error.slot, error.target
        self.sender = sender
        self.endpoint = parse_target(error.target, sender.node.host)
