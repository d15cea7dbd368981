"""The form and the size that the reply to a command may have.

A broken or hostile server may reply anything. A reply of another form, or a longer one, closes the connection, so the
rest of redisfuse may rely on both. The errors of a server are not part of this: any command may return one. Pure.
"""

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from redisfuse.config import CHUNK_BYTES
from redisfuse.errors import RedisFuseError

MAX_SCALAR_BYTES = CHUNK_BYTES
"""Of a number, a status or INFO."""

MAX_NAMES_BYTES = 64 << 20
"""Of a batch of key names or field names, which has about 1000 of them."""

MAX_BATCH_BYTES = 128 << 20
"""Of a batch of elements or values."""

MAX_ELEMENT_BYTES = 512 << 20
"""Of a single element: by default (proto-max-bulk-len), Redis stores no longer string."""

MAX_PUSH_BYTES = 64 << 20
"""Of a push message. By default, the server closes a connection with more than 32 MiB of unsent messages."""

_OVERHEAD_BYTES = 1 << 20  # headers, short parts, and what one read from the socket contains of later replies
_ENTRY_ID = re.compile(rb"\d{1,20}-\d{1,20}")

ReplyForm = Callable[[Any], bool]


def _is_count(reply: Any) -> bool:
    return isinstance(reply, int) and reply >= 0


def _is_integer(reply: Any) -> bool:
    return isinstance(reply, int)


def _is_bulk(reply: Any) -> bool:
    return isinstance(reply, bytes)


def _is_text(reply: Any) -> bool:
    return isinstance(reply, bytes | str)  # a verbatim string of RESP3 is a str


def _is_optional_bulk(reply: Any) -> bool:
    return reply is None or isinstance(reply, bytes)


def _is_optional_count(reply: Any) -> bool:
    return reply is None or _is_count(reply)


def _is_object_property(reply: Any) -> bool:
    return _is_optional_bulk(reply) or _is_count(reply)  # an encoding, or an idle time


def _is_list_of_bulks(reply: Any) -> bool:
    return isinstance(reply, list) and set(map(type, reply)) <= {bytes}


def _is_list_of_pairs(reply: Any) -> bool:
    return _is_list_of_bulks(reply) and len(reply) % 2 == 0


def _is_list_of_optional_bulks(reply: Any) -> bool:
    return isinstance(reply, list) and set(map(type, reply)) <= {bytes, type(None)}


def _is_list_of_integers(reply: Any) -> bool:
    return reply is None or (isinstance(reply, list) and set(map(type, reply)) <= {int})


def _is_cursor_and_names(reply: Any) -> bool:
    return (
        isinstance(reply, list)
        and len(reply) == 2
        and isinstance(reply[0], bytes)
        and reply[0].isdigit()
        and _is_list_of_bulks(reply[1])
    )


def _is_cursor_and_pairs(reply: Any) -> bool:
    return _is_cursor_and_names(reply) and len(reply[1]) % 2 == 0


def _is_list_of_entries(reply: Any) -> bool:
    return isinstance(reply, list) and all(
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], bytes)
        and _ENTRY_ID.fullmatch(entry[0]) is not None
        and _is_list_of_pairs(entry[1])
        for entry in reply
    )


def _is_info_of_stream(reply: Any) -> bool:
    return _is_flat_map(reply) or (
        isinstance(reply, list) and all(_is_flat_map(group) and b"name" in group[::2] for group in reply)
    )


def _is_flat_map(reply: Any) -> bool:
    return isinstance(reply, list) and len(reply) % 2 == 0 and _is_greeting(reply)


def _is_time(reply: Any) -> bool:
    return _is_list_of_bulks(reply) and len(reply) == 2 and all(map(bytes.isdigit, reply))


def _is_greeting(reply: Any) -> bool:
    return isinstance(reply, dict) or (isinstance(reply, list) and {type(name) for name in reply[::2]} <= {bytes})


_COUNT_COMMANDS = frozenset(
    {b"DBSIZE", b"EXISTS", b"HEXISTS", b"HLEN", b"HSTRLEN", b"LLEN", b"SCARD", b"STRLEN", b"XLEN", b"ZCARD"}
)

_INTEGER_COMMANDS = _COUNT_COMMANDS | {b"PTTL", b"PEXPIRETIME"}

_FORMS: dict[bytes, ReplyForm] = {
    **dict.fromkeys(_COUNT_COMMANDS, _is_count),
    **dict.fromkeys((b"PTTL", b"PEXPIRETIME"), _is_integer),
    **dict.fromkeys((b"TYPE", b"PING", b"GETRANGE"), _is_bulk),
    **dict.fromkeys((b"HGET", b"DUMP", b"JSON.GET"), _is_optional_bulk),
    b"OBJECT": _is_object_property,
    b"MEMORY": _is_optional_count,
    **dict.fromkeys((b"LRANGE", b"HRANDFIELD", b"ZRANGE"), _is_list_of_bulks),
    **dict.fromkeys((b"SCAN", b"SSCAN", b"HSCAN"), _is_cursor_and_names),
    **dict.fromkeys((b"HPTTL", b"HPEXPIRETIME"), _is_list_of_integers),
    b"HELLO": _is_greeting,
    b"INFO": _is_text,
    b"HMGET": _is_list_of_optional_bulks,
    b"ZSCAN": _is_cursor_and_pairs,
    b"XRANGE": _is_list_of_entries,
    b"XINFO": _is_info_of_stream,
    b"TIME": _is_time,
}
"""The forms of replies to commands whose replies this process evaluates. HSCAN NOVALUES returns no pairs."""

_SCALAR_COMMANDS = _COUNT_COMMANDS | {
    *(b"PTTL", b"PEXPIRETIME", b"TYPE", b"PING", b"OBJECT", b"INFO", b"TIME", b"SELECT", b"CLIENT", b"SUBSCRIBE"),
    b"MEMORY",
    *(b"WATCH", b"UNWATCH", b"MULTI", b"DISCARD", b"HELLO", b"AUTH", b"HPTTL", b"HPEXPIRETIME"),
}


def are_valid(names: Collection[bytes], replies: Sequence[Any]) -> bool:
    """Return whether each reply has a form that its command returns.

    `names`: of the commands, in upper case and in the order of the replies.
    """
    classes = set(map(type, replies))
    if classes == {int} and _INTEGER_COMMANDS.issuperset(names):  # the usual cases, without a call for each reply
        return min(replies) >= 0 or all(
            reply >= 0 or name not in _COUNT_COMMANDS for name, reply in zip(names, replies, strict=True)
        )
    if classes == {bytes} and {_FORMS.get(name) for name in set(names)} == {_is_bulk}:
        return True
    for name, reply in zip(names, replies, strict=True):
        form = _FORMS.get(name)
        if form is not None and not form(reply) and not isinstance(reply, RedisFuseError):
            return False
    return True


def max_reply_bytes(names: Sequence[bytes], commands: Sequence[Sequence[Any]]) -> int:
    """Return how many bytes the reply to any one of these commands may have."""
    if _SCALAR_COMMANDS.issuperset(names):
        return MAX_SCALAR_BYTES + _OVERHEAD_BYTES
    return max(map(_max_payload_bytes, names, commands)) + _OVERHEAD_BYTES


def _max_payload_bytes(name: bytes, command: Sequence[Any]) -> int:
    if name in _SCALAR_COMMANDS:
        return MAX_SCALAR_BYTES
    if name == b"GETRANGE":
        return _range_size(command)
    if name in (b"SCAN", b"HRANDFIELD"):
        return MAX_NAMES_BYTES
    return MAX_ELEMENT_BYTES if _requests_one_element(name, command) else MAX_BATCH_BYTES


def _range_size(command: Sequence[Any]) -> int:
    try:
        start, end = int(command[2]), int(command[3])
    except (ValueError, IndexError):  # the server replies an error
        return MAX_SCALAR_BYTES
    return end - start + 1 if 0 <= start <= end else MAX_ELEMENT_BYTES


def _requests_one_element(name: bytes, command: Sequence[Any]) -> bool:
    if name in (b"LRANGE", b"ZRANGE"):
        return bool(command[2] == command[3])
    if name in (b"HSCAN", b"SSCAN", b"XRANGE"):
        return bool(command[-1] in (1, b"1", "1"))  # of COUNT
    return name in (b"HGET", b"DUMP", b"JSON.GET", b"EXEC")
