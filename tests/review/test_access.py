"""Attacks on `redisfuse review`: each protection holds against real requests to the real process."""

import os
import re
import signal
import stat
import sys
import urllib.parse
from pathlib import Path

import pexpect
import psutil
import pytest

from tests.review.conftest import HOSTILE
from tests.support.mounts import wait_until
from tests.support.review_process import Reply, ReviewProcess

ELEMENTS = frozenset(
    [
        "a",
        "body",
        "button",
        "code",
        "col",
        "colgroup",
        "dd",
        "del",
        "details",
        "dialog",
        "div",
        "dl",
        "dt",
        "fieldset",
        "form",
        "h1",
        "h2",
        "h3",
        "head",
        "header",
        "html",
        "input",
        "ins",
        "kbd",
        "label",
        "legend",
        "li",
        "link",
        "main",
        "meta",
        "nav",
        "ol",
        "p",
        "script",
        "section",
        "span",
        "strong",
        "summary",
        "table",
        "tbody",
        "td",
        "th",
        "thead",
        "time",
        "title",
        "tr",
        "ul",
    ]
)
COOKIES = (None, "", "redisfuse-review=", "redisfuse-review=x", "redisfuse-review=\xff", "=;;")
HOSTS = ("evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "[::1]:{port}", "", None)
PAGES = ("/", "/changes", "/changes?keys=1", "/changes/1", "/changes/1/history", "/changes/1/new", "/sessions")
SECRETS = ("alert", "document", "zset")  # parts of the journal


def assert_reveals_nothing(reply: Reply, status: int) -> None:
    """Check that a request was refused, without anything of the journal, and sealed like every reply."""
    assert reply.status == status
    assert not [secret for secret in SECRETS if secret in reply.text]
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]


# -- who may open the pages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*PAGES, "/static/review.css"])
@pytest.mark.parametrize(
    "cookie", [None, "", "redisfuse-review=", "redisfuse-review=x", "redisfuse-review=\xff", "=;;"]
)
def test_without_the_cookie_nothing_is_shown(pages: ReviewProcess, path: str, cookie: str | None) -> None:
    """No page, and no file of the pages, is served without the cookie, or with another one."""
    assert_reveals_nothing(pages.get(pages.folder + path, cookie=cookie), 403)


def test_the_token_works_once(journal_path: Path) -> None:
    """A wrong token opens nothing; the right one does once; then it is worthless, also for a program that saw it."""
    with ReviewProcess(journal_path) as process:
        for token in ("", "x", urllib.parse.quote("é")):
            assert_reveals_nothing(process.get(f"{process.folder}/open?token={token}"), 403)
        assert process.request("HEAD", process.first_path).status == 403
        assert process.request("POST", process.first_path, b"", origin=f"http://{process.host}").status == 403
        reply = process.open()
        assert (reply.status, process.get(f"{process.folder}/changes").status) == (200, 200)
        # Scripts can't read the cookie, other sites can't send it, and other servers on this host don't receive it.
        attributes = reply.headers["Set-Cookie"].split("; ")[1:]
        assert attributes == [f"Path={process.folder}/", "HttpOnly", "SameSite=Strict"]
        assert len(process.folder) > 12
        assert len(process.cookie.partition("=")[2]) > 40
        assert_reveals_nothing(process.get(process.first_path, cookie=None), 403)
        assert_reveals_nothing(process.get(process.first_path), 403)


def test_only_loopback_is_bound(pages: ReviewProcess) -> None:
    """The process listens on 127.0.0.1 and on nothing else."""
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(pages.process.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


@pytest.mark.parametrize("host", HOSTS)
def test_another_name_of_the_host_is_refused(pages: ReviewProcess, host: str | None) -> None:
    """A name that an attacker's DNS resolves to 127.0.0.1 (DNS rebinding) gets no page, even with the cookie."""
    reply = pages.get(f"{pages.folder}/changes", host=host and host.format(port=pages.port))
    assert reply.status in (400, 421)
    assert "zset" not in reply.text
    assert pages.get(f"{pages.folder}/changes", host=f"localhost:{pages.port}").status == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites_can_load_nothing(pages: ReviewProcess, site: str) -> None:
    """A page of another site, or of another port of this host, can embed no page, image or script of these."""
    for path in (*PAGES, "/static/review.css"):
        assert_reveals_nothing(pages.get(pages.folder + path, sec_fetch_site=site), 403)


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1", "http://localhost:1", "null", None])
def test_forms_of_other_origins_are_refused(pages: ReviewProcess, origin: str | None) -> None:
    """A request that changes anything needs the origin of these pages."""
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert_reveals_nothing(pages.request(method, f"{pages.folder}/changes", b"", origin=origin), 403)


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd", "/static/"]
)
def test_no_other_file_is_served(pages: ReviewProcess, path: str) -> None:
    """The folder of styles leads to no other file."""
    reply = pages.get(pages.folder + path)
    assert reply.status in (404, 405)
    assert "import" not in reply.text


def test_the_address_is_in_no_argument_list(journal_path: Path, tmp_path: Path) -> None:
    """The browser gets a file that only the user can read: other users see the arguments of processes."""
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(
        f'#!/bin/sh\nfile="${{1#file://}}"\n'
        f'{{ echo "$1"; stat -c %a "$(dirname "$file")"; cat "$file"; }} > {seen}.part; mv {seen}.part {seen}\n'
    )
    browser.chmod(0o700)
    environment = os.environ | {"BROWSER": str(browser), "DISPLAY": ":99", "TERM": "xterm"}
    words = ["-m", "redisfuse.cli.main", "review", "--journal-file", str(journal_path)]
    child = pexpect.spawn(sys.executable, words, env=environment, encoding="utf-8", timeout=60)
    try:
        child.expect(r"(http://127\.0\.0\.1:\d+/\S+)")
        assert child.match
        token = child.match[1].partition("token=")[2]
        opened = wait_until(lambda: seen.read_text() if seen.exists() else "")
        argument, mode, *page = opened.splitlines()
        assert token not in argument
        assert argument.startswith("file://")
        assert mode == "700"
        assert token in "\n".join(page)
        child.sendintr()
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
        assert not Path(argument.removeprefix("file://")).exists()
    finally:
        child.close(force=True)


def test_a_signal_ends_it(journal_path: Path) -> None:
    """SIGTERM ends the server with exit status 0."""
    with ReviewProcess(journal_path) as process:
        assert process.stop(signal.SIGTERM) == 0


# -- what the pages contain ------------------------------------------------------------------------------------------


def list_tags(page: str) -> list[str]:
    """Return the tags of a page without the values of attributes."""
    return [re.sub(r'"[^"]*"', "", tag) for tag in re.findall(r"<[^>]*>", page)]


def linked_pages(pages: ReviewProcess) -> dict[str, Reply]:
    """Return all pages that links lead to, from the first one."""
    found: dict[str, Reply] = {}
    wanted = [f"{pages.folder}/changes", f"{pages.folder}/changes?keys=1", f"{pages.folder}/sessions"]
    while wanted:
        path = wanted.pop()
        reply = found[path] = pages.get(path)
        if not reply.headers["Content-Type"].startswith("text/html"):
            continue
        links = re.findall(r'href="([^"#]+)"', reply.text)
        wanted += {link.replace("&amp;", "&") for link in links} - found.keys() - set(wanted)
    return found


def test_hostile_keys_and_values_are_text(pages: ReviewProcess, ids: dict[str, int]) -> None:
    """No page has an element, an attribute, a script, a control character or a template that a key or value made."""
    found = linked_pages(pages)
    assert len(found) > 3 * len(HOSTILE)
    for path, reply in found.items():
        assert reply.status == 200, path
        if not reply.headers["Content-Type"].startswith("text/html"):
            continue
        text = reply.text
        names = list_tags(text)
        assert not [name for name in names if re.search(r"alert|onerror|onload|onmouseover|javascript", name)], path
        assert {name.strip("</>").split()[0].lower() for name in names if "!" not in name} <= ELEMENTS, path
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text), path
    page = found[f"{pages.folder}/changes/{ids['hostile 0']}"].text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}{% raw %}" in found[f"{pages.folder}/changes/{ids['hostile 5']}"].text
    assert r"\x1b[31mred" in found[f"{pages.folder}/changes/{ids['hostile 6']}"].text


def test_every_reply_is_sealed(pages: ReviewProcess) -> None:
    """Each reply, errors and files too, has a policy without inline scripts or styles, and no page has any."""
    paths = [pages.folder + path for path in PAGES]
    paths += [f"{pages.folder}/nothing", f"{pages.folder}/changes?op=x", f"{pages.folder}/static/review.css", "/"]
    for path in paths:
        reply = pages.get(path)
        policy = dict(part.strip().split(" ", 1) for part in reply.headers["Content-Security-Policy"].split(";"))
        assert policy.pop("default-src") == policy.pop("base-uri") == policy.pop("frame-ancestors") == "'none'"
        assert set(policy.values()) == {"'self'"}
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["X-Frame-Options"] == "DENY"
        assert reply.headers["Cache-Control"] == "no-store"
        assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Server" not in reply.headers
        if reply.headers.get("Content-Type", "").startswith("text/html"):
            for tag in list_tags(reply.text):
                assert not re.search(r"<style|\sstyle=|\son[a-z]+=", tag), tag
            assert not re.search("<script(?! src=)", reply.text)
            assert not re.search(r'(?:src|href|action)="(?!/)', reply.text.replace('href="#main"', ""))


def test_a_download_is_never_rendered(pages: ReviewProcess, ids: dict[str, int]) -> None:
    """A value is sent as a file, byte by byte, with a type that no browser interprets."""
    for number, hostile in enumerate(HOSTILE):
        reply = pages.get(f"{pages.folder}/changes/{ids[f'hostile {number}']}/new")
        assert reply.body == hostile
        assert reply.headers["Content-Type"] == "application/octet-stream"
        assert reply.headers["Content-Disposition"].startswith("attachment; ")
    assert pages.get(f"{pages.folder}/changes/{ids['hostile 0']}/prior").status == 404
    assert pages.get(f"{pages.folder}/changes/{ids['hostile 0']}/other").status == 404


def test_the_journal_is_not_written(journal_path: Path) -> None:
    """The process has the database open for reading only, and its files don't change."""
    before = journal_path.read_bytes()
    with ReviewProcess(journal_path) as process:
        process.open()
        for path in PAGES:
            process.get(process.folder + path)
        for descriptor in Path(f"/proc/{process.process.pid}/fd").iterdir():
            if os.path.realpath(descriptor) == str(journal_path):
                flags = int(
                    Path(str(descriptor).replace("/fd/", "/fdinfo/")).read_text().split("flags:")[1].split()[0], 8
                )
                assert flags & os.O_ACCMODE == os.O_RDONLY
    assert journal_path.read_bytes() == before
    assert stat.S_IMODE(journal_path.stat().st_mode) == 0o600
