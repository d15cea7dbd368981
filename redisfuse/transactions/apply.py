"""Writing the new state of a recorded change: an edit that was refused, after review, or any other once more."""

from collections.abc import Mapping

from redisfuse.errors import ConflictError, UsageError
from redisfuse.journal.models import Change, ChangeIntent, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.executor import Mutation, TransactionExecutor, fetch_server_time_ms
from redisfuse.transactions.inverse import Inverse, build_inverse_commands
from redisfuse.transactions.matching import build_read_request, holds_state
from redisfuse.transactions.rollback_plan import is_directory_change
from redisfuse.transactions.state_reader import CurrentState


def apply_change(executor: TransactionExecutor, change: Change, *, force: bool = False) -> list[int]:
    """Make the change's target what the change meant it to be; returns the ids of the new changes.

    A refused edit is written only over what it was refused for (what `redisfuse diff` shows). Raises ConflictError when
    that is gone, or when a string would replace another type (`force` overwrites both); UsageError for a directory.
    """
    if is_directory_change(change):
        raise UsageError(f"change {change.id} is of an empty directory, which mkdir and rmdir do again")
    target = KeyRef(change.key, change.field)

    def plan(states: Mapping[KeyRef, CurrentState]) -> list[Mutation]:
        there = states[target]
        _check_applicable(change, there, force=force)
        wanted = _build_desired_state(change.new, there, fetch_server_time_ms(executor.client))
        if wanted.kind == "absent" and there.state.kind == "absent":
            return []
        commands = build_inverse_commands(Inverse(change, there, wanted), executor.client)
        intent = ChangeIntent(
            change.path,
            "apply",
            change.key,
            change.field,
            there.state,
            wanted,
            applies=change.id,
            new_path=change.new_path,
        )
        return [Mutation((intent,), commands)]

    return executor.run([build_read_request(target, change.new, change.prior)], plan)


def _check_applicable(change: Change, current: CurrentState, *, force: bool) -> None:
    if not current.is_type_compatible:
        raise ConflictError(f"the key is a {current.key_type.decode('ascii', 'replace')} now, which has no fields")
    if change.new.kind == "slice" and (current.state.kind != "slice" or current.state.total_size < change.new.offset):
        raise ConflictError("only a part of that value was recorded, and the key is not long enough for it now")
    if force:
        return
    if change.outcome == "refused" and change.prior.note is None and not holds_state(current, change.prior):
        raise ConflictError(
            f"the key was changed once more since change {change.id} was refused: look at it and use --force"
        )
    if current.state.kind == "object" and change.new.kind == "value":
        held = current.state.type.decode("ascii", "replace")
        raise ConflictError(f"the key is a {held} now, which this would destroy: use --force if it is meant to")


def _build_desired_state(new: State, current: CurrentState, now_ms: int) -> State:
    """The new state; the expiry of what is there stays, and one that has passed is not set again."""
    if new.kind in ("absent", "slice"):
        return new
    known = current.state if current.state.kind != "absent" else new
    key_at, field_at = known.expires_at, known.field_expires_at
    if new.type == b"field" and current.key_type == b"hash":
        key_at = current.key_expires_at
    return State(
        new.kind,
        new.type,
        new.content,
        new.portable_copy,
        expires_at=key_at if key_at is None or key_at > now_ms else None,
        field_expires_at=field_at if field_at is None or field_at > now_ms else None,
        dump_version=new.dump_version,
        note=new.note,
    )
