"""Decoding holds for any bytes: random ones, and real encodings that are cut, changed or extended."""

import base64
import bz2
import gzip
import json
import lzma
import pickle
import sys
import zlib
from typing import Any

import brotli
import cbor2
import lz4.frame
import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from redisfuse.rendering.decoding.decoder import decode_value, render_decoded
from redisfuse.rendering.decoding.limits import DecodeLimits
from tests.support import encoded_samples as samples
from tests.support.examples import count_examples

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LIMITS = DecodeLimits(output_bytes=1 << 18, depth=30, seconds=10)

_scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=9)
)
documents = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
containers = st.lists(documents, min_size=1, max_size=4) | st.dictionaries(
    st.text(max_size=5), documents, min_size=1, max_size=4
)
COMPRESSORS = (gzip.compress, zlib.compress, bz2.compress, lzma.compress, lz4.frame.compress, brotli.compress)
encoders = st.sampled_from(
    (
        lambda value: json.dumps(value).encode(),
        msgpack.packb,
        cbor2.dumps,
        pickle.dumps,
        lambda value: pickle.dumps(value, 0),
        lambda _: samples.JAVA_OBJECT,
        lambda _: samples.PHP_VALUE,
        lambda _: samples.PHP_SESSION,
    )
)


def is_valid(data: bytes) -> bool:
    """Decode a value; the text must be UTF-8 without controls, whatever the value is."""
    value = decode_value(data, LIMITS)
    text = render_decoded(value).decode()
    assert value.is_plain or text.startswith(f"# {value.summary}\n")
    assert not any(ord(character) < 32 and character not in "\n\t\r" for character in text)
    assert len(text) < 2 * LIMITS.output_bytes + 400_000
    return True


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=count_examples(120))
def test_any_bytes(data: bytes) -> None:
    """Any bytes have a text, and no decoder raises."""
    assert is_valid(data)


@given(st.data(), containers, encoders, st.sampled_from((None, *COMPRESSORS, zstd.compress, base64.b64encode)))
@settings(deadline=None, max_examples=count_examples(120))
def test_damaged_values(data: st.DataObject, value: Any, encode: Any, wrap: Any) -> None:
    """A value that is cut, changed or extended anywhere has a text, and no decoder raises."""
    encoded = bytearray(encode(value))
    if wrap is not None and data.draw(st.booleans()):
        encoded = bytearray(wrap(bytes(encoded)))
        wrap = None
    for _ in range(data.draw(st.integers(0, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(encoded[: data.draw(st.integers(0, len(encoded)))]) + data.draw(st.binary(max_size=8))
    assert is_valid(damaged if wrap is None else wrap(damaged))


@given(containers)
@settings(deadline=None, max_examples=count_examples(80))
def test_the_text_has_the_value(value: Any) -> None:
    """JSON, MessagePack and CBOR read as their libraries wrote them, read back from the text."""
    limits = DecodeLimits()
    decoded = decode_value(json.dumps(value).encode(), limits)
    assert decoded.steps == ("JSON",)
    assert json.loads(decoded.text.partition("\n\n# .")[0].partition("\n\n# [")[0]) == value
    for name, encode in (("msgpack", msgpack.packb), ("CBOR", cbor2.dumps)):
        decoded = decode_value(encode(value), limits)
        if decoded.steps == (name,):  # a short one may be valid in the other format, too, or be text
            text = decoded.text.partition("\n\n# .")[0].partition("\n\n# [")[0]
            assert json.loads(text) == value
