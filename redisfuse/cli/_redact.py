"""Where passwords could show, and how they are kept from showing: argument lists (`ps`) and error texts."""

import contextlib
import re
from pathlib import Path

# Up to the last @, since a password that was not percent-encoded may hold any character.
_URL_PASSWORD = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*://[^\s:/@\0]*:)([^\s\0]*)(?=@)")
_QUERY_PASSWORD = re.compile(rb"([?&]password=)([^\s&\0]*)")


def redact_passwords(text: str) -> str:
    """The same text with every password of a URL in it written `***`."""
    return _redact_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


def redact_argv(proc_dir: Path = Path("/proc/self")) -> bool:
    """Overwrite the passwords of URLs in this process's own argument list, so that `ps` shows `***`.

    Linux only, and only as good as it is early: whoever looked before has seen it. Answers whether anything was hidden;
    where the kernel does not allow it nothing happens.
    """
    with contextlib.suppress(OSError, ValueError):
        shown = (proc_dir / "cmdline").read_bytes()
        masked = _redact_bytes(shown)
        if masked == shown:
            return False
        # Fields 48 and 49 of stat, counted from 1; field 2 is a name in parentheses that may hold blanks (proc(5)).
        rest = (proc_dir / "stat").read_bytes().rpartition(b")")[2].split()
        start, end = int(rest[45]), int(rest[46])
        if end - start != len(shown):
            return False
        with (proc_dir / "mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(masked.ljust(len(shown), b"\0")[: len(shown)])
        return True
    return False


def _redact_bytes(text: bytes) -> bytes:
    return _QUERY_PASSWORD.sub(rb"\1***", _URL_PASSWORD.sub(rb"\1***", text))
