"""Listings that are kept: only whole ones, only while nothing above or in them changed, never too many."""

from collections.abc import Callable, Iterator

import pytest

from redisfuse.vfs.readdir_cache import ReaddirCache


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
def listings() -> ReaddirCache[bytes]:
    """With room for five names."""
    return ReaddirCache(split, max_names=5)


def test_a_whole_listing_is_made_once(listings: ReaddirCache[bytes]) -> None:
    """What was listed to its end is not asked for again."""
    source = Source(b"a", b"b")
    assert [list(listings.get_or_build((b"d",), source)) for _ in range(3)] == [[b"a", b"b"]] * 3
    assert source.asked == 1


def test_a_part_is_not_kept(listings: ReaddirCache[bytes]) -> None:
    """A listing that was given up, or failed, is not taken for the whole."""

    def failing() -> Iterator[bytes]:
        yield b"a"
        raise OSError

    begun = listings.get_or_build((b"d",), Source(b"a", b"b"))
    assert next(begun) == b"a"
    del begun
    with pytest.raises(OSError):  # noqa: PT011  # nothing is said with it
        list(listings.get_or_build((b"d",), failing))
    assert list(listings.get_or_build((b"d",), Source(b"c"))) == [b"c"]


@pytest.mark.parametrize(("key", "ended"), [(b"d:e:x", True), (b"d:e:x:y", True), (b"d:e", False), (b"d:f:x", False)])
def test_a_change_ends_what_is_above(listings: ReaddirCache[bytes], key: bytes, ended: bool) -> None:
    """The listings of all directories above a changed key end, whether kept or under way, and no others."""
    kept, under_way = Source(b"x"), Source(b"x")
    list(listings.get_or_build((b"d", b"e"), kept))
    listings.invalidate_keys([key])
    list(listings.get_or_build((b"d", b"e"), kept))
    assert kept.asked == 1 + ended
    listings.invalidate_all()
    begun = listings.get_or_build((b"d", b"e"), under_way)
    next(begun)
    listings.invalidate_keys([key])
    assert list(begun) == []
    list(listings.get_or_build((b"d", b"e"), under_way))
    assert under_way.asked == 1 + ended


@pytest.mark.parametrize(
    "change", [lambda listings: listings.invalidate_all(), lambda listings: listings.invalidate_keys([b"key"])]
)
def test_the_root_changes_with_every_key(
    listings: ReaddirCache[bytes], change: Callable[[ReaddirCache[bytes]], None]
) -> None:
    """Any change, told or not, ends the listing of the root."""
    source = Source(b"key")
    for _ in range(2):
        list(listings.get_or_build((), source))
        change(listings)
    assert source.asked == 2


def test_two_at_once(listings: ReaddirCache[bytes]) -> None:
    """Of two listings of one directory, only one that began after the change is kept."""
    old = listings.get_or_build((b"d",), Source(b"old"))
    next(old)
    listings.invalidate_keys([b"d:new"])
    assert list(listings.get_or_build((b"d",), Source(b"old", b"new"))) == [b"old", b"new"]
    assert list(old) == []
    assert list(listings.get_or_build((b"d",), Source())) == [b"old", b"new"]


def test_only_so_many(listings: ReaddirCache[bytes]) -> None:
    """A directory with more names than may be kept is not; where there is no room for all, the latest used are."""
    large, first, second, third = Source(*[b"n"] * 6), Source(*[b"a"] * 2), Source(*[b"b"] * 2), Source(*[b"c"] * 2)
    for _ in range(2):
        assert len(list(listings.get_or_build((b"large",), large))) == 6
    assert large.asked == 2
    for source in (first, second, first, third, first, second):
        list(listings.get_or_build((source.names[0],), source))
    assert (first.asked, second.asked, third.asked) == (1, 2, 1)
