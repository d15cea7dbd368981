"""Check the English of names, docstrings, comments, messages and Markdown.

    .ci/check_words.py [--count] [PATH...]

Prints `FILE:LINE: "WORD": ADVICE` for each word in words.toml, each citation of a document that is not in the
repository, and each docstring of the program whose first line is too long. Exits with 1 if there is any.

Ignores code spans and code blocks, strings in tests, strings in migrations, which are part of users' schemas, and the
files in the section `exempt` unless they are named as PATH.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("redisfuse", "migrations", "tests", ".ci")

MAX_SUMMARY = 79  # characters of the first line of a docstring

_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_CODE_BLOCK = re.compile(r"^( *)(```|~~~).*?^\1\2[^\n]*$", re.DOTALL | re.MULTILINE)
_DOCUMENT = re.compile(r"(?<![\w*{./:-])[\w./-]*\w\.md\b")
_NAME_PARTS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")


class Passage(NamedTuple):
    """A piece of text: the line that it begins on, and whether it is prose, a message or a name."""

    line: int
    kind: str  # "prose" (a docstring or a comment), "message", "markdown" or "name"
    text: str


class Rule(NamedTuple):
    """A forbidden expression, and the advice that goes with it."""

    expression: re.Pattern[str]
    advice: str


class Rules:
    """The rules of words.toml, by section."""

    def __init__(self, path: Path) -> None:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
        self.prose = [
            Rule(_whole_words(words.replace(" ", r"[\s#]+")), advice) for words, advice in sections["prose"].items()
        ]
        self.start = [Rule(re.compile(rf"(?:{words})\b", re.I), advice) for words, advice in sections["start"].items()]
        self.names = [Rule(re.compile(words), advice) for words, advice in sections["names"].items()]
        self.documents = [
            Rule(re.compile(rf"\b(?:{words})\b"), advice) for words, advice in sections["documents"].items()
        ]
        self.exempt = list(sections.get("exempt", ()))
        self.planned = set(sections.get("planned", ()))

    def find_problems(self, passage: Passage, folder: Path) -> Iterator[tuple[int, str, str]]:
        """Yield (line, word, advice) for each problem of a passage in a file of `folder`."""
        if passage.kind == "name":
            parts = [part.lower() for part in _NAME_PARTS.findall(passage.text)]
            for rule in self.names:
                if any(rule.expression.fullmatch(part) for part in parts):
                    yield passage.line, passage.text, rule.advice
            return
        text = _blank_out(passage.text)
        for rule in self.prose:
            for match in rule.expression.finditer(text):
                word = " ".join(match[0].replace("#", " ").split())
                yield passage.line + text.count("\n", 0, match.start()), word, rule.advice
        if passage.kind == "prose":
            for rule in self.start:
                if first_word := rule.expression.match(text.lstrip(" #\n")):
                    yield passage.line, first_word[0], rule.advice
            for rule in self.documents:
                for match in rule.expression.finditer(passage.text):
                    yield passage.line + passage.text.count("\n", 0, match.start()), match[0], rule.advice
        for match in _DOCUMENT.finditer(passage.text):
            if match[0] not in self.planned and not _exists(match[0], folder):
                line = passage.line + passage.text.count("\n", 0, match.start())
                yield line, match[0], "no such document in the repository"


def read_python(source: str) -> Iterator[Passage]:
    """Yield the names, docstrings, comments and messages of a module."""
    yield from _read_comments(source)
    tree = ast.parse(source)
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings.add(node.value)
            yield Passage(node.lineno, "prose", node.value.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            if " " in node.value:
                yield Passage(node.lineno, "message", node.value.replace("\n", " "))
        else:
            for name in _defined_names(node):
                yield Passage(getattr(node, "lineno", 1), "name", name)


def _read_comments(source: str) -> Iterator[Passage]:
    """Yield each comment; whole-line comments on consecutive lines are one."""
    block: list[str] = []
    block_line = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        continues = bool(block) and token.line.lstrip().startswith("#") and token.start[0] == block_line + len(block)
        if block and not continues:
            yield Passage(block_line, "prose", "\n".join(block))
            block = []
        if not block:
            block_line = token.start[0]
        block.append(token.string)
    if block:
        yield Passage(block_line, "prose", "\n".join(block))


def find_long_summaries(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line, text, advice) for each docstring whose first line is too long."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            summary = (ast.get_docstring(node) or "").partition("\n")[0]
            if len(summary) > MAX_SUMMARY:
                yield getattr(node, "lineno", 1), f"{summary[:40]}…", f"summary of more than {MAX_SUMMARY} characters"


def read_markdown(source: str) -> Iterator[Passage]:
    """Yield the text of a page."""
    yield Passage(1, "markdown", _CODE_BLOCK.sub(_keep_newlines, source))


def _defined_names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr


def _whole_words(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-])(?:{words})(?![\w-])", re.IGNORECASE)


def _blank_out(text: str) -> str:
    return _CODE_SPAN.sub(lambda match: "`" + _keep_newlines(match), text)


def _keep_newlines(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def _exists(document: str, folder: Path) -> bool:
    places = (folder, ROOT, ROOT / "redisfuse", ROOT / "redisfuse/docs")
    return any((place / document).exists() for place in places)


def find_problems(path: Path, source: str, rules: Rules, *, is_product: bool) -> set[tuple[int, str, str]]:
    """Return (line, word, advice) for each problem of a file."""
    problems: set[tuple[int, str, str]] = set()
    for passage in read_markdown(source) if path.suffix == ".md" else read_python(source):
        if is_product or passage.kind != "message":
            problems |= set(rules.find_problems(passage, path.parent))
    if is_product and path.suffix == ".py":
        problems |= set(find_long_summaries(source))
    return problems


def find_files(arguments: list[str], exempt: list[str]) -> list[Path]:
    """Return the modules and pages below the arguments, or the whole repository's that are not exempt."""
    roots = [Path(argument).resolve() for argument in arguments] or [ROOT / room for room in ROOMS] + [
        *ROOT.glob("*.md")
    ]
    files: list[Path] = []
    for root in roots:
        files += [root] if root.is_file() else sorted([*root.rglob("*.py"), *root.rglob("*.md")])
    if arguments:
        return files
    return [file for file in files if not any(file.relative_to(ROOT).match(pattern) for pattern in exempt)]


def main(arguments: list[str]) -> int:
    """Print each problem, or with `--count` how many each room has."""
    counting = "--count" in arguments
    rules = Rules(ROOT / ".ci/words.toml")
    counts: Counter[str] = Counter()
    for path in find_files([argument for argument in arguments if argument != "--count"], rules.exempt):
        source = path.read_text(encoding="utf-8")
        shown = path.relative_to(ROOT)
        for line, word, advice in sorted(find_problems(path, source, rules, is_product=shown.parts[0] == "redisfuse")):
            counts["/".join(shown.parts[:2])] += 1
            if not counting:
                print(f'{shown}:{line}: "{word}": {advice}')
    if counting:
        for room, number in sorted(counts.items()):
            print(f"{number:6} {room}")
    if counts:
        print(f"{sum(counts.values())} problems; see .ci/words.toml", file=sys.stderr)
    return 1 if counts else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
