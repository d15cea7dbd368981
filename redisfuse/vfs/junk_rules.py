"""What is junk: the files that systems and editors make, which are no data (DESIGN.md 7). A pure predicate.

Decided when something is made through the mount (or renamed), from its path and how it is made; a name that is a key in
Redis is data. The patterns, with their classes, are in `junk_patterns.gitignore`. Safe to use from any thread.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from pathlib import Path

from pathspec import GitIgnoreSpec
from pathspec.util import normalize_file

from redisfuse.config import Settings
from redisfuse.errors import UsageError
from redisfuse.text import for_terminal

# With O_EXCL: how mkstemp(3), and so nearly every program, makes a temporary file; rsync one of what can be executed.
PRIVATE_MODES = (0o600, 0o700)

_HEADING = re.compile(r"##\s*(.*?)\s*(?:\((\w+)\))?\s*")
_CONTROL = re.compile("[\x00-\x1f\x7f\udc80-\udcff]")


class Kind(StrEnum):
    """When a name that a pattern matches is junk."""

    SAFE = "safe"
    NEW = "new"
    COMPANION = "companion"
    PROBE = "probe"
    BEHAVIOUR = "behaviour"
    KEEP = "keep"

    @property
    def meaning(self) -> str:
        """The same in a few words, to stand after a name."""
        return _MEANINGS[self]


_MEANINGS = {
    Kind.SAFE: "junk",
    Kind.NEW: "junk when it is made through the mount",
    Kind.COMPANION: "junk if what it belongs to is a key or field beside it",
    Kind.PROBE: "held back if it is made with O_EXCL; becomes a key if it stays",
    Kind.BEHAVIOUR: "held back only if it is made with O_EXCL and mode 0600 or 0700; becomes a key if it stays",
    Kind.KEEP: "data",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One pattern: in gitignore syntax (without `!`), its class, who makes such files, and where it is written."""

    pattern: str
    kind: Kind
    group: str
    source: str


@dataclass(frozen=True, slots=True)
class CreateFacts:
    """How something is being made, and what is beside it."""

    exclusive: bool = False  # O_EXCL
    mode: int = 0o644
    directory: bool = False
    exists: Callable[[bytes], bool] = lambda _name: False  # is a name of the same folder a key or field?
    in_scratch: bool = False  # the folder is in scratch itself


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of it: junk lives in scratch; what is held reaches Redis only if it stays or is renamed."""

    is_junk: bool
    held: bool
    rule: Rule | None
    why: str


class Junk:
    """The junk patterns of a mount. Raises UsageError for a pattern that makes no sense."""

    def __init__(self, rules: Iterable[Rule], *, enabled: bool = True) -> None:
        self.rules = tuple(rules)
        self.enabled = enabled
        self._keep = _Matcher(self.rules, Kind.KEEP)
        self._junk = _Matcher(self.rules, Kind.SAFE, Kind.NEW)
        self._probes = _Matcher(self.rules, Kind.PROBE)
        self._behaviour = _Matcher(self.rules, Kind.BEHAVIOUR)
        self._companions = [(rule, *_around(rule)) for rule in self.rules if rule.kind is Kind.COMPANION]
        self._safe = _Matcher(self.rules, Kind.SAFE)
        self._hidden = self._safe.name_matcher() if enabled else None
        self._listed = self._keep.name_matcher()

    @classmethod
    def of(cls, settings: Settings) -> "Junk":
        """The patterns that a mount was asked to use. Raises UsageError if a file or pattern can't be read."""
        return cls.load(settings.junk_file, settings.junk, settings.keep, enabled=settings.junk_filter)

    @classmethod
    def load(
        cls, file: Path | None = None, more: Iterable[str] = (), keep: Iterable[str] = (), *, enabled: bool = True
    ) -> "Junk":
        """The patterns of a file (None: the built-in ones), more safe ones, and some that are never junk.

        Raises UsageError if one can't be read.
        """
        rules = default_rules() if file is None else read_rules(file)
        rules += [Rule(pattern, Kind.SAFE, "", "--junk") for pattern in more]
        rules += [Rule(pattern, Kind.KEEP, "", "--keep") for pattern in keep]
        return cls(rules, enabled=enabled)

    def verdict(self, parent: bytes, name: bytes, facts: CreateFacts) -> Verdict:
        """Decide about what is about to be made: `name` in the folder `parent`, a path from the mount's root."""
        if not self.enabled:
            return Verdict(False, False, None, "the junk filter is off")
        if facts.in_scratch:
            return Verdict(True, False, None, "its folder is junk")
        rule = self.rule(parent, name, directory=facts.directory)
        if rule is not None and rule.kind is Kind.KEEP:
            return Verdict(False, False, rule, "it is never junk")
        if facts.exists(name):
            return Verdict(False, False, None, "it is a key in Redis")
        companion = next((each for each, base in self._bases(name) if facts.exists(base)), None)
        if companion is not None:
            return Verdict(True, False, companion, "it belongs to a key or field beside it")
        if rule is not None and rule.kind in (Kind.SAFE, Kind.NEW):
            return Verdict(True, False, rule, "it has the name of junk")
        if rule is not None and rule.kind is Kind.PROBE and facts.exclusive:
            return Verdict(False, True, rule, "it is a probe if it goes at once")
        if facts.exclusive and facts.mode & 0o777 in PRIVATE_MODES and not facts.directory:
            return Verdict(False, True, rule, "it is made as temporary files are (O_EXCL, mode 0600 or 0700)")
        return Verdict(False, False, rule, "no pattern matches" if rule is None else "its name alone is not enough")

    def rule(self, parent: bytes, name: bytes, *, directory: bool = False) -> Rule | None:
        """Return the rule that a name comes under, whether or not its condition holds: the first that would decide."""
        path = _text(parent + b"/" + name if parent else name)
        kept = self._keep.find(path, directory)
        if kept is not None:
            return kept
        junk = self._junk.find(path, directory)
        if junk is not None:
            return junk
        companion = next((each for each, _base in self._bases(name)), None)
        return companion or self._probes.find(path, directory) or self._behaviour.find(path, directory)

    def hides(self, name: bytes, *, root: bool = False) -> bool:
        """Whether a listed name is kept from listings: a *safe* pattern matches. `root`: it is in the mount's root."""
        if self._hidden is None:
            return False
        text = _text(name)
        return self._hidden(text, root) and not self._listed(text, root)

    def hiding(self, name: bytes, *, root: bool = False) -> Rule | None:
        """The *safe* rule for which `hides` keeps a name from listings; None if it is listed."""
        if not self.hides(name, root=root):
            return None
        path = _text(name) if root else "x/" + _text(name)
        return self._safe.find(path, False) or self._safe.find(path, True)

    def _bases(self, name: bytes) -> Iterable[tuple[Rule, bytes]]:
        """The companion rules that a name comes under, with the name it would belong to."""
        for rule, head, tail in self._companions:
            base = name[len(head) : len(name) - len(tail)]
            if base and name.startswith(head) and name.endswith(tail):
                yield rule, base


def default_rules() -> list[Rule]:
    """The built-in patterns."""
    text = resources.files("redisfuse.vfs").joinpath("junk_patterns.gitignore").read_text("utf-8")
    return parse_rules(text, "built-in")


def read_rules(path: Path) -> list[Rule]:
    """The patterns of a file. Raises UsageError if it can't be read."""
    try:
        return parse_rules(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the junk patterns in {path} can't be read: {error}") from error


def parse_rules(text: str, source: str) -> list[Rule]:
    """Read patterns in gitignore syntax, with the headings that the built-in file explains."""
    rules = []
    group, kind = "", Kind.SAFE
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if line.startswith("#"):
            heading = _HEADING.fullmatch(line)
            if heading:
                group = heading[1]
                kind = Kind(heading[2]) if heading[2] in set(Kind) else Kind.SAFE
        elif line.strip():
            keep = line.startswith("!")
            rules.append(Rule(line[keep:], Kind.KEEP if keep else kind, group, f"{source}:{number}"))
    return rules


class _Matcher:
    """The rules of some kinds, matched together; of several that match, the last wins, as in a gitignore file."""

    def __init__(self, rules: Sequence[Rule], *kinds: Kind) -> None:
        self._rules = [rule for rule in rules if rule.kind in kinds]
        for rule in self._rules:
            _check(rule)
        self._spec = GitIgnoreSpec.from_lines([rule.pattern for rule in self._rules])
        # Most names match none: one expression says so at once.
        self._any = re.compile("|".join(f"(?:{each.replace('?P<ps_d>', '?:')})" for each in self._expressions()))

    def find(self, path: str, directory: bool) -> Rule | None:
        path = normalize_file(path + "/" if directory else path)
        if not self._rules or self._any.search(path) is None:
            return None
        index = self._spec.check_file(path).index
        return None if index is None else self._rules[index]

    def _expressions(self) -> Iterator[str]:
        for pattern in self._spec.patterns:
            assert pattern.regex is not None  # `_check` saw to that
            yield pattern.regex.pattern

    def name_matcher(self) -> Callable[[str, bool], bool]:
        """One expression for all patterns, for single names: (name, is it in the root) -> does one match."""
        anywhere: list[str] = []
        at_root: list[str] = []
        for expression in self._expressions():
            for optional in ("(?:(?P<ps_d>/)|$)", "(?P<ps_d>/)"):  # a listing does not say which names are folders
                expression = expression.replace(optional, "$")
            floating = expression.removeprefix("^(?:.+/)?")
            (at_root if floating == expression else anywhere).append(floating)
        if not anywhere and not at_root:
            return lambda _name, _root: False
        matches_anywhere = _alternatives(anywhere)
        matches_at_root = _alternatives(anywhere + at_root)
        return lambda name, root: (matches_at_root if root else matches_anywhere)(name) is not None


def _alternatives(expressions: Sequence[str]) -> Callable[[str], object]:
    return re.compile("|".join(f"(?:{each})" for each in expressions) or "(?!)", re.DOTALL).match


def _check(rule: Rule) -> None:
    try:
        meaningful = all(pattern.include for pattern in GitIgnoreSpec.from_lines([rule.pattern]).patterns)
    except ValueError:
        meaningful = False
    if not rule.pattern.strip() or not meaningful:
        raise UsageError(
            f"{for_terminal(rule.source)}: {for_terminal(rule.pattern)} is not a pattern in gitignore syntax"
        )


def _around(rule: Rule) -> tuple[bytes, bytes]:
    """What stands before and after the one `*` of a companion pattern."""
    head, star, tail = rule.pattern.replace("\\", "").partition("*")
    if not star or "*" in tail or "?" in rule.pattern or "/" in rule.pattern or not head + tail:
        raise UsageError(
            f"{for_terminal(rule.source)}: a companion pattern is a name with one *, not {for_terminal(rule.pattern)}"
        )
    return head.encode(), tail.encode()


def _text(name: bytes) -> str:
    """A name as patterns see it: without the mark, escaped dots as dots, what can't be in a name escaped."""
    text = name.decode("utf-8", "surrogateescape")
    if "%" in text:
        text = text.removesuffix("%").replace("%2E", ".")
    return _CONTROL.sub(_escaped, text) if not text.isprintable() else text


def _escaped(match: re.Match[str]) -> str:
    return f"%{ord(match[0]) & 0xFF:02X}"
