"""Closes other connections of this user at the server.

Afterwards nothing that was sent on them is executed any more. A command may reach the server long after its sender
stopped waiting for the reply: a slow network, a paused server. Once the server no longer has the connection, the
command can't be executed.
"""

from __future__ import annotations

from collections.abc import Collection

from redisfuse.client.allowlist import READ_ALLOWLIST
from redisfuse.client.channel import Channel, RedisCommand
from redisfuse.client.connection_id import ConnectionId, parse_run_id
from redisfuse.errors import ForbiddenCommandError, RedisFuseError, UnavailableError


class TerminationFilter:
    """The filter of a connection that closes other connections.

    It may read, and send CLIENT KILL ID with one number; no other form of CLIENT KILL.
    """

    def check(self, commands: list[list[bytes]]) -> None:
        """Raise ForbiddenCommandError unless every command may be sent."""
        for command in commands:
            if [word.upper() for word in command[:2]] != [b"CLIENT", b"KILL"]:
                READ_ALLOWLIST.check([command])
            elif len(command) != 4 or command[2].upper() != b"ID" or not command[3].isdigit():
                raise ForbiddenCommandError("this form of CLIENT KILL was not sent: only CLIENT KILL ID may be")


def terminate_connections(
    channel: Channel, connections: Collection[ConnectionId], *, may_kill: bool = True
) -> tuple[set[ConnectionId], bool]:
    """Make the server close these connections, which this process no longer uses.

    Returns those that the server does not have any more, and whether the ACL lets this user close connections; if not,
    those that the server still has are missing from the result. Without `may_kill` that is not tried. The channel's
    filter is a `TerminationFilter`; the channel must be closed afterwards. Raises UnavailableError.
    """
    run_id = parse_run_id(channel.execute([(b"INFO", b"server")])[0])
    gone = {connection for connection in connections if run_id and connection.run_id not in ("", run_id)}
    remaining = [connection for connection in connections if connection not in gone]
    # After a restart an ID may be that of another client's connection.
    killable = [connection for connection in remaining if run_id and connection.run_id == run_id] if may_kill else []
    kills: list[RedisCommand] = [(b"CLIENT", b"KILL", b"ID", connection.client_id) for connection in killable]
    for connection, reply in zip(killable, channel.execute(kills) if kills else (), strict=True):
        if isinstance(reply, UnavailableError):
            raise reply
        if isinstance(reply, int):
            gone.add(connection)
        else:
            may_kill = False
    remaining = [connection for connection in remaining if connection not in gone]
    # Redirecting invalidation messages to a connection fails if the server does not have it.
    probes: list[RedisCommand] = [
        (b"CLIENT", b"TRACKING", b"ON", b"REDIRECT", connection.client_id) for connection in remaining
    ]
    for connection, reply in zip(remaining, channel.execute(probes) if probes else (), strict=True):
        if isinstance(reply, RedisFuseError) and "does not exist" in str(reply):
            gone.add(connection)
    return gone, may_kill
