"""The pages that only read the journal."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from redisfuse.errors import NotFoundError, UsageError
from redisfuse.journal.journal import Journal
from redisfuse.journal.key_history import follow_renames
from redisfuse.review.change_view import build_change_view, get_content
from redisfuse.review.form_fields import MAX_INTEGER, FormFields
from redisfuse.review.renderer import PageRenderer, find_status
from redisfuse.review.timeline import FilterForm, Timeline, TimelinePage
from redisfuse.text import escape_text, format_local_time, iso_utc

MAX_SESSIONS = 500  # on the page of sessions


class JournalPages:
    """The pages of one journal, which is open for reading."""

    def __init__(self, journal: Journal, renderer: PageRenderer, start: str) -> None:
        """`start`: the address of the first page."""
        self._journal = journal
        self._renderer = renderer
        self._start = start

    def list_routes(self) -> list[Route]:
        """Return the addresses of the pages, below their folder."""
        return [
            Route("/", self.show_start),
            Route("/changes", self.show_timeline),
            Route("/changes/{id:int}", self.show_change),
            Route("/changes/{id:int}/history", self.show_history),
            Route("/changes/{id:int}/{side:str}", self.download),
            Route("/sessions", self.show_sessions),
        ]

    def show_start(self, request: Request) -> Response:  # noqa: ARG002 - Starlette's signature
        """Lead to the timeline."""
        return RedirectResponse(self._start, HTTPStatus.SEE_OTHER)

    def show_timeline(self, request: Request) -> Response:
        """Show operations, or the changes of keys, that meet a filter."""
        form = FilterForm.parse(parse_query(request))
        problem, status = "", int(HTTPStatus.OK)
        try:
            page = Timeline(self._journal).read_page(form.build(self._journal), by_key=form.by_key)
        except (UsageError, NotFoundError) as error:
            page, problem, status = TimelinePage([], None), str(error), find_status(error)
        return self._renderer.render(request, "changes.html", status, form=form, page=page, problem=problem)

    def show_history(self, request: Request) -> Response:
        """Show the changes of the key of a change, through its renames."""
        change = self._journal.get_change(get_change_id(request))
        spans = follow_renames(self._journal.reader, change.key, change.field, change.server_name)
        form = FilterForm.parse(parse_query(request))
        page = Timeline(self._journal).read_page(form.build_for_spans(spans, change.server_name), by_key=True)
        title = escape_text(change.key if change.field is None else change.key + b" " + change.field)
        return self._renderer.render(request, "history.html", id=change.id, key=title, page=page, form=form)

    def show_change(self, request: Request) -> Response:
        """Show one change, side by side."""
        view = build_change_view(self._journal, self._journal.get_change(get_change_id(request)))
        return self._renderer.render(request, "change.html", change=view)

    def download(self, request: Request) -> Response:
        """Send the content before or after a change, as a file."""
        side = request.path_params["side"]
        if side not in ("prior", "new"):
            raise HTTPException(HTTPStatus.NOT_FOUND)
        change = self._journal.get_change(get_change_id(request))
        content = get_content(change, side)
        name = f"change-{change.id}-{side}.bin"
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Content-Length": str(content.size)}
        return StreamingResponse(content.iter_chunks(), media_type="application/octet-stream", headers=headers)

    def show_sessions(self, request: Request) -> Response:
        """Show the mounts and commands that changed keys."""
        return self._renderer.render(request, "sessions.html", sessions=list(self._iter_sessions()))

    def _iter_sessions(self) -> Iterator[dict[str, Any]]:
        for session, count in self._journal.iter_sessions(MAX_SESSIONS):
            metadata = session.metadata
            ended = format_local_time(session.ended_at) or ("died" if session.has_died else "running")
            texts = (metadata.server.name, metadata.mountpoint or "a command", metadata.user, metadata.host)
            server, place, user, host = (escape_text(text.encode()) for text in texts)
            yield {
                "id": session.id,
                "started": format_local_time(session.started_at),
                "started_utc": iso_utc(session.started_at),
                "ended": ended,
                "changes": count,
                "server": server,
                "place": place,
                "user": f"{user} on {host}",
            }


def parse_query(request: Request) -> FormFields:
    """Return the fields of a query. Raises UsageError."""
    return FormFields(request.scope["query_string"])


def get_change_id(request: Request) -> int:
    """Return the ID of a change in an address. Raises HTTPException."""
    id: int = request.path_params["id"]
    if id > MAX_INTEGER:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return id
