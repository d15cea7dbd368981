"""JSON, indented.

Numbers are as they are in the value; of repeated names, all are shown. Pure.
"""

from __future__ import annotations

import json
import re

from redisfuse.rendering.decoding.limits import MalformedValueError
from redisfuse.rendering.decoding.notation import NotationWriter
from redisfuse.rendering.decoding.signatures import JSON_CONTAINER

_TOKEN = re.compile(r'[ \t\r\n]*(?:("[^"\\]*(?:\\.[^"\\]*)*")|([\[\]{}])|([,:])|([^\s\[\]{},:"]+))')
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def is_json(data: bytes, *, is_cut: bool) -> bool:
    """Return whether a value is a JSON object or array.

    A value of which only the beginning is known is one if it begins like one. So is one that is nested too deeply.
    """
    if JSON_CONTAINER.match(data) is None:
        return False
    if is_cut:
        return True
    try:
        json.loads(data.removeprefix(_BYTE_ORDER_MARK), parse_int=str, parse_float=str)
    except RecursionError:
        return True
    except ValueError:  # also of text that is not UTF-8
        return False
    return True


def write_json(data: bytes, writer: NotationWriter) -> int:
    """Write a value for which `is_json` is true.

    Return the number of characters that were read.

    Raises MalformedValueError, in a value of which only the beginning is known.
    """
    text = data.removeprefix(_BYTE_ORDER_MARK).decode("utf-8", "replace")
    position = 0
    while (match := _TOKEN.match(text, position)) is not None:
        string, bracket, _separator, word = match.groups()
        if string is not None:
            _write_string(string, writer)
        elif bracket == "{":
            writer.begin_map()
        elif bracket == "[":
            writer.begin_array()
        elif bracket is not None:
            if not writer.depth:
                raise MalformedValueError("a bracket is closed that is not open")
            writer.end_container()
        elif word is not None:
            writer.write_scalar(word)
        position = match.end()
    if writer.depth or text[position:].strip():
        raise MalformedValueError(f"the document ends early, after {position} characters")
    return position


def _write_string(token: str, writer: NotationWriter) -> None:
    try:
        text = json.loads(token, strict=False) if "\\" in token else token[1:-1]
        data = text.encode()
    except ValueError:  # a lone surrogate has no UTF-8: its escape is kept
        writer.write_scalar(token)
    else:
        writer.write_string(text, data)
