"""The README's sessions are what happens."""

import pytest

from tests.support.readme_sessions import README, blocks, run, same

pytestmark = pytest.mark.timeout(240)


def test_the_readmes_sessions_happen() -> None:
    """Each command in the README's sessions answers what stands there, but for times, times to live and sizes."""
    text = README.read_text()
    assert len(blocks(text)) > 10
    wrong = [
        f"$ {line.command}\n--- README\n{line.answer}--- now\n{answer}"
        for line, answer in run(text)
        if not same(line.answer, answer)
    ]
    assert not wrong, "\n".join(["python -m tests.support.readme_sessions puts the answers in", *wrong])
