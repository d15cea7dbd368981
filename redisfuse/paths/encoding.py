"""Encode arbitrary bytes as legal UTF-8 file names and decode them strictly.

Pure. Bytes are escaped as `%XX`; names are cut at 255 bytes. The grammar of paths is built on this; nothing here
depends on separators or on the structure of a key.
"""

import re

NAME_MAX = 255  # bytes in one name: the limit of Linux and macOS filesystems
CONTINUATION = b"%+"  # ends every segment of a cut name except the last
_SEGMENT_MAX = NAME_MAX - len(CONTINUATION)

is_plain = re.compile(rb"[ -$&-.0-~]+").fullmatch  # printable ASCII except '%' and '/': needs no escape
_NEEDS_ESCAPE = re.compile("[%/\x00-\x1f\x7f-\x9f\udc80-\udcff]")
_ESCAPE = re.compile(rb"%([0-9A-F]{2})")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f]")


def _encode_character(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def _decode_escape(match: re.Match[bytes]) -> bytes:
    return bytes((int(match[1], 16),))


def percent_encode(data: bytes) -> bytes:
    """Encode '%', '/', C0, DEL, C1 and each byte of invalid UTF-8 as `%XX`."""
    if not data or is_plain(data):
        return data
    text = data.decode("utf-8", "surrogateescape")  # bytes that are not UTF-8 become U+DC80-U+DCFF
    return _NEEDS_ESCAPE.sub(_encode_character, text).encode("utf-8")


def encode_component(component: bytes) -> bytes:
    """Encode a component of a key: `percent_encode`, but never empty, `.` or `..`."""
    if is_plain(component):
        return component if component not in (b".", b"..") else component.replace(b".", b"%2E")
    return percent_encode(component) or b"%"


def encode_field(field: bytes) -> bytes:
    """Encode a hash field (after its dot): as `percent_encode`, but never as empty."""
    return percent_encode(field) or b"%"


def decode_component(encoded: bytes) -> bytes | None:
    """Decode the output of `encode_component`, or return None.

    `%2E` is accepted for any dot; no other second spelling is.
    """
    if is_plain(encoded):
        return encoded if encoded not in (b".", b"..") else None
    data = decode_field(encoded)
    # "." and ".." have one spelling each, with %2E for every dot: ".%2E" is rejected
    return data if data not in (b".", b"..") or b"." not in encoded else None


def decode_field(encoded: bytes) -> bytes | None:
    """Decode the output of `encode_field`, or return None.

    `%2E` is accepted for any dot; no other second spelling is.
    """
    if is_plain(encoded):
        return encoded
    if encoded == b"%":
        return b""
    data = _ESCAPE.sub(_decode_escape, encoded)
    return data if data and percent_encode(data) == encoded.replace(b"%2E", b".") else None


def split_long_name(name: bytes) -> tuple[bytes, ...]:
    """Cut an encoded name into segments of at most 255 bytes.

    Each except the last ends in `%+`. No cut falls inside an escape or a UTF-8 sequence. The last segment has at least
    3 bytes, so it is never `.` or `..`.
    """
    if len(name) <= NAME_MAX:
        return (name,)
    segments = []
    begin = 0
    while len(name) - begin > NAME_MAX:
        end = begin + _SEGMENT_MAX
        while name[end] & 0xC0 == 0x80 and end > begin + _SEGMENT_MAX - 3:  # inside a UTF-8 sequence
            end -= 1
        for back in (1, 2):
            if _ESCAPE.match(name, end - back):
                end -= back
                break
        segments.append(name[begin:end] + CONTINUATION)
        begin = end
    segments.append(name[begin:])
    return tuple(segments)


def is_leading_segment(segment: bytes) -> bool:
    """Return whether `segment` can be a segment of a cut name other than the last.

    Decided by its length, its end and its bytes.
    """
    # a cut moves back by at most 3 bytes: in front of a UTF-8 sequence of 4 bytes
    if not segment.endswith(CONTINUATION) or not _SEGMENT_MAX - 3 <= len(segment) - len(CONTINUATION) <= _SEGMENT_MAX:
        return False
    return is_utf8(segment) and not _UNPRINTABLE.search(segment.decode("utf-8"))


def is_utf8(data: bytes) -> bool:
    """Return whether `data` is valid UTF-8, as every encoded name is."""
    try:
        return data.isascii() or bool(data.decode("utf-8"))
    except UnicodeDecodeError:
        return False
