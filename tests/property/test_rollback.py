"""Random edits on all types with expiries, random subsets of them rolled back in random order, against a model."""

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
from redisfuse.journal.journal import ChangeFilter
from redisfuse.journal.models import Blob
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.precondition import Precondition
from tests.support.edit_bench import EditBench
from tests.support.redis_server import RedisServer
from tests.unit.test_rollback import contents

KEYS = [b"a", b"b", b"c", b"l", b"s", b"z", b"h", b"x", b"d:1", b"d:2"]
FIELDS = [b"f", b"g"]
VALUES = [b"", b"1", b"two", b"\x00\xff\n", b"long " * 50]
FAR = int(time.time() * 1000) + 10**9
EXPIRIES = [None, FAR, FAR + 1000]

Model = dict[bytes, tuple[Any, int]]  # what `contents` gives: value and expiry (-1: none)


# -- operations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """One edit, as both the program and the model make it."""

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
    """Make the edit; what is not possible raises and changes nothing."""
    edits, target, field = bench.key_writer, KeyRef(op.key), KeyRef(op.key, op.field)
    if op.name == "save":
        edits.save(target, Blob.from_bytes(op.value), precondition=Precondition.unconditional(), path=op.key)
    elif op.name == "field":
        edits.save(field, Blob.from_bytes(op.value), precondition=Precondition.unconditional(), path=op.key)
    elif op.name == "remove":
        edits.remove([target], path=op.key)
    elif op.name == "drop":
        edits.remove([field], path=op.key)
    elif op.name == "rename":
        edits.rename([(target, KeyRef(op.other))], path=op.key, new_path=op.other)
    elif op.name == "expire":
        edits.expire(target, op.at, path=op.key)
    elif op.name == "patch":
        edits.patch(
            target, op.offset, Blob.from_bytes(op.value), precondition=Precondition.unconditional(), path=op.key
        )
    elif op.name == "promote":
        edits.rename([(field, KeyRef(op.other))], path=op.key, new_path=op.other)
    else:
        edits.rename([(target, KeyRef(op.other, op.field))], path=op.key, new_path=op.other)


def expected(model: Model, op: Op) -> None:
    """The same on the model. Raises KeyError or TypeError where the edit is not possible."""
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
        there, there_at = model.get(op.other, (None, -1))
        require(not isinstance(value, bytes) or there is None or isinstance(there, bytes))
        if op.other != op.key:
            del model[op.key]
            model[op.other] = (value, at if there is None else there_at)
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
        there, there_at = model.get(op.other, (None, -1))
        require(there is None or isinstance(there, bytes))
        model[op.other] = (take_field(model, op.key, op.field), there_at)
    else:
        require(isinstance(value, bytes) and op.key != op.other)
        there, there_at = model.get(op.other, (None, -1))
        require(there is None or isinstance(there, dict))
        del model[op.key]
        model[op.other] = ({**(there or {}), op.field: value}, there_at)


def take_field(model: Model, key: bytes, field: bytes) -> bytes:
    value, at = model[key]
    require(isinstance(value, dict) and field in value)
    left = {name: data for name, data in value.items() if name != field}
    if left:
        model[key] = (left, at)
    else:
        del model[key]
    taken = value[field]
    assert isinstance(taken, bytes)
    return taken


def require(possible: bool) -> None:
    if not possible:
        raise TypeError


# -- what a rollback does to the model -------------------------------------------------------------------------------


@dataclass
class Made:
    """An operation that was made: what its targets held before and after. An absent one is (None, -1)."""

    group: int
    before: Model
    after: Model
    fields: dict[bytes, set[bytes]]  # of these keys only these fields are concerned
    slice: tuple[int, int, int] | None  # (offset, bytes before, bytes after) of a patch


def undo(model: Model, made: Made) -> bool:
    """Take it back on the model; False if something it left was changed since."""
    result = copy.deepcopy(model)
    for key in made.before.keys() | made.after.keys():
        there, there_at = model.get(key, (None, -1))
        before, before_at = made.before.get(key, (None, -1))
        after, after_at = made.after.get(key, (None, -1))
        if key in made.fields:
            if not undo_fields(result, key, there, before, after, made):
                return False
            continue
        if made.slice is not None:
            whole = undo_slice(there, before, after, made.slice)
            if whole is None:
                return False
            result[key] = (whole, there_at)
            continue
        altered = before is not None and after is not None and before_at != after_at
        holds = there == after and (not altered or there_at == after_at)
        if not holds and there == before and (not altered or there_at == before_at):
            continue  # it is so already
        if not holds:
            return False
        if before is None:
            del result[key]
        else:
            result[key] = (before, before_at if altered or after is None else there_at)
    model.clear()
    model.update(result)
    return True


def undo_fields(result: Model, key: bytes, there: Any, before: Any, after: Any, made: Made) -> bool:
    if there is not None and not isinstance(there, dict):
        return False
    at = result[key][1] if there is not None else made.before.get(key, (None, -1))[1]
    fields = dict(there or {})
    for field in made.fields[key]:
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


def undo_slice(there: Any, before: Any, after: Any, part: tuple[int, int, int]) -> bytes | None:
    offset, size_before, size_after = part
    if not isinstance(there, bytes):
        return None
    old, new = before or b"", after

    def holds(state: bytes, size: int) -> bool:
        return len(there) == len(state) and there[offset : offset + size] == state[offset : offset + size]

    if holds(new, size_after):
        start = there.ljust(offset, b"\0")[: min(offset, len(old))]
        rest = there[offset + size_before : len(old)]
        return start + old[offset : offset + size_before] + rest
    return there if holds(old, size_before) else None


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


def newest_change(bench: EditBench) -> int:
    return next((change.id for change in bench.journal.find_changes(ChangeFilter(limit=1))), 0)


def changes_after(bench: EditBench, id: int) -> list[int]:
    """Return the ids of the changes made since, oldest first."""
    return sorted(change.id for change in bench.journal.find_changes(ChangeFilter(limit=50)) if change.id > id)


def make(bench: EditBench, model: Model, op: Op) -> Made | None:
    """Make one edit on both sides, which must agree on whether it is possible, and on what it gives."""
    before = copy.deepcopy(model)
    trial = copy.deepcopy(model)
    possible = True
    try:
        expected(trial, op)
    except (KeyError, TypeError):
        possible = False
    newest = newest_change(bench)
    refused = None
    try:
        perform(bench, op)
    except RedisFuseError as error:
        refused = error
    made = [id for id in changes_after(bench, newest) if bench.journal.get_change(id).outcome == "applied"]
    assert (refused is None) == possible, f"{op}: {refused or 'should not have been possible'}"
    if not made:
        return None
    model.clear()
    model.update(trial)
    changes = bench.journal.get_group(made[0])
    keys = {change.key for change in changes}
    fields: dict[bytes, set[bytes]] = {}
    for change in changes:
        if change.field is not None:
            fields.setdefault(change.key, set()).add(change.field)
    part = None
    if op.name == "patch" and op.key in before:
        old = before[op.key][0]
        part = (op.offset, len(old[op.offset : op.offset + len(op.value)]), len(op.value))
    return Made(
        changes[0].group_id,
        {key: before[key] for key in keys if key in before},
        {key: trial[key] for key in keys if key in trial},
        fields,
        part,
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(ops, min_size=1, max_size=12),
    choices=st.lists(st.integers(0, 10**6), max_size=12),
    together=st.booleans(),
)
def test_rollbacks_do_what_the_model_does(
    bench: EditBench, edits: list[Op], choices: list[int], together: bool
) -> None:
    """After any edits, and rollbacks of any of them and of rollbacks, Redis holds what a simple model holds."""
    prepare(bench)
    first = contents(bench.redis)
    model: Model = dict(first)
    made = [each for each in (make(bench, model, op) for op in edits) if each is not None]
    assert contents(bench.redis) == model
    if together:  # all at once, newest first, gives the first state, byte for byte, expiries included
        ids = [each.group for each in made]
        if ids:
            report = bench.roll_back(*ids)
            assert report.is_clean, report
        assert contents(bench.redis) == first
        return
    for choice in choices:
        if not made:
            break
        chosen = made[choice % len(made)]
        before = copy.deepcopy(model)
        possible = undo(model, chosen)
        newest = newest_change(bench)
        report = bench.create_rollback().run([tuple(reversed(bench.journal.get_group(chosen.group)))])
        assert report.is_clean == possible, (chosen, report)
        assert contents(bench.redis) == model, chosen
        reverts = changes_after(bench, newest)
        if reverts:
            group = bench.journal.get_group(reverts[0])
            keys = {change.key for change in group}
            back = Made(
                group[0].group_id,
                {key: before[key] for key in keys if key in before},
                {key: model[key] for key in keys if key in model},
                {key: names for key, names in chosen.fields.items() if key in keys},
                None if chosen.slice is None else (chosen.slice[0], chosen.slice[2], chosen.slice[1]),
            )
            made.append(back)
