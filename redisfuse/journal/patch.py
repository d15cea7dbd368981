r"""Changes of files as a patch that `git apply` and `patch` take. Pure.

Text is compared by line, and a missing newline at the end is marked as `diff` marks it. A content is text as git
decides it: no NUL is in its first 8000 bytes. A binary content is named only, or is written whole, as `git diff
--binary` writes it. The lines are bytes, exactly as the contents have them: a caller that prints them on a terminal
escapes them.
"""

from __future__ import annotations

import hashlib
import zlib
from base64 import b85encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from redisfuse.journal import line_matching
from redisfuse.journal.content import Blob
from redisfuse.journal.line_matching import LineOpcode

PatchMarker = Literal["header", "hunk", " ", "-", "+", "note"]
"""Lines of a header, the position of a hunk, an unchanged, removed or added line, and any other line."""

CONTEXT_LINES = 3
SNIFFED_BYTES = 8000  # git's own FIRST_FEW_BYTES
NO_NEWLINE = b"\\ No newline at end of file"
BINARY_LINE_BYTES = 52  # of the compressed content, in one line of a binary patch

_QUOTED = {0x07: b"a", 0x08: b"b", 0x09: b"t", 0x0A: b"n", 0x0B: b"v", 0x0C: b"f", 0x0D: b"r", 0x22: b'"', 0x5C: b"\\"}


@dataclass(frozen=True, slots=True)
class PatchLine:
    """One line of a patch, without its newline; `data` has the marker of its kind."""

    marker: PatchMarker
    data: bytes


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file before and after; None: there is no such file."""

    old_path: bytes
    new_path: bytes
    prior: bytes | None
    new: bytes | None

    @property
    def is_text(self) -> bool:
        """Whether both contents are text."""
        return all(content is None or b"\0" not in content[:SNIFFED_BYTES] for content in (self.prior, self.new))

    @property
    def is_rename(self) -> bool:
        """Whether the file has another name afterwards."""
        return self.old_path != self.new_path and self.prior is not None and self.new is not None


def read_content(blob: Blob | None) -> bytes:
    """Return the bytes of a content; none if there is none."""
    return b"" if blob is None else blob.read()


def iter_patch(change: FileChange, *, full: bool = False) -> Iterator[PatchLine]:
    """Yield the lines of the patch of one file; none if nothing differs.

    `full`: write binary contents, instead of only naming them.
    """
    if change.prior == change.new and not change.is_rename:
        return
    names = (b"a/" + change.old_path, b"b/" + change.new_path)
    old, new = map(quote_path, names)
    # GNU patch can't determine where an unquoted name with a blank ends here.
    yield PatchLine("header", b"diff --git " + b" ".join(quote_path(name, special=b" ") for name in names))
    if change.prior is None:
        yield PatchLine("header", b"new file mode 100644")
    elif change.new is None:
        yield PatchLine("header", b"deleted file mode 100644")
    if change.is_rename:
        if change.prior == change.new:
            yield PatchLine("header", b"similarity index 100%")
        yield PatchLine("header", b"rename from " + quote_path(change.old_path))
        yield PatchLine("header", b"rename to " + quote_path(change.new_path))
    if change.prior == change.new:
        return
    if not change.is_text:
        yield from _iter_binary(change, old, new) if full else _name_binary(change, old, new)
        return
    hunks = list(iter_hunks(change))
    if hunks:
        yield PatchLine("header", b"--- " + (b"/dev/null" if change.prior is None else _end_name(old)))
        yield PatchLine("header", b"+++ " + (b"/dev/null" if change.new is None else _end_name(new)))
        yield from hunks
    else:  # an empty file came or went
        yield PatchLine("header", b"index " + _object_name(change.prior) + b".." + _object_name(change.new))


def quote_path(path: bytes, special: bytes = b"") -> bytes:
    """Return a path as git writes it in a patch: in quotes if it has special bytes.

    `special`: bytes that are special, too.
    """
    if all(0x20 <= byte < 0x7F and byte not in (0x22, 0x5C, *special) for byte in path):
        return path
    quoted = b"".join(
        b"\\" + _QUOTED[byte] if byte in _QUOTED else bytes([byte]) if 0x20 <= byte < 0x7F else b"\\%03o" % byte
        for byte in path
    )
    return b'"' + quoted + b'"'


def _end_name(name: bytes) -> bytes:
    """Return a name for a line with --- or +++.

    A tab shows where a name with blanks ends.
    """
    return name + b"\t" if b" " in name and not name.startswith(b'"') else name


# -- text ------------------------------------------------------------------------------------------------------------


def split_text(content: bytes | None) -> list[bytes]:
    """Return the lines of a text with their newlines, which the last one may lack."""
    lines = (content or b"").split(b"\n")
    return [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def count_lines(change: FileChange) -> tuple[int, int]:
    """Return the numbers of added and removed lines of a text."""
    hunks = list(iter_hunks(change))
    return sum(line.marker == "+" for line in hunks), sum(line.marker == "-" for line in hunks)


def iter_hunks(change: FileChange) -> Iterator[PatchLine]:
    """Yield the hunks of a text."""
    before, after = split_text(change.prior), split_text(change.new)
    for group in group_opcodes(before, after):
        (_, i1, _, j1, _), (_, _, i2, _, j2) = group[0], group[-1]
        yield PatchLine("hunk", b"@@ -%b +%b @@" % (_format_range(i1, i2), _format_range(j1, j2)))
        for tag, a1, a2, b1, b2 in group:
            if tag == "equal":
                yield from _mark_lines(" ", before[a1:a2])
                continue
            yield from _mark_lines("-", before[a1:a2])
            yield from _mark_lines("+", after[b1:b2])


def group_opcodes(before: list[bytes], after: list[bytes]) -> Iterator[list[LineOpcode]]:
    """Yield groups of differences with the lines around them, as difflib does."""
    yield from line_matching.group_opcodes(line_matching.match_lines(before, after), CONTEXT_LINES)


def _format_range(start: int, end: int) -> bytes:
    """Return a range of lines as in a unified diff.

    An empty range names the line before it.
    """
    length = end - start
    begin = start + 1 if length else start
    return b"%d" % begin if length == 1 else b"%d,%d" % (begin, length)


def _mark_lines(marker: PatchMarker, lines: list[bytes]) -> Iterator[PatchLine]:
    for line in lines:
        yield PatchLine(marker, marker.encode() + line.removesuffix(b"\n"))
        if not line.endswith(b"\n"):
            yield PatchLine("note", NO_NEWLINE)


# -- binary contents -------------------------------------------------------------------------------------------------


def _name_binary(change: FileChange, old: bytes, new: bytes) -> Iterator[PatchLine]:
    names = (b"/dev/null" if change.prior is None else old, b"/dev/null" if change.new is None else new)
    # With the names of both contents, `git apply` refuses what is missing here, instead of skipping it.
    yield PatchLine("header", b"index " + _object_name(change.prior) + b".." + _object_name(change.new))
    yield PatchLine("note", b"Binary files %b and %b differ" % names)


def _iter_binary(change: FileChange, old: bytes, new: bytes) -> Iterator[PatchLine]:
    """Yield a binary patch: the new content and, for `git apply -R`, the old one."""
    del old, new
    yield PatchLine("header", b"index " + _object_name(change.prior) + b".." + _object_name(change.new))
    yield PatchLine("header", b"GIT binary patch")
    for content in (change.new or b"", change.prior or b""):
        yield PatchLine("note", b"literal %d" % len(content))
        packed = zlib.compress(content)
        for start in range(0, len(packed), BINARY_LINE_BYTES):
            piece = packed[start : start + BINARY_LINE_BYTES]
            length = chr(ord("A") - 1 + len(piece)) if len(piece) <= 26 else chr(ord("a") - 27 + len(piece))
            yield PatchLine("note", length.encode() + b85encode(piece, pad=True))
        yield PatchLine("note", b"")


def _object_name(content: bytes | None) -> bytes:
    """Return git's name of a content: the SHA-1 of a header and the bytes.

    No content has zeros.
    """
    if content is None:
        return b"0" * 40
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest().encode()
