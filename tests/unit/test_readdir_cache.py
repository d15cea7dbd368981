"""Cached listings: only complete ones, only until a key below changes, and a bounded number of names."""

from collections.abc import Callable, Iterator

import pytest

from redisfuse.vfs.readdir_cache import ReaddirCache


def split(key: bytes) -> tuple[bytes, ...]:
    """Split a key at the default separator."""
    return tuple(key.split(b":"))


class Source:
    """A listing that counts how often it is built."""

    def __init__(self, *names: bytes) -> None:
        self.names = names
        self.build_count = 0

    def __call__(self) -> Iterator[bytes]:
        self.build_count += 1
        yield from self.names


@pytest.fixture
def listings() -> ReaddirCache[bytes]:
    """Return a cache of at most five names."""
    return ReaddirCache(split, max_names=5)


def test_a_complete_listing_is_built_once(listings: ReaddirCache[bytes]) -> None:
    """A listing that was iterated to its end is not built again."""
    source = Source(b"a", b"b")
    assert [list(listings.get_or_build((b"d",), source)) for _ in range(3)] == [[b"a", b"b"]] * 3
    assert source.build_count == 1


def test_a_partial_listing_is_not_cached(listings: ReaddirCache[bytes]) -> None:
    """A listing that was abandoned, or that failed, is not cached."""

    def failing() -> Iterator[bytes]:
        yield b"a"
        raise OSError

    abandoned = listings.get_or_build((b"d",), Source(b"a", b"b"))
    assert next(abandoned) == b"a"
    del abandoned
    with pytest.raises(OSError):  # noqa: PT011  # it has no message
        list(listings.get_or_build((b"d",), failing))
    assert list(listings.get_or_build((b"d",), Source(b"c"))) == [b"c"]


@pytest.mark.parametrize(
    ("key", "is_invalidated"), [(b"d:e:x", True), (b"d:e:x:y", True), (b"d:e", False), (b"d:f:x", False)]
)
def test_a_change_invalidates_the_listings_above(
    listings: ReaddirCache[bytes], key: bytes, is_invalidated: bool
) -> None:
    """A changed key invalidates the listings above it, cached or being built, and no others."""
    cached, in_progress = Source(b"x"), Source(b"x")
    list(listings.get_or_build((b"d", b"e"), cached))
    listings.invalidate_keys([key])
    list(listings.get_or_build((b"d", b"e"), cached))
    assert cached.build_count == 1 + is_invalidated
    listings.invalidate_all()
    listing = listings.get_or_build((b"d", b"e"), in_progress)
    next(listing)
    listings.invalidate_keys([key])
    assert list(listing) == []
    list(listings.get_or_build((b"d", b"e"), in_progress))
    assert in_progress.build_count == 1 + is_invalidated


@pytest.mark.parametrize(
    "change", [lambda listings: listings.invalidate_all(), lambda listings: listings.invalidate_keys([b"key"])]
)
def test_every_change_invalidates_the_root(
    listings: ReaddirCache[bytes], change: Callable[[ReaddirCache[bytes]], None]
) -> None:
    """Any change, announced or not, invalidates the listing of the root."""
    source = Source(b"key")
    for _ in range(2):
        list(listings.get_or_build((), source))
        change(listings)
    assert source.build_count == 2


def test_two_listings_at_once(listings: ReaddirCache[bytes]) -> None:
    """Of two listings of one directory, only the one that began after the change is cached."""
    old = listings.get_or_build((b"d",), Source(b"old"))
    next(old)
    listings.invalidate_keys([b"d:new"])
    assert list(listings.get_or_build((b"d",), Source(b"old", b"new"))) == [b"old", b"new"]
    assert list(old) == []
    assert list(listings.get_or_build((b"d",), Source())) == [b"old", b"new"]


def test_the_number_of_names_is_bounded(listings: ReaddirCache[bytes]) -> None:
    """A directory with too many names is not cached; of the others, the most recently used are."""
    large, first, second, third = Source(*[b"n"] * 6), Source(*[b"a"] * 2), Source(*[b"b"] * 2), Source(*[b"c"] * 2)
    for _ in range(2):
        assert len(list(listings.get_or_build((b"large",), large))) == 6
    assert large.build_count == 2
    for source in (first, second, first, third, first, second):
        list(listings.get_or_build((source.names[0],), source))
    assert (first.build_count, second.build_count, third.build_count) == (1, 2, 1)
