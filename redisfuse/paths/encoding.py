"""How arbitrary bytes are written as printable, legal UTF-8, and read back strictly: `%XX`, and cuts at 255 bytes.

Pure. `paths/grammar.py` builds the grammar of paths on this; nothing here knows of keys, fields or separators.
"""

import re

NAME_MAX = 255  # bytes in one name: the limit of Linux and macOS filesystems
CUT = b"%+"  # ends every piece of a cut name but the last
_PIECE_MAX = NAME_MAX - len(CUT)

_plain = re.compile(rb"[ -$&-.0-~]+").fullmatch  # printable ASCII but '%' and '/': nothing to escape
_special = re.compile("[%/\x00-\x1f\x7f-\x9f\udc80-\udcff]")
_escape = re.compile(rb"%([0-9A-F]{2})")
_unprintable = re.compile("[\x00-\x1f\x7f-\x9f]")


def _write_character(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def _read_escape(match: re.Match[bytes]) -> bytes:
    return bytes((int(match[1], 16),))


def escape(data: bytes) -> bytes:
    """Write `data` with `%XX` for '%', '/', C0, DEL, C1 and each byte that is not part of valid UTF-8."""
    if not data or _plain(data):
        return data
    text = data.decode("utf-8", "surrogateescape")  # bytes that are not UTF-8 become U+DC80-U+DCFF
    return _special.sub(_write_character, text).encode("utf-8")


def encode_component(component: bytes) -> bytes:
    """Write one component of a key: as `escape`, but never empty, `.` or `..`."""
    if _plain(component):
        return component if component not in (b".", b"..") else component.replace(b".", b"%2E")
    return escape(component) or b"%"


def encode_field(field: bytes) -> bytes:
    """Write a hash field (after its dot): as `escape`, but never empty."""
    return escape(field) or b"%"


def decode_component(written: bytes) -> bytes | None:
    """Read what `encode_component` wrote, or None. `%2E` is taken for any dot; no other second spelling is."""
    if _plain(written):
        return written if written not in (b".", b"..") else None
    data = decode_field(written)
    # "." and ".." have one spelling: in ".%2E" a dot would stand where %2E must
    return data if data not in (b".", b"..") or b"." not in written else None


def decode_field(written: bytes) -> bytes | None:
    """Read what `encode_field` wrote, or None. `%2E` is taken for any dot; no other second spelling is."""
    if _plain(written):
        return written
    if written == b"%":
        return b""
    data = _escape.sub(_read_escape, written)
    return data if data and escape(data) == written.replace(b"%2E", b".") else None


def cut(name: bytes) -> tuple[bytes, ...]:
    """Cut a written name into pieces of at most 255 bytes: each but the last ends in `%+`.

    No cut falls inside an escape or a UTF-8 sequence. The last piece has at least 3 bytes, so it is never `.` or `..`.
    """
    if len(name) <= NAME_MAX:
        return (name,)
    pieces = []
    begin = 0
    while len(name) - begin > NAME_MAX:
        end = begin + _PIECE_MAX
        while name[end] & 0xC0 == 0x80 and end > begin + _PIECE_MAX - 3:  # inside a UTF-8 sequence
            end -= 1
        for back in (1, 2):
            if _escape.match(name, end - back):
                end -= back
                break
        pieces.append(name[begin:end] + CUT)
        begin = end
    pieces.append(name[begin:])
    return tuple(pieces)


def is_piece(piece: bytes) -> bool:
    """Whether `piece` can be one that `cut` made (all but the last): its length, its end, and what it is made of."""
    # the byte after the cut may have belonged to a UTF-8 sequence of 4 bytes, of which none was taken
    if not piece.endswith(CUT) or not _PIECE_MAX - 3 <= len(piece) - len(CUT) <= _PIECE_MAX:
        return False
    return is_utf8(piece) and not _unprintable.search(piece.decode("utf-8"))


def is_utf8(data: bytes) -> bool:
    """Whether `data` is valid UTF-8, as every written name is."""
    try:
        return data.isascii() or bool(data.decode("utf-8"))
    except UnicodeDecodeError:
        return False
