"""The README and the pages of redisfuse/docs agree with the code: commands, options, limits, errors, links."""

import errno
import importlib
import inspect
import itertools
import re
import shlex
from pathlib import Path

import click
import pytest

from redisfuse import errors
from redisfuse.cli import _where
from redisfuse.cli.main import group
from redisfuse.client import key_transit, reply_bounds, scan_guard
from redisfuse.client.limits import Limits
from redisfuse.config import CHUNK_BYTES, DEFAULTS, KIB, MIB, parse_size
from redisfuse.fuse import notify
from redisfuse.journal import database, key_history, line_matching
from redisfuse.mount import directories
from redisfuse.paths import encoding, grammar
from redisfuse.rendering.decoding import notation, pickles, plain
from redisfuse.review import basket, side_by_side
from redisfuse.survey import changes, lines, naming, usage
from redisfuse.transactions import archive_file, executor, key_writer, load
from redisfuse.vfs import content, inodes, known_versions, observed_content, pinned_contents, resolver, write_buffer
from tests.support import reference

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "redisfuse" / "docs"
PAGES = sorted(DOCS.glob("*.md"))
README = ROOT / "README.md"
COMMANDS = reference.all_commands()
SERVER_LIMITS = Limits()

FIXED_LIMITS = {
    "wait of such a command for a reply": _where.SURVEY_TIMEOUT_SECONDS,
    "keys of a cluster's replicas that move between nodes": key_transit._MAX_KEYS,
    "time without any key of a moving slot being moved": key_transit.MAX_TRANSIT_SECONDS,
    "size of a value": key_writer.MAX_VALUE_BYTES,
    "bytes of a name": encoding.NAME_MAX,
    "bytes of a path": grammar.PATH_MAX,
    "text of a collection with an exact size": content.MAX_RENDERED_BYTES,
    "fields searched for one with a path too long": resolver.MAX_DIGEST_SCAN_FIELDS,
    "a value that is read at once": CHUNK_BYTES,
    "a string that is compared whole when it is saved": observed_content.MAX_OBSERVED_BYTES,
    "elements that one command reads": SERVER_LIMITS.scan_count,
    "commands that are sent at once": SERVER_LIMITS.pipeline_size,
    "a number, a status or `INFO`": reply_bounds.MAX_SCALAR_BYTES,
    "a piece of a string": 0,
    "a batch of names": reply_bounds.MAX_NAMES_BYTES,
    "a batch of elements": reply_bounds.MAX_BATCH_BYTES,
    "a single element": reply_bounds.MAX_ELEMENT_BYTES,
    "a message about changed keys": reply_bounds.MAX_PUSH_BYTES,
    "replies to `SCAN` without anything new": scan_guard.MAX_FRUITLESS_REPLIES,
    "values kept for programs that are reading them": pinned_contents.MAX_INLINE_BYTES,
    "larger values kept for programs that are reading them": pinned_contents.MAX_LARGE_INODES,
    "files that the kernel has cached": inodes.MAX_LISTED_INODES,
    "invalidations that wait for the kernel": notify.MAX_QUEUED_NOTIFICATIONS,
    "an edit that is kept in memory": write_buffer.SPOOL_THRESHOLD_BYTES,
    "keys and fields whose last version that a program read is known": known_versions.MAX_TARGETS,
    "names of a folder that were listed when a program renames it": directories.MAX_FOLLOWED_NAMES,
    "names under which the history of a key is followed": key_history.MAX_FOLLOWED_RENAMES,
    "lines that are compared one by one in a text": line_matching.MAX_COMPARED_LINES,
    "attempts at a save while the key keeps changing": executor.MAX_ATTEMPTS,
    "keys found before all names are known": naming.MAX_HELD_RECORDS,
    "characters of a line that is searched whole": lines.MAX_LINE_CHARACTERS,
    "folders that are measured": usage.MAX_FOLDERS,
    "keys of an archive in one transaction": load.MAX_KEYS_PER_BATCH,
    "bytes of a line of an archive": archive_file.MAX_LINE_BYTES,
    "keys in conflict that are named": load.MAX_LISTED_KEYS,
    "rows of a difference in `redisfuse review`": side_by_side.MAX_ROWS,
    "a value that `redisfuse review` aligns whole": side_by_side.MAX_ALIGNED_BYTES,
    "operations and changes in the basket of `redisfuse review`": basket.MAX_WORDS,
    "encoded values within a value": notation.MAX_EMBEDDED,
    "bytes that are shown in hexadecimal": plain.MAX_HEX_BYTES,
    "opcodes of a pickle that are searched for imports": pickles.MAX_SEARCHED_OPCODES,
    "imports of a pickle that are named": pickles.MAX_IMPORTS,
    "keys whose changes are counted": changes.MAX_COUNTED_KEYS,
    "wait for another process that writes to the journal": database.BUSY_TIMEOUT_SECONDS,
}
"""The limits without an option, by their name in limits.md."""

LIMIT_SETTINGS = {
    name for name, value in DEFAULTS.items() if isinstance(value, int | float) and not isinstance(value, bool)
}
"""Every numeric setting of a mount is a limit."""


def table_rows(page: Path, columns: int) -> list[list[str]]:
    """Return the cells of each row of a page's tables that have so many columns, headings excluded."""
    rows = [re.split(r"(?<!\\)\|", line.strip("|")) for line in page.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row] for row in rows]
    return [row for row in cells if len(row) == columns and row[0] not in ("Limit", "Error")]


def number(text: str) -> float:
    """Return a limit as limits.md writes it: `1,000`, `4 MiB`, `30 s`, `no limit`, `as requested`."""
    if text in ("no limit", "as requested"):
        return 0
    if text.endswith(" s"):
        return float(text.removesuffix(" s"))
    return parse_size(text.replace(",", ""))


# -- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str) -> None:
    """Each command says in one short line what it does, and so does each of its options."""
    command = COMMANDS[name]
    first = (command.help or "").strip().partition("\n")[0]
    assert first.endswith("."), name
    assert len(first) <= 110  # at most two lines of help
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help, f"{name} {option.opts[0]}"
            assert option.help.endswith("."), f"{name} {option.opts[0]}"


@pytest.mark.parametrize("name", [name for name in COMMANDS if " " not in name and name != "mount"])
def test_a_command_modules_first_line_is_its_summary(name: str) -> None:
    """The line that `redisfuse --help` shows is a sentence that fits, and the one that begins the command's help."""
    summary = (importlib.import_module(f"redisfuse.cli.{name}").__doc__ or "").partition("\n")[0]
    assert summary.endswith(".")
    assert len(summary) <= 110
    assert summary == (COMMANDS[name].help or "").partition("\n")[0]


def test_the_tables_of_commands_and_options_are_current() -> None:
    """commands.md has each command, and each option of `mount` with its default and its help text."""
    page = reference.PAGE.read_text()
    assert page == reference.rewritten(page), "run `make docs`"
    assert "| `--render-limit N` | `10000` |" in page
    assert "| `redisfuse rollback [ID\\|PATH]...` |" in page


@pytest.mark.parametrize("page", [README, ROOT / "SECURITY.md", *PAGES], ids=lambda page: page.stem)
def test_a_page_names_only_what_exists(page: Path) -> None:
    """Each command and each option that a page names exists."""
    text = page.read_text()
    code = "\n".join(block or word for block, word in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text, re.DOTALL))
    named = set(re.findall(r"^(?:\$ )?redisfuse ([a-z]+)\b(?![:+])", code, re.MULTILINE))
    named -= set(re.findall(r"^\[server\.(\w+)\]$", code, re.MULTILINE))
    assert named <= COMMANDS.keys(), named - COMMANDS.keys()
    known = {
        spelling
        for command in [group, *COMMANDS.values()]
        for option in command.params
        for spelling in (*option.opts, *option.secondary_opts)
    }
    options = set(re.findall(r"(?:`|redisfuse )(--[a-z][a-z-]+)", text)) - {"--help", "--version"}
    assert options <= known, options - known


def test_the_pages_together_name_every_command() -> None:
    """Each command is explained beside the table of commands, too."""
    texts = "\n".join(page.read_text() for page in (README, *PAGES) if page != reference.PAGE)
    missing = [
        name
        for name, command in COMMANDS.items()
        if not isinstance(command, click.Group) and f"redisfuse {name}" not in texts
    ]
    assert missing == []


# -- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_a_title_and_a_summary(page: Path) -> None:
    """A page begins with its title and one line, which `redisfuse help` lists."""
    title, blank, summary, end, *_ = page.read_text().splitlines()
    assert title.startswith("# ")
    assert (blank, end) == ("", "")
    assert summary.endswith(".")
    assert len(summary) < 80


@pytest.mark.parametrize(
    "page", [README, ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", *PAGES], ids=lambda page: page.stem
)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    """Each relative link names a file of the repository, and each fragment a heading of it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, fragment = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert fragment in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )


def test_the_readme_is_short() -> None:
    """The README has at most 250 lines, and its first screen names the two make targets."""
    lines = README.read_text().splitlines()
    assert len(lines) <= 250
    first_screen = "\n".join(lines[:24])
    assert "make demo" in first_screen
    assert "make test" in first_screen
    developing = README.read_text().partition("## Developing")[2]
    assert "make demo" in developing
    assert "make test" in developing


# -- limits and errors -----------------------------------------------------------------------------------------------


def test_the_limits_are_the_defaults() -> None:
    """limits.md has every numeric setting with its default and every fixed limit with its value, and nothing else."""
    documented: dict[str, float] = {}
    for name, default, option, _ in table_rows(DOCS / "limits.md", 4):
        if set(name) == {"-"}:
            continue
        key = option.strip("`").removeprefix("--").replace("-", "_") if option else name
        documented[key] = number(default)
    assert documented == FIXED_LIMITS | {name: DEFAULTS[name] for name in LIMIT_SETTINGS}


def test_sizes_in_the_limits_are_read_as_bytes() -> None:
    """The page's numbers are parsed: a wrong one would not pass for a right one."""
    assert number("4 MiB") == 4 * MIB
    assert number("64 KiB") == 64 * KIB
    assert number("10,000") == 10_000
    assert number("30 s") == 30.0


def test_each_error_number_is_explained() -> None:
    """errors.md has a row for each errno that redisfuse raises."""
    numbers = {
        error.errno
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.RedisFuseError)
    }
    first_cells = " ".join(row[0] for row in table_rows(DOCS / "errors.md", 3))
    assert len(numbers) > 15
    for code in numbers:
        assert f"`{errno.errorcode[code].replace('EOPNOTSUPP', 'ENOTSUP')}`" in first_cells


def test_the_changelog_is_kept() -> None:
    """The changelog has a part for what is not released yet, in the format that it names."""
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in text
    headings = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert headings <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


# -- examples --------------------------------------------------------------------------------------------------------

LEAVES = {name: command for name, command in COMMANDS.items() if not isinstance(command, click.Group)}
_SHELL_OPERATORS = {"|", ">", "<", "&&", ";"}


def parse_example(line: str) -> str:
    """Parse a command line as redisfuse does, and return the name of its command."""
    command_line = re.split(" {2,}", line.strip())[0]  # an explanation can follow
    lexer = shlex.shlex(command_line, posix=True, punctuation_chars="|><;&")
    lexer.whitespace_split = True
    lexer.commenters = ""
    after = itertools.dropwhile(lambda word: word != "redisfuse", lexer)
    program, *words = itertools.takewhile(lambda word: word not in _SHELL_OPERATORS, after)
    assert program == "redisfuse"
    name = next(
        (name for name in sorted(LEAVES, key=len, reverse=True) if words[: name.count(" ") + 1] == name.split()), ""
    )
    command, rest = (LEAVES[name], words[name.count(" ") + 1 :]) if name else (LEAVES["mount"], words)
    command.make_context(name, rest)
    return name


@pytest.mark.parametrize("name", LEAVES)
def test_the_help_of_a_command_has_an_example(name: str) -> None:
    """A paragraph of `--help` shows how the command is used, with words that it accepts."""
    paragraph = (LEAVES[name].help or "").partition("\b\n")[2].partition("\n\n")[0]
    examples = [line for line in paragraph.splitlines() if "redisfuse " in line]
    assert examples
    assert name in {parse_example(line) for line in examples}


def test_recipes_have_a_line_for_each_task() -> None:
    """`redisfuse help recipes` begins with a table of commands, which are correct."""
    table = (DOCS / "recipes.md").read_text().partition("## In one line\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ") and "redisfuse" in line]
    used = {parse_example(row[1].removesuffix(" |").strip("`").replace("\\|", "|")) for row in rows}
    assert {"find", "grep", "top", "dump", "load", "diff", "status", "service", "config", "rollback"} <= used
