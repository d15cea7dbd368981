"""Decides which files are junk: files of systems and editors, but not data.

See docs/editing.md. Pure. The decision is taken when a file or directory is created through the mount, or renamed, from
its path and the flags of its creation; a name that is a key in Redis is data. The patterns, with their classes, are in
`junk_patterns.gitignore`. Safe to use from any thread.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from pathlib import Path

from pathspec import GitIgnoreSpec
from pathspec.util import normalize_file

from redisfuse.config import Config
from redisfuse.errors import UntrustedFileError, UsageError
from redisfuse.text import for_terminal
from redisfuse.trusted_files import open_trusted

# With O_EXCL: the mode with which mkstemp(3), and so nearly every program, creates temporary files; 0700 is rsync's for
# executables.
PRIVATE_FILE_MODES = (0o600, 0o700)

_HEADING_RE = re.compile(r"##\s*(.*?)\s*(?:\((\w+)\))?\s*")
# The characters that mkstemp(3) and the like put into a name. Only lowercase letters are a word, only digits a number.
_RANDOM_CHARACTERS_RE = re.compile(rb"(?![a-z]+\Z|[0-9]+\Z)[A-Za-z0-9_]+")
_RANDOM_SUFFIX_SIZES = (6, 7, 8)
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
        """The meaning in a few words, to print after a name."""
        return _KIND_DESCRIPTIONS[self]


_KIND_DESCRIPTIONS = {
    JunkKind.SAFE: "junk",
    JunkKind.NEW: "junk when it is created through the mount",
    JunkKind.COMPANION: "junk if the file it belongs to is a key or field beside it",
    JunkKind.PROBE: "held back if it is created with O_EXCL; becomes a key if it stays",
    JunkKind.BEHAVIOUR: "held back if it is created with O_EXCL and mode 0600 or 0700; becomes a key if it stays",
    JunkKind.KEEP: "data",
}


@dataclass(frozen=True, slots=True)
class JunkRule:
    """One pattern with its class."""

    pattern: str  # in gitignore syntax, without `!`
    kind: JunkKind
    group: str  # the program that creates such files
    source: str  # file and line, or option, that has the pattern


@dataclass(frozen=True, slots=True)
class CreateContext:
    """The circumstances in which a file or directory is created."""

    exclusive: bool = False  # O_EXCL
    mode: int = 0o644
    is_directory: bool = False
    data_names: Container[bytes] = ()  # the names of the same directory that are keys or fields
    in_memory_fs: bool = False  # the directory itself is junk


@dataclass(frozen=True, slots=True)
class JunkDecision:
    """The destination of a new file or directory."""

    is_junk: bool  # it stays in the memory filesystem
    is_held: bool  # it reaches Redis only if it is not removed soon, or if it is renamed
    rule: JunkRule | None
    reason: str


class JunkRules:
    """The junk patterns of a mount. Raises UsageError for an invalid pattern."""

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
        self._safe_names = _NameMatcher(self._safe_matcher)
        self._keep_names = _NameMatcher(self._keep_matcher)

    @classmethod
    def from_config(cls, config: Config) -> JunkRules:
        """Load the patterns that a configuration names.

        Raises UsageError if a file or pattern is invalid.
        """
        return cls.load(config.junk_file, config.junk, config.keep, enabled=config.junk_filter)

    @classmethod
    def load(
        cls,
        patterns_file: Path | None = None,
        extra_patterns: Iterable[str] = (),
        keep_patterns: Iterable[str] = (),
        *,
        enabled: bool = True,
    ) -> JunkRules:
        """Load the patterns of a file (None: the built-in ones).

        `extra_patterns` are added as *safe* ones, `keep_patterns` as exceptions. Raises UsageError for an
        invalid pattern or a file that can't be read.
        """
        rules = load_default_rules() if patterns_file is None else read_rules_file(patterns_file)
        rules += [JunkRule(pattern, JunkKind.SAFE, "", "--junk") for pattern in extra_patterns]
        rules += [JunkRule(pattern, JunkKind.KEEP, "", "--keep") for pattern in keep_patterns]
        return cls(rules, enabled=enabled)

    def decide(self, parent: bytes, name: bytes, context: CreateContext) -> JunkDecision:
        """Decide what a name that is created in a directory becomes.

        `parent` is the path of the directory from the mount's root.
        """
        if not self.enabled:
            return JunkDecision(False, False, None, "the junk filter is off")
        if context.in_memory_fs:
            return JunkDecision(True, False, None, "its directory is junk")
        rule = self.find_rule(parent, name, is_directory=context.is_directory)
        if rule is not None and rule.kind is JunkKind.KEEP:
            return JunkDecision(False, False, rule, "names of this pattern are never junk")
        if name in context.data_names:
            return JunkDecision(False, False, None, "it is a key in Redis")
        companion = next((rule for rule, base in self._companion_bases(name) if base in context.data_names), None)
        if companion is not None:
            return JunkDecision(True, False, companion, "it belongs to a key or field beside it")
        if rule is not None and rule.kind in (JunkKind.SAFE, JunkKind.NEW):
            return JunkDecision(True, False, rule, "a junk pattern matches its name")
        if rule is not None and rule.kind is JunkKind.PROBE and context.exclusive:
            return JunkDecision(False, True, rule, "it is a probe if it is removed at once")
        is_private = context.exclusive and context.mode & 0o777 in PRIVATE_FILE_MODES and not context.is_directory
        if is_private and (_is_temporary_name(name, rule) or _has_sibling(name, context.data_names)):
            return JunkDecision(False, True, rule, "it is named and created (O_EXCL, mode 0600 or 0700) as a temporary")
        return JunkDecision(
            False, False, rule, "no pattern matches" if rule is None else "its name alone does not make it junk"
        )

    def find_rule(self, parent: bytes, name: bytes, *, is_directory: bool = False) -> JunkRule | None:
        """Return the first rule that matches a name, even if its condition fails."""
        path = _name_to_text(parent + b"/" + name if parent else name)
        return (
            self._keep_matcher.find_rule(path, is_directory)
            or self._junk_matcher.find_rule(path, is_directory)
            or next((rule for rule, _base in self._companion_bases(name)), None)
            or self._probe_matcher.find_rule(path, is_directory)
            or self._behaviour_matcher.find_rule(path, is_directory)
        )

    def is_hidden(self, name: bytes, *, in_root: bool = False) -> bool:
        """Return whether listings omit a name, as a *safe* pattern matches.

        `in_root`: it is in the mount's root.
        """
        if not self.enabled:
            return False
        text = _name_to_text(name)
        return self._safe_names.matches(text, in_root) and not self._keep_names.matches(text, in_root)

    def find_hiding_rule(self, name: bytes, *, in_root: bool = False) -> JunkRule | None:
        """Return the *safe* rule for which listings omit a name; None if they show it."""
        if not self.is_hidden(name, in_root=in_root):
            return None
        path = _name_to_text(name) if in_root else "x/" + _name_to_text(name)
        return self._safe_matcher.find_rule(path, False) or self._safe_matcher.find_rule(path, True)

    def _companion_bases(self, name: bytes) -> Iterable[tuple[JunkRule, bytes]]:
        """Yield the companion rules that match a name, with the name it belongs to."""
        for rule, prefix, suffix in self._companion_affixes:
            base = name[len(prefix) : len(name) - len(suffix)]
            if base and name.startswith(prefix) and name.endswith(suffix):
                yield rule, base


def load_default_rules() -> list[JunkRule]:
    """Return the built-in patterns."""
    text = resources.files("redisfuse.vfs").joinpath("junk_patterns.gitignore").read_text("utf-8")
    return parse_rules(text, "built-in")


def read_rules_file(path: Path) -> list[JunkRule]:
    """Return the patterns of a file.

    Raises UsageError if it can't be read, or if another user could have written it.
    """
    try:
        with open_trusted(path) as file:
            return parse_rules(file.read().decode("utf-8"), str(path))
    except UntrustedFileError as error:
        raise UsageError(f"the file of junk patterns {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the junk patterns in {path} can't be read: {error}") from error


def parse_rules(text: str, source: str) -> list[JunkRule]:
    """Parse patterns in gitignore syntax, with headings as in the built-in file."""
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
    """The rules of some kinds, matched together.

    The last match wins, as in a gitignore file.
    """

    def __init__(self, rules: Sequence[JunkRule], *kinds: JunkKind) -> None:
        self._rules = [rule for rule in rules if rule.kind in kinds]
        for rule in self._rules:
            _check_rule(rule)
        self._spec = GitIgnoreSpec.from_lines([rule.pattern for rule in self._rules])
        # A shortcut, as most names match no rule: one expression for all of them.
        self._any_rule_re = re.compile(
            "|".join(f"(?:{expression.replace('?P<ps_d>', '?:')})" for expression in self.iter_expressions())
        )

    def find_rule(self, path: str, is_directory: bool) -> JunkRule | None:
        """Return the last rule that matches a path."""
        path = normalize_file(path + "/" if is_directory else path)
        if not self._rules or self._any_rule_re.search(path) is None:
            return None
        index = self._spec.check_file(path).index
        return None if index is None else self._rules[index]

    def iter_expressions(self) -> Iterator[str]:
        """Yield the regular expression of each rule."""
        for pattern in self._spec.patterns:
            assert pattern.regex is not None  # checked by `_check_rule`
            yield pattern.regex.pattern


class _NameMatcher:
    """The rules of a matcher as one regular expression for single names.

    It is fast enough for listings.
    """

    def __init__(self, rules: _RuleMatcher) -> None:
        anywhere: list[str] = []
        root_only: list[str] = []
        for expression in rules.iter_expressions():
            for optional in ("(?:(?P<ps_d>/)|$)", "(?P<ps_d>/)"):  # a listing does not say which names are directories
                expression = expression.replace(optional, "$")
            floating = expression.removeprefix("^(?:.+/)?")
            (root_only if floating == expression else anywhere).append(floating)
        self._anywhere_re = _compile_alternatives(anywhere)
        self._in_root_re = _compile_alternatives(anywhere + root_only)

    def matches(self, name: str, in_root: bool) -> bool:
        """Return whether a rule matches a name in the root or another directory."""
        return (self._in_root_re if in_root else self._anywhere_re).match(name) is not None


def _is_temporary_name(name: bytes, rule: JunkRule | None) -> bool:
    """Return whether a name that a *behaviour* pattern matches is a temporary file's.

    The `?`s at the end of the pattern stand for random characters.
    """
    if rule is None or rule.kind is not JunkKind.BEHAVIOUR:
        return False
    random_size = len(rule.pattern) - len(rule.pattern.rstrip("?"))
    return not random_size or _RANDOM_CHARACTERS_RE.fullmatch(name[-random_size:]) is not None


def _has_sibling(name: bytes, data_names: Container[bytes]) -> bool:
    """Return whether a name is that of data beside it with random characters."""
    stems = [
        name[:-size].rstrip(b"._-~") for size in _RANDOM_SUFFIX_SIZES if _RANDOM_CHARACTERS_RE.fullmatch(name[-size:])
    ]
    return any(base in data_names for stem in stems for base in {stem, stem.removeprefix(b".")} if base)


def _compile_alternatives(expressions: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{expression})" for expression in expressions) or "(?!)", re.DOTALL)


def _check_rule(rule: JunkRule) -> None:
    try:
        is_valid = all(pattern.include for pattern in GitIgnoreSpec.from_lines([rule.pattern]).patterns)
    except ValueError:
        is_valid = False
    if not rule.pattern.strip() or not is_valid:
        raise UsageError(
            f"{for_terminal(rule.source)}: {for_terminal(rule.pattern)} is not a pattern in gitignore syntax"
        )


def _split_companion_pattern(rule: JunkRule) -> tuple[bytes, bytes]:
    """Return the parts before and after the one `*` of a companion pattern.

    Raises UsageError.
    """
    prefix, star, suffix = rule.pattern.replace("\\", "").partition("*")
    if not star or "*" in suffix or "?" in rule.pattern or "/" in rule.pattern or not prefix + suffix:
        raise UsageError(
            f"{for_terminal(rule.source)}: a companion pattern is a name with one *, not {for_terminal(rule.pattern)}"
        )
    return prefix.encode(), suffix.encode()


def _name_to_text(name: bytes) -> str:
    """Return a name in the form that patterns match.

    The file marker is removed, escaped dots are decoded, and characters that can't be in a name are escaped.
    """
    text = name.decode("utf-8", "surrogateescape")
    if "%" in text:
        text = text.removesuffix("%").replace("%2E", ".")
    return _CONTROL_CHARACTERS_RE.sub(_escape_character, text) if not text.isprintable() else text


def _escape_character(match: re.Match[str]) -> str:
    return f"%{ord(match[0]) & 0xFF:02X}"
