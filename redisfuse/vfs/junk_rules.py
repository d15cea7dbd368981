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

from redisfuse.config import Config
from redisfuse.errors import UsageError
from redisfuse.text import for_terminal

# With O_EXCL: how mkstemp(3), and so nearly every program, makes a temporary file; rsync one of what can be executed.
PRIVATE_FILE_MODES = (0o600, 0o700)

_HEADING_RE = re.compile(r"##\s*(.*?)\s*(?:\((\w+)\))?\s*")
_CONTROL_CHARACTERS_RE = re.compile("[\x00-\x1f\x7f\udc80-\udcff]")


class JunkKind(StrEnum):
    """When a name that a pattern matches is junk."""

    SAFE = "safe"
    NEW = "new"
    COMPANION = "companion"
    PROBE = "probe"
    BEHAVIOUR = "behaviour"
    KEEP = "keep"

    @property
    def description(self) -> str:
        """The same in a few words, to stand after a name."""
        return _KIND_DESCRIPTIONS[self]


_KIND_DESCRIPTIONS = {
    JunkKind.SAFE: "junk",
    JunkKind.NEW: "junk when it is made through the mount",
    JunkKind.COMPANION: "junk if what it belongs to is a key or field beside it",
    JunkKind.PROBE: "held back if it is made with O_EXCL; becomes a key if it stays",
    JunkKind.BEHAVIOUR: "held back only if it is made with O_EXCL and mode 0600 or 0700; becomes a key if it stays",
    JunkKind.KEEP: "data",
}


@dataclass(frozen=True, slots=True)
class JunkRule:
    """One pattern: in gitignore syntax (without `!`), its class, who makes such files, and where it is written."""

    pattern: str
    kind: JunkKind
    group: str
    source: str


@dataclass(frozen=True, slots=True)
class CreateContext:
    """How something is being made, and what is beside it."""

    exclusive: bool = False  # O_EXCL
    mode: int = 0o644
    is_directory: bool = False
    name_exists: Callable[[bytes], bool] = lambda _name: False  # is a name of the same folder a key or field?
    in_memory_fs: bool = False  # the folder is in scratch itself


@dataclass(frozen=True, slots=True)
class JunkDecision:
    """What becomes of it: junk lives in scratch; what is held reaches Redis only if it stays or is renamed."""

    is_junk: bool
    is_held: bool
    rule: JunkRule | None
    reason: str


class JunkRules:
    """The junk patterns of a mount. Raises UsageError for a pattern that makes no sense."""

    def __init__(self, rules: Iterable[JunkRule], *, enabled: bool = True) -> None:
        self.rules = tuple(rules)
        self.enabled = enabled
        self._keep_matcher = _RuleMatcher(self.rules, JunkKind.KEEP)
        self._junk_matcher = _RuleMatcher(self.rules, JunkKind.SAFE, JunkKind.NEW)
        self._probe_matcher = _RuleMatcher(self.rules, JunkKind.PROBE)
        self._behaviour_matcher = _RuleMatcher(self.rules, JunkKind.BEHAVIOUR)
        self._companion_affixes = [
            (rule, *_split_companion_pattern(rule)) for rule in self.rules if rule.kind is JunkKind.COMPANION
        ]
        self._safe_matcher = _RuleMatcher(self.rules, JunkKind.SAFE)
        self._matches_safe = self._safe_matcher.compile_name_matcher() if enabled else None
        self._matches_keep = self._keep_matcher.compile_name_matcher()

    @classmethod
    def from_config(cls, config: Config) -> "JunkRules":
        """The patterns that a mount was asked to use. Raises UsageError if a file or pattern can't be read."""
        return cls.load(config.junk_file, config.junk, config.keep, enabled=config.junk_filter)

    @classmethod
    def load(
        cls,
        patterns_file: Path | None = None,
        extra_patterns: Iterable[str] = (),
        keep_patterns: Iterable[str] = (),
        *,
        enabled: bool = True,
    ) -> "JunkRules":
        """The patterns of a file (None: the built-in ones), more safe ones, and some that are never junk.

        Raises UsageError if one can't be read.
        """
        rules = load_default_rules() if patterns_file is None else read_rules_file(patterns_file)
        rules += [JunkRule(pattern, JunkKind.SAFE, "", "--junk") for pattern in extra_patterns]
        rules += [JunkRule(pattern, JunkKind.KEEP, "", "--keep") for pattern in keep_patterns]
        return cls(rules, enabled=enabled)

    def decide(self, parent: bytes, name: bytes, context: CreateContext) -> JunkDecision:
        """Decide about what is about to be made: `name` in the folder `parent`, a path from the mount's root."""
        if not self.enabled:
            return JunkDecision(False, False, None, "the junk filter is off")
        if context.in_memory_fs:
            return JunkDecision(True, False, None, "its folder is junk")
        rule = self.find_rule(parent, name, is_directory=context.is_directory)
        if rule is not None and rule.kind is JunkKind.KEEP:
            return JunkDecision(False, False, rule, "it is never junk")
        if context.name_exists(name):
            return JunkDecision(False, False, None, "it is a key in Redis")
        companion = next((each for each, base in self._companion_bases(name) if context.name_exists(base)), None)
        if companion is not None:
            return JunkDecision(True, False, companion, "it belongs to a key or field beside it")
        if rule is not None and rule.kind in (JunkKind.SAFE, JunkKind.NEW):
            return JunkDecision(True, False, rule, "it has the name of junk")
        if rule is not None and rule.kind is JunkKind.PROBE and context.exclusive:
            return JunkDecision(False, True, rule, "it is a probe if it goes at once")
        if context.exclusive and context.mode & 0o777 in PRIVATE_FILE_MODES and not context.is_directory:
            return JunkDecision(False, True, rule, "it is made as temporary files are (O_EXCL, mode 0600 or 0700)")
        return JunkDecision(
            False, False, rule, "no pattern matches" if rule is None else "its name alone is not enough"
        )

    def find_rule(self, parent: bytes, name: bytes, *, is_directory: bool = False) -> JunkRule | None:
        """Return the rule that a name comes under, whether or not its condition holds: the first that would decide."""
        path = _name_to_text(parent + b"/" + name if parent else name)
        kept = self._keep_matcher.find_rule(path, is_directory)
        if kept is not None:
            return kept
        junk = self._junk_matcher.find_rule(path, is_directory)
        if junk is not None:
            return junk
        companion = next((each for each, _base in self._companion_bases(name)), None)
        return (
            companion
            or self._probe_matcher.find_rule(path, is_directory)
            or self._behaviour_matcher.find_rule(path, is_directory)
        )

    def is_hidden(self, name: bytes, *, in_root: bool = False) -> bool:
        """Whether a listed name is kept from listings: a *safe* pattern matches. `root`: it is in the mount's root."""
        if self._matches_safe is None:
            return False
        text = _name_to_text(name)
        return self._matches_safe(text, in_root) and not self._matches_keep(text, in_root)

    def find_hiding_rule(self, name: bytes, *, in_root: bool = False) -> JunkRule | None:
        """The *safe* rule for which `is_hidden` keeps a name from listings; None if it is listed."""
        if not self.is_hidden(name, in_root=in_root):
            return None
        path = _name_to_text(name) if in_root else "x/" + _name_to_text(name)
        return self._safe_matcher.find_rule(path, False) or self._safe_matcher.find_rule(path, True)

    def _companion_bases(self, name: bytes) -> Iterable[tuple[JunkRule, bytes]]:
        """The companion rules that a name comes under, with the name it would belong to."""
        for rule, head, tail in self._companion_affixes:
            base = name[len(head) : len(name) - len(tail)]
            if base and name.startswith(head) and name.endswith(tail):
                yield rule, base


def load_default_rules() -> list[JunkRule]:
    """The built-in patterns."""
    text = resources.files("redisfuse.vfs").joinpath("junk_patterns.gitignore").read_text("utf-8")
    return parse_rules(text, "built-in")


def read_rules_file(path: Path) -> list[JunkRule]:
    """The patterns of a file. Raises UsageError if it can't be read."""
    try:
        return parse_rules(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the junk patterns in {path} can't be read: {error}") from error


def parse_rules(text: str, source: str) -> list[JunkRule]:
    """Read patterns in gitignore syntax, with the headings that the built-in file explains."""
    rules = []
    group, kind = "", JunkKind.SAFE
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if line.startswith("#"):
            heading = _HEADING_RE.fullmatch(line)
            if heading:
                group = heading[1]
                kind = JunkKind(heading[2]) if heading[2] in set(JunkKind) else JunkKind.SAFE
        elif line.strip():
            keep = line.startswith("!")
            rules.append(JunkRule(line[keep:], JunkKind.KEEP if keep else kind, group, f"{source}:{number}"))
    return rules


class _RuleMatcher:
    """The rules of some kinds, matched together; of several that match, the last wins, as in a gitignore file."""

    def __init__(self, rules: Sequence[JunkRule], *kinds: JunkKind) -> None:
        self._rules = [rule for rule in rules if rule.kind in kinds]
        for rule in self._rules:
            _check_rule(rule)
        self._spec = GitIgnoreSpec.from_lines([rule.pattern for rule in self._rules])
        # Most names match none: one expression says so at once.
        self._any_rule_re = re.compile(
            "|".join(f"(?:{each.replace('?P<ps_d>', '?:')})" for each in self._iter_expressions())
        )

    def find_rule(self, path: str, is_directory: bool) -> JunkRule | None:
        path = normalize_file(path + "/" if is_directory else path)
        if not self._rules or self._any_rule_re.search(path) is None:
            return None
        index = self._spec.check_file(path).index
        return None if index is None else self._rules[index]

    def _iter_expressions(self) -> Iterator[str]:
        for pattern in self._spec.patterns:
            assert pattern.regex is not None  # `_check_rule` saw to that
            yield pattern.regex.pattern

    def compile_name_matcher(self) -> Callable[[str, bool], bool]:
        """One expression for all patterns, for single names: (name, is it in the root) -> does one match."""
        anywhere: list[str] = []
        at_root: list[str] = []
        for expression in self._iter_expressions():
            for optional in ("(?:(?P<ps_d>/)|$)", "(?P<ps_d>/)"):  # a listing does not say which names are folders
                expression = expression.replace(optional, "$")
            floating = expression.removeprefix("^(?:.+/)?")
            (at_root if floating == expression else anywhere).append(floating)
        if not anywhere and not at_root:
            return lambda _name, _root: False
        matches_anywhere = _compile_alternatives(anywhere)
        matches_at_root = _compile_alternatives(anywhere + at_root)
        return lambda name, root: (matches_at_root if root else matches_anywhere)(name) is not None


def _compile_alternatives(expressions: Sequence[str]) -> Callable[[str], object]:
    return re.compile("|".join(f"(?:{each})" for each in expressions) or "(?!)", re.DOTALL).match


def _check_rule(rule: JunkRule) -> None:
    try:
        meaningful = all(pattern.include for pattern in GitIgnoreSpec.from_lines([rule.pattern]).patterns)
    except ValueError:
        meaningful = False
    if not rule.pattern.strip() or not meaningful:
        raise UsageError(
            f"{for_terminal(rule.source)}: {for_terminal(rule.pattern)} is not a pattern in gitignore syntax"
        )


def _split_companion_pattern(rule: JunkRule) -> tuple[bytes, bytes]:
    """What stands before and after the one `*` of a companion pattern."""
    head, star, tail = rule.pattern.replace("\\", "").partition("*")
    if not star or "*" in tail or "?" in rule.pattern or "/" in rule.pattern or not head + tail:
        raise UsageError(
            f"{for_terminal(rule.source)}: a companion pattern is a name with one *, not {for_terminal(rule.pattern)}"
        )
    return head.encode(), tail.encode()


def _name_to_text(name: bytes) -> str:
    """A name as patterns see it: without the mark, escaped dots as dots, what can't be in a name escaped."""
    text = name.decode("utf-8", "surrogateescape")
    if "%" in text:
        text = text.removesuffix("%").replace("%2E", ".")
    return _CONTROL_CHARACTERS_RE.sub(_escape_character, text) if not text.isprintable() else text


def _escape_character(match: re.Match[str]) -> str:
    return f"%{ord(match[0]) & 0xFF:02X}"
