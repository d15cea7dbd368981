"""Slots, CLUSTER SLOTS and the routing of commands, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from redisfuse.client.command_keys import NodeCursor, bind_cursor, command_cursor, command_key
from redisfuse.client.reply_errors import map_error_line
from redisfuse.client.slot_map import (
    EMPTY_MAP,
    SLOT_COUNT,
    SlotMap,
    key_slot,
    merge_maps,
    parse_slots,
    parse_target,
    select_keys,
)
from redisfuse.errors import RedirectedError, UnavailableError

HALF = SLOT_COUNT // 2


def node(name: str, port: int, host: bytes | None = b"10.0.0.1", metadata: list[bytes] | None = None) -> list[Any]:
    """Return a node as CLUSTER SLOTS does."""
    return [host, port, name.encode(), metadata or []]


def two_shards(first: str = "a", second: str = "b") -> SlotMap:
    """Return a map of two primaries."""
    return parse_slots([[0, HALF - 1, node(first, 1)], [HALF, SLOT_COUNT - 1, node(second, 2)]], "h")


def test_slots_of_keys() -> None:
    """The slot is that of CLUSTER KEYSLOT, braces included."""
    assert [key_slot(key) for key in (b"", b"foo", b"{foo}bar", b"a{foo}{x}", b"foo{}", b"foo{")] == [
        *(0, 12182, 12182, 12182, 5542, 7673)
    ]
    slots = bytearray(SLOT_COUNT)
    slots[12182] = 1
    assert select_keys([b"foo", b"bar", b"{foo}1"], bytes(slots)) == [b"foo", b"{foo}1"]
    selected = bytes(slot % 3 == 0 for slot in range(SLOT_COUNT))
    for keys in ([b"k:%d" % number for number in range(500)], [b"{%d}k" % number for number in range(500)]):
        assert select_keys(keys, selected) == [key for key in keys if key_slot(key) % 3 == 0]


def test_slots_are_parsed() -> None:
    """Hosts that the reply leaves out are that of the node that was queried."""
    reply = [
        [0, 1, node("a", 1, None), node("r", 11)],
        [2, 2, node("b", 2, b"")],
        [3, 3, node("c", 3, b"?", [b"ip", b"10.0.0.7"])],
        [4, 4, node("d", 4, b"?")],
    ]
    slot_map = parse_slots(reply, "seed")
    assert [slot_map.primaries[id].endpoint for id in "abcd"] == ["seed:1", "seed:2", "10.0.0.7:3", "seed:4"]
    assert slot_map.owners[:6] == ("a", "a", "b", "c", "d", None)
    assert slot_map.unserved_slots == SLOT_COUNT - 5
    assert [each.endpoint for each in slot_map.replicas["a"]] == ["10.0.0.1:11"]
    assert slot_map.slots_of("a")[:3] == b"\1\1\0"


@pytest.mark.parametrize("reply", [b"x", [[0]], [[0, SLOT_COUNT, node("a", 1)]], [[1, 0, node("a", 1)]], [[0, 1, 2]]])
def test_other_replies_are_refused(reply: Any) -> None:
    """A reply of another form is an error of the server."""
    with pytest.raises(UnavailableError, match="CLUSTER SLOTS"):
        parse_slots(reply, "seed")


def test_redirections_are_parsed() -> None:
    """The target of MOVED may have no host; that is the host of the node that replied then."""
    error = map_error_line("MOVED 3999 127.0.0.1:6381")
    assert isinstance(error, RedirectedError)
    assert (error.reply_code, error.slot, error.target) == ("MOVED", 3999, "127.0.0.1:6381")
    assert map_error_line("ASK 1 h:2").reply_code == "ASK"
    targets = ["127.0.0.1:6381", ":6381", "?:6381", "[::1]:6381", "::1:6381", "h", "h:x"]
    assert [parse_target(target, "s") for target in targets] == [
        *(("127.0.0.1", 6381), ("s", 6381), ("s", 6381), ("::1", 6381), ("::1", 6381), None, None)
    ]


def test_reports_are_merged() -> None:
    """The node that claims a slot for itself owns it; else the majority decides, else nothing changes."""
    before = two_shards()
    moved = before.with_owner(5, before.primaries["b"])
    assert merge_maps(before, {"a": moved, "b": moved}).owners == moved.owners
    assert merge_maps(before, {"a": before, "b": before, "c": before}) is before
    # The new owner claims it, the old one does not any more, and a third does not know of it.
    assert merge_maps(before, {"a": moved, "b": moved, "c": before, "d": before}).owners[5] == "b"
    # After a fail-over the former primary, which hung, still claims its slots; the others know better.
    promoted = two_shards("A", "b")
    merged = merge_maps(before, {"a": before, "A": promoted, "b": promoted})
    assert set(merged.owners) == {"A", "b"}
    assert set(merged.primaries) == {"A", "b"}
    assert merge_maps(before, {"a": before, "A": promoted}).owners == before.owners
    assert merge_maps(EMPTY_MAP, {}) is EMPTY_MAP


def test_keys_of_commands() -> None:
    """The key is the first argument, that of a subcommand, or absent."""
    assert command_key((b"GETRANGE", b"k", 0, 1)) == b"k"
    assert command_key(("TYPE", b"k")) == b"k"
    assert command_key((b"OBJECT", b"ENCODING", b"k")) == b"k"
    assert command_key(("TIME",)) is None
    assert command_key((b"INFO", b"memory")) is None


def test_cursors_know_their_node() -> None:
    """A cursor means nothing on another node, so it carries the one that returned it."""
    cursor, elements = bind_cursor([b"12", [b"x"]], "a")
    assert (cursor, elements) == (b"12", [b"x"])
    assert isinstance(cursor, NodeCursor)
    assert cursor.node_id == "a"
    assert command_cursor((b"HSCAN", b"k", cursor, b"COUNT", 1)) is cursor
    assert command_cursor((b"HSCAN", b"k", b"0")) is None
    assert not isinstance(bind_cursor([b"0", []], "a")[0], NodeCursor)
