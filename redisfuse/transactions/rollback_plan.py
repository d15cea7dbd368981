"""A rollback before it is done: what each change would become, what stands in the way, and what would undo that too."""

from collections.abc import Sequence
from dataclasses import dataclass

from redisfuse.batching import batched
from redisfuse.client.client import Server
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change
from redisfuse.paths.grammar import Target
from redisfuse.transactions.executor import server_time
from redisfuse.transactions.inverse import Reversal, reverse
from redisfuse.transactions.projection import Course, Ground, looks_for
from redisfuse.transactions.selection import Group, undone
from redisfuse.transactions.state_reader import Capture, Found

READ_AT_ONCE = 500  # targets


@dataclass(frozen=True, slots=True)
class Conflict:
    """A change that can't be taken back as things are."""

    change: Change
    why: str
    found: Found
    later: tuple[Change, ...]  # changes in the journal to the same key since; rolled back too, they may resolve it

    @property
    def together(self) -> str | None:
        """The command that would take back the later changes and this one."""
        if not self.later:
            return None
        return " ".join(["redisfuse rollback", *(str(each.id) for each in (*self.later, self.change))])


@dataclass(frozen=True, slots=True)
class Planned:
    """One change of the plan. `reversal` is None if it can only be decided once the newer ones are taken back."""

    change: Change
    reversal: Reversal | None
    conflict: Conflict | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rollback would do, in the order in which it would: newest first."""

    groups: tuple[Group, ...]
    entries: tuple[Planned, ...]

    @property
    def conflicts(self) -> list[Conflict]:
        """Those in the way. None of the changes of their operations would be taken back."""
        return [entry.conflict for entry in self.entries if entry.conflict is not None]


def is_directory(change: Change) -> bool:
    """Whether it made or removed an empty directory, which is in the journal only."""
    return "directory" in (change.prior.kind, change.new.kind)


def make_plan(journal: Journal, server: Server, groups: Sequence[Group], *, force: bool = False) -> Plan:
    """Look at everything and decide, without changing anything. Raises UnavailableError and what reading raises."""
    course = Course()
    decidable: dict[int, bool] = {}
    for group in groups:
        keyed = [change for change in group if not is_directory(change)]
        decidable |= {change.id: course.admits(change) for change in keyed}
        for change in keyed:
            course.add(change)
    ground = Ground(_read(server, [change for group in groups for change in group if decidable.get(change.id)]))
    now = server_time(server)
    chosen = {change.id for group in groups for change in group}
    entries: list[Planned] = []
    for group in groups:
        for change in group:
            if not decidable.get(change.id):
                entries.append(Planned(change, None))
                continue
            reversal = reverse(change, ground[Target(change.key, change.field)], now, force=force)
            conflict = conflict_of(journal, reversal, chosen)
            if conflict is None:
                ground.becomes(Target(change.key, change.field), reversal.wanted)
            entries.append(Planned(change, reversal, conflict))
    return Plan(tuple(groups), tuple(entries))


def conflict_of(journal: Journal, reversal: Reversal, chosen: set[int]) -> Conflict | None:
    """The conflict of a reversal, with the later changes that are not being taken back with it."""
    if reversal.conflict is None:
        return None
    later = {change.id: change for change in journal.later_changes(reversal.change) if change.id not in chosen}
    standing = [change for change in later.values() if change.reverts not in later and not undone(journal, change.id)]
    return Conflict(reversal.change, reversal.conflict, reversal.found, tuple(standing))


def _read(server: Server, changes: Sequence[Change]) -> dict[Target, Found]:
    looks = looks_for(changes)
    found: dict[Target, Found] = {}
    with server.dialogue() as dialogue:
        for batch in batched(looks, READ_AT_ONCE):
            found |= Capture(server, dialogue, dump_limit=0).read(batch)
    return found
