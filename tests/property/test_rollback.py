"""Random writes of all types with expiries, random subsets rolled back in random order, compared with a model."""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redisfuse.errors import RedisFuseError
from redisfuse.journal.change_filter import ChangeFilter
from redisfuse.journal.content import Blob
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.precondition import Precondition
from tests.support.edit_bench import EditBench
from tests.support.examples import count_examples
from tests.support.redis_server import RedisServer
from tests.unit.test_rollback import contents

KEYS = [b"a", b"b", b"c", b"l", b"s", b"z", b"h", b"x", b"d:1", b"d:2"]
FIELDS = [b"f", b"g"]
VALUES = [b"", b"1", b"two", b"\x00\xff\n", b"long " * 50]
FAR = int(time.time() * 1000) + 10**9
EXPIRIES = [None, FAR, FAR + 1000]

Model = dict[bytes, tuple[Any, int]]
"""As `contents` returns it: value and expiry (-1: none) of each key."""


# -- operations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """One write, to be made both to Redis and to the model."""

    name: str
    key: bytes
    other: bytes = b""
    field: bytes = b"f"
    value: bytes = b""
    at: int | None = None
    offset: int = 0


ops = st.builds(
    Op,
    name=st.sampled_from(["save", "save", "field", "remove", "drop", "rename", "expire", "patch", "promote", "demote"]),
    key=st.sampled_from(KEYS),
    other=st.sampled_from(KEYS),
    field=st.sampled_from(FIELDS),
    value=st.sampled_from(VALUES),
    at=st.sampled_from(EXPIRIES),
    offset=st.integers(0, 12),
)


def perform(bench: EditBench, op: Op) -> None:
    """Make the write in Redis; an impossible one raises RedisFuseError and changes nothing."""
    writer, target, field = bench.key_writer, KeyRef(op.key), KeyRef(op.key, op.field)
    if op.name == "save":
        writer.save(target, Blob.from_bytes(op.value), precondition=Precondition.unconditional(), path=op.key)
    elif op.name == "field":
        writer.save(field, Blob.from_bytes(op.value), precondition=Precondition.unconditional(), path=op.key)
    elif op.name == "remove":
        writer.remove([target], path=op.key)
    elif op.name == "drop":
        writer.remove([field], path=op.key)
    elif op.name == "rename":
        writer.rename([(target, KeyRef(op.other))], path=op.key, new_path=op.other)
    elif op.name == "expire":
        writer.expire(target, op.at, path=op.key)
    elif op.name == "patch":
        writer.patch(
            target, op.offset, Blob.from_bytes(op.value), precondition=Precondition.unconditional(), path=op.key
        )
    elif op.name == "promote":
        writer.rename([(field, KeyRef(op.other))], path=op.key, new_path=op.other)
    else:
        writer.rename([(target, KeyRef(op.other, op.field))], path=op.key, new_path=op.other)


def apply_to_model(model: Model, op: Op) -> None:
    """Make the write in the model. Raises KeyError or TypeError if it is impossible."""
    value, at = model.get(op.key, (None, -1))
    if op.name == "save":
        require(value is None or isinstance(value, bytes))
        model[op.key] = (op.value, at)
    elif op.name == "field":
        require(value is None or isinstance(value, dict))
        model[op.key] = ({**(value or {}), op.field: op.value}, at)
    elif op.name == "remove":
        del model[op.key]
    elif op.name == "drop":
        take_field(model, op.key, op.field)
    elif op.name == "rename":
        require(value is not None or op.other == op.key)
        current, current_at = model.get(op.other, (None, -1))
        require(not isinstance(value, bytes) or current is None or isinstance(current, bytes))
        if op.other != op.key:
            del model[op.key]
            model[op.other] = (value, at if current is None else current_at)
    elif op.name == "expire":
        require(value is not None)
        model[op.key] = (value, -1 if op.at is None else op.at)
    elif op.name == "patch":
        if op.value:
            require(value is None or isinstance(value, bytes))
            old = (value or b"").ljust(op.offset, b"\0")
            model[op.key] = (old[: op.offset] + op.value + old[op.offset + len(op.value) :], at)
    elif op.name == "promote":
        require(op.key != op.other)
        current, current_at = model.get(op.other, (None, -1))
        require(current is None or isinstance(current, bytes))
        model[op.other] = (take_field(model, op.key, op.field), current_at)
    else:
        require(isinstance(value, bytes) and op.key != op.other)
        current, current_at = model.get(op.other, (None, -1))
        require(current is None or isinstance(current, dict))
        del model[op.key]
        model[op.other] = ({**(current or {}), op.field: value}, current_at)


def take_field(model: Model, key: bytes, field: bytes) -> bytes:
    value, at = model[key]
    require(isinstance(value, dict) and field in value)
    rest = {name: data for name, data in value.items() if name != field}
    if rest:
        model[key] = (rest, at)
    else:
        del model[key]
    data = value[field]
    assert isinstance(data, bytes)
    return data


def require(possible: bool) -> None:
    if not possible:
        raise TypeError


# -- rollbacks of the model ------------------------------------------------------------------------------------------


@dataclass
class AppliedOperation:
    """An operation that was applied, and the state of its keys before and after. Absent keys are missing."""

    group: int
    before: Model
    after: Model
    fields: dict[bytes, set[bytes]]  # the keys of which only fields were changed, and the fields
    slice: tuple[int, int, int] | None  # (offset, bytes before, bytes after) of a patch


def revert(model: Model, applied: AppliedOperation) -> bool:
    """Revert the operation in the model; return False if one of its keys was changed since."""
    result = copy.deepcopy(model)
    for key in applied.before.keys() | applied.after.keys():
        current, current_at = model.get(key, (None, -1))
        before, before_at = applied.before.get(key, (None, -1))
        after, after_at = applied.after.get(key, (None, -1))
        if key in applied.fields:
            if not revert_fields(result, key, current, before, after, applied):
                return False
            continue
        if applied.slice is not None:
            whole = revert_slice(current, before, after, applied.slice)
            if whole is None:
                return False
            result[key] = (whole, current_at)
            continue
        alters_expiry = before is not None and after is not None and before_at != after_at
        holds = current == after and (not alters_expiry or current_at == after_at)
        if not holds and current == before and (not alters_expiry or current_at == before_at):
            continue  # reverted already
        if not holds:
            return False
        if before is None:
            del result[key]
        else:
            result[key] = (before, before_at if alters_expiry or after is None else current_at)
    model.clear()
    model.update(result)
    return True


def revert_fields(result: Model, key: bytes, current: Any, before: Any, after: Any, applied: AppliedOperation) -> bool:
    if current is not None and not isinstance(current, dict):
        return False
    at = result[key][1] if current is not None else applied.before.get(key, (None, -1))[1]
    fields = dict(current or {})
    for field in applied.fields[key]:
        old, new, now = (before or {}).get(field), (after or {}).get(field), fields.get(field)
        if now != new and now != old:
            return False
        if old is None:
            fields.pop(field, None)
        else:
            fields[field] = old
    if fields:
        result[key] = (fields, at)
    else:
        result.pop(key, None)
    return True


def revert_slice(current: Any, before: Any, after: Any, part: tuple[int, int, int]) -> bytes | None:
    offset, size_before, size_after = part
    if not isinstance(current, bytes):
        return None
    old, new = before or b"", after

    def holds(state: bytes, size: int) -> bool:
        return len(current) == len(state) and current[offset : offset + size] == state[offset : offset + size]

    if holds(new, size_after):
        start = current.ljust(offset, b"\0")[: min(offset, len(old))]
        rest = current[offset + size_before : len(old)]
        return start + old[offset : offset + size_before] + rest
    return current if holds(old, size_before) else None


# -- the test --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench() -> Iterator[EditBench]:
    folder = Path(tempfile.mkdtemp(prefix="redisfuse-test-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    with RedisServer() as server:
        bench = EditBench.create(folder, server)
        yield bench
        bench.close()
    shutil.rmtree(folder)


def prepare(bench: EditBench) -> None:
    client = bench.redis
    client.flushall()
    client.set("a", "1")
    client.set("b", "2", pxat=FAR)
    client.rpush("l", "x", "y", "x")
    client.sadd("s", "m", b"\xff")
    client.zadd("z", {"m": 1.5, "n": 2}, nx=True)
    client.pexpireat("z", FAR + 5)
    client.hset("h", mapping={"f": "1", "g": "2"})
    client.pexpireat("h", FAR + 7)
    client.xadd("x", {"f": "v"}, "5-1")
    client.xgroup_create("x", "group", "0")
    client.mset({"d:1": "1", "d:2": "2"})


def find_newest_change(bench: EditBench) -> int:
    """Return the ID of the newest change, 0 if there is none."""
    return next((change.id for change in bench.journal.find_changes(ChangeFilter(limit=1))), 0)


def find_changes_after(bench: EditBench, id: int) -> list[int]:
    """Return the IDs of the later changes, oldest first."""
    return sorted(change.id for change in bench.journal.find_changes(ChangeFilter(limit=50)) if change.id > id)


def perform_on_both(bench: EditBench, model: Model, op: Op) -> AppliedOperation | None:
    """Make one write in Redis and in the model, which must agree on whether it is possible."""
    before = copy.deepcopy(model)
    trial = copy.deepcopy(model)
    possible = True
    try:
        apply_to_model(trial, op)
    except (KeyError, TypeError):
        possible = False
    newest = find_newest_change(bench)
    refused = None
    try:
        perform(bench, op)
    except RedisFuseError as error:
        refused = error
    applied_ids = [id for id in find_changes_after(bench, newest) if bench.journal.get_change(id).outcome == "applied"]
    assert (refused is None) == possible, f"{op}: {refused or 'should be impossible'}"
    if not applied_ids:
        return None
    model.clear()
    model.update(trial)
    changes = bench.journal.get_group(applied_ids[0])
    keys = {change.key for change in changes}
    fields: dict[bytes, set[bytes]] = {}
    for change in changes:
        if change.field is not None:
            fields.setdefault(change.key, set()).add(change.field)
    part = None
    if op.name == "patch" and op.key in before:
        old = before[op.key][0]
        part = (op.offset, len(old[op.offset : op.offset + len(op.value)]), len(op.value))
    return AppliedOperation(
        changes[0].group_id,
        {key: before[key] for key in keys if key in before},
        {key: trial[key] for key in keys if key in trial},
        fields,
        part,
    )


@settings(max_examples=count_examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    writes=st.lists(ops, min_size=1, max_size=12),
    choices=st.lists(st.integers(0, 10**6), max_size=12),
    together=st.booleans(),
)
def test_rollbacks_do_what_the_model_does(
    bench: EditBench, writes: list[Op], choices: list[int], together: bool
) -> None:
    """After any writes, and rollbacks of any of them and of rollbacks, Redis holds the same as a simple model."""
    prepare(bench)
    first = contents(bench.redis)
    model: Model = dict(first)
    operations = [made for op in writes if (made := perform_on_both(bench, model, op)) is not None]
    assert contents(bench.redis) == model
    if together:  # all at once, newest first: restores the first state, byte for byte, expiries included
        ids = [operation.group for operation in operations]
        if ids:
            report = bench.roll_back(*ids)
            assert report.is_clean, report
        assert contents(bench.redis) == first
        return
    for choice in choices:
        if not operations:
            break
        chosen = operations[choice % len(operations)]
        before = copy.deepcopy(model)
        possible = revert(model, chosen)
        newest = find_newest_change(bench)
        group = tuple(reversed(bench.journal.get_group(chosen.group)))
        report = bench.create_rollback().run([group], {change.id for change in group})
        assert report.is_clean == possible, (chosen, report)
        assert contents(bench.redis) == model, chosen
        reverts = find_changes_after(bench, newest)
        if reverts:
            group = bench.journal.get_group(reverts[0])
            keys = {change.key for change in group}
            back = AppliedOperation(
                group[0].group_id,
                {key: before[key] for key in keys if key in before},
                {key: model[key] for key in keys if key in model},
                {key: names for key, names in chosen.fields.items() if key in keys},
                None if chosen.slice is None else (chosen.slice[0], chosen.slice[2], chosen.slice[1]),
            )
            operations.append(back)
