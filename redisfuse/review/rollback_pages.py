"""The pages that collect changes, plan their rollback, and change keys."""

from __future__ import annotations

from http import HTTPStatus

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from redisfuse.errors import ConflictError, NotFoundError, RedisFuseError, UsageError
from redisfuse.journal.descriptions import format_key, format_path
from redisfuse.journal.journal import Journal
from redisfuse.review.access import AccessKeys
from redisfuse.review.basket import Basket
from redisfuse.review.change_view import compare_states
from redisfuse.review.form_fields import FormFields
from redisfuse.review.journal_pages import get_change_id, parse_query
from redisfuse.review.renderer import PageRenderer, find_status
from redisfuse.review.rollback_run import RollbackRun
from redisfuse.review.server_plans import (
    ROLLING_BACK,
    RollbackResult,
    ServerPlan,
    ServerPlans,
    describe_report,
    digest_state,
)
from redisfuse.review.three_way import align_three
from redisfuse.transactions.matching import holds_state

MAX_FORM_BYTES = 64 * 1024
SHORT_SECONDS = 1  # a rollback that takes less shows its report at once
FORM_TYPE = "application/x-www-form-urlencoded"
APPLICABLE = ("refused", "failed")  # outcomes of changes that can be written after all


class RollbackPages:
    """The basket, its plans, and the two actions that change keys."""

    def __init__(
        self,
        journal: Journal,
        renderer: PageRenderer,
        plans: ServerPlans,
        basket: Basket,
        keys: AccessKeys,
        *,
        allow_rollback: bool,
    ) -> None:
        self._journal = journal
        self._renderer = renderer
        self._plans = plans
        self._basket = basket
        self._keys = keys
        self._allow_rollback = allow_rollback
        self._is_applying = False  # only the event loop's thread uses it

    def list_routes(self) -> list[Route]:
        """Return the addresses of the pages, below their folder."""
        return [
            Route("/basket", self.show_basket, methods=["GET"]),
            Route("/basket", self.change_basket, methods=["POST"]),
            Route("/basket/plan", self.show_plan),
            Route("/rollback", self.confirm_rollback, methods=["GET"]),
            Route("/rollback", self.roll_back, methods=["POST"]),
            Route("/rollback/progress", self.show_progress),
            Route("/rollback/progress.json", self.read_progress),
            Route("/rollback/stop", self.stop, methods=["POST"]),
            Route("/changes/{id:int}/apply", self.show_apply, methods=["GET"]),
            Route("/changes/{id:int}/apply", self.apply, methods=["POST"]),
        ]

    async def _receive_form(self, request: Request) -> FormFields:
        """Return the fields of a form. Raises HTTPException if it is not of these pages."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != FORM_TYPE:
            raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "This is not a form.")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_FORM_BYTES:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "This form is too large.")
        fields = FormFields(bytes(body))
        if not self._keys.is_csrf_token(fields.get("csrf")):
            raise HTTPException(HTTPStatus.FORBIDDEN, "This form is not of these pages: load the page again.")
        return fields

    # -- the basket ---------------------------------------------------------------------------------------------------

    async def change_basket(self, request: Request) -> Response:
        """Add, remove or clear; then lead back to the page of the form, if it names one."""
        fields = await self._receive_form(request)
        if word := fields.get("add"):
            self._basket.add(word)
        elif word := fields.get("remove"):
            self._basket.remove(word)
        elif fields.get("clear"):
            self._basket.clear()
        back = fields.get("back")
        if not back:
            return Response(status_code=HTTPStatus.NO_CONTENT)
        if not back.startswith(f"/{self._keys.folder}/") or not back.isascii() or not back.isprintable():
            raise UsageError("a form leads to another site")
        return RedirectResponse(back, HTTPStatus.SEE_OTHER)

    def show_basket(self, request: Request) -> Response:
        """Show the basket, and what a rollback of it would do now."""
        plans, problem = self._read_plans()
        return self._renderer.render(request, "basket.html", plans=plans, problem=problem)

    def show_plan(self, request: Request) -> Response:
        """Show only the plan, for the page that repeats it."""
        plans, problem = self._read_plans()
        return self._renderer.render(request, "_plan.html", plans=plans, problem=problem)

    def _read_plans(self) -> tuple[list[ServerPlan], str]:
        change_filter = self._basket.build_filter()
        if change_filter is None:
            return [], ""
        try:
            return self._plans.read_plans(change_filter), ""
        except (UsageError, NotFoundError) as error:
            return [], str(error)

    # -- rollback -----------------------------------------------------------------------------------------------------

    def confirm_rollback(self, request: Request) -> Response:
        """Ask for confirmation, with the number of keys and the server."""
        name = parse_query(request).get("server")
        plan = next((plan for plan in self._read_plans()[0] if plan.server == name and not plan.error), None)
        if plan is None:
            raise NotFoundError("nothing is left to roll back there")
        return self._renderer.render(request, "confirm.html", plan=plan)

    async def roll_back(self, request: Request) -> Response:
        """Roll back the plan that was confirmed."""
        fields = await self._receive_form(request)
        change_filter = self._basket.build_filter()
        if change_filter is None:
            raise NotFoundError("the basket is empty")
        self._check_writing()
        run = self._plans.start_rollback(change_filter, fields.get("server"), fields.get("plan"))
        await run_in_threadpool(run.wait, SHORT_SECONDS)
        if run.is_running:
            return RedirectResponse(f"/{self._keys.folder}/rollback/progress", HTTPStatus.SEE_OTHER)
        return await self.show_progress(request)

    async def show_progress(self, request: Request) -> Response:
        """Show how far the newest rollback is, or what it did."""
        run = self._get_run()
        if run.is_running:
            return self._renderer.render(request, "progress.html", server=run.server_name, progress=run.progress)
        try:
            plan, report = run.get_result()
        except RedisFuseError as error:
            is_begun = run.progress.state.name == ROLLING_BACK
            text = f"{error} ({run.progress.text}; the basket has the rest)" if is_begun else str(error)
            return self._renderer.render(request, "error.html", find_status(error), text=text)
        if report.is_clean and await run_in_threadpool(self._read_plans) == ([], ""):  # all of it is rolled back
            self._basket.clear()
        lines = describe_report(plan, report)
        return self._renderer.render(request, "report.html", lines=lines, is_clean=report.is_clean)

    def read_progress(self, request: Request) -> Response:  # noqa: ARG002 - Starlette's signature
        """Return how far the newest rollback is, for the page that shows it."""
        run = self._get_run()
        state = run.progress.state
        return JSONResponse(
            {"running": run.is_running, "text": run.progress.text, "done": state.done, "total": state.total}
        )

    async def stop(self, request: Request) -> Response:
        """End a rollback after its current batch."""
        await self._receive_form(request)
        self._get_run()
        self._plans.stop()
        return RedirectResponse(f"/{self._keys.folder}/rollback/progress", HTTPStatus.SEE_OTHER)

    def _get_run(self) -> RollbackRun[RollbackResult]:
        if self._plans.run is None:
            raise NotFoundError("no rollback was begun on these pages")
        return self._plans.run

    def _check_writing(self) -> None:
        """Raise an error if nothing may be written now."""
        if not self._allow_rollback:
            raise HTTPException(
                HTTPStatus.FORBIDDEN, "These pages only read. Start them with `redisfuse review --allow-rollback`."
            )
        if self._is_applying or (self._plans.run is not None and self._plans.run.is_running):
            raise ConflictError("another rollback is being executed; wait for its end")

    # -- refused and failed edits -------------------------------------------------------------------------------------

    def show_apply(self, request: Request) -> Response:
        """Compare an edit that was not written with the key, then and now."""
        change = self._journal.get_change(get_change_id(request))
        if change.outcome not in APPLICABLE:
            raise UsageError(f"change {change.id} is {change.outcome}: only refused and failed edits can be applied")
        with self._plans.read_current(change) as current:
            return self._renderer.render(
                request,
                "apply.html",
                id=change.id,
                path=format_path(change),
                key=format_key(change),
                server=change.server_name,
                has_changed=not holds_state(current, change.prior),
                reviewed=digest_state(current),
                found=compare_states(change.prior, current.state),
                edit=compare_states(current.state, change.new),
                three=align_three(change.prior, current.state, change.new),
            )

    async def apply(self, request: Request) -> Response:
        """Write an edit after all."""
        fields = await self._receive_form(request)
        id = get_change_id(request)
        change = await run_in_threadpool(self._journal.get_change, id)
        if change.outcome not in APPLICABLE:
            raise UsageError(f"change {id} is {change.outcome}: only refused and failed edits can be applied")
        self._check_writing()
        self._is_applying = True
        try:
            force, reviewed = fields.get("force") == "1", fields.get("reviewed")
            ids = await run_in_threadpool(lambda: self._plans.apply(id, force=force, reviewed=reviewed))
        finally:
            self._is_applying = False
        line = f"Change {id} is written, as change {ids[0]}." if ids else "There was nothing to do: the key is gone."
        return self._renderer.render(request, "report.html", lines=[line], is_clean=True)
