"""When keys were last seen to change, and what of it the time of a file shows."""

import time

import pytest

from redisfuse.keyspace.change_times import ChangeClock


@pytest.fixture
def changes() -> ChangeClock:
    return ChangeClock()


def test_a_save_shows_when_it_was_written(changes: ChangeClock) -> None:
    """After a change of our own the file's time is that of its last write, whatever messages come; the count grows."""
    changes.record_changes([b"k"])
    written = time.time_ns()
    before = changes.changed_at(b"k")
    changes.record_own_change(b"k")
    assert changes.changed_at(b"k") > before
    assert changes.mtime_ns(b"k", None) == changes.changed_at(b"k")
    changes.record_save(b"k", None, written)
    assert changes.mtime_ns(b"k", None) == written
    counted = changes.changed_at(b"k")
    changes.record_own_invalidations([b"k"])
    assert changes.changed_at(b"k") > counted
    assert changes.mtime_ns(b"k", None) == written


def test_an_echo_may_come_first(changes: ChangeClock) -> None:
    """The server's message may come before the change is noted here: until then the old time is shown."""
    changes.record_changes([b"k"])
    first = changes.changed_at(b"k")
    changes.record_own_invalidations([b"k"])
    assert changes.changed_at(b"k") > first
    assert changes.mtime_ns(b"k", None) == changes.mtime_ns(b"k", b"g") == first
    changes.record_own_change(b"k")
    changes.record_save(b"k", b"f", 5)
    assert changes.mtime_ns(b"k", b"f") == 5
    assert changes.mtime_ns(b"k", b"g") == first


def test_somebody_elses_change_shows(changes: ChangeClock) -> None:
    """Another change ends what was shown; what is said of our own afterwards comes too late."""
    changes.record_own_change(b"k")
    changes.record_save(b"k", None, 5)
    changes.record_changes([b"k"])
    assert changes.mtime_ns(b"k", None) == changes.changed_at(b"k") > 5
    theirs = changes.changed_at(b"k")
    changes.record_own_invalidations([b"k"])
    assert changes.mtime_ns(b"k", None) == theirs
    changes.record_own_change(b"k")
    changes.record_changes([b"k"])
    changes.record_save(b"k", None, 5)
    assert changes.mtime_ns(b"k", None) == changes.changed_at(b"k")
    changes.record_own_change(b"k")
    changes.record_save(b"k", None, 6)
    changes.record_all_changed()
    assert changes.mtime_ns(b"k", None) == changes.changed_at(b"k")


def test_fields_have_their_own_times(changes: ChangeClock) -> None:
    """Saving one field of a hash leaves the time of the others; a change of the whole key is one of them all."""
    changes.record_changes([b"h"])
    first = changes.changed_at(b"h")
    for field, moment in ((b"f", 5), (b"g", 6), (b"f", 7)):
        changes.record_own_change(b"h")
        changes.record_save(b"h", field, moment)
        changes.record_own_invalidations([b"h"])
    assert [changes.mtime_ns(b"h", field) for field in (b"f", b"g", b"other")] == [7, 6, first]
    changes.record_own_change(b"h")
    assert changes.mtime_ns(b"h", b"g") == changes.changed_at(b"h")
    changes.record_changes([b"h"])
    assert changes.mtime_ns(b"h", b"f") == changes.mtime_ns(b"h", b"g") == changes.changed_at(b"h")


def test_it_is_bounded(changes: ChangeClock) -> None:
    """Of very many own changes the newest are remembered so; the others show the moment at which they were seen."""
    keys = [b"%d" % number for number in range(30_000)]
    for key in keys:
        changes.record_own_change(key)
        changes.record_save(key, None, 5)
    shown = [changes.mtime_ns(key, None) for key in keys]
    assert shown[-10_000:] == [5] * 10_000
    assert shown.count(5) <= 20_000
    assert shown[0] == changes.changed_at(keys[0])
