"""Predicts what targets hold while several changes are reverted in turn.

They need not be read in between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from redisfuse.journal.models import Change, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.matching import build_read_request
from redisfuse.transactions.state_reader import CurrentState, ReadRequest


@dataclass(slots=True)
class _KeyDependencies:
    """How the changes so far concern one key."""

    is_exact: bool = True  # every state is absent or a whole value, which the journal has byte for byte
    creates_or_removes: bool = False  # some state is absent
    is_whole_key: bool = False  # some change is of the key itself
    fields: set[bytes] = field(default_factory=set)


class DependencyTracker:
    """Decides which changes can be inverted together with newer ones of their key.

    That is, without reading the key in between.
    """

    def __init__(self) -> None:
        self._dependencies_by_key: dict[bytes, _KeyDependencies] = {}

    def is_predictable(self, change: Change) -> bool:
        """Whether the target's state follows from the journal alone.

        That is its state once the newer changes are reverted.
        """
        key = self._dependencies_by_key.get(change.key)
        if key is None:
            return True
        if change.field is None:
            return key.is_exact and key.is_whole_key and not key.fields and _is_exact(change)
        return (
            key.is_exact
            and not key.is_whole_key
            and not key.creates_or_removes
            and _is_exact(change)
            and not _creates_or_removes(change)
        )

    def add(self, change: Change) -> None:
        """Note that the change is reverted next."""
        key = self._dependencies_by_key.setdefault(change.key, _KeyDependencies())
        key.is_exact = key.is_exact and _is_exact(change)
        key.creates_or_removes = key.creates_or_removes or _creates_or_removes(change)
        if change.field is None:
            key.is_whole_key = True
        else:
            key.fields.add(change.field)


def _is_exact(change: Change) -> bool:
    return all(state.kind in ("absent", "value") for state in (change.prior, change.new))


def _creates_or_removes(change: Change) -> bool:
    return change.prior.kind == "absent" or change.new.kind == "absent"


class ProjectedState:
    """The states that were read, overlaid with those that are about to be written."""

    def __init__(self, states: Mapping[KeyRef, CurrentState]) -> None:
        self._states = dict(states)

    def add(self, states: Mapping[KeyRef, CurrentState]) -> None:
        """Add states that were read."""
        self._states.update(states)

    def has_target(self, change: Change) -> bool:
        """Return whether the state of a change's target is known."""
        return KeyRef(change.key, change.field) in self._states

    def discard(self, change: Change) -> None:
        """Forget the target of a change."""
        self._states.pop(KeyRef(change.key, change.field), None)

    def get_target_state(self, change: Change) -> CurrentState:
        """Return what the target of a change will hold."""
        return self._states[KeyRef(change.key, change.field)]

    def set_state(self, target: KeyRef, state: State) -> None:
        """Note that the target will hold this state."""
        prior = self._states[target]
        if target.field is None:
            self._states[target] = CurrentState(state.type, state, state.expires_at)
        elif state.kind == "absent":
            self._states[target] = replace(prior, state=state)
        else:
            self._states[target] = replace(prior, state=state, key_type=b"hash", is_type_compatible=True)


def build_read_requests(changes: Sequence[Change]) -> list[ReadRequest]:
    """Return the reads for reverting these changes.

    Each target is read once, as its first change needs it.
    """
    requests: dict[KeyRef, ReadRequest] = {}
    for change in changes:
        target = KeyRef(change.key, change.field)
        if target not in requests:
            requests[target] = build_read_request(target, change.new, change.prior)
    return list(requests.values())
