"""The pages of `redisfuse review`, requested from the real process."""

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

from redisfuse.cli.main import main
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import ABSENT, ChangeIntent, State
from redisfuse.journal.processes import CallingProcess
from tests.review.conftest import HOSTILE
from tests.support.journals import INFO
from tests.support.mounts import redisfuse_command
from tests.support.review_process import ReviewProcess

LIMIT = 60.0  # seconds


def list_words(page: str) -> list[str]:
    """Return the IDs of the rows of a page."""
    return re.findall(r'<span class="word">(.*?)</span>', page)


def test_the_timeline_has_the_filters_of_the_log(
    pages: ReviewProcess, ids: dict[str, int], capsys: pytest.CaptureFixture[str], journal_path: Path
) -> None:
    """Each filter selects the rows that the same option of `redisfuse log` selects."""
    for query, options in {
        "": [],
        "keys=1": ["--keys"],
        "op=remove": ["--op", "remove"],
        "op=write&op=remove&keys=1": ["--op", "write", "--op", "remove", "--keys"],
        "state=refused": ["--state", "refused"],
        "key=p*": ["--key", "p*"],
        "path=page": ["--path", "page"],
        "since=1h": ["--since", "1h"],
        "until=1h": ["--until", "1h"],
        "session=2": ["--session", "2"],
        "by=nobody-here": ["--by", "nobody-here"],
        f"select={ids['json']}": [str(ids["json"])],
        f"select={ids['text']}-{ids['json']}&keys=1": [f"{ids['text']}-{ids['json']}", "--keys"],
        "select=page&keys=1": ["page", "--keys"],
    }.items():
        shown = list_words(pages.get(f"{pages.folder}/changes?{query}").text)
        assert main(["log", *options, "--journal-file", str(journal_path)]) == 0
        assert shown == [line.partition("\t")[0] for line in capsys.readouterr().out.splitlines()], query


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("session=x", 400, "session is a number"),
        ("since=whenever", 400, "since is a time"),
        ("op=destroy", 400, "no op"),
        ("select=nothing/here", 404, "no change of nothing/here"),
        ("before=99999999999999999999", 400, "before is a number"),
        ("session=" + "9" * 5000, 400, "session is a number"),
        ("&" * 3000, 400, "more than"),
    ],
)
def test_a_wrong_filter_is_explained(pages: ReviewProcess, query: str, status: int, text: str) -> None:
    """The page says what is wrong, and is no internal error."""
    reply = pages.get(f"{pages.folder}/changes?{query}")
    assert reply.status == status
    assert text in html.unescape(reply.text)


@pytest.mark.parametrize("path", ["/nothing", "/changes/999999", "/changes/99999999999999999999/new", "/changes/-1"])
def test_an_unknown_page(pages: ReviewProcess, path: str) -> None:
    """A page that does not exist is a page with status 404."""
    reply = pages.get(pages.folder + path)
    assert reply.status == 404
    assert 'role="alert"' in reply.text


def test_a_change_is_shown_side_by_side(pages: ReviewProcess, ids: dict[str, int]) -> None:
    """Text has its words marked, JSON its places, bytes their hex, a collection its elements."""
    texts = {name: pages.get(f"{pages.folder}/changes/{id}").text for name, id in ids.items()}
    assert "&lt;h1&gt;<del>Hello</del> you" in texts["text"]
    assert "&lt;h1&gt;<ins>Welcome</ins> you" in texts["text"]
    assert re.search(r'<th scope="row">\$\.tags\[1\]</th>\s*<td[^>]*><span class="none">nothing</span>', texts["json"])
    assert "<del>20</del>" in texts["bytes"]
    assert "<ins>ff</ins>" in texts["bytes"]
    assert "<del>1  a</del>" in texts["collection"]
    assert "hash field field" in texts["field"]
    assert "refused" in texts["refused"]
    assert "newer" in texts["refused"] or "changed" in texts["refused"]


def test_the_history_of_a_key(pages: ReviewProcess, ids: dict[str, int]) -> None:
    """The history has all changes of the key, whatever bytes its name has, and no other."""
    for number in range(len(HOSTILE)):
        page = pages.get(f"{pages.folder}/changes/{ids[f'hostile {number}']}/history").text
        assert list_words(page) == [str(ids[f"hostile again {number}"]), str(ids[f"hostile {number}"])]


def test_sessions_lead_to_their_changes(pages: ReviewProcess, ids: dict[str, int]) -> None:
    """The page of sessions has each of them with the number of its changes."""
    page = pages.get(f"{pages.folder}/sessions").text
    assert list_words(page) == ["2", "1"]
    assert f"{len(ids)} changes" in page
    assert "/changes?session=2" in page


def test_the_first_page_can_be_a_session(journal_path: Path) -> None:
    """--session begins with its changes; an unknown session is an error."""
    with ReviewProcess(journal_path, "--session", "2") as process:
        process.open()
        assert process.get(f"{process.folder}/").headers["Location"] == f"{process.folder}/changes?session=2"
        busy = subprocess.run(
            redisfuse_command("review", "--journal-file", str(journal_path), "--port", str(process.port)),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert busy.returncode == 2
        assert "try another --port" in busy.stderr
    assert main(["review", "--session", "77", "--journal-file", str(journal_path)]) == 1


def test_without_the_extra_it_says_what_to_install() -> None:
    """If Starlette is not installed, the error is one line with the command that installs it."""
    script = (
        "import sys; sys.modules['starlette'] = None\nfrom redisfuse.cli.main import main\nsys.exit(main(['review']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'redisfuse[review]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_pages_have_each_row_once(tmp_path: Path) -> None:
    """Operations of several processes at the same time are on one page each, and none is left out."""
    path = tmp_path / "state" / "journal.db"
    processes = [CallingProcess(100 + number, number, f"p{number}") for number in range(70)]
    with Journal.open(path, create=True, operation_idle_ms=None) as journal:
        session = journal.begin_session(INFO)
        for turn in range(3):
            for process in processes[turn * 10 :]:
                intent = ChangeIntent(b"p", "write", b"k", None, ABSENT, State.from_value(b"v"), process=process)
                journal.record_outcome(journal.record_intents(session, [intent]), "applied")
    with ReviewProcess(path) as process:
        process.open()
        for view, expected in (("", 70), ("?keys=1", 70 + 60 + 50)):
            link, seen = f"{process.folder}/changes{view}", []
            while link:
                page = process.get(link).text
                seen += list_words(page)
                links = re.findall(r'rel="next" href="([^"]+)"', page)
                link = links[0].replace("&amp;", "&") if links else ""
            assert len(seen) == len(set(seen)) == expected
