"""A change as a page shows it: facts, and both states side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from redisfuse.errors import NotFoundError
from redisfuse.journal.content import Blob
from redisfuse.journal.descriptions import describe_state, format_key, format_path, format_process, list_change_notes
from redisfuse.journal.diff import diff_metadata
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change, State
from redisfuse.review.json_changes import JsonChange, compare_documents
from redisfuse.review.side_by_side import SideBySideRow, align_states
from redisfuse.review.timeline import can_roll_back
from redisfuse.text import escape_text, format_local_time, iso_utc

MAX_LISTED_IDS = 10


@dataclass(frozen=True, slots=True)
class StateComparison:
    """Two states, as far as they differ."""

    before: str  # short descriptions
    after: str
    facts: list[str]
    documents: list[JsonChange] | None  # None: they are not JSON
    rows: list[SideBySideRow]


def compare_states(prior: State, new: State) -> StateComparison:
    """Return the differences of two states."""
    return StateComparison(
        describe_state(prior),
        describe_state(new),
        [line.text for line in diff_metadata(prior, new)],
        compare_documents(prior, new),
        list(align_states(prior, new)),
    )


@dataclass(frozen=True, slots=True)
class LinkedIds:
    """Some changes that a page links to."""

    title: str
    ids: list[int]
    more: int


@dataclass(frozen=True, slots=True)
class ChangeView:
    """One change, as printable text."""

    id: int
    op: str
    outcome: str
    path: str
    key: str
    time: str
    time_utc: str
    error: str
    notes: list[str]
    facts: list[tuple[str, str]]
    links: list[LinkedIds]
    session_id: int
    operation_word: str
    comparison: StateComparison
    has_prior: bool
    has_new: bool
    can_roll_back: bool


def build_change_view(journal: Journal, change: Change) -> ChangeView:
    """Return the view of a change."""
    session = journal.get_session(change.session_id).metadata
    reverting = journal.find_reverting_ids(change.id)
    reversals = journal.create_reversal_index()
    is_reverted = bool(reversals.find_reverted([change.id]))
    partly_reverting = reversals.find_partly_reverting_ids([change.id]).get(change.id, [])
    place = escape_text((session.mountpoint or "a command").encode())
    user, host, server = (escape_text(text.encode()) for text in (session.user, session.host, change.server_name))
    facts = [
        ("Key", format_key(change)),
        ("Server", server),
        ("By", f"{user} on {host}, {place}"),
        ("Process", format_process(change.command, change.pid)),
    ]
    later = [other.id for other in journal.find_later_changes(change, MAX_LISTED_IDS + 1)]
    group = [other.id for other in journal.get_group(change.group_id) if other.id != change.id]
    links = [
        _link_ids("Reverts", [change.reverts] if change.reverts else []),
        _link_ids("Reverts a part of", [change.reverts_part] if change.reverts_part else []),
        _link_ids("Applies", [change.applies] if change.applies else []),
        _link_ids("Reverted by", reverting),
        _link_ids("In part reverted by", partly_reverting),
        _link_ids("Together with", group),
        _link_ids("Later changes of the key", later),
    ]
    return ChangeView(
        id=change.id,
        op=change.op,
        outcome=change.outcome,
        path=format_path(change),
        key=format_key(change),
        time=format_local_time(change.recorded_at),
        time_utc=iso_utc(change.recorded_at),
        error=escape_text((change.error or "").encode()),
        notes=list_change_notes(change, is_reverted=is_reverted, is_partly_reverted=bool(partly_reverting)),
        facts=[(name, value) for name, value in facts if value],
        links=[link for link in links if link.ids],
        session_id=change.session_id,
        operation_word=f"{change.operation_id}+",
        comparison=compare_states(change.prior, change.new),
        has_prior=_find_content(change.prior) is not None,
        has_new=_find_content(change.new) is not None,
        can_roll_back=can_roll_back(change.outcome, is_reverted=is_reverted),
    )


def _link_ids(title: str, ids: Iterable[int]) -> LinkedIds:
    listed = list(ids)
    return LinkedIds(title, listed[:MAX_LISTED_IDS], max(0, len(listed) - MAX_LISTED_IDS))


def _find_content(state: State) -> Blob | None:
    return state.content or state.portable_copy


def get_content(change: Change, side: str) -> Blob:
    """Return the content before (`prior`) or after (`new`) a change.

    Raises NotFoundError.
    """
    content = _find_content(change.prior if side == "prior" else change.new)
    if content is None:
        raise NotFoundError(f"change {change.id} has no {side} content")
    return content
