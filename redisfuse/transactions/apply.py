"""Writing the new state of a recorded change: an edit that was refused, after review, or any other once more."""

from collections.abc import Mapping

from redisfuse.errors import ConflictError, UsageError
from redisfuse.journal.models import Change, Intent, State
from redisfuse.paths.grammar import Target
from redisfuse.transactions.executor import Step, Steps, server_time
from redisfuse.transactions.inverse import Reversal, commands_for
from redisfuse.transactions.matching import holds, look_for
from redisfuse.transactions.rollback_plan import is_directory
from redisfuse.transactions.state_reader import Found


def apply(steps: Steps, change: Change, *, force: bool = False) -> list[int]:
    """Make the change's target what the change meant it to be; returns the ids of the new changes.

    A refused edit is written only over what it was refused for (what `redisfuse diff` shows). Raises ConflictError when
    that is gone, or when a string would replace another type (`force` overwrites both); UsageError for a directory.
    """
    if is_directory(change):
        raise UsageError(f"change {change.id} is of an empty directory, which mkdir and rmdir do again")
    target = Target(change.key, change.field)

    def decide(found: Mapping[Target, Found]) -> list[Step]:
        there = found[target]
        _check(change, there, force=force)
        wanted = _wanted(change.new, there, server_time(steps.server))
        if wanted.kind == "absent" and there.state.kind == "absent":
            return []
        commands = commands_for(Reversal(change, there, wanted), steps.server)
        intent = Intent(
            change.path,
            "apply",
            change.key,
            change.field,
            there.state,
            wanted,
            applies=change.id,
            new_path=change.new_path,
        )
        return [Step((intent,), commands)]

    return steps.run([look_for(target, change.new, change.prior)], decide)


def _check(change: Change, there: Found, *, force: bool) -> None:
    if not there.usable:
        raise ConflictError(f"the key is a {there.key_type.decode('ascii', 'replace')} now, which has no fields")
    if change.new.kind == "slice" and (there.state.kind != "slice" or there.state.total < change.new.offset):
        raise ConflictError("only a part of that value was recorded, and the key is not long enough for it now")
    if force:
        return
    if change.state == "refused" and change.prior.note is None and not holds(there, change.prior):
        raise ConflictError(
            f"the key was changed once more since change {change.id} was refused: look at it and use --force"
        )
    if there.state.kind == "object" and change.new.kind == "value":
        held = there.state.type.decode("ascii", "replace")
        raise ConflictError(f"the key is a {held} now, which this would destroy: use --force if it is meant to")


def _wanted(new: State, there: Found, now: int) -> State:
    """The new state; the expiry of what is there stays, and one that has passed is not set again."""
    if new.kind in ("absent", "slice"):
        return new
    known = there.state if there.state.kind != "absent" else new
    key_at, field_at = known.expires_at, known.field_expires_at
    if new.type == b"field" and there.key_type == b"hash":
        key_at = there.key_expires_at
    return State(
        new.kind,
        new.type,
        new.content,
        new.logical,
        expires_at=key_at if key_at is None or key_at > now else None,
        field_expires_at=field_at if field_at is None or field_at > now else None,
        version=new.version,
        note=new.note,
    )
