"""Pickles of Python: disassembled, never executed. Pure.

Unpickling can call any function, so it is never done, not even partly. The text is that of `python3 -m pickletools`,
after a line with the names that the pickle would import.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import IO, Any, cast

from redisfuse.rendering.decoding.limits import DecodeBudget, DecodingError, MalformedValueError
from redisfuse.rendering.decoding.signatures import PICKLE
from redisfuse.text import for_terminal

MAX_IMPORTS = 50  # names that are listed
MAX_SEARCHED_OPCODES = 200_000  # for these names
_MIN_OPCODES = 3  # of a damaged pickle, which has no other evidence
_CHECK_INTERVAL = 256  # opcodes between two checks of the time
_PLAIN_BEGINNINGS = b"(lditVSILFNc]}"
_STRINGS = frozenset(
    ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "SHORT_BINSTRING", "BINSTRING")
)
_TEXT_EVIDENCE = frozenset(("PUT", "GLOBAL", "INST", "REDUCE"))


def is_pickle(data: bytes, budget: DecodeBudget) -> bool:
    """Return whether a value is a pickle, also a damaged one of protocol 2 to 5."""
    if PICKLE.match(data):
        return _count_opcodes(data) >= _MIN_OPCODES
    if data[0] not in _PLAIN_BEGINNINGS or not data.endswith(b"."):
        return False
    try:
        names = set()
        end = 0
        for opcode, _argument, position in _iter_opcodes(data, budget):
            names.add(opcode.name)
            end = position
    except Exception:  # pickletools raises several, of which it documents none
        return False
    return end + 1 == len(data) and bool(names & _TEXT_EVIDENCE)


def _count_opcodes(data: bytes) -> int:
    count = 0
    try:
        for _ in pickletools.genops(data):
            count += 1
            if count == _MIN_OPCODES:
                break
    except Exception:
        return count
    return count


def disassemble(data: bytes, budget: DecodeBudget) -> Iterator[str]:
    """Yield the lines of the disassembly. Raises a DecodingError."""
    imports, is_complete = list_imports(data, budget)
    if imports:
        more = ", …" if len(imports) > MAX_IMPORTS else ""
        yield _count(f"# would import {', '.join(imports[:MAX_IMPORTS])}{more}; nothing was executed", budget)
    if not is_complete:
        yield _count(f"# imports were searched in the first {MAX_SEARCHED_OPCODES} opcodes only", budget)
    output = _LineOutput(budget)
    try:
        pickletools.dis(data, out=cast(IO[str], output))
    except DecodingError:
        yield from output.lines
        raise
    except Exception as error:
        yield from output.lines
        raise MalformedValueError(for_terminal(str(error) or type(error).__name__)[:200]) from None
    yield from output.lines


def list_imports(data: bytes, budget: DecodeBudget) -> tuple[list[str], bool]:
    """Return the names that a pickle would import, as far as it is intact.

    The second value is whether all opcodes were searched. Two strings precede the opcode that imports by names on the
    stack.
    """
    imports: dict[str, None] = {}
    strings: list[str] = []
    memo: dict[int, str] = {}
    count = 0
    try:
        for opcode, argument, _position in _iter_opcodes(data, budget):
            count += 1
            if count > MAX_SEARCHED_OPCODES:
                break
            if opcode.name in ("GLOBAL", "INST"):
                imports[for_terminal(str(argument).replace(" ", "."))[:200]] = None
            elif opcode.name == "STACK_GLOBAL":
                imports[for_terminal(".".join(strings[-2:]) or "a computed name")[:200]] = None
            elif opcode.name in _STRINGS:
                strings = [*strings[-1:], str(argument)[:200]]
            elif opcode.name == "MEMOIZE":
                memo[len(memo)] = strings[-1] if strings else ""
            elif opcode.name in ("BINPUT", "LONG_BINPUT", "PUT") and strings:
                memo[int(argument)] = strings[-1]
            elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
                strings = [*strings[-1:], memo.get(int(argument), "?")]
            if len(imports) > MAX_IMPORTS:
                break
    except DecodingError:
        raise
    except Exception:  # the disassembly reports the damage
        return list(imports), True
    return list(imports), count <= MAX_SEARCHED_OPCODES


def _iter_opcodes(data: bytes, budget: DecodeBudget) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int]]:
    for number, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        if not number % _CHECK_INTERVAL:
            budget.check_time()
        yield opcode, argument, position or 0


def _count(line: str, budget: DecodeBudget) -> str:
    budget.add_text(len(line) + 1)
    return line


class _LineOutput:
    """A file for `pickletools.dis` that stops it at a limit."""

    def __init__(self, budget: DecodeBudget) -> None:
        self.lines: list[str] = []
        self._budget = budget
        self._line = ""

    def write(self, text: str) -> int:
        """Take a part of a line. Raises DecodingLimitError."""
        self._line += text
        while "\n" in self._line:
            line, _, self._line = self._line.partition("\n")
            line = for_terminal(line)
            self._budget.check_time()
            self._budget.add_text(len(line) + 1)
            self.lines.append(line)
        return len(text)
