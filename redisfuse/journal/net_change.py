"""The net effect of successive changes of one key or field. Pure.

Three saves of a file are one net change: from the content before the first to the content after the last. Changes
join only if each finds what the one before it left: a change by another program in between separates them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from redisfuse.journal.models import Change, State

NOT_IN_EFFECT = ("failed", "refused", "held")
"""The outcomes of changes that are not in Redis: they join with no other change."""

Target = tuple[str, bytes, bytes | None]
"""The server, key and field of a change."""


@dataclass(slots=True)
class NetChange:
    """Successive changes of one target, as one."""

    first: Change
    last: Change
    count: int = 1

    @property
    def prior(self) -> State:
        """The state before the first change."""
        return self.first.prior

    @property
    def new(self) -> State:
        """The state after the last change."""
        return self.last.new

    def as_change(self) -> Change:
        """Return the net change as one: the last one, with the prior state of the first."""
        return self.last if self.first is self.last else replace(self.last, prior=self.first.prior)


def get_target(change: Change) -> Target:
    """Return the server, key and field of a change."""
    return change.server_name, change.key, change.field


def join_changes(changes: Iterable[Change]) -> list[NetChange]:
    """Return the net changes of changes, oldest first.

    They are in the order of their first changes. Only the first and the last change of each are kept in memory.
    """
    net_changes: list[NetChange] = []
    open_changes: dict[Target, NetChange] = {}
    for change in changes:
        if change.outcome in NOT_IN_EFFECT:
            net_changes.append(NetChange(change, change))
            continue
        target = get_target(change)
        net = open_changes.get(target)
        if net is not None and is_continued(net.last.new, change.prior):
            net.last = change
            net.count += 1
            continue
        net = open_changes[target] = NetChange(change, change)
        net_changes.append(net)
    return net_changes


def is_continued(new: State, prior: State) -> bool:
    """Return whether a change from `prior` may follow one that left `new`.

    Expiries are not compared: they pass and are extended without a change. Ranges of large strings never join, because
    the rest of the string is not known.
    """
    if new.kind != prior.kind or new.type != prior.type or new.kind == "slice":
        return False
    if new.kind == "object" and new.portable_copy is not None and prior.portable_copy is not None:
        return new.portable_copy == prior.portable_copy
    return new.content == prior.content
