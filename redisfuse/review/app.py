"""The application: all pages of one journal, behind the access guard."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from redisfuse.errors import RedisFuseError
from redisfuse.journal.filter_options import CHANGE_OPS, CHANGE_STATES
from redisfuse.journal.journal import Journal
from redisfuse.review.access import AccessGuard, AccessKeys
from redisfuse.review.basket import Basket
from redisfuse.review.journal_pages import JournalPages
from redisfuse.review.renderer import PageRenderer
from redisfuse.review.rollback_pages import RollbackPages
from redisfuse.review.server_plans import ServerPlans
from redisfuse.text import escape_text

PLAN_SECONDS = 5  # after which a page that shows a plan reads it again


def create_app(
    journal: Journal, keys: AccessKeys, plans: ServerPlans, *, port: int, session_id: int | None, allow_rollback: bool
) -> ASGIApp:
    """Return the application for a server on this port of loopback."""
    base = f"/{keys.folder}"
    basket = Basket()
    renderer = PageRenderer(
        base=base,
        csrf_token=keys.csrf_token,
        journal_path=escape_text(str(journal.path).encode("utf-8", "surrogateescape")),
        ops=CHANGE_OPS,
        states=CHANGE_STATES,
        basket=basket,
        allow_rollback=allow_rollback,
        plan_seconds=PLAN_SECONDS,
    )
    start = f"{base}/changes" if session_id is None else f"{base}/changes?session={session_id}"
    routes = [
        *RollbackPages(journal, renderer, plans, basket, keys, allow_rollback=allow_rollback).list_routes(),
        *JournalPages(journal, renderer, start).list_routes(),
        Mount("/static", StaticFiles(packages=[("redisfuse.review", "static")])),
    ]
    handlers: dict[Any, Any] = {
        RedisFuseError: renderer.render_error,
        HTTPException: renderer.render_http_error,
        Exception: renderer.render_bug,
    }
    return AccessGuard(Starlette(routes=[Mount(base, routes=routes)], exception_handlers=handlers), keys, port)
