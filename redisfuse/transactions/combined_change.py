"""Many changes of one target, taken back as one.

A rollback of 1000 saves of one key needs one command: from what the key holds to what it held before the first of
them. No reader sees the values in between again, and the journal has one row, with the range of the changes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from redisfuse.journal.models import Change

ChangeGroup = tuple[Change, ...]
"""The changes of one group, newest first: they are done and undone together."""


@dataclass(frozen=True, slots=True)
class CombinedChange(Change):
    """Successive changes of one target, as one.

    It is the newest one, with the prior state of the oldest.
    """

    first_id: int = 0  # of the oldest
    count: int = 1

    @classmethod
    def join(cls, newest: Change, oldest: Change, count: int) -> CombinedChange:
        """Return the net change of `count` changes."""
        values = {field.name: getattr(newest, field.name) for field in fields(Change)}
        return cls(**{**values, "prior": oldest.prior}, first_id=oldest.id, count=count)


def count_changes(changes: Iterable[Change]) -> int:
    """Return the number of changes, each combined one by its parts."""
    return sum(change.count if isinstance(change, CombinedChange) else 1 for change in changes)


def get_reverted_range(change: Change) -> tuple[int, int | None]:
    """Return `reverts` and `reverts_through` of the change that takes this one back."""
    return (change.first_id, change.id) if isinstance(change, CombinedChange) else (change.id, None)


class StateKey(NamedTuple):
    """A recorded state, as far as two must be equal for successive changes to join."""

    kind: str
    type: str
    content: int | None  # blobs.id: equal contents have equal ids
    portable_copy: int | None
    expires_at: int | None
    field_expires_at: int | None

    def is_continued_by(self, prior: StateKey) -> bool:
        """Return whether a change from `prior` may follow one that left this state.

        Ranges of large strings never join, because the rest of the string is not known. An expiry that was changed in
        between, by other programs, separates changes.
        """
        if self.kind == "slice" or self[:2] != prior[:2] or self[4:] != prior[4:]:
            return False
        if self.kind == "object" and self.portable_copy is not None and prior.portable_copy is not None:
            return self.portable_copy == prior.portable_copy
        return self.content == prior.content


class LightChange(NamedTuple):
    """The part of a change by which it is selected."""

    id: int
    group_id: int
    session_id: int
    connection_id: str | None
    server_name: str
    outcome: str
    reverts: int | None
    key: bytes
    field: bytes | None
    prior: StateKey
    new: StateKey

    @property
    def may_join(self) -> bool:
        """Whether it can be combined with others, if it is alone in its group."""
        return self.outcome == "applied" and "directory" not in (self.prior.kind, self.new.kind)


@dataclass(slots=True)
class ChangeRun:
    """The changes of one target so far, newest first."""

    newest_id: int
    oldest_id: int
    prior: StateKey  # of the oldest
    count: int = 1


class RunTable:
    """The net effects of groups, in the order in which they must be taken back.

    It has a few machine words for each: 1 000 000 runs take 30 MB.
    """

    def __init__(self) -> None:
        self._ids = array("q")  # of each run its newest and oldest change, or all changes of its group
        self._starts = array("q")  # in _ids, of each run
        self._counts = array("q")  # changes of a run; 0: a group of several targets
        self._servers = array("l")  # index of the server's name
        self.server_names: list[str] = []

    def __len__(self) -> int:
        return len(self._starts)

    def add_run(self, server_name: str, run: ChangeRun) -> None:
        """Append the changes of one target."""
        self._add(server_name, run.count, (run.newest_id,) if run.count == 1 else (run.newest_id, run.oldest_id))

    def add_group(self, server_name: str, ids: Iterable[int]) -> None:
        """Append a group of several targets, newest change first."""
        self._add(server_name, 0, ids)

    def iter_runs(self, server_name: str | None = None) -> Iterator[tuple[int, Sequence[int]]]:
        """Yield the number of changes (0: a group) and the ids of each run.

        `server_name`: only the runs of one server.
        """
        wanted = None if server_name is None else self.server_names.index(server_name)
        for index, count in enumerate(self._counts):
            if wanted is None or self._servers[index] == wanted:
                end = self._starts[index + 1] if index + 1 < len(self._starts) else len(self._ids)
                yield count, self._ids[self._starts[index] : end]

    def _add(self, server_name: str, count: int, ids: Iterable[int]) -> None:
        if server_name not in self.server_names:
            self.server_names.append(server_name)
        self._starts.append(len(self._ids))
        self._counts.append(count)
        self._servers.append(self.server_names.index(server_name))
        self._ids.extend(ids)


_FieldRuns = dict[bytes, ChangeRun]


class RunCollector:
    """Collects the net effects of groups, which are added newest first.

    Groups of several targets, such as renames, keep their place among the changes of their keys.
    """

    def __init__(self) -> None:
        self._open: dict[str, dict[bytes, ChangeRun | _FieldRuns]] = {}  # by server and key
        self._ended = RunTable()
        self.repeated: set[tuple[str, bytes]] = set()
        """The servers and keys that more than one run, or a group of several targets, is about."""

    def add(self, group: tuple[LightChange, ...]) -> None:
        """Add an older group."""
        change = group[0]
        server_name, key = change.server_name, change.key
        if len(group) > 1 or not change.may_join:
            for target in dict.fromkeys((each.server_name, each.key) for each in group):
                self._end(*target)
                self.repeated.add(target)
            self._ended.add_group(server_name, [each.id for each in group])
            return
        runs = self._open.setdefault(server_name, {})
        open_run = runs.get(key)
        if open_run is not None and isinstance(open_run, dict) == (change.field is None):
            self._end(server_name, key)
            open_run = None
        run = open_run.get(change.field or b"") if isinstance(open_run, dict) else open_run
        if run is not None and change.new.is_continued_by(run.prior):
            run.oldest_id = change.id
            run.prior = change.prior
            run.count += 1
            return
        if run is not None:
            self._end(server_name, key)
        run = ChangeRun(change.id, change.id, change.prior)
        if change.field is None:
            runs[key] = run
            return
        fields = runs.setdefault(key, {})
        assert isinstance(fields, dict)
        fields[change.field] = run
        if len(fields) > 1:
            self.repeated.add((server_name, key))

    def finish(self) -> RunTable:
        """End all runs; return them in the order in which they must be taken back."""
        for server_name, runs in self._open.items():
            for open_run in runs.values():
                self._end_runs(server_name, open_run)
        self._open.clear()
        return self._ended

    def _end(self, server_name: str, key: bytes) -> None:
        open_run = self._open.get(server_name, {}).pop(key, None)
        if open_run is not None:
            self.repeated.add((server_name, key))
            self._end_runs(server_name, open_run)

    def _end_runs(self, server_name: str, open_run: ChangeRun | _FieldRuns) -> None:
        for run in open_run.values() if isinstance(open_run, dict) else (open_run,):
            self._ended.add_run(server_name, run)
