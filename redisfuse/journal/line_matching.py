"""The equal lines of two texts, of any length. Pure.

difflib compares up to MAX_COMPARED_LINES lines. A longer stretch is divided first, at the lines that occur once on
either side ("patience diff"). A stretch without any, and what exceeds the limit in all, counts as replaced.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

MAX_COMPARED_LINES = 4000  # on either side, since difflib takes quadratic time
MAX_STRETCHES = 8  # of that length, that difflib compares for one text
MAX_DEPTH = 16  # divisions of a stretch

LineOpcode = tuple[str, int, int, int, int]
"""How a range of lines becomes another one, as difflib describes it: tag, i1, i2, j1, j2."""


def match_lines(before: Sequence[bytes], after: Sequence[bytes]) -> list[LineOpcode]:
    """Return how one text becomes the other: all ranges of lines, in order."""
    opcodes: list[LineOpcode] = []
    i = j = 0
    for i1, j1, length in [*_LineMatcher(before, after).match(), (len(before), len(after), 0)]:
        if i < i1 or j < j1:
            opcodes.append(("replace" if i < i1 and j < j1 else "delete" if i < i1 else "insert", i, i1, j, j1))
        i, j = i1 + length, j1 + length
        if length:
            opcodes.append(("equal", i1, i, j1, j))
    return opcodes


def group_opcodes(opcodes: Sequence[LineOpcode], context: int) -> Iterator[list[LineOpcode]]:
    """Yield groups of differences with `context` equal lines around them."""
    group: list[LineOpcode] = []
    for number, (tag, i1, i2, j1, j2) in enumerate(opcodes):
        if tag != "equal":
            group.append((tag, i1, i2, j1, j2))
            continue
        if number > 0:
            length = i2 - i1
            if number < len(opcodes) - 1 and length <= 2 * context:
                group.append((tag, i1, i2, j1, j2))
                continue
            end = min(context, length)
            yield [*group, (tag, i1, i1 + end, j1, j1 + end)]
        start = min(context, i2 - i1)
        group = [(tag, i2 - start, i2, j2 - start, j2)]
    if any(tag != "equal" for tag, *_ in group):
        yield group


class _LineMatcher:
    def __init__(self, before: Sequence[bytes], after: Sequence[bytes]) -> None:
        self._before = before
        self._after = after
        self._remaining_lines = MAX_STRETCHES * MAX_COMPARED_LINES

    def match(self) -> list[tuple[int, int, int]]:
        """Return the equal ranges, none of which touches the next one.

        Each is its begin in `before`, its begin in `after`, and its length.
        """
        joined: list[tuple[int, int, int]] = []
        for i, j, length in self._match(0, len(self._before), 0, len(self._after), 0):
            if joined and (joined[-1][0] + joined[-1][2], joined[-1][1] + joined[-1][2]) == (i, j):
                joined[-1] = (*joined[-1][:2], joined[-1][2] + length)
            else:
                joined.append((i, j, length))
        return joined

    def _match(self, i1: int, i2: int, j1: int, j2: int, depth: int) -> Iterator[tuple[int, int, int]]:
        before, after = self._before, self._after
        shorter = min(i2 - i1, j2 - j1)
        head = next((at for at in range(shorter) if before[i1 + at] != after[j1 + at]), shorter)
        rest = shorter - head
        tail = next((at for at in range(rest) if before[i2 - 1 - at] != after[j2 - 1 - at]), rest)
        if head:
            yield i1, j1, head
        i1, j1 = i1 + head, j1 + head
        end_i, end_j = i2 - tail, j2 - tail
        longer = max(end_i - i1, end_j - j1)
        if end_i > i1 and end_j > j1:
            if longer <= MAX_COMPARED_LINES:
                if longer <= self._remaining_lines:
                    self._remaining_lines -= longer
                    matcher = SequenceMatcher(None, before[i1:end_i], after[j1:end_j], autojunk=False)
                    yield from ((i1 + i, j1 + j, size) for i, j, size in matcher.get_matching_blocks() if size)
            elif depth < MAX_DEPTH:
                yield from self._divide(i1, end_i, j1, end_j, depth)
        if tail:
            yield end_i, end_j, tail

    def _divide(self, i1: int, i2: int, j1: int, j2: int, depth: int) -> Iterator[tuple[int, int, int]]:
        """Match what is between the lines that occur once on either side."""
        anchors = _find_anchors(self._before[i1:i2], self._after[j1:j2])
        if not anchors:
            return
        start_i, start_j = i1, j1
        for i, j in ((i1 + i, j1 + j) for i, j in anchors):
            if start_i < i and start_j < j:
                yield from self._match(start_i, i, start_j, j, depth + 1)
            yield i, j, 1
            start_i, start_j = i + 1, j + 1
        yield from self._match(start_i, i2, start_j, j2, depth + 1)


def _find_anchors(before: Sequence[bytes], after: Sequence[bytes]) -> list[tuple[int, int]]:
    """Return the positions of lines that occur once on either side.

    They are the most that are in the same order on both.
    """
    position = _find_unique(after)
    pairs = [(i, position[line]) for line, i in _find_unique(before).items() if line in position]
    # The longest increasing subsequence of the positions in `after`.
    ends: list[int] = []  # the least last position of a subsequence of each length
    indexes: list[int] = []
    previous: list[int] = []
    for index, (_, j) in enumerate(pairs):
        length = bisect_left(ends, j)
        previous.append(indexes[length - 1] if length else -1)
        ends[length : length + 1] = [j]
        indexes[length : length + 1] = [index]
    anchors: list[tuple[int, int]] = []
    index = indexes[-1] if indexes else -1
    while index >= 0:
        anchors.append(pairs[index])
        index = previous[index]
    return anchors[::-1]


def _find_unique(lines: Sequence[bytes]) -> dict[bytes, int]:
    """Return the positions of the lines that occur once, in order."""
    positions: dict[bytes, int] = {}
    for position, line in enumerate(lines):
        positions[line] = -1 if line in positions else position
    return {line: position for line, position in positions.items() if position >= 0}
