"""Serves the pages on loopback, until it is interrupted."""

from __future__ import annotations

import contextlib
import html
import os
import socket
import tempfile
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import uvicorn

from redisfuse.errors import UsageError
from redisfuse.journal.journal import Journal
from redisfuse.review.access import AccessKeys
from redisfuse.review.app import create_app
from redisfuse.review.server_plans import ServerPlans
from redisfuse.transactions.write_session import ServerConnector

LOOPBACK = "127.0.0.1"
STOP_SECONDS = 30  # for which the end waits for requests

_OPENER = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={url}"><title>redisfuse</title></head></html>
"""


class ReviewServer:
    """A web server for one journal, bound to a port of loopback."""

    def __init__(
        self,
        journal: Journal,
        connector: ServerConnector,
        *,
        port: int = 0,
        session_id: int | None = None,
        allow_rollback: bool = False,
    ) -> None:
        """Bind a port; 0 is any free one. Raises UsageError.

        `session_id`: the first page has only the changes of this session. `allow_rollback`: pages may change keys.
        """
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((LOOPBACK, port))
            self._socket.listen()  # a browser that is too early waits
        except OSError as error:
            self._socket.close()
            raise UsageError(
                f"can't listen on {LOOPBACK}:{port} ({os.strerror(error.errno or 0)}); try another --port"
            ) from error
        self.port: int = self._socket.getsockname()[1]
        self._keys = AccessKeys()
        self._plans = ServerPlans(journal, connector)
        self._app = create_app(
            journal, self._keys, self._plans, port=self.port, session_id=session_id, allow_rollback=allow_rollback
        )

    @property
    def url(self) -> str:
        """The address that opens the pages, once."""
        return f"http://{LOOPBACK}:{self.port}{self._keys.first_path}"

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM.

        Then it raises that signal again, for the former handler.
        """
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            http="h11",
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        with contextlib.closing(self._socket):
            try:
                _StoppingServer(config, self._plans).run(sockets=[self._socket])
            finally:
                self._plans.wait()  # a rollback ends after its current batch; another Ctrl-C does not wait


class _StoppingServer(uvicorn.Server):
    """A server whose end also ends a rollback, after its current batch."""

    def __init__(self, config: uvicorn.Config, plans: ServerPlans) -> None:
        super().__init__(config)
        self._plans = plans

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End, because of a signal; a second SIGINT does not wait."""
        self._plans.stop()
        super().handle_exit(sig, frame)


@contextlib.contextmanager
def open_browser(url: str) -> Iterator[None]:
    """Open the user's browser, if there is a display.

    The address goes through a file that only the user can read: other users see the
    arguments of a browser.
    """
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="redisfuse-review-") as folder:
        page = Path(folder) / "open.html"
        page.write_text(_OPENER.format(url=html.escape(url)))
        webbrowser.open(page.as_uri())
        yield
