"""The identity of a connection at its server.

By it another connection can close the connection, or find out that the server does not have it any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from redisfuse.client.capabilities import ServerInfo, parse_info


@dataclass(frozen=True, slots=True)
class ConnectionId:
    """One connection of one server process, which never uses a client ID twice."""

    run_id: str  # of the server process; empty: unknown
    client_id: int  # CLIENT ID

    @property
    def text(self) -> str:
        """The identity as the journal records it: `RUN_ID/CLIENT_ID`."""
        return f"{self.run_id}/{self.client_id}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse what `text` returned."""
        run_id, _, client_id = text.rpartition("/")
        return cls(run_id, int(client_id))


def identity_commands(server_info: ServerInfo) -> list[tuple[bytes, ...]]:
    """Return the commands whose replies `parse_identity` takes.

    There are none for a server before Redis 6.
    """
    if not server_info.version_at_least((6, 0)):
        return []
    # HELLO, which no ACL can forbid, returns the CLIENT ID. The run_id is empty if the ACL forbids INFO.
    return [(b"HELLO",), (b"INFO", b"server")] if server_info.run_id else [(b"HELLO",)]


def parse_identity(replies: Sequence[Any]) -> ConnectionId | None:
    """Return the identity of the connection that received these replies.

    None if they have none.
    """
    hello, *info = replies or (None,)
    pairs = dict(zip(hello[::2], hello[1::2], strict=False)) if isinstance(hello, list) else hello
    client_id = pairs.get(b"id") if isinstance(pairs, Mapping) else None
    return ConnectionId(parse_run_id(info[0]) if info else "", client_id) if isinstance(client_id, int) else None


def parse_run_id(info: Any) -> str:
    """Return the run_id in a reply to INFO; empty if there is none."""
    return parse_info(info).run_id if isinstance(info, bytes) else ""
