r"""Patterns of grep(1) as expressions of Python's `re`. Pure.

Basic and extended expressions of POSIX, with GNU's extensions `\w \W \s \S \b \B \< \>`, `\+ \? \|` in basic ones, and
back-references. A pattern is matched against text without line ends. The expression has re.MULTILINE, so a search in a
whole content finds a match if any line has one, and possibly one that spans lines. Where several alternatives match,
the first one is taken, not the longest; only `-o` can show the difference.
"""

from __future__ import annotations

import re

from redisfuse.errors import UsageError

_CLASSES = {
    "alpha": r"[^\W\d_]",
    "alnum": r"[^\W_]",
    "digit": "[0-9]",
    "xdigit": "[0-9A-Fa-f]",
    "lower": "[a-z]",
    "upper": "[A-Z]",
    "space": r"\s",
    "blank": "[ \\t]",
    "punct": r"[!-/:-@\[-`{-~]",
    "cntrl": r"[\x00-\x1f\x7f]",
    "print": r"[^\x00-\x1f\x7f]",
    "graph": r"[^\x00-\x20\x7f]",
}

_ESCAPES = {
    **{letter: rf"\{letter}" for letter in "wWsSbB"},
    "<": r"\b(?=\w)",
    ">": r"\b(?<=\w)",
}
_INTERVAL = re.compile(r"(\d*)(,?)(\d*)")
_MAX_REPEATS = 32_767  # RE_DUP_MAX of GNU


def compile_pattern(
    pattern: str,
    *,
    fixed: bool = False,
    extended: bool = False,
    ignore_case: bool = False,
    whole_word: bool = False,
    whole_line: bool = False,
) -> re.Pattern[str]:
    """Compile a pattern; its lines are alternatives. Raises UsageError."""
    translator = _Translator(extended)
    lines = (re.escape(line) if fixed else translator.translate(line) for line in pattern.split("\n"))
    expression = "|".join(f"(?:{line})" for line in lines)
    if whole_line:
        expression = f"^(?:{expression})$"
    elif whole_word:
        expression = rf"(?<!\w)(?:{expression})(?!\w)"
    try:
        return re.compile(expression, re.MULTILINE | (re.IGNORECASE if ignore_case else 0))
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"the pattern {pattern!r} is invalid: {error}; -F searches for it literally") from None


class _Translator:
    """Translates one pattern. It is parsed by recursive descent."""

    def __init__(self, extended: bool) -> None:
        self._extended = extended
        self._pattern = ""
        self._position = 0

    def translate(self, pattern: str) -> str:
        """Return the expression. Raises UsageError."""
        self._pattern, self._position = pattern, 0
        expression = self._parse_alternatives(depth=0)
        if self._position < len(pattern):
            self._fail("unmatched )" if self._extended else r"unmatched \)")
        return expression

    def _fail(self, reason: str) -> None:
        raise UsageError(f"the pattern {self._pattern!r} is invalid: {reason}; -F searches for it literally")

    def _peek(self) -> str:
        """Return the next token: a character, or a backslash and a character."""
        width = 2 if self._pattern[self._position : self._position + 1] == "\\" else 1
        return self._pattern[self._position : self._position + width]

    def _take(self) -> str:
        token = self._peek()
        self._position += len(token)
        return token

    def _operator(self, token: str) -> str:
        """Return the operator that a token is in this syntax: one of `(){|+?*`.

        Returns an empty string for any other token.
        """
        if token == "*":
            return "*"
        if self._extended:
            return token if token and token in "(){|+?" else ""
        return token[1] if len(token) == 2 and token[1] in "(){|+?" else ""

    def _parse_alternatives(self, depth: int) -> str:
        branches = [self._parse_branch(depth)]
        while self._operator(self._peek()) == "|":
            self._take()
            branches.append(self._parse_branch(depth))
        return "|".join(branches)

    def _parse_branch(self, depth: int) -> str:
        parts: list[str] = []
        while self._position < len(self._pattern):
            operator = self._operator(self._peek())
            if operator == "|" or (operator == ")" and (depth or not self._extended)):
                break
            parts.append(self._parse_atom(depth, is_first=not parts))
            while self._position < len(self._pattern) and self._parse_quantifier(parts):
                pass
        return "".join(parts)

    def _parse_quantifier(self, parts: list[str]) -> bool:
        """Apply the quantifier that follows to the last part, if there is one.

        Returns whether there was.
        """
        operator = self._operator(self._peek())
        if parts[-1] in ("^", "$") and not self._extended:
            return False
        if operator in ("*", "+", "?") and operator:
            self._take()
            parts[-1] = f"(?:{parts[-1]}){operator}"
            return True
        if operator == "{":
            interval = self._parse_interval()
            if interval:
                parts[-1] = f"(?:{parts[-1]}){interval}"
                return True
        return False

    def _parse_interval(self) -> str:
        """Return the interval that follows, as `{1,3}`.

        Returns an empty string if the brace is literal.
        """
        start = self._position
        self._take()
        match = _INTERVAL.match(self._pattern, self._position)
        assert match is not None
        end = "}" if self._extended else "\\}"
        low, comma, high = match.groups()
        if not self._pattern.startswith(end, match.end()) or not (low or high):
            if not self._extended:
                self._fail(r"unmatched \{")
            self._position = start
            return ""
        if max(int(low or 0), int(high or 0)) > _MAX_REPEATS or (high and int(low or 0) > int(high)):
            self._fail("invalid interval")
        self._position = match.end() + len(end)
        return f"{{{low or 0}{comma}{high}}}"

    def _parse_atom(self, depth: int, *, is_first: bool) -> str:
        token = self._take()
        operator = self._operator(token)
        if operator == "(":
            expression = self._parse_alternatives(depth + 1)
            if self._operator(self._peek()) != ")":
                self._fail("unmatched (" if self._extended else r"unmatched \(")
            self._take()
            return f"({expression})"
        if token == "[":
            return self._parse_bracket()
        if token == ".":
            return "."
        if token == "^" and (self._extended or is_first):
            return "^"
        if token == "$" and (self._extended or self._is_at_end()):
            return "$"
        if len(token) == 2 and not operator:
            return self._parse_escape(token[1])
        if token == "\\":
            self._fail("trailing backslash")
        return re.escape(token[-1])  # also an operator with nothing to apply to

    def _is_at_end(self) -> bool:
        token = self._peek()
        return not token or self._operator(token) in (")", "|")

    @staticmethod
    def _parse_escape(letter: str) -> str:
        if letter in _ESCAPES:
            return _ESCAPES[letter]
        return rf"(?:\{letter})" if letter in "123456789" else re.escape(letter)

    def _parse_bracket(self) -> str:
        """Return the set of a bracket expression, whose `[` was taken."""
        pattern = self._pattern
        is_negated = pattern.startswith("^", self._position)
        self._position += is_negated
        members: list[str] = []
        classes: list[str] = []
        is_first = True
        while is_first or not pattern.startswith("]", self._position):
            is_first = False
            if self._position >= len(pattern):
                self._fail("unmatched [")
            if pattern.startswith("[:", self._position):
                name = self._take_until(":]")
                if name not in _CLASSES:
                    self._fail(f"no character class [:{name}:]")
                classes.append(_CLASSES[name])
                continue
            first = self._parse_member()
            last = first
            if pattern.startswith("-", self._position) and not pattern.startswith("-]", self._position):
                self._position += 1
                last = self._parse_member()
                if last < first:
                    self._fail("invalid range end")
            members.append(f"{_escape_member(first)}-{_escape_member(last)}")
        self._position += 1
        if not classes:
            return f"[^{''.join(members)}\\n]" if is_negated else f"[{''.join(members)}]"
        choices = "|".join([*classes, *([f"[{''.join(members)}]"] if members else [])])
        return rf"(?:(?!{choices})[^\n])" if is_negated else f"(?:{choices})"

    def _parse_member(self) -> str:
        for opening, closing in (("[.", ".]"), ("[=", "=]")):
            if self._pattern.startswith(opening, self._position):
                return self._take_until(closing)[:1]
        if self._position >= len(self._pattern):
            self._fail("unmatched [")
        self._position += 1
        return self._pattern[self._position - 1]

    def _take_until(self, closing: str) -> str:
        end = self._pattern.find(closing, self._position + 2)
        if end < 0:
            self._fail("unmatched [")
        name = self._pattern[self._position + 2 : end]
        self._position = end + 2
        return name


def _escape_member(character: str) -> str:
    return "\\" + character if character in "\\]^-[&~|" else character
