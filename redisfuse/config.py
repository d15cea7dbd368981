"""What a mount was asked to be: one frozen value, and the only place where defaults are written.

Pure: nothing is read from the environment, the disk or the terminal here. `cli/mount.py` fills it in, `mount/run.py`
wires objects from it, and the test of docs/limits.md reads its defaults.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from redisfuse.errors import UsageError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_SIZE_UNITS = {"": 1, "B": 1, "K": KIB, "M": MIB, "G": GIB, "KIB": KIB, "MIB": MIB, "GIB": GIB}
_SIZE_UNITS |= {"KB": 1000, "MB": 1000**2, "GB": 1000**3}
_SIZE_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.ASCII | re.IGNORECASE)

# For mount(8) and systemd, or what a mount does anyway: fstab lines carry them, libfuse may not know them.
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


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What was said with `-o`: what redisfuse acts on itself, and the rest, which goes to libfuse as it is."""

    read_only: bool = False  # `ro` was said
    allow_other: bool = False
    allow_root: bool = False
    uid: int | None = None  # who owns the files, numerically; None: whoever mounted
    gid: int | None = None
    umask: int | None = None  # permission bits to take away; None: 0o077
    passthrough: tuple[tuple[str, str | None], ...] = ()  # for libfuse: (name, value), value None for a bare word

    @classmethod
    def parse(cls, option_lists: Iterable[str]) -> "MountOptions":
        """Read comma lists such as `allow_other,uid=1000,x-systemd.automount`. Raises UsageError."""
        found: dict[str, Any] = {}
        other: list[tuple[str, str | None]] = []
        for word in split_mount_options(option_lists):
            name, equals, value = word.partition("=")
            if word in _IGNORED_OPTIONS or word.startswith(_IGNORED_PREFIXES):
                continue
            if word == "ro":
                found["read_only"] = True
            elif word in ("allow_other", "allow_root"):
                found[word] = True
            elif name in ("uid", "gid", "umask"):
                found[name] = _parse_number(name, value)
            else:
                other.append((name, value if equals else None))
        return cls(**found, passthrough=tuple(other))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that shapes one mount. Sizes are bytes, times are seconds; secrets are kept out of its repr."""

    # -- where from, where to
    target: str = field(repr=False)  # a URL or a bare host; may hold a password
    port: int | None = None  # given with a bare host; None: the target is a URL
    mountpoint: Path
    user: str | None = None  # ACL user, where the URL has none
    password: str | None = field(default=None, repr=False)  # where the URL has none
    db: int | None = None  # over the URL's; None: the URL's, or 0
    tls: bool = False
    tls_ca: Path | None = None  # certificate authorities, PEM; None: the system's
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_insecure: bool = False  # don't check the server's certificate

    # -- what may be done
    write: bool = False  # write mode: always with a journal
    journal_file: Path | None = None  # None: journal.db in the platform's state folder
    conflict_check: bool = True
    allow: tuple[bytes, ...] = ()  # globs of keys that may be changed; empty: all

    # -- what the tree looks like
    separator: bytes = b":"
    prefix: bytes = b""  # only the keys that begin with it
    new_files: str = "auto"  # "auto" (NAMES: what a new file becomes) or "string"
    render_limit: int = 10_000  # elements of a collection whose rendering has an exact size; beyond, it streams
    field_limit: int = 1_000  # fields of a hash that is listed as its fields
    hash_limit: int = 1_000  # hashes in a directory whose hashes are listed as their fields
    dump_limit: int = 100_000  # elements of a collection that may be DUMPed (a DUMP blocks the server)

    # -- how much of this machine, and of the server
    cache_memory: int = 64 * MIB  # attributes and small contents
    index_memory: int = 512 * MIB  # names of keys; beyond, the index moves to a private temporary file
    connections: int = 4
    rate: int = 0  # commands a second; 0: no limit
    timeout: float = 5.0  # seconds until a silent server is an error
    scan_count: int = 1_000  # keys asked for by one SCAN
    rescan_seconds: float = 30.0  # between scans where the server's changes can't be followed

    # -- junk
    junk_filter: bool = True
    junk_file: Path | None = None  # patterns instead of the built-in ones
    junk: tuple[str, ...] = ()  # more patterns
    keep: tuple[str, ...] = ()  # patterns that are never junk
    show_junk: bool = False
    scratch_memory: int = 64 * MIB  # junk made through the mount lives here
    park_seconds: float = 5.0  # how long a key renamed to a junk name waits for its new content

    # -- how it runs
    ask_on_open: bool = False  # in a read-only mount too, each open is told to us (paths/stale_names.py)
    binding: str = "auto"  # "auto", "fusepy" (libfuse 2) or "mfusepy" (libfuse 3)
    options: MountOptions = MountOptions()
    daemon: bool = False
    log_file: Path | None = None  # None: standard error; for a daemon, redisfuse.log in the platform's state folder
    debug: bool = False


DEFAULTS: dict[str, Any] = {
    # A dataclass with slots keeps no class attributes, so its defaults are read from its fields.
    entry.name: entry.default
    for entry in fields(Config)
    if entry.name not in ("target", "mountpoint")
}


def parse_size(text: str) -> int:
    """Bytes from `512MiB`, `512M`, `1.5 GiB`, `64kB` or a plain number. Raises UsageError."""
    found = _SIZE_PATTERN.fullmatch(text)
    unit = found and _SIZE_UNITS.get(found[2].upper())
    if not found or not unit:
        raise UsageError(f"{text!r} is not a size: say it like 512MiB, 64M or 1048576")
    return int(float(found[1]) * unit)


def format_size(size: int) -> str:
    """The shortest exact spelling that `parse_size` reads back: `512MiB`, `1GiB`, `1000`."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)


def split_mount_options(option_lists: Iterable[str]) -> list[str]:
    """The words of `-o` comma lists; `\\,` is a comma inside a word, as in mount(8)'s helpers."""
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
        raise UsageError(f"-o {name}={value}: not a valid {name} ({'octal' if base == 8 else 'a number'} is expected)")
    return number
