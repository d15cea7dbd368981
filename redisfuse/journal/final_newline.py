"""The newline that editors add at the end of a value that had none. Pure."""

from __future__ import annotations

from redisfuse.journal.content import Blob
from redisfuse.journal.models import State

ADDED_NEWLINE_MESSAGE = "newline added at end"


def find_added_newline(prior: Blob, new: Blob) -> bytes:
    r"""Return the newline at the end of `new`, where `prior` had none.

    It is \n or \r\n; empty if there is none. An empty content has no end to which a newline could be added, and
    several newlines are more than an editor adds.
    """
    end = new.read_suffix(4)
    if not prior.size or not end.endswith(b"\n") or prior.read_suffix(1) == b"\n":
        return b""
    line_end = b"\r\n" if end.endswith(b"\r\n") else b"\n"
    return b"" if end.removesuffix(line_end).endswith(b"\n") else line_end


def has_added_newline(prior: State, new: State) -> bool:
    """Return whether a change added a newline at the end of a value."""
    if prior.kind != "value" or new.kind != "value" or prior.content is None or new.content is None:
        return False
    return bool(find_added_newline(prior.content, new.content))
