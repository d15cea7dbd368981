"""The sessions in the README and in redisfuse/docs show real output."""

from pathlib import Path

import pytest

from tests.support.readme_sessions import PAGES, README, blocks, run, same

pytestmark = pytest.mark.timeout(240)

SHOWN = [page for page in PAGES if blocks(page.read_text())]


def test_the_pages_have_sessions() -> None:
    """The README and most pages that describe use show sessions, so the test below runs something."""
    assert README in SHOWN
    assert len(SHOWN) >= 7
    assert sum(len(block) for page in SHOWN for block in blocks(page.read_text())) > 100


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.stem)
def test_the_sessions_of_a_page_happen(page: Path) -> None:
    """Each command prints what the page shows, except for times, times to live and sizes of memory."""
    wrong = [
        f"$ {line.command}\n--- {page.name}\n{line.answer}--- now\n{answer}"
        for line, answer in run(page.read_text())
        if not same(line.answer, answer)
    ]
    assert not wrong, "\n".join([f"python -m tests.support.readme_sessions {page} updates the page", *wrong])
