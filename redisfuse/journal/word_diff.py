"""The words that differ between two texts. Pure."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

MAX_WORDS = 4000  # on either side, that are compared one by one

_WORD = re.compile(r"\w+|\s+|[^\w\s]")


def compare_words(old: str, new: str) -> list[tuple[str, str]]:
    """Return the pieces of both texts, in order.

    Each has its marker: a blank (in both), - (only in the old one) or + (only in the new one).
    """
    before, after = _WORD.findall(old), _WORD.findall(new)
    if max(len(before), len(after)) > MAX_WORDS:
        return [("-", old), ("+", new)]
    pieces: list[tuple[str, str]] = []
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        removed, added = "".join(before[i1:i2]), "".join(after[j1:j2])
        if tag == "equal":
            pieces.append((" ", removed))
        else:
            pieces += [(marker, text) for marker, text in (("-", removed), ("+", added)) if text]
    return pieces
