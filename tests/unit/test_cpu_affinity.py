"""fuse/cpu_affinity.py: staying on one processor while requests are queued, and leaving it when none are."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from redisfuse.fuse.cpu_affinity import MIN_DECISION_INTERVAL_SECONDS, REQUESTS_PER_DECISION, CpuPinning

ALL = os.sched_getaffinity(0)
pytestmark = pytest.mark.skipif(len(ALL) < 2, reason="there is one processor to keep to")


@pytest.fixture(autouse=True)
def thread() -> Iterator[None]:
    """Another thread of this process; afterwards all may run everywhere again."""
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    yield
    end.set()
    other.join()
    allow(ALL)


def allow(processors: set[int]) -> None:
    """Let all threads of this process run on these."""
    for task in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(task), processors)


def allowed() -> set[frozenset[int]]:
    """Return the sets of processors on which threads of this process may run."""
    found: set[frozenset[int]] = set()
    for task in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):
            found.add(frozenset(os.sched_getaffinity(int(task))))
    return found


def serve(affinity: CpuPinning, waits: float) -> None:
    """As many requests as are looked at together, that share of which had to be waited for."""
    time.sleep(MIN_DECISION_INTERVAL_SECONDS)
    for number in range(REQUESTS_PER_DECISION):
        if number < waits * REQUESTS_PER_DECISION:
            affinity.on_idle()
        affinity.on_request()


def test_it_keeps_to_one_while_requests_wait() -> None:
    """All threads, on one processor of those that were allowed, until fewer requests are found waiting."""
    affinity = CpuPinning()
    serve(affinity, 0.7)
    assert allowed() == {frozenset(ALL)}
    serve(affinity, 0.1)
    [one] = allowed()
    assert len(one) == 1
    assert one < ALL
    serve(affinity, 0.45)  # not as busy as it must be to begin with, but still busy
    assert allowed() == {one}
    serve(affinity, 0.9)
    assert allowed() == {frozenset(ALL)}


def test_what_was_allowed_comes_back() -> None:
    """The process keeps to the processors that taskset has bound it to."""
    some = set(sorted(ALL)[-1:])
    allow(some)
    affinity = CpuPinning()
    serve(affinity, 0.0)
    serve(affinity, 1.0)
    assert allowed() == {frozenset(some)}


def test_it_is_not_decided_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two decisions are some time apart, however many requests come."""
    affinity = CpuPinning()
    serve(affinity, 0.0)
    [one] = allowed()
    monkeypatch.setattr("redisfuse.fuse.cpu_affinity.MIN_DECISION_INTERVAL_SECONDS", 3600)
    serve(affinity, 1.0)
    assert allowed() == {one}
