"""Removing passwords from argument lists (`ps`) and error messages."""

import contextlib
import re
from pathlib import Path

# Up to the last @, because a password that is not percent-encoded may contain any character.
_URL_PASSWORD = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*://[^\s:/@\0]*:)([^\s\0]*)(?=@)")
_QUERY_PASSWORD = re.compile(rb"([?&]password=)([^\s&\0]*)")


def redact_passwords(text: str) -> str:
    """Return the text with the password of each URL in it replaced by `***`."""
    return _redact_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


def redact_argv(proc_dir: Path = Path("/proc/self")) -> bool:
    """Overwrite passwords in this process's argument list, so that `ps` shows `***`.

    Returns whether a password was overwritten. Works on Linux only; does nothing where the kernel does not allow it. A
    process that read the list before this call has seen the password.
    """
    with contextlib.suppress(OSError, ValueError):
        arguments = (proc_dir / "cmdline").read_bytes()
        redacted = _redact_bytes(arguments)
        if redacted == arguments:
            return False
        # Fields 48 and 49 of stat, counted from 1; field 2 is a name in parentheses that may contain blanks (proc(5)).
        rest = (proc_dir / "stat").read_bytes().rpartition(b")")[2].split()
        start, end = int(rest[45]), int(rest[46])
        if end - start != len(arguments):
            return False
        with (proc_dir / "mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(redacted.ljust(len(arguments), b"\0")[: len(arguments)])
        return True
    return False


def _redact_bytes(text: bytes) -> bytes:
    return _QUERY_PASSWORD.sub(rb"\1***", _URL_PASSWORD.sub(rb"\1***", text))
