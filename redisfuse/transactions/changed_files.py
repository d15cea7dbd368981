"""Changes as changes of files: which path each has, and which are renames.

The journal has one path for all keys of a directory that was renamed, and for all fields of a hash that was removed;
the path of each is derived from its key.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from redisfuse.config import DEFAULTS
from redisfuse.errors import NotFoundError
from redisfuse.journal.change_filter import ChangeFilter
from redisfuse.journal.content import Blob
from redisfuse.journal.journal import Journal
from redisfuse.journal.models import Change, State
from redisfuse.journal.net_change import NetChange, NetChanges
from redisfuse.journal.patch import FileChange, read_content
from redisfuse.paths.grammar import PathCodec


@dataclass(frozen=True, slots=True)
class ChangedFile:
    """The net change of a file.

    `departure` is that of the name from which it was renamed, if it was.
    """

    net: NetChange
    old_path: bytes
    new_path: bytes
    departure: NetChange | None = None

    @property
    def prior(self) -> State:
        """The state before, under the old name."""
        return self.net.prior if self.departure is None else self.departure.prior

    @property
    def new(self) -> State:
        """The state after."""
        return self.net.new

    @property
    def is_file(self) -> bool:
        """Whether both states are absent or whole values, so that a patch can carry them."""
        return all(state.kind in ("absent", "value") for state in (self.prior, self.new))

    def read(self) -> FileChange:
        """Return the contents, in memory."""
        prior, new = (_read_value(state) for state in (self.prior, self.new))
        return FileChange(self.old_path, self.new_path, prior, new)


def _read_value(state: State) -> bytes | None:
    content: Blob | None = state.content
    return None if state.kind == "absent" else read_content(content)


class ChangedFiles:
    """Turns changes into changes of files."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._codecs: dict[int, PathCodec] = {}  # by session

    def find(self, change_filter: ChangeFilter) -> Iterator[ChangedFile]:
        """Yield the net changes of files, of the changes that match a filter.

        They are in the order of their first changes.
        """
        net_changes = self._journal.find_net_changes(change_filter)
        departures: dict[int, NetChange] = {}  # of renames, by the first ids of the arrivals
        for net in net_changes:
            arrival = self._find_arrival(net_changes, net)
            if arrival is not None:
                departures[arrival.first.id] = net
                continue
            departure = departures.pop(net.first.id, None)
            path = self.find_path(net.last)
            yield ChangedFile(net, path if departure is None else self.find_path(departure.first), path, departure)

    def find_path(self, change: Change) -> bytes:
        """Return the path of the key or field of a change."""
        recorded = change.own_path
        if "directory" in (change.prior.kind, change.new.kind):
            return recorded
        codec = self._get_codec(change.session_id)
        derived = codec.key_path(change.key) if change.field is None else codec.field_path(change.key, change.field)
        is_of_hash = change.field is not None and recorded == codec.key_path(change.key)
        return derived if is_of_hash or derived.startswith(recorded + b"/") else recorded

    @staticmethod
    def _find_arrival(net_changes: NetChanges, net: NetChange) -> NetChange | None:
        """Return the arrival at the new name if a net change ends with a rename.

        The two changes of a rename were recorded one after the other, the old name first.
        """
        if net.last.op != "rename" or net.new.kind != "absent" or net.prior.kind != "value":
            return None
        arrival = net_changes.find_beginning_with(net.last.id + 1)
        is_arrival = (
            arrival is not None
            and arrival.first.op == "rename"
            and arrival.first.group_id == net.last.group_id
            and arrival.prior.kind == "absent"
            and arrival.new.kind == "value"
        )
        return arrival if is_arrival else None

    def _get_codec(self, session_id: int) -> PathCodec:
        if session_id not in self._codecs:
            separator = DEFAULTS["separator"]
            try:
                recorded = self._journal.get_session(session_id).metadata.options.get("separator")
                separator = os.fsencode(recorded) if isinstance(recorded, str) and recorded else separator
            except NotFoundError:
                pass
            self._codecs[session_id] = PathCodec(separator)
        return self._codecs[session_id]
