"""What targets hold while several changes are taken back one after the other, as far as it can be known beforehand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from redisfuse.journal.models import Change, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.matching import build_read_request
from redisfuse.transactions.state_reader import CurrentState, ReadRequest


@dataclass(slots=True)
class _KeyDependencies:
    """What was done so far to one key."""

    is_exact: bool = True  # only whole values that the journal knows byte for byte
    has_removals: bool = False  # something was absent before or after
    is_whole_key: bool = False  # the key itself
    fields: set[bytes] = field(default_factory=set)


class DependencyTracker:
    """Tells whether a change can be decided together with newer ones of the same key, without looking in between."""

    def __init__(self) -> None:
        self._dependencies_by_key: dict[bytes, _KeyDependencies] = {}

    def is_predictable(self, change: Change) -> bool:
        """Whether what its target holds, once the newer changes are taken back, follows from the journal alone."""
        touched = self._dependencies_by_key.get(change.key)
        if touched is None:
            return True
        if change.field is None:
            return touched.is_exact and touched.is_whole_key and not touched.fields and _is_exact(change)
        return (
            touched.is_exact
            and not touched.is_whole_key
            and not touched.has_removals
            and _is_exact(change)
            and not _creates_or_removes(change)
        )

    def add(self, change: Change) -> None:
        """It is taken back next."""
        touched = self._dependencies_by_key.setdefault(change.key, _KeyDependencies())
        touched.is_exact = touched.is_exact and _is_exact(change)
        touched.has_removals = touched.has_removals or _creates_or_removes(change)
        if change.field is None:
            touched.is_whole_key = True
        else:
            touched.fields.add(change.field)


def _is_exact(change: Change) -> bool:
    return all(state.kind in ("absent", "value") for state in (change.prior, change.new))


def _creates_or_removes(change: Change) -> bool:
    return change.prior.kind == "absent" or change.new.kind == "absent"


class ProjectedState:
    """What was found, overlaid with what is about to be written."""

    def __init__(self, states: Mapping[KeyRef, CurrentState]) -> None:
        self._states = dict(states)

    def __getitem__(self, target: KeyRef) -> CurrentState:
        return self._states[target]

    def set_state(self, target: KeyRef, state: State) -> None:
        """The target will hold this."""
        before = self._states[target]
        if target.field is None:
            self._states[target] = CurrentState(state.type, state, state.expires_at)
        elif state.kind == "absent":
            self._states[target] = replace(before, state=state)
        else:
            self._states[target] = replace(before, state=state, key_type=b"hash", is_type_compatible=True)


def build_read_requests(changes: Sequence[Change]) -> list[ReadRequest]:
    """What must be read to take these back: each target once, as the first of its changes needs it."""
    looks: dict[KeyRef, ReadRequest] = {}
    for change in changes:
        target = KeyRef(change.key, change.field)
        if target not in looks:
            looks[target] = build_read_request(target, change.new, change.prior)
    return list(looks.values())
