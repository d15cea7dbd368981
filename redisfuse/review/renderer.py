"""Renders pages from templates, in which every value is escaped."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from redisfuse.errors import ConflictError, NotFoundError, UnavailableError, UsageError
from redisfuse.text import for_terminal, local_zone


class PageRenderer:
    """Renders templates with what all pages have."""

    def __init__(self, **common: Any) -> None:
        """Create a renderer; `common` are the values that all templates may use."""
        self._environment = Environment(
            loader=PackageLoader("redisfuse.review"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters["printable"] = for_terminal
        self._environment.globals |= common

    def render(self, request: Request, template: str, status: int = HTTPStatus.OK, **values: Any) -> Response:
        """Return a page.

        `here` is its own address, to which a form leads back; `is_form`: a form was sent to it.
        """
        query = request.scope["query_string"].decode("latin-1")
        here = f"{request.url.path}?{query}" if query else request.url.path
        values |= {"here": here, "is_form": request.method == "POST", "zone": local_zone()}
        text = self._environment.get_template(template).render(values)
        return Response(text.encode("utf-8", "replace"), status, media_type="text/html")

    def render_error(self, request: Request, error: Exception) -> Response:
        """Explain an error that redisfuse anticipates."""
        return self.render(request, "error.html", find_status(error), text=str(error))

    def render_http_error(self, request: Request, error: Exception) -> Response:
        """Explain that there is no such page, or that a request is not permitted."""
        status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
        text = "There is no such page." if status == HTTPStatus.NOT_FOUND else str(getattr(error, "detail", ""))
        return self.render(request, "error.html", status, text=text)

    def render_bug(self, request: Request, error: Exception) -> Response:
        """Report an error that redisfuse does not anticipate; its traceback is printed."""
        text = f"Internal error: {type(error).__name__}. The terminal of `redisfuse review` has the traceback."
        return self.render(request, "error.html", HTTPStatus.INTERNAL_SERVER_ERROR, text=text)


def find_status(error: Exception) -> int:
    """Return the status of a page that explains an error."""
    if isinstance(error, UsageError):
        return HTTPStatus.BAD_REQUEST
    if isinstance(error, NotFoundError):
        return HTTPStatus.NOT_FOUND
    if isinstance(error, ConflictError):
        return HTTPStatus.CONFLICT
    return HTTPStatus.BAD_GATEWAY if isinstance(error, UnavailableError) else HTTPStatus.INTERNAL_SERVER_ERROR
