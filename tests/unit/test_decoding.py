"""Decoding values: each format as its own library or program writes it, damage, bombs, and what is missing."""

import base64
import bz2
import gzip
import json
import lzma
import pickle
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import cbor2
import lz4.frame
import msgpack
import pytest

from redisfuse.rendering.decoding import layers
from redisfuse.rendering.decoding.decoder import DecodedValue, decode_value, describe_value, render_decoded
from redisfuse.rendering.decoding.limits import DecodeLimits
from tests.support import encoded_samples as samples

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

KIB, MIB = 1 << 10, 1 << 20
LIMITS = DecodeLimits()
DOCUMENT = {"user": "ada", "tags": ["a", None, True], "n": -1.5}


def decode(data: bytes, **limits: Any) -> DecodedValue:
    return decode_value(data, DecodeLimits(**limits))


def last_line(value: DecodedValue) -> str:
    return value.text.rpartition("\n")[2]


# -- layers ----------------------------------------------------------------------------------------------------------

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "bzip2": lambda data: bz2.compress(data, 1),  # small blocks
    "xz": lzma.compress,
    "zstd": zstd.compress,
    "lz4": lz4.frame.compress,
    "brotli": brotli.compress,
}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_compressed_values(name: str) -> None:
    """Each compression is recognized, and what is in it is decoded, too."""
    value = decode(COMPRESSORS[name](json.dumps(DOCUMENT).encode()))
    assert value.steps == (name, "JSON")
    assert json.loads(value.text) == DOCUMENT


def test_layers_within_layers() -> None:
    """Layers of any kind lie within each other, up to the depth."""
    inner = msgpack.packb(DOCUMENT)
    value = decode(base64.b64encode(zstd.compress(gzip.compress(inner))))
    assert value.summary == "base64 > zstd > gzip > msgpack"
    data = b"text"
    for _ in range(10):
        data = gzip.compress(data)
    assert decode(data, depth=10).steps == ("gzip",) * 10 + ("text",)
    value = decode(data, depth=9)
    assert value.steps == ("gzip",) * 9 + ("binary",)
    assert last_line(value) == "# decoding: limit reached: it is nested in more than 9 levels (--decode-depth)"


def test_several_streams_in_a_row() -> None:
    """`cat a.gz b.gz` is one text; bytes that are no stream are reported."""
    both = decode(gzip.compress(b"one ") + gzip.compress(b"two"))
    assert (both.steps, both.text) == (("gzip", "text"), "one two")
    value = decode(zlib.compress(b"one") + b"garbage")
    assert value.text == "one\n# zlib: 7 bytes follow its end; 3 bytes were decompressed"


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if name != "brotli"])
def test_a_damaged_layer_shows_what_precedes_the_damage(name: str) -> None:
    """Of a compressed value without its end, the beginning is shown, and the reason why it ends."""
    text = "".join(f"line {number} {hash(number * 7919) % 1000003}\n" for number in range(20_000))
    compressed = COMPRESSORS[name](text.encode())
    value = decode(compressed[: len(compressed) * 3 // 4])
    assert value.steps == (name, "text")
    shown, _, reason = value.text.rpartition("\n# ")
    assert text.startswith(shown)
    assert len(shown) > len(text) // 2
    assert reason.startswith(f"{name}: the data ends early; ")


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_bomb_is_cut_off(name: str) -> None:
    """A value that would be 32 MiB: less memory than that, and a line that names the limit."""
    bomb = COMPRESSORS[name](b"x" * (32 * MIB))
    tracemalloc.start()
    started = time.thread_time()
    value = decode(bomb, output_bytes=256 * KIB)
    seconds, peak = time.thread_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert value.steps == (name, "text")
    assert value.text.count("x") >= 256 * KIB - 200
    assert "more than 256KiB (--decode-output)" in last_line(value)
    assert peak < 16 * MIB
    assert seconds < 10


@pytest.mark.parametrize(("name", "module"), [("zstd", "backports.zstd"), ("lz4", "lz4.frame")])
def test_a_missing_library_is_named(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its library, a compression is named in the view, with how to install it."""
    if sys.version_info >= (3, 14) and name == "zstd":
        pytest.skip("Python has it")
    monkeypatch.setitem(sys.modules, module, None)
    value = decode(COMPRESSORS[name](b"some text, some text"))
    assert value.steps == (name,)
    assert value.text.splitlines()[0] == f"# {name}: install redisfuse[decode]"
    assert value.text.splitlines()[1].startswith("00000000  ")
    assert layers.list_decompressors()[name] is False


def test_base64_of_ordinary_bytes_is_text() -> None:
    """A text that could be base64 is decoded only if what is inside is recognized beyond doubt."""
    for text in (b"deadbeefdeadbeef", b"Y2hhbmdlIG1lIG5vdyE=", b"ABCDEFGHIJKLMNOP", b"cafe" * 100):
        assert decode(text).steps == ("text",)
    url_safe = base64.urlsafe_b64encode(json.dumps({"q": "~~~???>>>"}).encode()).rstrip(b"=")
    assert decode(url_safe).steps == ("base64", "JSON")


# -- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "steps"),
    [
        (b"", "empty"),
        (b"hello", "text"),
        (b"12345", "text"),
        (b"\x1b[1;31mred\x1b[m and more text", "text"),
        ("日本語\n".encode(), "text"),
        (b'{"a": 1}', "JSON"),
        (b'\xef\xbb\xbf[1, "x"]', "JSON"),
        (b"[not json]", "text"),
        (b'"a string"', "text"),
        (b"\x00\xff\x01\xfe", "binary"),
        (b"\x80", "binary"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "JPEG image"),
        (b"HYLL\x01\x00\x00\x00", "HyperLogLog of Redis (PFCOUNT counts it)"),
        (b"\x04\x08{\x06:\x06aI", "Ruby Marshal"),
        (b"\x00\x00\x00\x02\x14\x01", "igbinary of PHP"),
        (msgpack.packb([1, 2]), "msgpack"),
        (msgpack.packb("a string"), "msgpack"),
        (cbor2.dumps([1, 2]), "CBOR"),
        (cbor2.dumps(cbor2.CBORTag(55799, {"a": 1})), "CBOR"),
        (b"\x08\x96\x01", "protobuf?"),
        (pickle.dumps([1]), "pickle"),
        (pickle.dumps({"a": 1}, 0), "pickle"),
        (pickle.dumps("x", 2), "pickle"),
        (b"i:5;", "PHP"),
        (b"a|i:1;b|N;", "PHP session"),
    ],
)
def test_what_a_value_is_recognized_as(data: bytes, steps: str) -> None:
    """Each format by its evidence; a value without any is text or binary."""
    assert decode(data).summary == steps
    assert describe_value(data, LIMITS) == (None if steps in ("text", "empty") else steps)


def test_json_keeps_what_a_parser_would_lose() -> None:
    """Numbers of any size, repeated names, the order, lone surrogates; escapes of characters are resolved."""
    value = decode(rb'{"b": 12345678901234567890.10, "b": 1e999, "a": "\u00e9\ud800", "\u00e9": [], "c": {}, "d": NaN}')
    assert value.text == (
        '{\n  "b": 12345678901234567890.10,\n  "b": 1e999,\n  "a": "\\u00e9\\ud800",\n  "é": [],\n  "c": {},\n'
        '  "d": NaN\n}'
    )


def test_message_pack_as_its_library_writes_it() -> None:
    """All types: integers of each width, floats, binaries, extensions, timestamps."""
    data = msgpack.packb(
        [0, -1, 200, -200, 70_000, 2**40, -(2**40), 1.5, b"\0\xff", msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 5)]
    )
    assert [line.strip(" ,") for line in decode(data).text.splitlines()[1:-1]] == [
        *("0", "-1", "200", "-200", "70000", str(2**40), str(-(2**40)), "1.5", "h'00ff'"),
        *("ext(5, h'78')", 'timestamp("1970-01-01T00:00:01.000000005Z")'),
    ]


def test_cbor_as_its_library_writes_it() -> None:
    """Tags, bytes, undefined and indefinite lengths, in the diagnostic notation."""
    data = cbor2.dumps([cbor2.CBORTag(1, 1363896240), b"\0\xff", cbor2.undefined, float("inf"), -(2**40), 0.5])
    assert [line.strip(" ,") for line in decode(data).text.splitlines()[1:-1]] == [
        *("1(1363896240)", "h'00ff'", "undefined", "Infinity", str(-(2**40)), "0.5"),
    ]
    indefinite = b"\xbf\x61a\x9f\x01\x02\xff\x61b\x7f\x61x\x61y\xff\xff"
    assert cbor2.loads(indefinite) == {"a": [1, 2], "b": "xy"}
    assert json.loads(decode(indefinite).text) == {"a": [1, 2], "b": "xy"}


class _Payload:
    """Pickled, a call of a function that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "executed")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_never_executed(protocol: int, tmp_path: Path) -> None:
    """A pickle that would run code is disassembled; the name that it would import is in the first line."""
    payload = pickle.dumps(_Payload(tmp_path / "proof"), protocol)
    damaged = [payload[:-1], payload + b"."] if protocol > 1 else []  # the older protocols have no signature
    for data in (payload, zlib.compress(payload), msgpack.packb({"job": payload}), *damaged):
        value = decode(data)
        assert "pickle" in value.text + value.summary
    assert not (tmp_path / "proof").exists()
    first = decode(payload).text.splitlines()[0]
    assert first.startswith("# would import ")
    assert "Path" in first
    assert first.endswith("nothing was executed")
    assert any("REDUCE" in line for line in decode(payload).text.splitlines())
    pickle.loads(payload)
    assert (tmp_path / "proof").read_text() == "executed"  # it does run code where it is loaded


def test_java_objects() -> None:
    """Streams of ObjectOutputStream: fields, nested objects, enums, references, data of custom methods."""
    value = decode(samples.JAVA_OBJECT)
    assert value.steps == ("Java",)
    lines = [line.strip(" ,") for line in value.text.splitlines()]
    assert lines[0] == "Gen$Cart {"
    for line in ('"count": 3', '"owner": "ada"', '"color": Gen$Color.RED', "\"raw\": h'010203'", '"grade": "A"'):
        assert line in lines
    assert {'"self": reference(Gen$Cart)', '"mug"', '"k"', '"items": java.util.ArrayList {'} <= set(lines)
    assert '"cause": reference(java.lang.IllegalStateException)' in decode(samples.JAVA_EXCEPTION).text
    assert '"visits"' in decode(samples.JAVA_MAP).text
    assert decode(samples.JAVA_INSTANT).text.startswith("java.time.Ser {")
    assert decode(gzip.compress(samples.JAVA_MAP)).summary == "gzip > Java"


def test_php_values() -> None:
    """Values that PHP serialized: arrays, objects with private fields, enums, references; and its sessions."""
    lines = [line.strip(" ,") for line in decode(samples.PHP_VALUE).text.splitlines()]
    for line in ('"cart": Cart {', '"Cart::id": 7', '"suit": Suit::Hearts', '"self": reference(14)', '"inf": Infinity'):
        assert line in lines
    session = decode(samples.PHP_SESSION)
    assert session.steps == ("PHP session",)
    assert {'"visits": 3', '"name": "ada"'} <= {line.strip(" ,") for line in session.text.splitlines()[1:]}


def test_protobuf_by_wire_type() -> None:
    """The example of its documentation, with nested messages, texts and fixed numbers."""
    value = decode(b"\x08\x96\x01\x12\x07testing\x1a\x03\x08\x96\x01\x25\x00\x00\x80\x3f\x2a\x02\xff\xfe")
    assert [line.strip(" ,") for line in value.text.splitlines()] == [
        *("{", "1: 150", '2: "testing"', "3: {", "1: 150", "}", "4: fixed32(1065353216, 1.0)", "5: h'fffe'", "}")
    ]


def test_texts_are_safe_for_a_terminal() -> None:
    """Escape sequences of terminals are shown, not obeyed, in every format."""
    escape = "\x1b]0;owned\x07\x9b31m"
    values = (escape.encode() * 3 + b"text" * 40, json.dumps([escape]).encode(), msgpack.packb({escape: escape}))
    for data in (*values, pickle.dumps([escape]), b'a:1:{i:0;s:15:"' + escape.encode() + b'";}'):
        for layered in (data, gzip.compress(data)):
            text = render_decoded(decode(layered)).decode()
            assert "owned" in text
            assert not any(ord(character) < 32 and character != "\n" for character in text)
            assert not any(0x7F <= ord(character) < 0xA0 for character in text)


# -- values within values --------------------------------------------------------------------------------------------


def test_a_celery_message() -> None:
    """A message of kombu: JSON, whose body is JSON in base64."""
    body = base64.b64encode(json.dumps([["ada@example.com"], {"retry": 3}, {"callbacks": None}]).encode()).decode()
    message = {"body": body, "content-encoding": "utf-8", "properties": {"body_encoding": "base64"}}
    value = decode(json.dumps(message).encode())
    outer, inner = value.text.split("\n\n# .body: base64 > JSON\n")
    assert value.steps == ("JSON",)
    assert json.loads(outer) == message
    assert json.loads(inner)[0] == ["ada@example.com"]


def test_encoded_values_have_their_paths() -> None:
    """JSON in JSON, a compressed pickle in msgpack, serialized PHP in JSON as Laravel writes it."""
    job = {"data": {"command": 'O:8:"SendMail":1:{s:2:"to";s:3:"ada";}'}, "args": [1, '{"x": [true]}']}
    text = decode(json.dumps(job).encode()).text
    assert '\n# .data.command: PHP\nSendMail {\n  "to": "ada"\n}' in text
    assert "\n# .args[1]: JSON\n{" in text
    text = decode(msgpack.packb({"my key": zlib.compress(pickle.dumps([1])), "plain": "text", "n": b"\x01\x02"})).text
    assert '\n# ["my key"]: zlib > pickle\n' in text
    assert text.count("\n# ") == 1


def test_values_within_values_are_bounded() -> None:
    """Strings of JSON in each other, and many bombs in one document, end at a limit."""
    nested = "{}"
    for _ in range(12):
        nested = json.dumps({"s": nested, "t": 1})
    assert decode(nested.encode(), depth=64).text.count("\n# ") == 11
    assert "(--decode-depth)" in last_line(decode(nested.encode(), depth=5))
    bomb = base64.b64encode(gzip.compress(b'["' + b"x" * MIB + b'"]')).decode()
    value = decode(json.dumps([bomb] * 50).encode(), output_bytes=4 * MIB, seconds=60)
    assert 3 * MIB < len(value.text) < 5 * MIB
    assert "--decode-output" in value.text


# -- limits and damage -----------------------------------------------------------------------------------------------


LIMITED = {
    "arrays": (b"\x91" * MIB, "--decode-depth"),
    "maps": (b"\x81\xa1a" * MIB, "--decode-depth"),
    "tags": (b"\xc1" * MIB, "--decode-depth"),
    "indefinite arrays": (b"\x81\x9f" * MIB, "--decode-depth"),
    "JSON arrays": (b"[" * MIB, "--decode-depth"),
    "JSON objects": (b'{"a":' * MIB, "--decode-depth"),
    "PHP arrays": (b"a:1:{i:0;" * (MIB // 2), "--decode-depth"),
    "Java exceptions": (samples.JAVA_MAP[:4] + b"\x7b" * MIB, "--decode-depth"),
    "a million nulls": (b"\xdd\x00\x10\x00\x00" + b"\xc0" * MIB, "--decode-output"),
    "a million marks": (b"\x80\x04" + b"(" * MIB + b".", "--decode-output"),
    "a million numbers": (b"[" + b"1," * MIB + b"1]", "--decode-output"),
    "a long text": (b"text " * MIB, "--decode-output"),
    "a larger text": (b"text " * (2 * MIB), "--decode-input"),
    "a larger array": (b"[" + b"1," * (5 * MIB) + b"1]", "--decode-input"),
}


@pytest.mark.parametrize("name", LIMITED)
def test_each_limit_is_named_where_it_is_reached(name: str) -> None:
    """Nesting, long arrays and long values end at a limit, with the option that raises it."""
    data, limit = LIMITED[name]
    value = decode(data, output_bytes=MIB, seconds=60)
    assert limit in last_line(value)
    assert len(value.text) < MIB + 2000


def test_the_time_is_limited() -> None:
    """A value that takes too long is cut off within the time, whatever the processor is."""
    started = time.thread_time()
    value = decode(b"[" + b"1," * (3 * MIB) + b"1]", seconds=0.05, output_bytes=64 * MIB)
    assert time.thread_time() - started < 5
    assert last_line(value) == "# JSON: limit reached: it takes more than 0.05 s (--decode-seconds)"
    value = decode(b"\x81\x7f" + b"\x60" * (4 * MIB), seconds=0.05)
    assert "--decode-seconds" in last_line(value)


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x9b" + b"\xff" * 8,
        b"\x5b" + b"\x7f" + b"\xff" * 7,
        b"\x82\x5b" + b"\xff" * 8,
        b"\x80\x04\x8b\xff\xff\xff\x7f.",
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00.",
        b"a:2000000000:{",
        b's:4000000000:"x";',
        b"\xac\xed\x00\x05|\x7f" + b"\xff" * 7,
        b"\xac\xed\x00\x05ur\x00\x02[I" + bytes(8) + b"\x02\x00\x00xp\x7f\xff\xff\xff",
        b"\x0a\xff\xff\xff\xff\x0f",
    ],
)
def test_declared_lengths_allocate_nothing(data: bytes) -> None:
    """Lengths of gigabytes in a few bytes."""
    tracemalloc.start()
    render_decoded(decode(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * MIB


@pytest.mark.parametrize(
    ("data", "summary"),
    [
        (msgpack.packb(DOCUMENT), "msgpack"),
        (cbor2.dumps(DOCUMENT), "CBOR"),
        (samples.JAVA_OBJECT, "Java"),
        (pickle.dumps(DOCUMENT), "pickle"),
    ],
)
def test_a_value_without_its_end_shows_where_it_ends(data: bytes, summary: str) -> None:
    """All that was read is shown, closed brackets included, then the place where the value ends."""
    value = decode(data[:-6])
    assert value.summary == summary
    assert last_line(value).startswith(f"# {summary}: stopped")
    assert "user" in value.text or "count" in value.text
    assert value.text.count("{") == value.text.count("}") or summary == "pickle"


def test_a_value_is_cut_at_the_limit_of_the_input() -> None:
    """Of a larger value the beginning is decoded, and both sizes are named."""
    value = decode_value(b"x" * 2048, DecodeLimits(input_bytes=2048), 5000)
    assert value.text == "x" * 2048 + "\n# the first 2KiB of 5000 bytes were decoded (--decode-input)"
    document = json.dumps([{"id": number} for number in range(1000)]).encode()
    value = decode(document, input_bytes=1024)
    assert value.steps == ("JSON",)
    assert '"id": 50' in value.text
    assert last_line(value).startswith("# the first 1KiB of a larger value")
