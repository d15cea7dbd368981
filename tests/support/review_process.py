"""`redisfuse review` in a process of its own, and plain HTTP requests to it."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlencode

from tests.support.mounts import isolated_environment, redisfuse_command, wait_until

TIMEOUT_SECONDS = 60.0  # for one reply, and for the end


@dataclass
class Reply:
    """A reply to one request."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


class ReviewProcess:
    """A running `redisfuse review`. `open()` exchanges its one-time token for the cookie that further requests send."""

    def __init__(self, journal: Path, *arguments: str) -> None:
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            redisfuse_command("review", "--no-browser", "--journal-file", str(journal), *arguments),
            env=isolated_environment(journal.parent),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), self.read_errors()
        self.port = int(self.url.split(":")[2].partition("/")[0])
        self.folder = "/" + self.url.split("/")[3]
        self.cookie = self.csrf_token = ""

    @property
    def host(self) -> str:
        """The value of the header Host."""
        return f"127.0.0.1:{self.port}"

    @property
    def first_path(self) -> str:
        """The path with the one-time token."""
        return self.url.partition(self.host)[2]

    def read_errors(self) -> str:
        """Return the standard error so far."""
        self._errors.seek(0)
        return self._errors.read()

    def open(self) -> Reply:
        """Exchange the token."""
        reply = self.get(self.first_path)
        self.cookie = reply.headers.get("Set-Cookie", "").partition(";")[0]
        page = self.get(f"{self.folder}/basket").text
        self.csrf_token = page.partition('name="csrf" content="')[2].partition('"')[0]
        return reply

    def post(self, path: str, **fields: str) -> Reply:
        """Send a form of these pages, below their folder."""
        values = {"csrf": self.csrf_token, **fields}
        return self.request(
            "POST",
            self.folder + path,
            urlencode(values).encode(),
            origin=f"http://{self.host}",
            content_type="application/x-www-form-urlencoded",
        )

    def get(self, path: str, **headers: str | None) -> Reply:
        """Request a page."""
        return self.request("GET", path, **headers)

    def roll_back(self, **fields: str) -> Reply:
        """Send the form of a confirmed rollback, and return its report."""
        reply = self.post("/rollback", **fields)
        if reply.status != 303:
            return reply
        wait_until(lambda: not json.loads(self.get(f"{self.folder}/rollback/progress.json").body)["running"])
        return self.get(f"{self.folder}/rollback/progress")

    def read_rolled_back(self) -> int:
        """Return for how many changes a rollback that is being executed is done."""
        reply = self.get(f"{self.folder}/rollback/progress.json")
        state = json.loads(reply.body) if reply.status == 200 else {}
        return int(state["done"]) if state.get("text", "").startswith("Rolling back") else 0

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str | None) -> Reply:
        """Send one request; `sec_fetch_site="none"` is the header Sec-Fetch-Site, and None leaves a header out."""
        sent: dict[str, str | None] = {"Host": self.host, "Cookie": self.cookie}
        sent |= {name.replace("_", "-").title(): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_SECONDS)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def stop(self, signal_number: int = signal.SIGINT) -> int:
        """End the process and return its exit status."""
        self.process.send_signal(signal_number)
        status = self.process.wait(TIMEOUT_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.stop()
