"""The table of pending removals: deadlines, claims, and removals that are being committed."""

import threading

import pytest

from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.precondition import Precondition
from redisfuse.vfs.staged_replace import PausableClock, PendingRemovals

ONE, TWO = KeyRef(b"d:one"), KeyRef(b"two", b"field")
BASIS = Precondition.from_bytes(b"old")


@pytest.fixture
def clock() -> PausableClock:
    return PausableClock()


@pytest.fixture
def removals(clock: PausableClock) -> PendingRemovals:
    removals = PendingRemovals(clock, threading.Event())
    removals.schedule(ONE, b"d/one", BASIS, 5, b"d/one~")
    removals.schedule(TWO, b"two.field", BASIS, 1, None)
    return removals


def take_targets(removals: PendingRemovals, now: float | None, prefix: bytes = b"") -> set[KeyRef]:
    """Return the targets that are due, which take_expired removes from the table."""
    with removals.take_expired(now, prefix) as due:
        assert all(removal.target in removals for removal in due)
        return {removal.target for removal in due}


def test_each_removal_has_its_deadline(removals: PendingRemovals, clock: PausableClock) -> None:
    """A removal is due when the clock has passed its deadline, and only once."""
    assert take_targets(removals, clock.now) == set()
    clock.advance(1)
    assert take_targets(removals, clock.now) == {TWO}
    assert TWO not in removals
    assert ONE in removals
    clock.advance(3.9)
    assert take_targets(removals, clock.now) == set()
    clock.advance(0.1)
    assert take_targets(removals, clock.now) == {ONE}
    assert not removals


def test_take_all(removals: PendingRemovals) -> None:
    """All removals, or all below a directory, can be taken before their deadlines."""
    assert take_targets(removals, None, b"d:") == {ONE}
    assert take_targets(removals, None) == {TWO}


def test_a_cancelled_removal_is_not_taken(removals: PendingRemovals) -> None:
    """Cancelling returns the removal; added again, it has the deadline that it had."""
    removal = removals.cancel(ONE)
    assert removal is not None
    assert (removal.precondition, removal.copy_path) == (BASIS, b"d/one~")
    assert removals.cancel(ONE) is None
    assert take_targets(removals, None) == {TWO}
    removals.add(removal)
    assert removals.get(ONE) == removal


def test_a_claimed_target_is_not_taken(removals: PendingRemovals) -> None:
    """A claimed target is never due, even long after its deadline; claims may overlap."""
    with removals.claim([ONE, TWO]):
        with removals.claim([ONE]):
            assert take_targets(removals, None) == set()
        assert take_targets(removals, None) == set()
        assert ONE in removals
    assert take_targets(removals, None) == {ONE, TWO}


def test_a_claim_waits_for_a_removal(removals: PendingRemovals) -> None:
    """A claim of a target whose removal has begun waits until that is committed."""
    started, claimed = threading.Event(), threading.Event()

    def claim() -> None:
        started.set()
        with removals.claim([ONE]):
            claimed.set()

    thread = threading.Thread(target=claim, daemon=True)
    with removals.take_expired(None):
        thread.start()
        assert started.wait(5)
        assert not claimed.wait(0.1)
        assert ONE in removals
        with removals.claim([KeyRef(b"other")]):
            pass
    assert claimed.wait(5)
    thread.join(5)
    assert ONE not in removals


def test_a_failure_releases_targets(removals: PendingRemovals) -> None:
    """If the body of a claim or of take_expired raises, its targets are free afterwards."""
    with pytest.raises(RuntimeError), removals.take_expired(None):
        raise RuntimeError
    with pytest.raises(RuntimeError), removals.claim([ONE]):
        raise RuntimeError
    removals.schedule(ONE, b"d/one", BASIS, 5, None)
    assert take_targets(removals, None) == {ONE}
