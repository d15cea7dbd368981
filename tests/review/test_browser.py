"""The pages of `redisfuse review` in a real browser: a whole story, attacks, keys, accessibility, many changes."""

import contextlib
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from playwright.sync_api import Browser, expect

from redisfuse.journal.journal import Journal
from redisfuse.journal.models import ABSENT, ChangeIntent, State
from redisfuse.journal.processes import CallingProcess
from redisfuse.transactions.rollback import MAX_CHANGES_PER_BATCH
from tests.editors.programs import terminal, wait_for_exit
from tests.review.conftest import HOSTILE, create_keys
from tests.support import review_pictures
from tests.support.browser import TIMEOUT_MS, ReviewBrowser, start_browser
from tests.support.edit_bench import EditBench
from tests.support.journals import INFO
from tests.support.mounts import mount_server, wait_until
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.review_process import TIMEOUT_SECONDS, ReviewProcess

expect.set_options(timeout=TIMEOUT_MS)

MANY_CHANGES = 100_000
COPIED_CHANGES = 1000
MAX_FIRST_PAINT_MS = 1000

ADD_TO_BASKET = """word => fetch(location.pathname.replace("changes", "basket"), {method: "POST",
    body: new URLSearchParams({add: word, csrf: document.querySelector("meta[name=csrf]").content})})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start the browser."""
    with start_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def process(journal_path: Path) -> Iterator[ReviewProcess]:
    """Serve the journal with all kinds of changes. The browser exchanges the token."""
    with ReviewProcess(journal_path, "--allow-rollback") as process:
        yield process


@pytest.fixture(scope="module")
def review(browser: Browser, process: ReviewProcess) -> ReviewBrowser:
    """Open those pages."""
    return ReviewBrowser.open(browser, process)


def test_a_whole_story(browser: Browser, server: RedisServer, tmp_path: Path) -> None:
    """An edit with vim is found, compared, put into the basket with keys, rolled back, and gone from Redis."""
    client = server.client()
    client.set("story:greeting", "Hello you\n")
    client.set("story:other", "1\n")
    with mount_server(tmp_path, server.tcp_url(), write=True) as mount:
        file = mount.path / "story" / "greeting"
        vim = terminal(["vim", "-u", "NONE", "-n", str(file)], file)
        vim.send(":%s/Hello/Welcome/\r:wq\r")
        wait_for_exit(vim)
        assert client.get("story:greeting") == b"Welcome you\n"
        (mount.path / "story" / "other").write_text("2\n")
        assert client.get("story:other") == b"2\n"
        with ReviewProcess(mount.journal, "--allow-rollback") as process:
            opened = ReviewBrowser.open(browser, process)
            page = opened.page
            page.keyboard.press("/")
            page.keyboard.type("story/greeting")
            page.keyboard.press("Enter")
            expect(page.locator(".row")).to_have_count(1)
            page.wait_for_load_state()  # the page listens to keys once its script has run
            page.keyboard.press("j")
            page.keyboard.press("x")
            expect(page.locator("#basket-count")).to_have_text("1")
            page.keyboard.press("Enter")
            expect(page.locator("del")).to_have_text("Hello")
            expect(page.locator("ins")).to_have_text("Welcome")
            page.get_by_role("link", name="Basket").click()
            expect(page.get_by_text("1 change of 1 key")).to_be_visible()
            # While the page is open, another client changes the key: the plan follows.
            client.set("story:greeting", "Servus\n")
            expect(page.get_by_text("1 conflict")).to_be_visible()
            client.set("story:greeting", "Welcome you\n")
            page.get_by_role("link", name="Roll back…").click()
            page.get_by_role("button", name=f"Roll back 1 key on 127.0.0.1:{server.port}/0").click()
            expect(page.get_by_role("status").first).to_contain_text("1 change rolled back")
            assert (client.get("story:greeting"), client.get("story:other")) == (b"Hello you\n", b"2\n")
            wait_until(lambda: file.read_text() == "Hello you\n")
            assert opened.problems == []
            opened.context.close()


def test_a_rollback_shows_its_progress(browser: Browser, server: RedisServer, tmp_path: Path) -> None:
    """The bar moves without a reload; the rollback continues without the browser, and is shown without scripts."""
    with SlowRollback(browser, server, tmp_path, batches=4) as slow:
        page, text = slow.page, slow.page.locator("#progress-text")
        slow.begin()
        expect(text).to_have_text("Rolling back: 250 of 1,000 changes")
        page.evaluate("window.isSame = true")
        assert slow.opened.find_barriers() == []
        page.set_viewport_size({"width": 400, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        slow.execute_batch()
        expect(text).to_have_text("Rolling back: 500 of 1,000 changes")
        assert page.evaluate("[isSame, document.getElementById('progress-bar').value]") == [True, 500]
        plain = browser.new_context(java_script_enabled=False)
        plain.add_cookies(slow.opened.context.cookies())  # type: ignore[arg-type]
        slow.opened.context.close()
        other = plain.new_page()
        other.goto(f"http://{slow.process.host}{slow.process.folder}/rollback/progress")
        expect(other.get_by_role("progressbar", name="Rolling back")).to_be_visible()
        slow.proxy.thaw()
        expect(other.get_by_role("heading", name="Done")).to_be_visible()  # the page loads itself again
        expect(other.get_by_role("status").first).to_contain_text("1,000 changes rolled back")
        plain.close()
        assert slow.count_keys() == 0
        assert slow.opened.problems == []


def test_a_rollback_that_ends_or_loses_its_server(browser: Browser, server: RedisServer, tmp_path: Path) -> None:
    """At its end the page becomes the report; if the server of the pages ends, the page says how to continue."""
    with SlowRollback(browser, server, tmp_path, batches=4) as slow:
        slow.begin()
        slow.page.get_by_role("button", name="Stop").click()
        slow.proxy.thaw()
        expect(slow.page.get_by_role("heading", name="Not all was done")).to_be_visible()
        assert slow.count_keys() == 2 * MAX_CHANGES_PER_BATCH
        slow.begin()
        expect(slow.page.get_by_role("progressbar")).to_be_visible()
        slow.process.process.send_signal(signal.SIGINT)
        expect(slow.page.get_by_text(f"redisfuse rollback {slow.word}")).to_be_visible()
        slow.proxy.thaw()
        assert slow.process.process.wait(TIMEOUT_SECONDS) == 0
        assert slow.count_keys() == 0


class SlowRollback:
    """A rollback in a browser, which hangs after the first of its batches."""

    def __init__(self, browser: Browser, server: RedisServer, folder: Path, *, batches: int) -> None:
        self._stack = contextlib.ExitStack()
        self._bench = EditBench.create(folder / "state", server)
        self._stack.callback(self._bench.close)
        ids = create_keys(self._bench, batches * MAX_CHANGES_PER_BATCH)
        self.word = f"{ids[0]}-{ids[-1]}"
        self.proxy = self._stack.enter_context(Proxy(server.socket_path, tcp=True))
        url = f"redis://127.0.0.1:{self.proxy.port}/0"
        options = ("--allow-rollback", "--url", url, "--timeout", "60")
        self.process = self._stack.enter_context(ReviewProcess(self._bench.journal.path, *options))
        self.opened = ReviewBrowser.open(browser, self.process)
        self.process.cookie = "; ".join(f"{one['name']}={one['value']}" for one in self.opened.context.cookies())
        self._stack.callback(self.opened.context.close)
        self.page = self.opened.page

    def begin(self) -> None:
        """Put the changes into the basket, and roll them back."""
        self.opened.visit("/changes").evaluate(ADD_TO_BASKET, self.word)
        self.opened.visit("/basket").get_by_role("link", name="Roll back…").click()
        self._delay_batch(
            lambda: self.page.get_by_role("button", name="Roll back").click(),
            skip=1,
        )

    def execute_batch(self) -> None:
        """Let one batch pass."""
        self._delay_batch(self.proxy.thaw, skip=0)

    def _delay_batch(self, work: Callable[[], None], *, skip: int) -> None:
        """Do some work, and hang when the next batch is executed."""
        done = 0 if skip else self.process.read_rolled_back()
        self.proxy.inject("delay", "EXEC", seconds=3, skip=skip, times=1)
        work()
        wait_until(lambda: self.process.read_rolled_back() == done + MAX_CHANGES_PER_BATCH)
        self.proxy.freeze()

    def count_keys(self) -> int:
        """Return the number of keys that are not rolled back."""
        return len(self._bench.redis.keys("many:*"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.proxy.thaw()
        self._stack.close()


def test_hostile_values_are_text(review: ReviewBrowser, ids: dict[str, int]) -> None:
    """No key or value runs a script, loads anything or breaks a page; each is visible as text."""
    for number in range(len(HOSTILE)):
        page = review.visit(f"/changes/{ids[f'hostile again {number}']}")
        assert page.evaluate("document.querySelectorAll('script, img, svg, iframe, object, textarea').length") == 1
        assert page.locator("table.diff, .differences").count()
    page = review.visit("/changes?keys=1")
    assert "<script>alert(1)</script>" in page.inner_text("main")
    assert "<img src=x onerror=alert(2)>" in page.inner_text("main")
    assert page.evaluate("window.frames.length") == 0
    assert review.problems == []


def test_the_policy_is_in_force(review: ReviewBrowser) -> None:
    """If markup did get into a page, its scripts, styles and requests would be refused."""
    page = review.context.new_page()
    page.goto(f"http://{review.process.host}{review.process.folder}/changes")
    page.evaluate(
        """() => {
            window.ran = [];
            window.refused = new Set();
            document.addEventListener("securitypolicyviolation", event => refused.add(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.ran.push('inline')";
            document.body.append(script);
            const block = document.createElement("div");
            block.innerHTML = '<img src="x" onerror="window.ran.push(1)"><p style="color: red">a</p>';
            document.body.append(block);
            fetch("http://127.0.0.1:1/").then(() => ran.push("fetched"), () => {});
        }"""
    )
    refused = {"script-src-elem", "script-src-attr", "style-src-attr", "connect-src"}
    # Not wait_for_function: it evaluates a string in the page, which the policy refuses, too.
    wait_until(lambda: set(page.evaluate("[...refused]")) == refused)
    assert page.evaluate("ran") == []
    page.close()


def test_keys_move_and_pick(review: ReviewBrowser, ids: dict[str, int]) -> None:
    """j and k move between rows, x picks, / filters, ? explains; in a field they are letters."""
    page = review.visit("/changes?keys=1")
    words = page.locator(".row .word").all_inner_texts()
    for key, index in (("j", 0), ("j", 1), ("j", 2), ("k", 1)):
        page.keyboard.press(key)
        focused = page.evaluate("document.activeElement.closest('.row').querySelector('.word').textContent")
        assert focused == words[index]
    page.keyboard.press("x")
    row = page.locator(".row").nth(1)
    expect(row.get_by_role("button")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("x")
    expect(row.get_by_role("button")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("/")
    page.keyboard.type("jkx?")
    expect(page.locator("#select")).to_have_value("jkx?")
    page.goto(f"http://{review.process.host}{review.process.folder}/changes/{ids['text']}")
    page.keyboard.press("x")
    expect(page.locator("#basket-count")).to_have_text("1")
    page.keyboard.press("x")
    expect(page.locator("#basket-count")).to_have_text("0")
    assert review.problems == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 400)])
def test_everybody_can_use_every_page(review: ReviewBrowser, ids: dict[str, int], scheme: str, width: int) -> None:
    """On each page axe-core finds nothing serious, in both colours, and nothing is wider than the window."""
    page = review.page
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 800})
    review.process.cookie = "; ".join(f"{one['name']}={one['value']}" for one in review.context.cookies())
    review.visit("/changes")
    page.evaluate(ADD_TO_BASKET, str(ids["json"]))
    barriers: dict[str, list[str]] = {}
    paths = ["/changes", "/changes?keys=1&op=write", "/changes?op=x", "/sessions", "/basket", "/nothing"]
    paths += [f"/changes/{ids[name]}" for name in ("text", "json", "bytes", "collection", "refused", "hostile 0")]
    paths += [f"/changes/{ids['text']}/history", f"/changes/{ids['refused']}/apply", f"/changes/{ids['stale']}/apply"]
    for path in paths:
        review.visit(path)
        barriers[path] = review.find_barriers()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    page.get_by_role("link", name="Basket").click()
    page.get_by_role("link", name="Roll back…").click()
    barriers["confirmation"] = review.find_barriers()
    page.keyboard.press("?")
    barriers["keys"] = review.find_barriers()
    assert not any(barriers.values()), barriers
    assert review.problems == []


def test_a_refused_edit_is_compared_three_ways(review: ReviewBrowser, ids: dict[str, int]) -> None:
    """Three states are side by side; in a narrow window each differing line is below the others, with its side."""
    page = review.page
    page.set_viewport_size({"width": 1200, "height": 800})
    review.visit(f"/changes/{ids['stale']}/apply")
    row = page.locator(".three tbody tr").nth(1)
    cells = row.locator("td.line")
    assert cells.all_inner_texts() == ["two", "2", "zwei"]
    boxes = [cell.bounding_box() for cell in cells.all()]
    assert len({box["y"] for box in boxes if box}) == 1
    lefts = [box["x"] for box in boxes if box]
    assert len(lefts) == 3
    assert lefts == sorted(lefts)
    expect(row.locator(".side").first).to_be_hidden()
    page.set_viewport_size({"width": 400, "height": 800})
    tops = [box["y"] for box in (cell.bounding_box() for cell in cells.all()) if box]
    assert len(set(tops)) == 3
    assert tops == sorted(tops)
    assert row.locator(".side").all_inner_texts() == ["then ", "now ", "edit "]
    same = page.locator(".three tbody tr").first.locator("td.line")
    assert [cell.is_visible() for cell in same.all()] == [False, True, False]
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def make_many_changes(path: Path, count: int) -> None:
    """Make a journal of so many changes, 20 in an operation: the first thousand, and copies of their rows."""
    value = State.from_value(b"value")
    with Journal.open(path, create=True) as journal:
        session = journal.begin_session(INFO)
        for start in range(0, COPIED_CHANGES, 20):
            process = CallingProcess(start + 1, 1, "sh")
            keys = [b"key:%d" % number for number in range(start, start + 20)]
            intents = [ChangeIntent(key, "write", key, None, ABSENT, value, process=process) for key in keys]
            journal.record_outcome(journal.record_intents(session, intents, grouping=[1] * 20), "applied")
    with contextlib.closing(sqlite3.connect(path)) as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(changes)")]
        shifted = [f"{name} + :shift" if name in ("id", "group_id", "operation") else f'"{name}"' for name in columns]
        names = ", ".join(f'"{name}"' for name in columns)
        copy = f"INSERT INTO changes ({names}) SELECT {', '.join(shifted)} FROM changes WHERE id <= {COPIED_CHANGES}"
        for shift in range(COPIED_CHANGES, count, COPIED_CHANGES):
            database.execute(copy, {"shift": shift})
        database.commit()


def measure_paint(review: ReviewBrowser, path: str) -> float:
    """Return when a page was first painted, in ms after the request; 0 if it is not yet."""
    page = review.visit(path)
    paint = "performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)[0] ?? 0"
    return float(page.evaluate(f"new Promise(done => requestAnimationFrame(() => setTimeout(() => done({paint}))))"))


def test_many_changes_are_quick(browser: Browser, tmp_path: Path) -> None:
    """Of 100 000 changes, the first page of each list is painted within a second, and has as few rows as any."""
    path = tmp_path / "state" / "journal.db"
    make_many_changes(path, MANY_CHANGES)
    with ReviewProcess(path) as process:
        opened = ReviewBrowser.open(browser, process)
        middle = MANY_CHANGES // 2
        for query in ("", "?keys=1", f"?before={middle}", "?key=key:77*"):
            # Another process can delay a paint, so the quickest of several counts.
            wait_until(lambda query=query: 0 < measure_paint(opened, f"/changes{query}") < MAX_FIRST_PAINT_MS, 60)
            expect(opened.page.locator(".row")).to_have_count(50)
        page = opened.visit(f"/changes/{middle}/history")
        assert page.locator(".row .word").first.inner_text() == str(MANY_CHANGES)
        opened.context.close()


def test_the_pictures_of_the_manual_are_small() -> None:
    """The page of the documentation has a picture of each page, light and dark, and each is small."""
    files = {f"review-{name}-{scheme}.png" for name in review_pictures.PICTURES for scheme in ("light", "dark")}
    assert {path.name for path in review_pictures.FOLDER.iterdir()} == files
    text = (review_pictures.FOLDER.parent / "review.md").read_text()
    for name in files:
        assert f"(pictures/{name})" in text
        assert (review_pictures.FOLDER / name).stat().st_size <= review_pictures.MAX_BYTES, name
