"""When keys were last seen to change, and what of it the time of a file shows."""

import time

import pytest

from redisfuse.keyspace.change_times import Changes


@pytest.fixture
def changes() -> Changes:
    return Changes()


def test_a_save_shows_when_it_was_written(changes: Changes) -> None:
    """After a change of our own the file's time is that of its last write, whatever messages come; the count grows."""
    changes.record([b"k"])
    written = time.time_ns()
    before = changes.at(b"k")
    changes.record_own(b"k")
    assert changes.at(b"k") > before
    assert changes.shown(b"k", None) == changes.at(b"k")
    changes.saved(b"k", None, written)
    assert changes.shown(b"k", None) == written
    counted = changes.at(b"k")
    changes.record_echoes([b"k"])
    assert changes.at(b"k") > counted
    assert changes.shown(b"k", None) == written


def test_an_echo_may_come_first(changes: Changes) -> None:
    """The server's message may come before the change is noted here: until then the old time is shown."""
    changes.record([b"k"])
    first = changes.at(b"k")
    changes.record_echoes([b"k"])
    assert changes.at(b"k") > first
    assert changes.shown(b"k", None) == changes.shown(b"k", b"g") == first
    changes.record_own(b"k")
    changes.saved(b"k", b"f", 5)
    assert changes.shown(b"k", b"f") == 5
    assert changes.shown(b"k", b"g") == first


def test_somebody_elses_change_shows(changes: Changes) -> None:
    """Another change ends what was shown; what is said of our own afterwards comes too late."""
    changes.record_own(b"k")
    changes.saved(b"k", None, 5)
    changes.record([b"k"])
    assert changes.shown(b"k", None) == changes.at(b"k") > 5
    theirs = changes.at(b"k")
    changes.record_echoes([b"k"])
    assert changes.shown(b"k", None) == theirs
    changes.record_own(b"k")
    changes.record([b"k"])
    changes.saved(b"k", None, 5)
    assert changes.shown(b"k", None) == changes.at(b"k")
    changes.record_own(b"k")
    changes.saved(b"k", None, 6)
    changes.record_everything()
    assert changes.shown(b"k", None) == changes.at(b"k")


def test_fields_have_their_own_times(changes: Changes) -> None:
    """Saving one field of a hash leaves the time of the others; a change of the whole key is one of them all."""
    changes.record([b"h"])
    first = changes.at(b"h")
    for field, moment in ((b"f", 5), (b"g", 6), (b"f", 7)):
        changes.record_own(b"h")
        changes.saved(b"h", field, moment)
        changes.record_echoes([b"h"])
    assert [changes.shown(b"h", field) for field in (b"f", b"g", b"other")] == [7, 6, first]
    changes.record_own(b"h")
    assert changes.shown(b"h", b"g") == changes.at(b"h")
    changes.record([b"h"])
    assert changes.shown(b"h", b"f") == changes.shown(b"h", b"g") == changes.at(b"h")


def test_it_is_bounded(changes: Changes) -> None:
    """Of very many own changes the newest are remembered so; the others show the moment at which they were seen."""
    keys = [b"%d" % number for number in range(30_000)]
    for key in keys:
        changes.record_own(key)
        changes.saved(key, None, 5)
    shown = [changes.shown(key, None) for key in keys]
    assert shown[-10_000:] == [5] * 10_000
    assert shown.count(5) <= 20_000
    assert shown[0] == changes.at(keys[0])
