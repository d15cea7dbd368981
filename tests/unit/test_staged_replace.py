"""The table of parked keys: what is claimed waits, what is being removed can't be claimed, and time is patient."""

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
def parking(clock: PausableClock) -> PendingRemovals:
    parking = PendingRemovals(clock, threading.Event())
    parking.schedule(ONE, b"d/one", BASIS, 5, b"d/one~")
    parking.schedule(TWO, b"two.field", BASIS, 1, None)
    return parking


def targets(parking: PendingRemovals, now: float | None, prefix: bytes = b"") -> set[KeyRef]:
    """What is due, which is out of the table afterwards."""
    with parking.take_expired(now, prefix) as due:
        assert all(each.target in parking for each in due)
        return {each.target for each in due}


def test_each_has_its_time(parking: PendingRemovals, clock: PausableClock) -> None:
    """What is parked is due when its time has passed by the clock, and only once."""
    assert targets(parking, clock.now) == set()
    clock.advance(1)
    assert targets(parking, clock.now) == {TWO}
    assert TWO not in parking
    assert ONE in parking
    clock.advance(3.9)
    assert targets(parking, clock.now) == set()
    clock.advance(0.1)
    assert targets(parking, clock.now) == {ONE}
    assert not parking


def test_all_at_the_end(parking: PendingRemovals) -> None:
    """All of them, or all below a directory, can be made due at once."""
    assert parking.has_below(b"d:")
    assert targets(parking, None, b"d:") == {ONE}
    assert not parking.has_below(b"d:")
    assert targets(parking, None) == {TWO}


def test_what_is_taken_is_not_removed(parking: PendingRemovals) -> None:
    """Taking one out gives what was parked; put back, it waits on for its own time."""
    parked = parking.cancel(ONE)
    assert parked is not None
    assert (parked.precondition, parked.copy_path) == (BASIS, b"d/one~")
    assert parking.cancel(ONE) is None
    assert targets(parking, None) == {TWO}
    parking.add(parked)
    assert parking.get(ONE) == parked


def test_what_is_claimed_waits(parking: PendingRemovals) -> None:
    """Nothing claimed is ever due, however late it is; claims may overlap."""
    with parking.claim([ONE, TWO]):
        with parking.claim([ONE]):
            assert targets(parking, None) == set()
        assert targets(parking, None) == set()
        assert ONE in parking
    assert targets(parking, None) == {ONE, TWO}


def test_what_is_being_removed_is_waited_for(parking: PendingRemovals) -> None:
    """A claim of what is just being removed comes through when that is done."""
    begun, claimed = threading.Event(), threading.Event()

    def claim() -> None:
        begun.set()
        with parking.claim([ONE]):
            claimed.set()

    thread = threading.Thread(target=claim, daemon=True)
    with parking.take_expired(None):
        thread.start()
        assert begun.wait(5)
        assert not claimed.wait(0.1)
        assert ONE in parking
        with parking.claim([KeyRef(b"other")]):
            pass
    assert claimed.wait(5)
    thread.join(5)
    assert ONE not in parking


def test_a_failure_leaves_nothing_behind(parking: PendingRemovals) -> None:
    """If whoever removes fails, nothing is claimed or leaving afterwards."""
    with pytest.raises(RuntimeError), parking.take_expired(None):
        raise RuntimeError
    with pytest.raises(RuntimeError), parking.claim([ONE]):
        raise RuntimeError
    parking.schedule(ONE, b"d/one", BASIS, 5, None)
    assert targets(parking, None) == {ONE}
