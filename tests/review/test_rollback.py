"""The basket, its plan against the server, the rollback, and edits that were refused: requests to the real process."""

import html
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from redisfuse.errors import ConflictError
from redisfuse.journal.models import ServerIdentity, SessionMetadata
from redisfuse.review.basket import MAX_WORDS
from redisfuse.review.rollback_pages import MAX_FORM_BYTES
from redisfuse.transactions.key_writer import KeyWriter
from redisfuse.transactions.precondition import Precondition
from redisfuse.transactions.rollback import MAX_CHANGES_PER_BATCH
from tests.review.conftest import create_keys
from tests.support.edit_bench import EditBench
from tests.support.mounts import wait_until
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.review_process import TIMEOUT_SECONDS, Reply, ReviewProcess

FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def pages(bench: EditBench) -> Iterator[ReviewProcess]:
    """Serve the journal of the bench, with permission to change keys."""
    with ReviewProcess(bench.journal.path, "--allow-rollback") as process:
        process.open()
        yield process


@pytest.fixture(autouse=True)
def emptied(bench: EditBench, pages: ReviewProcess) -> None:
    """Begin without keys, and with an empty basket."""
    bench.redis.flushall()
    assert pages.post("/basket", clear="1").status == 204


def save(bench: EditBench, key: bytes, data: bytes, **options: object) -> str:
    """Save a key and return the ID of the change."""
    bench.save(key, data, **options)
    bench.journal.flush()
    return str(bench.last_change.id)


def fill(pages: ReviewProcess, *words: str) -> str:
    """Put changes into the basket and return its page."""
    for word in words:
        assert pages.post("/basket", add=word).status == 204
    return html.unescape(pages.get(f"{pages.folder}/basket").text)


def confirm(bench: EditBench, pages: ReviewProcess) -> tuple[str, dict[str, str]]:
    """Return the page that asks for confirmation, and the fields of its form."""
    name = bench.journal.get_session(bench.session).metadata.server.name
    reply = pages.get(f"{pages.folder}/rollback?server={quote(name)}")
    assert reply.status == 200, reply.text
    fields = {
        match[1]: html.unescape(match[2]) for match in re.finditer(r'name="(server|plan)" value="([^"]*)"', reply.text)
    }
    return html.unescape(reply.text), fields


def change_count(bench: EditBench) -> int:
    """Return the number of changes in the journal."""
    return len(bench.changes())


# -- rolling back ----------------------------------------------------------------------------------------------------


def test_a_basket_is_rolled_back(bench: EditBench, pages: ReviewProcess, server: RedisServer) -> None:
    """The plan and the confirmation have the numbers of changes and keys, and the server; then they are restored."""
    bench.redis.mset({"a": "1", "b": "2"})
    ids = [save(bench, b"a", b"one"), save(bench, b"a", b"uno"), save(bench, b"b", b"two"), save(bench, b"c", b"new")]
    page = fill(pages, *ids, ids[0])
    assert "4 changes of 3 keys would be rolled back" in re.sub("<[^>]*>", "", page)
    assert "restore string of 1 bytes" in page
    text, fields = confirm(bench, pages)
    assert f"Roll back 3 keys on 127.0.0.1:{server.port}/0</button>" in text
    reply = pages.roll_back(**fields)
    assert (reply.status, "4 changes rolled back" in reply.text) == (200, True)
    assert (bench.redis.get("a"), bench.redis.get("b"), bench.redis.get("c")) == (b"1", b"2", None)
    newest = bench.last_change
    assert (newest.op, newest.outcome, newest.session_id > bench.session) == ("rollback", "applied", True)
    assert bench.journal.get_session(newest.session_id).ended_at is not None
    assert "The basket is empty" in fill(pages)
    assert "aria-pressed" not in pages.get(f"{pages.folder}/changes?select={ids[0]}&keys=1").text  # it is rolled back


def test_an_operation_is_rolled_back_whole(bench: EditBench, pages: ReviewProcess) -> None:
    """The word of an operation selects all of its changes."""
    ids = [save(bench, b"dir:%d" % number, b"v") for number in range(3)]
    operation = f"{bench.journal.get_change(int(ids[0])).operation_id}+"
    fill(pages, operation, *ids[1:])
    assert pages.roll_back(**confirm(bench, pages)[1]).status == 200
    assert bench.redis.keys("dir:*") == []


def test_a_conflict_is_shown_and_left_alone(bench: EditBench, pages: ReviewProcess) -> None:
    """The plan is read from the server each time: a key that changes is a conflict, and is not rolled back."""
    bench.redis.mset({"a": "1", "b": "2"})
    first, other = save(bench, b"a", b"one"), save(bench, b"b", b"two")
    assert "conflict" not in fill(pages, first, other)
    later = save(bench, b"a", b"<later>")
    page = html.unescape(pages.get(f"{pages.folder}/basket/plan").text)
    assert "1 conflict" in page
    assert "string of 3 bytes: one" in page
    assert "string of 7 bytes: <later>" in page
    assert f'name="add" value="{later}"' in page
    text, fields = confirm(bench, pages)
    assert "Roll back 1 key on" in text
    reply = pages.roll_back(**fields)
    assert "its value was changed since" in html.unescape(reply.text)
    assert (bench.redis.get("a"), bench.redis.get("b")) == (b"<later>", b"2")
    assert "conflict" not in fill(pages, later)
    assert pages.roll_back(**confirm(bench, pages)[1]).status == 200
    assert bench.redis.get("a") == b"1"


def test_what_was_confirmed_is_what_is_done(bench: EditBench, pages: ReviewProcess) -> None:
    """If a key, or the basket, changes after the confirmation was shown, nothing is done."""
    bench.redis.set("a", "1")
    first, second = save(bench, b"a", b"one"), save(bench, b"b", b"new")
    fill(pages, first)
    fields = confirm(bench, pages)[1]
    count = change_count(bench)
    for change in (lambda: bench.redis.set("a", "by another client"), lambda: fill(pages, second)):
        change()
        reply = pages.roll_back(**fields)
        assert reply.status == 409
        assert "nothing was changed" in reply.text
        bench.redis.set("a", "one")
    stale = pages.roll_back(server=fields["server"])
    assert (stale.status, f'<a href="{pages.folder}/basket">Back to the basket' in stale.text) == (409, True)
    assert pages.roll_back(server="other:1/0", plan=fields["plan"]).status == 409
    assert (bench.redis.get("a"), bench.redis.get("b"), change_count(bench)) == (b"one", b"new", count)


def test_an_unreachable_server_is_reported(bench: EditBench, pages: ReviewProcess) -> None:
    """Without the server the page explains why there is no plan."""
    identity = ServerIdentity(host="127.0.0.1", port=1, redacted_url="redis://127.0.0.1:1/0")
    session = bench.journal.begin_session(SessionMetadata(identity, mountpoint="/mnt"))
    writer = bench.key_writer
    bench.key_writer = KeyWriter(bench.server, bench.journal, session)
    try:
        id = save(bench, b"elsewhere", b"v")
    finally:
        bench.key_writer = writer
    page = fill(pages, id)
    assert "Plan on 127.0.0.1:1/0" in page
    assert 'class="problem"' in page
    assert "Roll back…" not in page


def test_what_was_never_applied_is_no_plan(bench: EditBench, pages: ReviewProcess) -> None:
    """A refused change in the basket is explained; so are unknown ones and words that are none."""
    with pytest.raises(ConflictError):
        save(bench, b"a", b"edit", precondition=Precondition.from_bytes(b"other"))
    assert "was never applied" in fill(pages, str(bench.last_change.id))
    pages.post("/basket", clear="1")
    assert "there is no change 999999" in fill(pages, "999999")
    assert pages.post("/basket", add="template/welcome.html").status == 400
    pages.post("/basket", clear="1")
    for number in range(MAX_WORDS):
        assert pages.post("/basket", add=str(number)).status == 204
    assert pages.post("/basket", add="100000").status == 400


# -- edits that were refused -----------------------------------------------------------------------------------------


def refuse(bench: EditBench) -> tuple[str, str]:
    """Save over a change of another client; return the path of the page that compares, and the ID."""
    bench.redis.set("page", "<p>theirs</p>\nsame\n")
    with pytest.raises(ConflictError):
        save(bench, b"page", b"<p>mine</p>\nsame\n", precondition=Precondition.from_bytes(b"<p>base</p>\nsame\n"))
    bench.journal.flush()
    id = str(bench.last_change.id)
    return f"/changes/{id}/apply", id


def reviewed(reply: Reply) -> str:
    """Return the field of the form that names the state that was compared."""
    return reply.text.partition('name="reviewed" value="')[2].partition('"')[0]


def test_a_refused_edit_is_compared_and_applied(bench: EditBench, pages: ReviewProcess) -> None:
    """The page compares the edit with the key as it was and as it is; its button writes the edit, journaled."""
    path, id = refuse(bench)
    assert path in pages.get(f"{pages.folder}/changes/{id}").text
    reply = pages.get(pages.folder + path)
    assert "<del>theirs</del>" in reply.text
    assert "<ins>mine</ins>" in reply.text
    assert "The key is as it was" in reply.text
    done = pages.post(path, reviewed=reviewed(reply))
    assert (done.status, bench.redis.get("page")) == (200, b"<p>mine</p>\nsame\n")
    assert (bench.last_change.op, bench.last_change.applies) == ("apply", int(id))


def test_an_edit_is_not_written_over_what_was_not_compared(bench: EditBench, pages: ReviewProcess) -> None:
    """If the key changes again, the page wants a check mark; if it changes after that, nothing is written."""
    path, _ = refuse(bench)
    first = reviewed(pages.get(pages.folder + path))
    bench.redis.set("page", "changed again\n")
    assert pages.post(path, reviewed=first).status == 409
    refusal = pages.post(path, reviewed=first, force="1")
    assert refusal.status == 409
    assert f'<a href="{pages.folder}{path}">Compare the edit with the key as it is now</a>' in refusal.text
    reply = pages.get(pages.folder + path)
    assert "The key has changed again" in reply.text
    assert [text in reply.text for text in ("theirs", "changed again", "mine")] == [True] * 3
    assert "Then, now in Redis, and the edit" in reply.text
    assert pages.post(path, reviewed=reviewed(reply)).status == 409
    assert bench.redis.get("page") == b"changed again\n"
    assert pages.post(path, reviewed=reviewed(reply), force="1").status == 200
    assert bench.redis.get("page") == b"<p>mine</p>\nsame\n"


def test_only_what_was_not_written_can_be_applied(bench: EditBench, pages: ReviewProcess) -> None:
    """An applied change has no such page."""
    id = save(bench, b"a", b"1")
    assert pages.get(f"{pages.folder}/changes/{id}/apply").status == 400
    assert pages.post(f"/changes/{id}/apply").status == 400


def test_a_long_rollback_can_be_stopped_and_resumed(bench: EditBench, server: RedisServer) -> None:
    """It has a page of its progress; its button and SIGINT end it after a batch, and the rest can be rolled back."""
    ids, batch = create_keys(bench, 4 * MAX_CHANGES_PER_BATCH + 1), MAX_CHANGES_PER_BATCH
    with Proxy(server.socket_path, tcp=True) as proxy:
        options = ("--allow-rollback", "--url", f"redis://127.0.0.1:{proxy.port}/0", "--timeout", "60")

        def begin(process: ReviewProcess) -> dict[str, str]:
            """Roll back what is left, until the second batch hangs; return the fields of the form."""
            left = bench.redis.dbsize()
            process.post("/basket", add=f"{ids[0]}-{ids[-1]}")
            fields = confirm(bench, process)[1]
            proxy.inject("delay", "EXEC", seconds=3, skip=1, times=1)
            reply = process.post("/rollback", **fields)
            assert (reply.status, reply.headers["Location"]) == (303, f"{process.folder}/rollback/progress")
            wait_until(lambda: process.read_rolled_back() == batch)
            proxy.freeze()
            assert bench.redis.dbsize() == left - batch
            return fields

        with ReviewProcess(bench.journal.path, *options) as process:
            process.open()
            assert process.get(f"{process.folder}/rollback/progress").status == 404
            assert process.post("/rollback/stop").status == 404
            fields = begin(process)
            assert f"Rolling back: {batch} of {4 * batch + 1:,} changes" in read_progress(process)
            assert '<noscript><meta http-equiv="refresh"' in read_progress(process)
            state = json.loads(process.get(f"{process.folder}/rollback/progress.json").body)
            assert (state["running"], state["done"], state["total"]) == (True, batch, 4 * batch + 1)
            assert process.post("/rollback", **fields).status == 409  # one at a time
            assert process.post("/rollback/stop").status == 303
            proxy.thaw()
            wait_until(lambda: "the rest is left in the basket" in read_progress(process))
            assert f"{2 * batch} changes rolled back" in read_progress(process)
            assert bench.redis.dbsize() == 2 * batch + 1
            assert "The basket is empty" not in process.get(f"{process.folder}/basket").text
        with ReviewProcess(bench.journal.path, *options) as process:
            process.open()
            begin(process)
            process.process.send_signal(signal.SIGINT)
            wait_until(lambda: not is_served(process))
            assert process.process.poll() is None  # it waits for the batch
            proxy.thaw()
            assert process.process.wait(TIMEOUT_SECONDS) == 0
    assert bench.redis.dbsize() == 1
    assert bench.journal.get_session(bench.last_change.session_id).ended_at is not None
    with ReviewProcess(bench.journal.path, "--allow-rollback") as process:
        process.open()
        process.post("/basket", add=f"{ids[0]}-{ids[-1]}")
        reply = process.roll_back(**confirm(bench, process)[1])
        assert "1 change rolled back" in reply.text
        assert "The basket is empty" in process.get(f"{process.folder}/basket").text
    assert bench.redis.dbsize() == 0


def is_served(pages: ReviewProcess) -> bool:
    """Return whether the pages can be requested."""
    try:
        return read_progress(pages) != ""
    except OSError:
        return False


def read_progress(pages: ReviewProcess) -> str:
    """Return the page of the newest rollback."""
    return pages.get(f"{pages.folder}/rollback/progress").text


# -- attacks ---------------------------------------------------------------------------------------------------------


def test_forged_forms_change_nothing(bench: EditBench, pages: ReviewProcess) -> None:
    """Without the token of the pages, their origin, or the type of a form, no form is accepted."""
    bench.redis.set("a", "1")
    fill(pages, save(bench, b"a", b"one"))
    apply_path, id = refuse(bench)
    fields = confirm(bench, pages)[1]
    state = reviewed(pages.get(pages.folder + apply_path))
    forms = {"/basket": {"clear": "1"}, "/rollback": fields, "/rollback/stop": {}, apply_path: {"reviewed": state}}
    count, origin = change_count(bench), f"http://{pages.host}"
    for path, values in forms.items():
        for csrf in ("", "x", pages.csrf_token[:-1], pages.csrf_token + "x", "\ud800"):
            body = urlencode({**values, "csrf": csrf}, errors="surrogatepass").encode()
            reply = pages.request("POST", pages.folder + path, body, origin=origin, content_type=FORM)
            assert reply.status == 403
        right = urlencode({**values, "csrf": pages.csrf_token}).encode()
        for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {}, {"origin": origin, "cookie": None}):
            assert pages.request("POST", pages.folder + path, right, content_type=FORM, **headers).status == 403
        for kind in ("text/plain", "application/json", "multipart/form-data", ""):
            assert pages.request("POST", pages.folder + path, right, origin=origin, content_type=kind).status == 415
        query = f"{pages.folder}{path}?{right.decode()}"
        pages.get(query)  # no GET changes anything
        large = right + b"&x=" + b"x" * MAX_FORM_BYTES
        assert pages.request("POST", pages.folder + path, large, origin=origin, content_type=FORM).status == 413
    for back in ("//evil.example/", "http://evil.example/", f"/{pages.folder}/../x\r\nSet-Cookie: a=b", "/basket"):
        assert pages.post("/basket", back=back).status == 400
    assert (bench.redis.get("a"), change_count(bench)) == (b"one", count)
    assert bench.redis.get("page") == b"<p>theirs</p>\nsame\n"
    assert "The basket is empty" not in fill(pages)
    assert id


def test_without_permission_nothing_is_changed(bench: EditBench, pages: ReviewProcess) -> None:
    """Without --allow-rollback the plan has no button, and even a right form changes nothing."""
    bench.redis.set("a", "1")
    id = save(bench, b"a", b"one")
    apply_path, _ = refuse(bench)
    fill(pages, id)
    fields = confirm(bench, pages)[1]
    state = reviewed(pages.get(pages.folder + apply_path))
    count = change_count(bench)
    with ReviewProcess(Path(bench.journal.path)) as reading:
        reading.open()
        page = fill(reading, id)
        assert "restore string of 1 bytes" in page
        assert "Roll back…" not in page
        assert "Write this edit" in pages.get(pages.folder + apply_path).text
        assert "Write this edit" not in reading.get(reading.folder + apply_path).text
        assert reading.roll_back(**fields).status == 403
        assert reading.post(apply_path, reviewed=state).status == 403
    assert (bench.redis.get("a"), change_count(bench)) == (b"one", count)
