"""When keys were last seen to change, and the mtimes of files."""

import time

import pytest

from redisfuse.keyspace.change_times import ChangeClock


@pytest.fixture
def changes() -> ChangeClock:
    return ChangeClock()


def test_the_mtime_of_a_save_is_that_of_its_last_write(changes: ChangeClock) -> None:
    """After an own change the file's mtime is that of its last write, whatever messages arrive; the version grows."""
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


def test_the_message_may_precede_the_record(changes: ChangeClock) -> None:
    """The server's message may arrive before the change is recorded: until then the old mtime shows."""
    changes.record_changes([b"k"])
    first = changes.changed_at(b"k")
    changes.record_own_invalidations([b"k"])
    assert changes.changed_at(b"k") > first
    assert changes.mtime_ns(b"k", None) == changes.mtime_ns(b"k", b"g") == first
    changes.record_own_change(b"k")
    changes.record_save(b"k", b"f", 5)
    assert changes.mtime_ns(b"k", b"f") == 5
    assert changes.mtime_ns(b"k", b"g") == first


def test_another_clients_change_shows(changes: ChangeClock) -> None:
    """Another client's change replaces the mtime; what is recorded of our own change afterwards is ignored."""
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
    """Saving one field of a hash leaves the mtimes of the others; a change of the whole key changes all."""
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


def test_memory_is_bounded(changes: ChangeClock) -> None:
    """Of many own changes, the newest keep their mtimes; the others show when they were recorded."""
    keys = [b"%d" % number for number in range(30_000)]
    for key in keys:
        changes.record_own_change(key)
        changes.record_save(key, None, 5)
    shown = [changes.mtime_ns(key, None) for key in keys]
    assert shown[-10_000:] == [5] * 10_000
    assert shown.count(5) <= 20_000
    assert shown[0] == changes.changed_at(keys[0])
