"""The settings of a mount as one frozen value, and the defaults of all options.

Pure: reads neither the environment nor the disk nor the terminal. `cli/mount.py` builds a Config, `mount/run.py` wires
objects from it, and the test of docs/limits.md checks that page against its defaults.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from redisfuse.errors import UsageError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

CHUNK_BYTES = MIB
"""The most bytes of one value that are requested from the server, journaled or held in one piece."""

_SIZE_UNITS = {"": 1, "B": 1, "K": KIB, "M": MIB, "G": GIB, "KIB": KIB, "MIB": MIB, "GIB": GIB}
_SIZE_UNITS |= {"KB": 1000, "MB": 1000**2, "GB": 1000**3}
_SIZE_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.ASCII | re.IGNORECASE)

# Options in fstab that are for mount(8) or systemd, or that are redisfuse's behaviour anyway; libfuse may reject them.
_IGNORED_OPTIONS = {
    "rw",
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
}
_IGNORED_OPTIONS |= {"dev", "suid", "exec", "async", "atime", "relatime"}
_IGNORED_PREFIXES = ("x-", "X-", "comment=")
# Options that libfuse implements itself: redisfuse speaks the kernel's protocol without it.
_LIBFUSE_OPTIONS = frozenset(
    (
        *("attr_timeout", "entry_timeout", "negative_timeout", "ac_attr_timeout", "remember", "noforget"),
        *("kernel_cache", "auto_cache", "noauto_cache", "direct_io", "hard_remove", "use_ino", "readdir_ino", "nopath"),
        *("intr", "intr_signal", "modules", "subdir", "from_code", "to_code", "debug", "no_remote_lock"),
        *("no_remote_flock", "no_remote_posix_lock", "big_writes", "async_read", "sync_read", "atomic_o_trunc"),
        *("splice_write", "splice_move", "splice_read", "no_splice_write", "no_splice_move", "no_splice_read"),
        *("clone_fd", "max_threads", "max_idle_threads", "max_write", "max_readahead", "max_background"),
        "congestion_threshold",
    )
)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """The options of `-o`: those that redisfuse implements, and others of mounts."""

    read_only: bool = False  # `ro`
    allow_other: bool = False
    allow_root: bool = False
    uid: int | None = None  # owner of the files; None: the user who mounted
    gid: int | None = None
    umask: int | None = None  # permission bits to clear; None: 0o077
    passthrough: tuple[
        tuple[str, str | None], ...
    ] = ()  # for mount(2) and fusermount: (name, value); value None: a bare word

    @classmethod
    def parse(cls, option_lists: Iterable[str]) -> "MountOptions":
        """Parse comma lists such as `allow_other,uid=1000,x-systemd.automount`.

        Raises UsageError.
        """
        parsed: dict[str, Any] = {}
        passthrough: list[tuple[str, str | None]] = []
        for word in split_mount_options(option_lists):
            name, equals, value = word.partition("=")
            if word in _IGNORED_OPTIONS or word.startswith(_IGNORED_PREFIXES):
                continue
            if word == "ro":
                parsed["read_only"] = True
            elif word in ("allow_other", "allow_root"):
                parsed[word] = True
            elif name in ("uid", "gid", "umask"):
                parsed[name] = _parse_number(name, value)
            elif name in _LIBFUSE_OPTIONS:
                raise UsageError(
                    f"-o {name} is an option of libfuse's own, which redisfuse does not use: remove it (redisfuse sets "
                    "time-outs, caching and threads itself)"
                )
            else:
                passthrough.append((name, value if equals else None))
        return cls(**parsed, passthrough=tuple(passthrough))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of one mount.

    Sizes are in bytes, times in seconds. The repr contains no secrets.
    """

    # -- server and mount point
    target: str = field(repr=False)  # a URL or a bare host; may contain a password
    port: int | None = None  # goes with a bare host; None: the target is a URL
    mountpoint: Path
    user: str | None = None  # ACL user if the URL has none
    password: str | None = field(default=None, repr=False)  # if the URL has none
    password_file: Path | None = None  # the file of `password`, read again when the server refuses it
    db: int | None = None  # overrides the URL's; None: the URL's, or 0
    tls: bool = False
    tls_ca: Path | None = None  # certificate authorities, PEM; None: the system's
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_insecure: bool = False  # don't check the server's certificate
    ssh: str | None = None  # USER@HOST of a bastion, through which servers are reached
    cluster_map: tuple[str, ...] = ()  # HOST:PORT=HOST:PORT, where announced addresses are reached

    replicas: bool = False  # read replicas only, never a master
    max_lag: float = 0.0  # seconds that the values of a replica may be old; 0: no limit

    # -- writing
    write: bool = False  # write mode: always with a journal
    wait_replicas: int = 0  # replicas that must have a change before it is applied
    journal_file: Path | None = None  # None: journal.db in the platform's state folder
    conflict_check: bool = True
    added_newline: bool = True  # False: a newline that a program adds at the end of a value is not saved
    operation_idle: float = 2.0  # seconds without a change, after which a process begins a new operation
    allow: tuple[bytes, ...] = ()  # globs of the keys that may be changed; empty: all keys

    # -- the file tree
    separator: bytes = b":"
    prefix: bytes = b""  # only keys that begin with it
    new_files: str = "auto"  # "auto" (NAME.EXT is a field of hash NAME, docs/names.md) or "string"
    render_limit: int = 10_000  # elements; a larger collection has no exact size and streams
    hashes: Literal["auto", "fields", "files"] = "auto"  # how hashes are listed; auto: as fields up to these limits
    field_limit: int = 1_000  # fields; a larger hash is listed as one file
    hash_limit: int = 1_000  # hashes in a directory; with more, each is listed as one file
    dump_limit: int = 100_000  # elements; a larger collection is not DUMPed, because DUMP blocks the server

    # -- decoding, of one value
    decode_input: int = 8 * MIB  # bytes of a value that are decoded
    decode_output: int = 16 * MIB  # of its text, and of each decompressed layer
    decode_depth: int = 64  # layers, and values within values
    decode_seconds: float = 2.0  # of processor time

    # -- limits
    cache_memory: int = 64 * MIB  # metadata and small contents
    index_memory: int = 512 * MIB  # key names; a larger index moves to a private temporary file
    connections: int = 4
    rate: int = 0  # commands per second; 0: no limit
    timeout: float = 5.0  # seconds without a reply until a request fails
    scan_count: int = 1_000  # COUNT of each SCAN
    rescan_seconds: float = 30.0  # between scans while changes can't be tracked
    follow: bool = True  # track changes; False: only scan
    idle_seconds: float = 600.0  # without use, after which following pauses; 0: never

    # -- junk
    junk_filter: bool = True
    junk_file: Path | None = None  # patterns that replace the built-in ones
    junk: tuple[str, ...] = ()  # additional patterns
    keep: tuple[str, ...] = ()  # patterns that are never junk
    show_junk: bool = False
    scratch_memory: int = 64 * MIB  # size of the memory filesystem for junk that is created in the mount
    park_seconds: float = 5.0  # how long a key that was renamed to a junk name waits for its new content

    # -- operation
    ask_on_open: bool = False  # receive each OPEN in a read-only mount, too (mount/unopened_files.py)
    binding: str = "auto"  # "auto", "fusepy" (libfuse 2) or "mfusepy" (libfuse 3)
    options: MountOptions = MountOptions()
    daemon: bool = False
    log_file: Path | None = None  # None: standard error; for a daemon, redisfuse.log in the platform's state folder
    debug: bool = False


DEFAULTS: dict[str, Any] = {
    # A dataclass with slots has no class attributes for its defaults, so they are taken from its fields.
    item.name: item.default
    for item in fields(Config)
    if item.name not in ("target", "mountpoint")
}


def parse_size(text: str) -> int:
    """Return the bytes of `512MiB`, `512M`, `1.5 GiB`, `64kB` or a plain number.

    Raises UsageError.
    """
    match = _SIZE_PATTERN.fullmatch(text)
    unit = match and _SIZE_UNITS.get(match[2].upper())
    if not match or not unit:
        raise UsageError(f"{text!r} is not a size; write it as 512MiB, 64M or 1048576")
    return int(float(match[1]) * unit)


def format_size(size: int) -> str:
    """Return the shortest exact text for `parse_size`: `512MiB`, `1GiB`, `1000`."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)


def split_mount_options(option_lists: Iterable[str]) -> list[str]:
    r"""Split the comma lists of `-o` into words.

    `\,` is a comma inside a word, as in mount(8)'s helpers.
    """
    words = []
    for text in option_lists:
        words += [word.replace("\\,", ",") for word in re.split(r"(?<!\\),", text)]
    return [word for word in words if word]


def _parse_number(name: str, value: str) -> int:
    base = 8 if name == "umask" else 10
    try:
        number = int(value, base)
    except ValueError:
        number = -1
    if not 0 <= number <= (0o777 if name == "umask" else 0xFFFF_FFFE):
        raise UsageError(
            f"-o {name}={value}: not a valid {name} (expected {'octal digits' if base == 8 else 'a number'})"
        )
    return number
