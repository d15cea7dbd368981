"""Rows of operations and changes, page by page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from redisfuse.errors import UsageError
from redisfuse.journal.change_filter import ChangeFilter, KeySpan, is_id_word
from redisfuse.journal.descriptions import (
    format_operation_path,
    format_path,
    format_process,
    list_change_notes,
    list_operation_notes,
    summarize_ops,
)
from redisfuse.journal.filter_options import CHANGE_OPS, CHANGE_STATES, build_change_filter
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change, Outcome
from redisfuse.journal.operations import OperationSummary
from redisfuse.review.form_fields import FormFields, encode_query, parse_integer
from redisfuse.text import escape_text, format_local_time, format_size_pair, iso_utc, parse_timestamp

ROWS_PER_PAGE = 50

_TEXT_FIELDS = ("select", "session", "by", "key", "path", "since", "until")
_LIST_FIELDS = ("op", "state")


@dataclass(frozen=True, slots=True)
class FilterForm:
    """The filter of a timeline, as the user typed it.

    Its fields have the names of the options of `redisfuse log`.
    """

    fields: Mapping[str, str]
    lists: Mapping[str, Sequence[str]]
    by_key: bool  # each change of a key, instead of operations
    before: int | None  # rows older than this change

    @classmethod
    def parse(cls, fields: FormFields) -> FilterForm:
        """Return the form of a query. Raises UsageError."""
        texts = {name: fields.get(name) for name in _TEXT_FIELDS}
        texts |= {name: (fields.get_bytes(name) or b"").decode("utf-8", "surrogateescape") for name in ("key", "path")}
        lists = {name: fields.get_all(name) for name in _LIST_FIELDS}
        for name, known in (("op", CHANGE_OPS), ("state", CHANGE_STATES)):
            for value in lists[name]:
                if value not in known:
                    raise UsageError(f"{value!r} is no {name}; it is one of {', '.join(known)}")
        return cls(texts, lists, fields.get("keys") == "1", fields.get_integer("before"))

    @property
    def is_filtering(self) -> bool:
        """Whether any field is filled in."""
        return any(self.fields.values()) or any(self.lists.values())

    @property
    def query(self) -> str:
        """The query of the first page."""
        return encode_query({**self.fields, **self.lists, "keys": "1" if self.by_key else ""})

    def page_query(self, before: int | None) -> str:
        """Return the query of the page of older rows."""
        return encode_query(
            {**self.fields, **self.lists, "keys": "1" if self.by_key else "", "before": str(before or "")}
        )

    def other_view_query(self) -> str:
        """Return the query of the same rows by key, or by operation."""
        return replace(self, by_key=not self.by_key, before=None).query

    def build(self, journal: Journal) -> ChangeFilter:
        """Return the filter. Raises UsageError and NotFoundError."""
        fields = self.fields
        change_filter = build_change_filter(
            journal,
            fields["select"].split() if _are_ids(fields["select"]) else [fields["select"]] if fields["select"] else [],
            session=parse_integer("session", fields["session"]),
            by=fields["by"] or None,
            key=_to_bytes(fields["key"]),
            path=_to_bytes(fields["path"]),
            since=_parse_time("since", fields["since"]),
            until=_parse_time("until", fields["until"]),
            state=tuple(self.lists["state"]),
            op=tuple(self.lists["op"]),
        )
        return change_filter if self.before is None else replace(change_filter, before_id=self.before)

    def build_for_spans(self, spans: tuple[KeySpan, ...], server_name: str) -> ChangeFilter:
        """Return the filter of the history of a key.

        Of this form, only the position of the page is used.
        """
        change_filter = ChangeFilter(key_spans=spans, server_name=server_name)
        return change_filter if self.before is None else replace(change_filter, before_id=self.before)


def _are_ids(text: str) -> bool:
    return all(is_id_word(word) for word in text.split())


def _to_bytes(text: str) -> bytes | None:
    return text.encode("utf-8", "surrogateescape") if text else None


def _parse_time(name: str, text: str) -> int | None:
    if not text:
        return None
    try:
        return parse_timestamp(text, datetime.now().astimezone())
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{name} is a time, not {text!r}; write 2026-07-04, 2026-07-04T12:00, 14:30, 2h, 3d or yesterday"
        ) from error


@dataclass(frozen=True, slots=True)
class TimelineRow:
    """A row: an operation or a change, as printable text."""

    word: str  # `42`, or `42+` for an operation: as commands take it
    link: str  # below the folder of the pages
    time: str
    time_utc: str
    op: str
    sizes: str
    path: str
    notes: tuple[str, ...]
    process: str
    user: str
    is_reverted: bool
    can_roll_back: bool


@dataclass(frozen=True, slots=True)
class TimelinePage:
    """Some rows, newest first."""

    rows: list[TimelineRow]
    next_before: int | None  # the `before` of the next page; None: this is the last one


def can_roll_back(outcome: Outcome, *, is_reverted: bool) -> bool:
    """Return whether a rollback may have something to do for a change."""
    return outcome in ("applied", "unknown") and not is_reverted


class Timeline:
    """Reads pages of rows."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._users: dict[int, str] = {}  # by session

    def read_page(self, change_filter: ChangeFilter, *, by_key: bool) -> TimelinePage:
        """Return the newest rows that meet a filter."""
        limited = replace(change_filter, limit=ROWS_PER_PAGE + 1)
        items: list[Any]
        if by_key:
            items = list(self._journal.find_changes(limited))
            rows = list(self._build_change_rows(items[:ROWS_PER_PAGE]))
        else:
            items = list(self._journal.find_operations(limited))
            rows = [self._build_operation_row(operation) for operation in items[:ROWS_PER_PAGE]]
        if len(items) <= ROWS_PER_PAGE:
            return TimelinePage(rows, None)
        oldest = items[ROWS_PER_PAGE - 1]
        return TimelinePage(rows, oldest.id if by_key else oldest.last_id)

    def _build_change_rows(self, changes: Iterable[Change]) -> Iterator[TimelineRow]:
        listed = list(changes)
        reversals = self._journal.create_reversal_index()
        reverted = reversals.find_reverted(change.id for change in listed)
        partly = reversals.find_partly_reverting_ids(change.id for change in listed)
        for change in listed:
            is_reverted = change.id in reverted
            yield TimelineRow(
                word=str(change.id),
                link=f"changes/{change.id}",
                time=format_local_time(change.recorded_at),
                time_utc=iso_utc(change.recorded_at),
                op=change.op,
                sizes=format_size_pair(change.prior.size, change.new.size),
                path=format_path(change),
                notes=tuple(list_change_notes(change, is_reverted=is_reverted, is_partly_reverted=change.id in partly)),
                process=format_process(change.command, change.pid),
                user=self._find_user(change.session_id),
                is_reverted=is_reverted,
                can_roll_back=can_roll_back(change.outcome, is_reverted=is_reverted),
            )

    def _build_operation_row(self, operation: OperationSummary) -> TimelineRow:
        is_single = operation.change_count == 1 and operation.first_id == operation.id
        word = str(operation.id) if is_single else f"{operation.id}+"
        query = encode_query({"select": word, "keys": "1"})
        is_reverted = operation.reverted_count == operation.change_count
        return TimelineRow(
            word=word,
            link=f"changes/{operation.id}" if is_single else f"changes?{query}",
            time=format_local_time(operation.started_at),
            time_utc=iso_utc(operation.started_at),
            op=summarize_ops(operation.ops),
            sizes=format_size_pair(operation.prior_bytes, operation.new_bytes),
            path=format_operation_path(operation),
            notes=tuple(list_operation_notes(operation)),
            process=format_process(operation.command, operation.pid),
            user=self._find_user(operation.session_id),
            is_reverted=is_reverted,
            can_roll_back=any(can_roll_back(outcome, is_reverted=is_reverted) for outcome in operation.outcomes),
        )

    def _find_user(self, session_id: int) -> str:
        if session_id not in self._users:
            self._users[session_id] = escape_text(self._journal.get_session(session_id).metadata.user.encode())
        return self._users[session_id]
