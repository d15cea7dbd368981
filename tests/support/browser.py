"""Debian's chromium, driven by Playwright, which downloads none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import axe_playwright_python
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.support.review_process import ReviewProcess

TIMEOUT_MS = 60_000  # for one step, on a machine that is busy
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--font-render-hinting=none",
    "--disable-lcd-text",
)


@contextmanager
def start_browser() -> Iterator[Browser]:
    """Start chromium for the body of `with`."""
    program = shutil.which("chromium")
    assert program, "there is no chromium: `.ci/setup test` installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class ReviewBrowser:
    """A browser with the pages of a review, opened by the one-time token."""

    context: BrowserContext
    process: ReviewProcess
    page: Page
    problems: list[str] = field(default_factory=list)  # dialogs, errors of scripts, violations of the policy

    @classmethod
    def open(cls, browser: Browser, process: ReviewProcess, **options: Any) -> ReviewBrowser:
        """Open the printed address; `options` are those of Playwright's contexts."""
        context = browser.new_context(**options)
        context.set_default_timeout(TIMEOUT_MS)
        opened = cls(context, process, context.new_page())
        opened.page.on("dialog", lambda dialog: opened._note(f"dialog: {dialog.message}", dialog))
        opened.page.on("pageerror", lambda error: opened._note(f"error: {error}"))
        opened.page.on("console", lambda message: opened._note_message(message))
        opened.page.goto(process.url)
        opened.page.wait_for_url("**/changes*")
        opened.problems.clear()  # chromium requests /favicon.ico of the first page
        return opened

    def _note(self, text: str, dialog: Any = None) -> None:
        self.problems.append(text)
        if dialog is not None:
            dialog.dismiss()

    def _note_message(self, message: Any) -> None:
        if message.type == "error" and "the server responded with a status of" not in message.text:
            self.problems.append(f"console: {message.text}")

    def visit(self, path: str) -> Page:
        """Go to a page below the folder of the pages."""
        self.page.goto(f"http://{self.process.host}{self.process.folder}{path}")
        return self.page

    def find_barriers(self) -> list[str]:
        """Return the serious and critical findings of axe-core on this page."""
        self.page.evaluate(AXE)
        violations = self.page.evaluate("axe.run().then(results => results.violations)")
        return [
            f"{one['id']} ({one['impact']}): {node['html'][:200]}"
            for one in violations
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]
