"""Listings that are kept: only whole ones, only while nothing above or in them changed, never too many."""

from collections.abc import Callable, Iterator

import pytest

from redisfuse.vfs.readdir_cache import Listings


def split(key: bytes) -> tuple[bytes, ...]:
    """As with the usual separator."""
    return tuple(key.split(b":"))


class Source:
    """Gives a listing, and counts how often it was asked."""

    def __init__(self, *names: bytes) -> None:
        self.names = names
        self.asked = 0

    def __call__(self) -> Iterator[bytes]:
        self.asked += 1
        yield from self.names


@pytest.fixture
def listings() -> Listings[bytes]:
    """With room for five names."""
    return Listings(split, most=5)


def test_a_whole_listing_is_made_once(listings: Listings[bytes]) -> None:
    """What was listed to its end is not asked for again."""
    source = Source(b"a", b"b")
    assert [list(listings.of((b"d",), source)) for _ in range(3)] == [[b"a", b"b"]] * 3
    assert source.asked == 1


def test_a_part_is_not_kept(listings: Listings[bytes]) -> None:
    """A listing that was given up, or failed, is not taken for the whole."""

    def failing() -> Iterator[bytes]:
        yield b"a"
        raise OSError

    begun = listings.of((b"d",), Source(b"a", b"b"))
    assert next(begun) == b"a"
    del begun
    with pytest.raises(OSError):  # noqa: PT011  # nothing is said with it
        list(listings.of((b"d",), failing))
    assert list(listings.of((b"d",), Source(b"c"))) == [b"c"]


@pytest.mark.parametrize(("key", "ended"), [(b"d:e:x", True), (b"d:e:x:y", True), (b"d:e", False), (b"d:f:x", False)])
def test_a_change_ends_what_is_above(listings: Listings[bytes], key: bytes, ended: bool) -> None:
    """The listings of all directories above a changed key end, whether kept or under way, and no others."""
    kept, under_way = Source(b"x"), Source(b"x")
    list(listings.of((b"d", b"e"), kept))
    listings.changed([key])
    list(listings.of((b"d", b"e"), kept))
    assert kept.asked == 1 + ended
    listings.forget()
    begun = listings.of((b"d", b"e"), under_way)
    next(begun)
    listings.changed([key])
    assert list(begun) == []
    list(listings.of((b"d", b"e"), under_way))
    assert under_way.asked == 1 + ended


@pytest.mark.parametrize("change", [lambda listings: listings.forget(), lambda listings: listings.changed([b"key"])])
def test_the_root_changes_with_every_key(listings: Listings[bytes], change: Callable[[Listings[bytes]], None]) -> None:
    """Any change, told or not, ends the listing of the root."""
    source = Source(b"key")
    for _ in range(2):
        list(listings.of((), source))
        change(listings)
    assert source.asked == 2


def test_two_at_once(listings: Listings[bytes]) -> None:
    """Of two listings of one directory, only one that began after the change is kept."""
    old = listings.of((b"d",), Source(b"old"))
    next(old)
    listings.changed([b"d:new"])
    assert list(listings.of((b"d",), Source(b"old", b"new"))) == [b"old", b"new"]
    assert list(old) == []
    assert list(listings.of((b"d",), Source())) == [b"old", b"new"]


def test_only_so_many(listings: Listings[bytes]) -> None:
    """A directory with more names than may be kept is not; where there is no room for all, the latest used are."""
    large, first, second, third = Source(*[b"n"] * 6), Source(*[b"a"] * 2), Source(*[b"b"] * 2), Source(*[b"c"] * 2)
    for _ in range(2):
        assert len(list(listings.of((b"large",), large))) == 6
    assert large.asked == 2
    for source in (first, second, first, third, first, second):
        list(listings.of((source.names[0],), source))
    assert (first.asked, second.asked, third.asked) == (1, 2, 1)
