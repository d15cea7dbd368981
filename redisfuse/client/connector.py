"""Opens channels to the server.

Resolves the address through Sentinels, connects, detects the server, checks its role and names the connection.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from redisfuse.client.address import Address
from redisfuse.client.address_map import AddressMap
from redisfuse.client.allowlist import CommandFilter
from redisfuse.client.capabilities import ServerInfo, parse_hello, parse_info, parse_role, role_command
from redisfuse.client.channel import Channel, RedisCommand
from redisfuse.client.connection import CLIENT_NAME, open_connection
from redisfuse.client.connection_errors import add_probable_cause
from redisfuse.client.connection_id import identity_commands, parse_identity
from redisfuse.client.limits import Limits
from redisfuse.client.password_file import read_password
from redisfuse.client.rate_limit import TokenBucket
from redisfuse.client.reply_errors import PASSWORD_REQUIRED_MESSAGE
from redisfuse.client.sentinel import SentinelWatcher, SwitchHook
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


class ClusterNodeError(UnavailableError):
    """The server is one node of a cluster: `open_client` opens the cluster."""


class Connector:
    """Opens channels to one server and database.

    Thread-safe, without a lock; the fields below are only hints.
    """

    def __init__(
        self,
        address: Address,
        limits: Limits,
        stats: ClientStats,
        *,
        password_file: Path | None = None,
        token_bucket: TokenBucket | None = None,
        is_cluster_node: bool = False,
        setup: Sequence[RedisCommand] = (),
        address_map: AddressMap | None = None,
        replicas: bool = False,
        on_switch: SwitchHook = lambda: None,
    ) -> None:
        """Create a connector.

        `password_file`: the file of the address's password, which is read again when the server refuses the password.
        `token_bucket`: a limit that several connectors share. `is_cluster_node`: accept only a node of a cluster.
        `setup`: commands that begin each connection and must not fail.
        `address_map`: where announced addresses are reached. `replicas`: accept only a replica. `on_switch` is called
        when the Sentinels name another server: new channels lead to that one.
        """
        self.server_info: ServerInfo | None = None  # None until the first channel is open
        self._address = address  # replaced when the password has changed
        self._address_map = address_map or AddressMap()
        self._info_generation = -1  # in which `server_info` was detected
        self.sentinels: SentinelWatcher | None = None
        if address.kind == "sentinel":
            self.sentinels = SentinelWatcher(
                address, self._address_map, timeout=limits.timeout, replicas=replicas, on_switch=on_switch
            )
        self._wants_replica = replicas
        self._password_file = password_file
        self._limits = limits
        self._stats = stats
        self._token_bucket = token_bucket or TokenBucket(limits.rate)
        self._is_cluster_node = is_cluster_node
        self._setup = tuple(setup)
        self._may_set_name = True

    @property
    def generation(self) -> int:
        """A number that grows when another server replaces the one in use.

        A channel of an earlier generation leads to the replaced server.
        """
        return 0 if self.sentinels is None else self.sentinels.generation

    def open_channel(
        self, command_filter: CommandFilter, timeout: float, *, resp3: bool = False, identify: bool = False
    ) -> Channel:
        """Open a channel within `timeout` seconds, with a name and NO-TOUCH set.

        With `identify` its ID is fetched, too. Raises UnavailableError, AccessError, TryAgainError, and UsageError if
        there is no such database.
        """
        while True:
            used = self._address
            try:
                channel = self._open_channel(command_filter, timeout, resp3=resp3, identify=identify)
            except AccessError as error:
                if not self._reload_password(used, error):
                    raise
                channel = self._open_channel(command_filter, timeout, resp3=resp3, identify=identify)
            if channel.generation == self.generation:
                return channel
            channel.close()  # another server has replaced this one meanwhile

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
        generation = self.generation  # before the address is resolved
        address = self._resolve_address(timeout)
        try:
            connection = open_connection(
                address,
                command_filter,
                timeout=timeout,
                stats=self._stats,
                token_bucket=self._token_bucket,
                resp3=resp3,
            )
        except UnavailableError as error:
            if self.sentinels is not None:
                self.sentinels.avoid((address.host, address.port))
            raise self._add_reason(error) from None
        channel = Channel(connection, address, timeout, resp3=resp3)
        channel.generation = generation
        try:
            setup: list[RedisCommand] = [(b"CLIENT", b"SETNAME", CLIENT_NAME)] if self._may_set_name else []
            server_info = self.server_info
            if server_info is None or self._info_generation != generation:
                server_info = self._detect_server(channel, address)
            if server_info.has_no_touch:
                setup.append((b"CLIENT", b"NO-TOUCH", b"ON"))
            setup += self._setup
            checks_role = self.sentinels is not None or self._wants_replica
            if checks_role:
                setup.append(role_command(server_info))
            identity: list[RedisCommand] = [*identity_commands(server_info)] if identify else []
            replies = channel.execute([*setup, *identity]) if setup or identity else []
            channel.connection_id = parse_identity(replies[len(setup) :])
            for command, reply in zip(setup, replies, strict=False):
                if isinstance(reply, AccessError) and command[1:2] == (b"SETNAME",):
                    self._may_set_name = False  # the name is optional; further attempts would fill the ACL LOG
                elif isinstance(reply, TryAgainError) or (isinstance(reply, RedisFuseError) and command in self._setup):
                    raise reply
            if checks_role:
                self._check_role(address, parse_role(replies[len(setup) - 1]))
        except UnavailableError as error:
            channel.close()
            raise self._add_reason(error) from None
        except BaseException:
            channel.close()
            raise
        self.server_info = server_info
        self._info_generation = generation
        channel.timeout = self._limits.timeout
        return channel

    def _add_reason(self, error: UnavailableError) -> UnavailableError:
        """Add the reason of ssh, if the address is reached through it."""
        reason = self._address_map.error_text
        return type(error)(f"{error} (ssh: {reason})") if reason else error

    def _resolve_address(self, timeout: float) -> Address:
        """Return the address to connect to: the current master's, if Sentinels are given."""
        address = self._address
        if self.sentinels is not None:
            host, port = self.sentinels.resolve(timeout)
            address = replace(address, kind="tcp", host=host, port=port, sentinels=(), service_name="")
        return self._address_map.apply(address)

    def close(self) -> None:
        """End the threads that follow the Sentinels."""
        if self.sentinels is not None:
            self.sentinels.close()

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
        if server_info.is_cluster and not self._is_cluster_node:
            raise ClusterNodeError(f"{endpoint} is one node of a cluster, which holds only part of the keys")
        if self._is_cluster_node and not server_info.is_cluster and isinstance(reply, bytes | str):
            raise UnavailableError(f"{endpoint} is not a node of a cluster; use redis://{endpoint}")
        if server_info.mode == "sentinel":
            raise UnavailableError(f"{endpoint} is a Sentinel, not a server: use redis+sentinel://{endpoint}/SERVICE")
        return server_info

    def _check_role(self, address: Address, role: str) -> None:
        """Raise UnavailableError if the server has another role than it should have."""
        if role == ("slave" if self._wants_replica else "master"):
            return
        if self.sentinels is not None:
            found, expected = ("master", "replica") if self._wants_replica else ("replica", "master")
            raise TryAgainError(
                f"{address.endpoint}, which the Sentinels name as a {expected}, is a {found}: "
                "a fail-over is in progress; try again later"
            )
        if self._is_cluster_node:
            raise TryAgainError(f"{address.endpoint} is no longer a replica: a fail-over has begun; try again later")
        raise UnavailableError(
            f"{address.endpoint} is a master, and --replicas reads replicas only: name one of its replicas, "
            "or mount without --replicas"
        )
