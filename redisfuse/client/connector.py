"""Opens channels to the server.

Resolves the address through Sentinels, connects, detects the server and names the connection.
"""

import logging
from dataclasses import replace
from pathlib import Path

from redisfuse.client.address import Address
from redisfuse.client.allowlist import SENTINEL_ALLOWLIST, CommandFilter
from redisfuse.client.capabilities import ServerInfo, parse_hello, parse_info
from redisfuse.client.channel import Channel, RedisCommand
from redisfuse.client.connection import CLIENT_NAME, open_connection
from redisfuse.client.connection_errors import add_probable_cause
from redisfuse.client.connection_id import identity_commands, parse_identity
from redisfuse.client.limits import Limits
from redisfuse.client.password_file import read_password
from redisfuse.client.rate_limit import TokenBucket
from redisfuse.client.reply_errors import PASSWORD_REQUIRED_MESSAGE
from redisfuse.client.stats import ClientStats
from redisfuse.errors import (
    AccessError,
    ConnectionLostError,
    RedisFuseError,
    TryAgainError,
    UnavailableError,
    UsageError,
)

log = logging.getLogger(__name__)

_CLUSTER_UNSUPPORTED = (
    "{place} belongs to a Redis Cluster, which can't be mounted: one node holds only part of the keys; "
    "mount a server that is not in cluster mode"
)


class Connector:
    """Opens channels to one server and database.

    Thread-safe, without a lock; the fields below are only hints.
    """

    def __init__(
        self, address: Address, limits: Limits, stats: ClientStats, *, password_file: Path | None = None
    ) -> None:
        """Create a connector.

        `password_file`: the file of the address's password, which is read again when the server refuses the password.
        """
        self.server_info: ServerInfo | None = None  # None until the first channel is open
        self._address = address  # replaced when the password has changed
        self._password_file = password_file
        self._limits = limits
        self._stats = stats
        self._token_bucket = TokenBucket(limits.rate)
        self._may_set_name = True

    def open_channel(
        self, command_filter: CommandFilter, timeout: float, *, resp3: bool = False, identify: bool = False
    ) -> Channel:
        """Open a channel within `timeout` seconds, with a name and NO-TOUCH set.

        With `identify` its ID is fetched, too. Raises UnavailableError, AccessError, TryAgainError, and UsageError if
        there is no such database.
        """
        used = self._address
        try:
            return self._open_channel(command_filter, timeout, resp3=resp3, identify=identify)
        except AccessError as error:
            if not self._reload_password(used, error):
                raise
            return self._open_channel(command_filter, timeout, resp3=resp3, identify=identify)

    def _reload_password(self, used: Address, refusal: AccessError) -> bool:
        """Read the password again; return whether it is not the refused one.

        Raises AccessError if the file can't be read.
        """
        if self._password_file is None:
            return False
        if self._address is not used:  # another thread has read it meanwhile
            return True
        try:
            password = read_password(self._password_file)
        except UsageError as error:
            raise AccessError(f"{refusal}; reading the password again failed: {error}") from None
        if password == self._address.password:
            return False
        log.info("the server refused the password; a new one was read from %s", self._password_file)
        self._address = replace(self._address, password=password)
        return True

    def _open_channel(self, command_filter: CommandFilter, timeout: float, *, resp3: bool, identify: bool) -> Channel:
        address = self._resolve_address(timeout)
        connection = open_connection(
            address, command_filter, timeout=timeout, stats=self._stats, token_bucket=self._token_bucket, resp3=resp3
        )
        channel = Channel(connection, address, timeout, resp3=resp3)
        try:
            setup: list[RedisCommand] = [(b"CLIENT", b"SETNAME", CLIENT_NAME)] if self._may_set_name else []
            server_info = self.server_info
            if server_info is None:
                server_info = self._detect_server(channel, address)
            if server_info.has_no_touch:
                setup.append((b"CLIENT", b"NO-TOUCH", b"ON"))
            identity: list[RedisCommand] = [*identity_commands(server_info)] if identify else []
            replies = channel.execute([*setup, *identity]) if setup or identity else []
            channel.connection_id = parse_identity(replies[len(setup) :])
            for command, reply in zip(setup, replies, strict=False):
                if isinstance(reply, AccessError) and command[1] == b"SETNAME":
                    self._may_set_name = False  # the name is optional; further attempts would fill the ACL LOG
                elif isinstance(reply, TryAgainError):
                    raise reply
        except BaseException:
            channel.close()
            raise
        self.server_info = server_info
        channel.timeout = self._limits.timeout
        return channel

    def _resolve_address(self, timeout: float) -> Address:
        """Return the address to connect to: the current master's, if Sentinels are given."""
        address = self._address
        if address.kind == "cluster":
            raise UnavailableError(_CLUSTER_UNSUPPORTED.format(place=address.endpoint))
        if address.kind != "sentinel":
            return address
        reasons: list[str] = []
        for host, port in address.sentinels:
            sentinel = Address(
                host=host,
                port=port,
                username=address.sentinel_username,
                password=address.sentinel_password,
                tls=address.tls,
            )
            try:
                master = self._query_sentinel(sentinel, address.service_name, timeout / len(address.sentinels))
            except RedisFuseError as error:
                reasons.append(str(error))
                continue
            if master:
                host, port = master[0].decode(), int(master[1])
                return replace(address, kind="tcp", host=host, port=port, sentinels=(), service_name="")
            reasons.append(f"{sentinel.endpoint} monitors no master named {address.service_name}")
        raise UnavailableError(f"no Sentinel returned the address of the master: {'; '.join(reasons)}")

    def _query_sentinel(self, sentinel: Address, service_name: str, timeout: float) -> list[bytes] | None:
        """Return the master's host and port; None if the Sentinel does not monitor it."""
        connection = open_connection(
            sentinel, SENTINEL_ALLOWLIST, timeout=timeout, stats=self._stats, token_bucket=self._token_bucket
        )
        channel = Channel(connection, sentinel, timeout)
        try:
            reply = channel.execute([(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service_name)])[0]
        finally:
            channel.close()
        if isinstance(reply, RedisFuseError):
            raise reply
        return reply if isinstance(reply, list) and len(reply) == 2 else None

    def _detect_server(self, channel: Channel, address: Address) -> ServerInfo:
        """Query the server's version and mode.

        Raises UnavailableError if it can't be mounted.
        """
        try:
            reply = channel.execute([(b"INFO",)])[0]
        except ConnectionLostError as error:
            raise add_probable_cause(error, address) from None
        if isinstance(reply, AccessError) and str(reply) != PASSWORD_REQUIRED_MESSAGE:
            hello = channel.execute([(b"HELLO",)])[0]  # no ACL can forbid it
            server_info = ServerInfo() if isinstance(hello, RedisFuseError) else parse_hello(hello)
        elif isinstance(reply, RedisFuseError):
            raise reply
        else:
            server_info = parse_info(reply if isinstance(reply, bytes) else str(reply).encode())
        endpoint = self._address.endpoint
        if server_info.is_cluster:
            raise UnavailableError(_CLUSTER_UNSUPPORTED.format(place=endpoint))
        if server_info.mode == "sentinel":
            raise UnavailableError(f"{endpoint} is a Sentinel, not a server: use redis+sentinel://{endpoint}/SERVICE")
        return server_info
