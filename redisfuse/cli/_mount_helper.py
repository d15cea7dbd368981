"""`mount.fuse.redisfuse`, the program that mount(8) and systemd call for a line of /etc/fstab.

    redis://127.0.0.1:6379  /mnt/redis  fuse.redisfuse  allow_other,prefix=app:,_netdev,x-systemd.automount  0 0

Called as `mount.fuse.redisfuse SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-t TYPE] -o OPTIONS`.
"""

import sys
from collections.abc import Sequence

from redisfuse.cli._redact import redact_argv
from redisfuse.cli.main import main as redisfuse

_OPTIONS_WITH_VALUE = ("-N", "-t")
_EXIT_USAGE = 1  # mount(8): incorrect invocation or permissions
_EXIT_MOUNT_FAILED = 32  # mount(8): mount failure


def main(arguments: Sequence[str] | None = None) -> int:
    """Mount in the background; answers when the mount does, with an exit status of mount(8)."""
    redact_argv()
    words = translate_arguments(list(sys.argv[1:] if arguments is None else arguments))
    if words is None:
        return 0
    status = redisfuse(words)
    return {0: 0, 2: _EXIT_USAGE}.get(status, _EXIT_MOUNT_FAILED)


def translate_arguments(arguments: list[str]) -> list[str] | None:
    """The command line of `redisfuse` for one of mount(8)'s helpers; None for its `-f` (fake: do all but mount)."""
    words = iter(arguments)
    places: list[str] = []
    options: list[str] = []
    for word in words:
        if word == "-o":
            options += ["-o", next(words, "")]
        elif word.startswith("-o"):
            options += ["-o", word[2:]]
        elif word in _OPTIONS_WITH_VALUE:
            next(words, None)
        elif word.startswith("-") and word != "-":
            if "f" in word and not word.startswith("--"):
                return None
        else:
            places.append(word)
    if places:
        places[0] = _source_to_url(places[0])
    return ["mount", "--daemon", *options, "--", *places]


def _source_to_url(source: str) -> str:
    """A source may be a URL, `redisfuse#URL` as older systems write it, HOST:PORT, or a socket's path."""
    source = source.removeprefix("redisfuse#")
    if "://" in source:
        return source
    return f"unix://{source}" if source.startswith("/") else f"redis://{source}"
