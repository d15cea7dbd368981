"""Decoding a value: its layers, its format, the encoded values in it.

Pure.

The text begins with a line such as `# gzip > msgpack`, unless the value is a text as it is. An encoded value within the
value follows in a section of its own, whose first line has its path: `# .args[0]: base64 > JSON`. Lines that begin with
`#` are about the decoding: what is missing, and where and why it stopped.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from redisfuse.config import format_size
from redisfuse.rendering.decoding.formats import BINARY, EMPTY, TEXT, FormattedValue, render_binary, render_format
from redisfuse.rendering.decoding.layers import Layer, expand_base64, expand_brotli, expand_compression
from redisfuse.rendering.decoding.limits import DecodeBudget, DecodeLimits, DecodingError
from redisfuse.rendering.decoding.notation import EmbeddedValue, describe_stop
from redisfuse.rendering.decoding.plain import is_text


@dataclass(frozen=True, slots=True)
class DecodedValue:
    """The text of a value, and how it came about."""

    steps: tuple[str, ...]  # the layers from the outside, then the format
    text: str  # without the first line and without a newline at its end

    @property
    def summary(self) -> str:
        """The steps in one line, such as `gzip > msgpack`."""
        return " > ".join(self.steps)

    @property
    def is_plain(self) -> bool:
        """Whether the value is a text as it is."""
        return self.steps in ((TEXT,), (EMPTY,))


def decode_value(data: bytes, limits: DecodeLimits, size: int | None = None) -> DecodedValue:
    """Return the text of a value of which `data` is the beginning.

    `size` is that of the whole value, if `data` is not all of it. Never raises.
    """
    is_size_known = size is not None or len(data) <= limits.input_bytes
    budget = DecodeBudget(limits)
    size = len(data) if size is None else size
    is_cut = size > limits.input_bytes
    first = _decode_layers(data[: limits.input_bytes], budget, is_cut=is_cut, depth=0)
    sections = [first.body]
    if is_cut:
        shown = format_size(limits.input_bytes)
        whole = f"{size} bytes" if is_size_known else "a larger value"
        sections[0] += f"\n# the first {shown} of {whole} were decoded (--decode-input)"
    try:
        _decode_embedded(first, budget, sections)
    except DecodingError as error:
        sections.append(describe_stop(error, "values in this one", None))
    return DecodedValue(first.steps, "\n".join(sections))


def describe_value(data: bytes, limits: DecodeLimits, size: int | None = None) -> str | None:
    """Return how a value is encoded, such as `gzip > msgpack`.

    None for a text as it is.
    """
    value = decode_value(data, limits, size)
    return None if value.is_plain else value.summary


def render_decoded(value: DecodedValue) -> bytes:
    """Return the content of `NAME%text`.

    A plain text has no first line about it.
    """
    body = value.text if value.is_plain else f"# {value.summary}\n" + value.text.lstrip("\n")
    return body.encode("utf-8", "backslashreplace") + (b"\n" if value.text else b"")


@dataclass(frozen=True, slots=True)
class _Section:
    steps: tuple[str, ...]
    body: str
    is_certain: bool
    depth: int
    path: str = ""
    embedded: tuple[EmbeddedValue, ...] = ()


def _decode_embedded(first: _Section, budget: DecodeBudget, sections: list[str]) -> None:
    """Append a section for each encoded value in a value. Raises DecodingLimitError."""
    waiting = deque((first.path, first.depth, value) for value in first.embedded)
    while waiting:
        path, depth, value = waiting.popleft()
        budget.check_depth(depth + 1)
        budget.check_time()
        budget.check_text()
        text_bytes = budget.text_bytes
        section = _decode_layers(value.data, budget, is_cut=False, depth=depth + 1, path=path + value.path)
        if not section.is_certain:
            budget.text_bytes = text_bytes
            continue
        budget.add_text(len(section.path) + 8)
        sections.append(f"\n# {section.path or '.'}: {' > '.join(section.steps)}\n{section.body}")
        waiting.extend((section.path, section.depth, embedded) for embedded in section.embedded)


def _decode_layers(data: bytes, budget: DecodeBudget, *, is_cut: bool, depth: int, path: str = "") -> _Section:
    steps: list[str] = []
    notes: list[str] = []
    rendering: FormattedValue | None = None
    try:
        while rendering is None:
            budget.check_time()
            layer = expand_compression(data, budget)
            if layer is not None and layer.data is not None:
                depth += 1
                budget.check_depth(depth)
            elif layer is None and (inner := _find_base64(data, budget)) is not None:
                depth += 1
                layer = inner
            if layer is None:
                rendering = render_format(data, budget, is_cut=is_cut)
                if rendering.name == BINARY and (brotli := _find_brotli(data, budget)) is not None:
                    layer, rendering = brotli, None
                    depth += 1
                else:
                    continue
            steps.append(layer.name)
            if layer.problem:
                notes.append(f"# {layer.name}: {layer.problem}")
            if layer.data is None:
                rendering = render_binary(data)
                return _Section(tuple(steps), "\n".join([*notes, *rendering.lines]), True, depth, path)
            is_cut = bool(layer.problem)
            data = layer.data
    except DecodingError as error:
        notes.append(describe_stop(error, "decoding", None))
        rendering = render_binary(data)
    steps.append(rendering.name)
    is_certain = rendering.is_certain or len(steps) > 1
    body = "\n".join([*rendering.lines, *notes])
    return _Section(tuple(steps), body, is_certain, depth, path, rendering.embedded)


def _find_base64(data: bytes, budget: DecodeBudget) -> Layer | None:
    """Return the content of a base64 text, if it is recognized beyond doubt."""
    layer = expand_base64(data)
    if layer is None or not layer.data:
        return None
    if expand_compression(layer.data, budget) is not None:
        return layer
    text_bytes = budget.text_bytes
    rendering = render_format(layer.data, budget, is_cut=False)
    budget.text_bytes = text_bytes
    return layer if rendering.is_certain else None


def _find_brotli(data: bytes, budget: DecodeBudget) -> Layer | None:
    """Return the content of brotli, if that is text or recognized beyond doubt."""
    layer = expand_brotli(data, budget)
    if layer is None or not layer.data:
        return None
    if is_text(layer.data) or expand_compression(layer.data, budget) is not None:
        return layer
    text_bytes = budget.text_bytes
    rendering = render_format(layer.data, budget, is_cut=False)
    budget.text_bytes = text_bytes
    return layer if rendering.is_certain else None
