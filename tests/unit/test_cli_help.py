"""`redisfuse help`: pages are formatted on a terminal, Markdown in a pipe."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from redisfuse.cli.help import read_pages
from redisfuse.cli.main import main

ROOT = Path(__file__).parents[2]
FILES = {page.stem: page for page in (ROOT / "redisfuse" / "docs").glob("*.md")} | {"security": ROOT / "SECURITY.md"}
TOPICS = sorted(FILES)
LIMIT = 30  # seconds


def on_terminal(*words: str, pager: str) -> str:
    """Return the output of `redisfuse help` on a terminal."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"PAGER": pager, "TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "redisfuse.cli.main", "help", *words]
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # EIO: the program has ended
            pass
        finally:
            os.close(ours)
        assert process.wait(LIMIT) == 0
    return shown.decode().replace("\r\n", "\n")


def test_without_a_topic_every_page_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe, a line has the topic, the title and the summary, separated by tabs."""
    assert main(["help"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == TOPICS
    assert ["names", "Names", "How every key and every hash field gets exactly one path."] in rows
    for topic, title, summary in rows:
        assert FILES[topic].read_text().startswith(f"# {title}\n\n{summary}\n\n")


@pytest.mark.parametrize("topic", TOPICS)
def test_a_piped_page_is_its_markdown(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A page is printed unchanged, except for the comments that mark sessions and tables."""
    assert main(["help", topic]) == 0
    shown = capsys.readouterr().out
    page = FILES[topic].read_text()
    assert shown.splitlines() == [line for line in page.splitlines() if not line.startswith("<!--")]


def test_the_name_of_a_command_shows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    """`redisfuse help rollback` is `redisfuse rollback --help`."""
    assert main(["rollback", "--help"]) == 0
    expected = capsys.readouterr().out
    assert main(["help", "rollback"]) == 0
    assert capsys.readouterr().out == expected
    assert "--dry-run" in expected


def test_the_name_of_a_command_in_a_group_shows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    """`redisfuse help junk scan` is `redisfuse junk scan --help`."""
    assert main(["junk", "scan", "--help"]) == 0
    expected = capsys.readouterr().out
    assert main(["help", "junk", "scan"]) == 0
    assert capsys.readouterr().out == expected
    assert "Usage: redisfuse junk scan" in expected
    assert main(["help", "rollback", "scan"]) == 2
    assert "no page or command 'rollback scan'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("topic", "similar"), [("name", "names"), ("edit", "editing"), ("rolback", "rollback"), ("limit", "limits")]
)
def test_an_unknown_topic_suggests_similar_ones(topic: str, similar: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown topic is a one-line usage error with similar topics."""
    assert main(["help", topic]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert similar in shown.err.partition("did you mean ")[2].partition("?")[0].split(" or ")


def test_a_topic_without_similar_names_has_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a similar name the error explains only how to list the pages."""
    assert main(["help", "xyzzy"]) == 2
    shown = capsys.readouterr().err
    assert "did you mean" not in shown
    assert "`redisfuse help` lists the pages" in shown


def test_on_a_terminal_a_page_is_formatted_in_the_pager() -> None:
    """Headings, tables and links are formatted, and the text is piped through $PAGER."""
    shown = on_terminal("limits", pager="sed 's/^/PAGED:/'")
    lines = shown.splitlines()
    assert lines
    assert all(line.startswith("PAGED:") for line in lines if line.strip())
    assert any(line.strip("PAGED: ") == "Limits" for line in lines)
    assert "# Limits" not in shown
    assert "|---|" not in shown
    assert "--render-limit" in shown
    assert "](" not in on_terminal("editing", pager="cat")


def test_on_a_terminal_the_list_fits() -> None:
    """The list of pages is wrapped to the terminal's width."""
    shown = on_terminal(pager="false")
    assert "Names: How every key" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80 + len("`redisfuse help TOPIC` shows a page, ")


@pytest.mark.parametrize("words", [["--version"], ["help", "undo"]])
def test_rich_is_not_imported_without_a_terminal(words: list[str]) -> None:
    """`--version` and a page in a pipe do not import rich."""
    script = (
        f"import sys; from redisfuse.cli.main import main; main({words!r}); sys.exit('rich' in sys.modules and 'rich')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_every_page_has_a_title_and_a_summary() -> None:
    """The command finds all pages of the repository, and none is empty."""
    pages = read_pages()
    assert list(pages) == TOPICS
    assert all(page.title and page.summary.endswith(".") for page in pages.values())
