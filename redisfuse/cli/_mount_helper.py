"""`mount.fuse.redisfuse`: the helper that mount(8) runs for /etc/fstab.

    redis://127.0.0.1:6379  /mnt/redis  fuse.redisfuse  allow_other,prefix=app:,_netdev,x-systemd.automount  0 0
    prod                    /mnt/prod   fuse.redisfuse  allow_other,_netdev                                  0 0

Called as `mount.fuse.redisfuse SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-t TYPE] -o OPTIONS`.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from redisfuse.cli._config_files import load_config_files
from redisfuse.cli._redact import redact_argv
from redisfuse.cli.main import main as redisfuse
from redisfuse.errors import UsageError

_OPTIONS_WITH_VALUE = ("-N", "-t")
_EXIT_USAGE = 1  # mount(8): incorrect invocation or permissions
_EXIT_MOUNT_FAILED = 32  # mount(8): mount failure


def main(arguments: Sequence[str] | None = None) -> int:
    """Mount in the background; return an exit status of mount(8) when it is ready."""
    redact_argv()
    words = translate_arguments(list(sys.argv[1:] if arguments is None else arguments))
    if words is None:
        return 0
    status = redisfuse(words)
    return {0: 0, 2: _EXIT_USAGE}.get(status, _EXIT_MOUNT_FAILED)


def translate_arguments(arguments: list[str]) -> list[str] | None:
    """Return the command line of `redisfuse` for the arguments of a mount helper.

    Returns None for `-f` (fake: do everything except mount).
    """
    words = iter(arguments)
    operands: list[str] = []
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
            operands.append(word)
    if operands:
        operands[0] = _source_to_url(operands[0])
    return ["mount", "--daemon", *options, "--", *operands]


def _source_to_url(source: str) -> str:
    """Return the URL of a source; the name of a server as it is.

    A source is a URL, `redisfuse#URL` (older systems), the name of a server in the configuration, HOST:PORT or the path
    of a socket.
    """
    source = source.removeprefix("redisfuse#")
    if "://" in source or _is_server(source):
        return source
    return f"unix://{source}" if source.startswith("/") else f"redis://{source}"


def _is_server(source: str) -> bool:
    """Return whether the configuration has a server of this name.

    True for a configuration that can't be read: the mount reports why.
    """
    path = os.environ.get("REDISFUSE_CONFIG")
    try:
        return source in load_config_files(Path(path) if path else None).servers
    except UsageError:
        return True
