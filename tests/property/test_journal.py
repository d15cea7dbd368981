"""The journal compared with a model, and key patterns with a real server's."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from redisfuse.config import CHUNK_BYTES
from redisfuse.journal.change_filter import ChangeFilter
from redisfuse.journal.check import find_problems
from redisfuse.journal.content import Blob
from redisfuse.journal.directory_rows import decode_directory, encode_directory
from redisfuse.journal.journal import Journal, now_ms
from redisfuse.journal.models import ABSENT, ChangeIntent, State
from redisfuse.journal.prune import prune_journal
from redisfuse.text import compile_glob, escape_text, find_glob_literal, literal_glob
from tests.support.examples import count_examples
from tests.support.journals import INFO, facts_of
from tests.support.redis_server import RedisServer

KEYS = st.binary(max_size=6) | st.sampled_from([b"a", b"a:b", b"a:c", b"\xff" * 3])
EXPIRIES = st.none() | st.integers(0, 1 << 42)
CONTENTS = st.binary(max_size=300) | st.integers(0, 3).map(lambda n: bytes([n]) * (CHUNK_BYTES + n))
STATES = st.one_of(
    st.just(ABSENT),
    st.builds(lambda content, at: State.from_value(content, expires_at=at), CONTENTS, EXPIRIES),
    st.builds(lambda content, offset: State.from_slice(content, offset, 10**6), CONTENTS, st.integers(0, 10**6)),
    st.builds(
        lambda dump, copy, at: State.from_object(b"hash", dump, Blob.from_bytes(copy), expires_at=at),
        st.none() | st.binary(max_size=50),
        CONTENTS,
        EXPIRIES,
    ),
)
INTENTS = st.builds(
    ChangeIntent,
    path=KEYS,
    op=st.sampled_from(["write", "remove"]),
    key=KEYS,
    field=st.none() | KEYS,
    prior=STATES,
    new=STATES,
)
PATTERNS = st.lists(st.sampled_from([b"*", b"?", b"[", b"]", b"^", b"-", b"\\", b"a", b"b", b"c", b"\xff"]), max_size=8)


class JournalMachine(RuleBasedStateMachine):
    """Random changes, outcomes, restarts and prunings of a journal.

    The model is a dict of the expected changes.
    """

    ids: Bundle[int] = Bundle("ids")

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "state" / "journal.db"
        self.journal = Journal.open(self.path, create=True)
        self.session = self.journal.begin_session(INFO)
        self.model: dict[int, tuple[ChangeIntent, str, int]] = {}
        self.highest = 0

    @rule(target=ids, intents=st.lists(INTENTS, min_size=1, max_size=4), grouped=st.booleans())
    def record_intents(self, intents: list[ChangeIntent], grouped: bool) -> int:
        ids = self.journal.record_intents(self.session, intents, grouping=grouped)
        assert ids == list(range(self.highest + 1, self.highest + 1 + len(intents)))
        self.highest = ids[-1]
        for id, intent in zip(ids, intents, strict=True):
            self.model[id] = (intent, "pending", ids[0] if grouped else id)
        return ids[0]

    @rule(id=ids, state=st.sampled_from(["applied", "failed", "refused", "unknown"]))
    def record_outcome(self, id: int, state: Any) -> None:
        self.journal.record_outcome([id], state)
        if id in self.model:
            intent, _, group = self.model[id]
            self.model[id] = (intent, state, group)

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = Journal.open(self.path)

    @rule(keep=st.integers(0, 5), refused=st.booleans())
    def prune(self, keep: int, refused: bool) -> None:
        remaining = set(sorted(self.model)[max(0, len(self.model) - keep) :])
        remaining |= {id for id, (_, state, _) in self.model.items() if state in ("pending", "unknown")}
        remaining |= {id for id in self.model if not refused and self.holds_an_unsaved_edit(id)}
        groups = {self.model[id][2] for id in remaining}
        removed = {id for id, (_, _, group) in self.model.items() if group not in groups}
        before_ms = now_ms() + 10_000
        pruned = prune_journal(self.journal, before_ms=before_ms, keep_last=keep, include_refused=refused)
        assert pruned.changes == len(removed)
        for id in removed:
            del self.model[id]

    def holds_an_unsaved_edit(self, id: int) -> bool:
        """Whether a change is an edit that was refused, or that failed and was not made later."""
        intent, state, _ = self.model[id]
        if state != "failed" or intent.op != "write":
            return state == "refused"
        new = intent.new
        return not any(
            (later.key, later.field, later.new.kind, later.new.content, later.new.offset)
            == (intent.key, intent.field, new.kind, new.content, new.offset)
            for other, (later, outcome, _) in self.model.items()
            if other > id and outcome == "applied"
        )

    @invariant()
    def changes_equal_the_model(self) -> None:
        if not hasattr(self, "journal"):
            return
        changes = {change.id: change for change in self.journal.find_changes(ChangeFilter(oldest_first=True))}
        assert list(changes) == sorted(self.model)
        for id, (intent, state, group) in self.model.items():
            change = changes[id]
            assert facts_of(change)[:6] == (intent.path, intent.op, intent.key, intent.field, intent.prior, intent.new)
            assert (change.outcome, change.group_id) == (state, group)
            if change.new.content is not None:
                change.new.content.read()

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            problems = [
                problem
                for problem in find_problems(self.journal)
                if "unknown" not in problem and "pending" not in problem
            ]
            self.journal.close()
            self.folder.cleanup()
            assert problems == []


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(
    max_examples=count_examples(15), stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def server() -> Any:
    with RedisServer() as running:
        yield running.client()


@settings(max_examples=count_examples(150), deadline=None, suppress_health_check=list(HealthCheck))
@given(pattern=PATTERNS, keys=st.sets(st.text("abc-^]\\[*?", max_size=4).map(str.encode) | KEYS, max_size=20))
def test_globs_are_those_of_redis(server: Any, pattern: list[bytes], keys: set[bytes]) -> None:
    """A pattern of `log --key` matches the same keys as KEYS of a real server."""
    joined = b"".join(pattern)
    assume(
        not {b"[", b"-", b"\xff"} <= set(pattern)
    )  # such a range depends on the server's build: see text.compile_glob
    keys = keys - {b""}  # for Redis, `*` matches the empty key and `**` does not
    server.flushall()
    for key in keys:
        server.set(key, b"")
    literal, regex = compile_glob(joined)
    matching = {key for key in keys if (key == literal if regex is None else regex.fullmatch(key))}
    assert matching == set(server.keys(joined))
    assert all(key.startswith(literal) for key in matching)
    assert all(find_glob_literal(joined) in key[len(literal) :] for key in matching)


@given(st.binary())
def test_literal_glob(key: bytes) -> None:
    """The pattern that literal_glob makes of a key matches only that key."""
    assert compile_glob(literal_glob(key)) == (key, None)


@given(st.lists(st.binary(), min_size=1).map(tuple))
def test_directories(directory: tuple[bytes, ...]) -> None:
    """The components of a directory are decoded unchanged."""
    assert decode_directory(encode_directory(directory)) == directory


@given(st.binary() | st.text().map(str.encode))
def test_escape(data: bytes) -> None:
    """Every byte string has its own printable form."""
    text = escape_text(data)
    assert text.isprintable()
    back = text.encode().decode("unicode_escape", "strict") if text.isascii() else None
    assert back is None or back.encode("latin-1") == data
