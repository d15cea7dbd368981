"""What targets hold while several changes are taken back one after the other, as far as it can be known beforehand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from redisfuse.journal.models import Change, State
from redisfuse.paths.grammar import Target
from redisfuse.transactions.matching import look_for
from redisfuse.transactions.state_reader import Found, Look


@dataclass(slots=True)
class _Touched:
    """What was done so far to one key."""

    exact: bool = True  # only whole values that the journal knows byte for byte
    removals: bool = False  # something was absent before or after
    whole: bool = False  # the key itself
    fields: set[bytes] = field(default_factory=set)


class Course:
    """Tells whether a change can be decided together with newer ones of the same key, without looking in between."""

    def __init__(self) -> None:
        self._keys: dict[bytes, _Touched] = {}

    def admits(self, change: Change) -> bool:
        """Whether what its target holds, once the newer changes are taken back, follows from the journal alone."""
        touched = self._keys.get(change.key)
        if touched is None:
            return True
        if change.field is None:
            return touched.exact and touched.whole and not touched.fields and _exact(change)
        return touched.exact and not touched.whole and not touched.removals and _exact(change) and not _removal(change)

    def add(self, change: Change) -> None:
        """It is taken back next."""
        touched = self._keys.setdefault(change.key, _Touched())
        touched.exact = touched.exact and _exact(change)
        touched.removals = touched.removals or _removal(change)
        if change.field is None:
            touched.whole = True
        else:
            touched.fields.add(change.field)


def _exact(change: Change) -> bool:
    return all(state.kind in ("absent", "value") for state in (change.prior, change.new))


def _removal(change: Change) -> bool:
    return change.prior.kind == "absent" or change.new.kind == "absent"


class Ground:
    """What was found, overlaid with what is about to be written."""

    def __init__(self, found: Mapping[Target, Found]) -> None:
        self._found = dict(found)

    def __getitem__(self, target: Target) -> Found:
        return self._found[target]

    def becomes(self, target: Target, state: State) -> None:
        """The target will hold this."""
        before = self._found[target]
        if target.field is None:
            self._found[target] = Found(state.type, state, state.expires_at)
        elif state.kind == "absent":
            self._found[target] = replace(before, state=state)
        else:
            self._found[target] = replace(before, state=state, key_type=b"hash", usable=True)


def looks_for(changes: Sequence[Change]) -> list[Look]:
    """What must be read to take these back: each target once, as the first of its changes needs it."""
    looks: dict[Target, Look] = {}
    for change in changes:
        target = Target(change.key, change.field)
        if target not in looks:
            looks[target] = look_for(target, change.new, change.prior)
    return list(looks.values())
