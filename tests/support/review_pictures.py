"""The pictures in redisfuse/docs/review.md: each page of `redisfuse review`, light and dark.

`python -m tests.support.review_pictures` writes them, from a mount of a private server that is edited as the page says.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from tests.support.browser import ReviewBrowser, start_browser
from tests.support.mounts import mount_server, wait_until
from tests.support.redis_server import RedisServer
from tests.support.review_process import ReviewProcess

FOLDER = Path(__file__).parents[2] / "redisfuse" / "docs" / "pictures"
MAX_BYTES = 30_000  # of a picture
COLOURS = 48
SIZE = {"width": 860, "height": 560}

Step = Callable[[ReviewBrowser], Page]


def _edit(mount: Path, server: RedisServer) -> None:
    """Make the changes of the pictures."""
    client = server.client()
    for program in ("s/Hello/Welcome/", "s/ready/ready now/"):
        subprocess.run(["sed", "-i", program, str(mount / "template" / "welcome.html")], check=True)
    subprocess.run(["sed", "-i", 's/1200/1300/; s/"new"/"new", "gift"/', str(mount / "product" / "mug")], check=True)
    (mount / "config" / "site.currency").write_text("EUR, USD")
    subprocess.run(["rm", "-r", str(mount / "session")], check=True)
    file = mount / "feature" / "new-checkout"
    with contextlib.suppress(OSError), file.open("r+") as opened:  # ESTALE: another client changes it meanwhile
        opened.read()
        client.set("feature:new-checkout", "75%\n")
        opened.seek(0)
        opened.write("50%\n")
    client.set("template:welcome.html", client.get("template:welcome.html") + b"<!-- by another client -->\n")


def _visit(path: str) -> Step:
    return lambda review: review.visit(path)


def _fill_basket(review: ReviewBrowser) -> Page:
    page = review.visit("/changes?op=remove&op=write")
    for row in page.locator(".row").all():
        row.get_by_role("button").click()
    wait_until(lambda: int(page.locator("#basket-count").inner_text()) == page.locator(".pick").count())
    return review.visit("/basket")


def _confirm(review: ReviewBrowser) -> Page:
    page = review.visit("/basket")
    page.get_by_role("link", name="Roll back…").click()
    return page


def _find(path: str) -> Step:
    def step(review: ReviewBrowser) -> Page:
        page = review.visit(f"/changes?select={path}&keys=1")
        page.locator(".row a.path").first.click()
        return page

    return step


def _compare(review: ReviewBrowser) -> Page:
    page = review.visit("/changes?state=refused&keys=1")
    page.locator(".row a.path").first.click()
    page.get_by_role("link", name="Compare with Redis").click()
    return page


PICTURES: dict[str, Step] = {
    "changes": _visit("/changes"),
    "change": _find("product/mug"),
    "history": lambda review: _follow(_find("template/welcome.html")(review), "History of this key"),
    "sessions": _visit("/sessions"),
    "refused": _compare,
    "basket": _fill_basket,
    "confirmation": _confirm,
}
"""The steps that lead to each page, by the name of its picture."""


def _follow(page: Page, link: str) -> Page:
    page.get_by_role("link", name=link).click()
    return page


def write(folder: Path = FOLDER) -> None:
    """Take all pictures."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, RedisServer(tcp=True) as server, start_browser() as browser:
        client = server.client()
        client.set(
            "template:welcome.html",
            "<!doctype html>\n<h1>Hello {{ name }}</h1>\n<p>Your {{ plan }} plan is ready.</p>\n",
        )
        client.set("product:mug", '{\n  "name": "mug",\n  "cents": 1200,\n  "tags": ["new"]\n}\n')
        client.set("feature:new-checkout", "25%\n")
        client.hset("config:site", mapping={"title": "Acme", "currency": "EUR"})
        for number in range(1000, 1040):
            client.set(f"session:{number}", "{}")
        with mount_server(Path(temporary), server.tcp_url(), write=True) as mount:
            _edit(mount.path, server)
            with ReviewProcess(mount.journal, "--allow-rollback") as process:
                review = ReviewBrowser.open(browser, process, viewport=SIZE)
                wait_until(lambda: review.visit("/changes").locator(".row").count() >= 5)
                for name, step in PICTURES.items():
                    page = step(review)
                    for scheme in ("light", "dark"):
                        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                        page.evaluate("document.activeElement.blur()")
                        picture = Image.open(io.BytesIO(page.screenshot()))
                        file = folder / f"review-{name}-{scheme}.png"
                        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    write()
