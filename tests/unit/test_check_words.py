"""`.ci/check_words.py`, which `make words` runs: each kind of text, and the texts that it ignores."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXCEPTIONS = """
[exempt]
"redisfuse/old/*.py" = "a reason"

[planned]
"docs/planned.md" = "a reason"
"""


def check(room: str, name: str, text: str, tmp_path: Path, *, whole: bool = False) -> list[str]:
    """Return "LINE: WORD" for each problem in a file of a room, in a copy of the repository.

    With `whole`, the program checks the whole copy instead of the file.
    """
    program = tmp_path / ".ci" / "check_words.py"
    program.parent.mkdir(parents=True)
    program.write_bytes((ROOT / ".ci/check_words.py").read_bytes())
    rules, _, _ = (ROOT / ".ci/words.toml").read_text().partition("[exempt]")
    (program.parent / "words.toml").write_text(rules + EXCEPTIONS)
    path = tmp_path / room / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    words = [sys.executable, str(program), *([] if whole else [str(path)])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    problems = [line.split(": ")[0].partition(":")[2] + ": " + line.split('"')[1] for line in done.stdout.splitlines()]
    assert done.returncode == bool(problems), done
    return problems


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ('"""Return it.\n\nThe kernel is told."""\n', ["3: told"]),
        ("x = 1\n# Nobody waits.\n", ["2: Nobody"]),
        (
            "x = 1\n# It is in\n# the middle of\n#  it, as\n# long as. As\n#   if.\n",
            ["2: in the middle of", "5: As if"],
        ),
        ('raise ValueError("the server\\nwas asked for it")\n', ["1: was asked for"]),
        ('"""What a key holds."""\n', ["1: What"]),
        ("# who owns it\n", ["1: who"]),
        ("def told(seen):\n    pass\n", ["1: told"]),
        ("class TellTale:\n    pass\n", ["1: TellTale"]),
        ("self.said = tell()\n", ["1: said"]),
        ('"""Return `told`, or ``somebody``."""\n', []),
        ("told_by_another_module()\n", []),
        ("untold = standings = 1\n", []),
        ("# see DESIGN.md\n", ["1: DESIGN", "1: DESIGN.md"]),
        (f'"""{"x" * 80}."""\n', [f"1: {'x' * 40}…"]),
        (f'"""{"x" * 78}."""\n', []),
    ],
)
def test_modules(text: str, problems: list[str], tmp_path: Path) -> None:
    """Docstrings, comments, messages and defined names are checked; code spans and other names are not."""
    assert check("redisfuse", "module.py", text, tmp_path) == problems


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("# Title\n\nIt goes\non for ever.\n", ["3: goes on", "4: for ever"]),
        ("As `x` if it were `told`.\n", []),
        ("```console\n$ told\n```\n\nWhoever.\n", ["5: Whoever"]),
        ("See [there](missing.md) and <https://example.org/other.md>.\n", ["1: missing.md"]),
    ],
)
def test_pages(text: str, problems: list[str], tmp_path: Path) -> None:
    """Markdown is checked except for code."""
    assert check("redisfuse", "page.md", text, tmp_path) == problems


def test_strings_in_tests_are_ignored(tmp_path: Path) -> None:
    """A string in a test may contain any word."""
    assert check("tests", "test_x.py", 'x = "nobody was told"\n', tmp_path) == []


@pytest.mark.parametrize(("room", "problems"), [("redisfuse/old", []), ("redisfuse/new", ["1: Nobody"])])
def test_exempt_files(room: str, problems: list[str], tmp_path: Path) -> None:
    """A check of the whole repository omits the exempt files, and no others."""
    assert check(room, "module.py", "# Nobody waits.\n", tmp_path, whole=True) == problems


def test_planned_pages(tmp_path: Path) -> None:
    """A planned page can be cited, but no other missing page."""
    text = "# see docs/planned.md and docs/missing.md\n"
    assert check("redisfuse", "module.py", text, tmp_path) == ["1: docs/missing.md"]
