"""WHERE: the server, and the part of its keys, that a command reads.

WHERE is a path in a mount, a URL (`redis://host/0`; `redis://host/0#user:` for the keys that begin with `user:`), or
HOST PORT, or the name of a server in the configuration (`prod`, `prod#user:`; `./prod` is a path). Without it, it is
the current directory. A path gives the mount's server, password file, prefix, separator, rate and time-out; options
given on the command line override them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from redisfuse.cli._decode_options import DECODE_SETTINGS
from redisfuse.cli._mount_status import fetch_status
from redisfuse.cli._named_servers import complete_where, expand_server, find_servers, read_mount_setting
from redisfuse.cli._options import (
    SEPARATOR_HELP,
    OptionList,
    build_server_options,
    config_option,
    is_host_and_port,
    parse_server_address,
)
from redisfuse.cli._params import BYTES
from redisfuse.cli._passwords import locate_password
from redisfuse.cli._spelling import suggest_name
from redisfuse.config import DEFAULTS
from redisfuse.errors import MountError, NotFoundError, UsageError
from redisfuse.fuse import mountpoint as mountpoints

if TYPE_CHECKING:
    from redisfuse.client.address import Address
    from redisfuse.client.client import RedisClient
    from redisfuse.client.limits import Limits
    from redisfuse.paths.grammar import KeyRef, PathCodec
    from redisfuse.survey.scan import Scope

WHERE_HELP = (
    "WHERE is a path in a mount, a URL, HOST PORT, or the name of a server in the configuration; without it, the "
    "current directory, which must be in a mount."
)

SURVEY_TIMEOUT_SECONDS = 30.0
"""For a reply, without `--timeout`: no program in a mount waits, and a busy server gets no command twice."""

_SERVER_PARAMETERS = ("user", "db", "tls", "tls_ca", "tls_cert", "tls_key", "tls_insecure")
_SECTION = "Server"
_MAX_NAMED_MOUNTS = 3  # in an error

_PREFIX_XATTR = "user.redis.prefix"  # vfs/xattrs.py
_KEY_XATTR = "user.redis.key"
_FIELD_XATTR = "user.redis.field"
_TEXT_VIEW = b"%text"  # the end of the path of a decoded value
_TARGET_XATTRS = (_PREFIX_XATTR, _KEY_XATTR, _FIELD_XATTR)

where_argument = click.argument("where", nargs=-1, metavar="[WHERE]", shell_complete=complete_where)

where_options = OptionList(
    build_server_options(
        f"How long to wait for a reply of the server before failing; by default {SURVEY_TIMEOUT_SECONDS}.",
        shows_timeout=False,
    ),
    config_option("--prefix", section=_SECTION, type=BYTES, help="Only keys with this prefix; not for a path."),
    config_option("--separator", section=_SECTION, type=BYTES, help=SEPARATOR_HELP),
    config_option(
        "--rate",
        section=_SECTION,
        type=click.IntRange(0),
        metavar="N",
        help="Maximum number of commands per second; 0: no limit.",
    ),
    config_option(
        "--scan-count",
        section=_SECTION,
        type=click.IntRange(1, 1000),
        metavar="N",
        help="Number of keys to request in one SCAN.",
    ),
)
"""How to reach the server, and how much to send."""


@dataclass(frozen=True, slots=True)
class Where:
    """A server, and the part of its keys that a command is about."""

    address: Address
    limits: Limits
    codec: PathCodec
    scope: Scope
    path: PathInMount | None = None  # None: the server was given, not a path
    password_file: Path | None = None
    hashes: str = "auto"  # how the mount lists hashes
    render_limit: int = DEFAULTS["render_limit"]  # elements of a set that the mount sorts
    decode_settings: Mapping[str, Any] = field(default_factory=dict)  # the mount's limits of decoding, by option
    cluster_map: tuple[str, ...] = ()
    ssh: str | None = None
    replicas: bool = False  # read replicas only, as the mount does
    max_lag: float = 0.0
    is_writable: bool = True  # False: the path is in a read-only mount
    allow: tuple[bytes, ...] = ()  # the globs of the keys that the mount may change; empty: all
    wait_replicas: int = 0  # replicas that must have a write
    journal_file: Path | None = None  # the mount's

    @contextmanager
    def connect(self) -> Iterator[Sequence[RedisClient]]:
        """Yield connected clients, one for each node; close them at the end."""
        with self.connect_client() as client:
            yield client.servers

    @contextmanager
    def connect_client(self, *, writable: bool = False) -> Iterator[RedisClient]:
        """Yield one connected client, also of a cluster; close it at the end."""
        from redisfuse.client.opening import open_client
        from redisfuse.client.ssh_tunnels import create_address_map

        client = open_client(
            self.address,
            self.limits,
            writable=writable,
            password_file=self.password_file,
            address_map=create_address_map(self.cluster_map, self.ssh),
            replicas=self.replicas,
            max_lag=self.max_lag,
            wait_replicas=self.wait_replicas if writable else 0,
        )
        try:
            yield client
        finally:
            client.close()

    def display_path(self, path: bytes, target: KeyRef | None) -> bytes:
        """Return the path of a key, field or folder in the user's spelling of WHERE.

        `path` is from the mount's root; it is returned as it is if there is no mount.
        """
        if self.path is None:
            return path
        if target is not None and target == self.scope.target:
            is_view = path.endswith(_TEXT_VIEW) and not self.path.spelling.endswith(_TEXT_VIEW)
            return self.path.spelling + _TEXT_VIEW if is_view else self.path.spelling
        folder = self.path.directory + b"/" if self.path.directory else b""
        if not path.startswith(folder):  # in %long
            return os.path.join(os.fsencode(self.path.mountpoint), path)
        return os.path.join(self.path.base, path[len(folder) :])


@dataclass(frozen=True, slots=True)
class PathInMount:
    """A path of the user that leads into a mount."""

    spelling: bytes  # as the user wrote it; empty: the current directory
    mountpoint: Path
    directory: bytes  # it or the one above it, from the root, as listings spell it; empty for the root
    base: bytes  # the same directory as the user wrote it; empty: the current directory


def resolve_where(context: click.Context, words: Sequence[str]) -> Where:
    """Return what WHERE and the options of a command mean.

    Raises UsageError, MountError for a mount that does not respond or is another user's, NotFoundError.
    """
    words = expand_server(context, words)
    surplus = words[2:] or [word for word in words[1:] if not (word.isascii() and word.isdigit())]
    if surplus:
        raise UsageError(
            f"{surplus[0]!r} is one argument too many: WHERE is a path in a mount, a URL, a server, or HOST PORT"
        )
    if len(words) == 2 or (len(words) == 1 and _is_server(words[0])):
        return _resolve_server(context, words)
    if words and not os.path.lexists(words[0]) and (advice := suggest_name(words[0], find_servers(context))):
        raise UsageError(f"no server {words[0]!r} in the configuration, and no such path{advice}")
    return _resolve_path(context, words[0] if words else "")


def _is_server(word: str) -> bool:
    """Return whether a word is a URL or HOST:PORT, not a path."""
    return "://" in word or (":" in word and is_host_and_port(word) and not os.path.lexists(word))


def _resolve_server(context: click.Context, words: tuple[str, ...]) -> Where:
    from redisfuse.client.limits import Limits
    from redisfuse.paths.grammar import PathCodec
    from redisfuse.survey.scan import Scope

    url, has_fragment, fragment = words[0].partition("#")
    options = context.params
    prefix = os.fsencode(fragment) if has_fragment else options["prefix"]
    password = locate_password(context)
    address = parse_server_address(
        (url, *words[1:]), password=password.password, **{name: options[name] for name in _SERVER_PARAMETERS}
    )
    limits = Limits(
        timeout=options["timeout"],
        survey_timeout=_find_survey_timeout(context),
        rate=options["rate"],
        scan_count=options["scan_count"],
    )
    is_from_file = password.file is not None and address.password == password.password
    return Where(
        address,
        limits,
        PathCodec(options["separator"]),
        Scope(prefix),
        password_file=password.file if is_from_file else None,
        hashes=read_mount_setting(context, "hashes", "auto"),
        render_limit=read_mount_setting(context, "render_limit", DEFAULTS["render_limit"]),
        cluster_map=options["cluster_map"],
        ssh=options["ssh"],
        replicas=read_mount_setting(context, "replicas", False),
        max_lag=read_mount_setting(context, "max_lag", 0.0),
        allow=read_mount_setting(context, "allow", ()),
        wait_replicas=options.get("wait_replicas", 0),
    )


def _find_survey_timeout(context: click.Context) -> float | None:
    """Return the wait for a reply; None: that of `--timeout` on the command line."""
    is_given = context.get_parameter_source("timeout") is ParameterSource.COMMANDLINE
    return None if is_given else SURVEY_TIMEOUT_SECONDS


def _resolve_path(context: click.Context, spelling: str) -> Where:
    from redisfuse.client.address import Address
    from redisfuse.client.limits import Limits
    from redisfuse.paths.grammar import PathCodec
    from redisfuse.survey.scan import Scope

    given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    for name in (*_SERVER_PARAMETERS, "cluster_map", "ssh", "prefix", "separator"):
        if name in given:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} needs a server: a path in a mount has the mount's own; give a URL or HOST PORT")
    mountpoint, relative = locate_in_mount(spelling)
    facts = _fetch_facts(mountpoint)
    connection = facts["connection"]
    password, password_file = _find_mount_password(context, connection, mountpoint)
    address = Address.parse(connection["url"], password=password)
    settings = {
        name: context.params[name] if name in given else connection[name] for name in ("timeout", "rate", "scan_count")
    }
    wait_replicas = (context.params if "wait_replicas" in given else connection).get("wait_replicas", 0)
    codec = PathCodec(os.fsencode(connection["separator"]))
    scope, directory = _resolve_scope(spelling, mountpoint, relative, codec)
    base = os.fsencode(spelling if scope.target is None else os.path.dirname(spelling))
    if scope.target is None:
        mounted = os.fsencode(connection["prefix"])
        scope = Scope(max(scope.prefix, mounted, key=len))  # one begins with the other
    path = PathInMount(os.fsencode(spelling), mountpoint, directory, base)
    return Where(
        address,
        Limits(**settings, survey_timeout=_find_survey_timeout(context)),
        codec,
        scope,
        path,
        password_file,
        hashes=connection["hashes"],
        render_limit=connection["render_limit"],
        decode_settings={name: connection[name] for name in DECODE_SETTINGS if name in connection},
        cluster_map=tuple(connection["cluster_map"]),
        ssh=connection["ssh"],
        replicas=connection["replicas"],
        max_lag=connection["max_lag"],
        is_writable=facts["mode"] == "write",
        allow=tuple(os.fsencode(glob) for glob in connection.get("allow", ())),
        wait_replicas=wait_replicas,
        journal_file=None if facts["journal"] is None else Path(facts["journal"]),
    )


def locate_in_mount(spelling: str) -> tuple[Path, str]:
    """Return the mount that a path is in, and the rest of the path.

    An empty path is the current directory. The mount is this user's or root's: its status decides where the user's
    password is sent, so the mount of another user is refused. Raises UsageError.
    """
    absolute = os.path.abspath(os.path.expanduser(spelling) or os.curdir)
    mount = _find_containing_mount(Path(absolute)) or _find_containing_mount(Path(os.path.realpath(absolute)))
    if mount is None:
        known = describe_mounts([str(mount.mountpoint) for mount in mountpoints.list_redisfuse_mounts()])
        place = f"{spelling} is not" if spelling else "no WHERE is given, and the current directory is not"
        raise UsageError(
            f"{place} in a mount ({known}); give a path in a mount, a URL, a server in the configuration, or HOST PORT"
        )
    if mount.owner_uid not in (os.getuid(), 0):
        raise UsageError(
            f"{mount.mountpoint} is a mount of another user (uid {mount.owner_uid}), whose server would get your "
            f"password; give the URL of the server"
        )
    if not absolute.startswith(f"{mount.mountpoint}/") and absolute != str(mount.mountpoint):
        absolute = os.path.realpath(absolute)
    relative = os.path.relpath(absolute, mount.mountpoint)
    return mount.mountpoint, "" if relative == "." else relative


def describe_mounts(names: Sequence[str]) -> str:
    """Return what is mounted, in a few words."""
    if not names:
        return "nothing is mounted"
    omitted = len(names) - _MAX_NAMED_MOUNTS
    more = f" and {omitted} more, see `redisfuse status`" if omitted > 0 else ""
    return f"mounted: {', '.join(names[:_MAX_NAMED_MOUNTS])}{more}"


def _find_containing_mount(path: Path) -> mountpoints.MountInfo | None:
    """Return the redisfuse mount that a path is in, without accessing it.

    None if it is in another filesystem.
    """
    found: mountpoints.MountInfo | None = None
    for mount in mountpoints.iter_mounts():
        if mount.mountpoint == path or mount.mountpoint in path.parents:
            depth = len(mount.mountpoint.parts)
            if found is None or depth >= len(found.mountpoint.parts):
                found = mount
    return found if found is not None and found.is_redisfuse else None


def _fetch_facts(mountpoint: Path) -> dict[str, Any]:
    """Return the status of a mount, which has how it reaches its server.

    Raises MountError.
    """
    try:
        facts: dict[str, Any] = json.loads(fetch_status(mountpoint))
    except OSError as error:
        raise MountError(f"{mountpoint} does not respond: {error.strerror}") from error
    if not isinstance(facts.get("connection"), dict):
        raise MountError(f"{mountpoint} is served by an older redisfuse; mount it again, or give the server's URL")
    return facts


def _find_mount_password(
    context: click.Context, connection: dict[str, Any], mountpoint: Path
) -> tuple[str | None, Path | None]:
    """Return the password for a mount's server, and its file.

    The order is: --password-file, REDISFUSE_PASSWORD, the mount's password file, the configuration.
    """
    from redisfuse.client.password_file import read_password

    is_explicit = os.environ.get("REDISFUSE_PASSWORD") is not None or context.get_parameter_source("password_file") in (
        ParameterSource.COMMANDLINE,
        ParameterSource.ENVIRONMENT,
    )
    if connection["password_file"] is not None and not is_explicit:
        file = Path(connection["password_file"])
        return read_password(file), file
    found = locate_password(context)
    if found.password is None and connection["has_password"]:
        raise UsageError(
            f"the mount at {mountpoint} has its password from its URL or its environment, where no other command can "
            f"read it; set REDISFUSE_PASSWORD, or use --password-file"
        )
    return found.password, found.file


def _resolve_scope(spelling: str, mountpoint: Path, relative: str, codec: PathCodec) -> tuple[Scope, bytes]:
    """Return the keys below a path, or its key or field, and their directory.

    The mount resolves the path. Raises NotFoundError.
    """
    from redisfuse.paths.grammar import KeyRef
    from redisfuse.survey.scan import Scope

    if not relative:
        return Scope(), b""
    place = mountpoint / relative
    try:
        names = {name: os.getxattr(place, name) for name in os.listxattr(place) if name in _TARGET_XATTRS}
    except OSError as error:
        raise NotFoundError(f"{spelling or os.curdir}: {error.strerror}") from error
    key = names.get(_KEY_XATTR)
    prefix = names.get(_PREFIX_XATTR)
    if prefix is None and key is None:
        raise NotFoundError(f"{spelling or os.curdir} is neither a key nor a folder of keys")
    directory = codec.split_key(prefix if prefix is not None else key or b"")[:-1]
    target = None if key is None else KeyRef(key, names.get(_FIELD_XATTR))
    return Scope(codec.key_prefix(directory), target), codec.directory_path(directory)
