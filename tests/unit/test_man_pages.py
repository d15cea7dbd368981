"""The manual pages are those of the present commands, and correct roff."""

import subprocess

import pytest

from tests.support.man_pages import FOLDER, pages
from tests.support.reference import all_commands

PAGES = pages()


def test_the_pages_are_current() -> None:
    """The repository has the pages that the commands give now, and no others."""
    assert {file.name: file.read_text() for file in FOLDER.iterdir()} == PAGES, "run `make docs`"


def test_each_command_has_a_page() -> None:
    """There is one page for redisfuse, and one for each command, those of groups included."""
    assert set(PAGES) == {"redisfuse.1"} | {f"redisfuse-{name.replace(' ', '-')}.1" for name in all_commands()}
    assert "redisfuse-junk-scan.1" in PAGES


def rendered(name: str) -> str:
    """Return a page as man(1) shows it. Warnings of groff are errors."""
    done = subprocess.run(
        ["groff", "-man", "-Tascii", "-ww", "-P-cbou", "-rLL=78n"],
        input=PAGES[name],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_correct_roff(name: str) -> None:
    """groff formats each page without a warning, and the page names its command."""
    text = rendered(name)
    assert "NAME" in text
    assert "SYNOPSIS" in text
    assert name.removesuffix(".1") in text


def test_a_page_has_the_options_and_the_examples() -> None:
    """Options keep their hyphens, commands are listed, and the lines of examples are not joined."""
    mount = rendered("redisfuse-mount.1")
    assert "--render-limit N" in mount
    assert "--new-files [auto|string]" in mount
    program = rendered("redisfuse.1")
    assert "redisfuse-rollback(1)" in program
    assert any(line.split()[:4] == ["redisfuse", "127.0.0.1", "6379", "MOUNTPOINT"] for line in program.splitlines())
    assert "redisfuse-junk-clean(1)" in rendered("redisfuse-junk.1")
