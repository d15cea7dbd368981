"""Sizes, mount options and the defaults of a mount."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisfuse.config import DEFAULTS, Config, MountOptions, format_size, parse_size, split_mount_options
from redisfuse.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("64k", 64 * 1024),
        ("512MiB", 512 * 1024**2),
        ("512 M", 512 * 1024**2),
        ("1.5GiB", 1536 * 1024**2),
        ("2MB", 2_000_000),
        ("7b", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """K, M, G and KiB, MiB, GiB are powers of 1024, kB, MB, GB of 1000; capitals don't matter."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1e3", "1 TiB", "1,5G", "٣"])
def test_what_is_no_size(text: str) -> None:
    """Anything else is a usage error that shows how a size is said."""
    with pytest.raises(UsageError, match="512MiB"):
        parse_size(text)


@given(st.integers(0, 2**50))
def test_a_size_is_read_back(size: int) -> None:
    """What format_size writes, parse_size reads as the same number."""
    assert parse_size(format_size(size)) == size


def test_mount_options() -> None:
    """Options of redisfuse's own are understood, those for mount(8) and systemd dropped, the rest kept for libfuse."""
    options = MountOptions.parse(
        [
            "ro,allow_other,uid=1000",
            "gid=5,umask=027,_netdev,nofail,x-systemd.automount,x-foo=1",
            "max_read=4096,nonempty",
        ]
    )
    assert options == MountOptions(
        read_only=True,
        allow_other=True,
        uid=1000,
        gid=5,
        umask=0o027,
        passthrough=(("max_read", "4096"), ("nonempty", None)),
    )


def test_no_mount_options() -> None:
    """What mount(8) adds by itself (rw, dev, suid) leaves the defaults as they are."""
    assert MountOptions.parse(["rw,dev,suid,exec,async,auto,nouser,relatime,defaults", ""]) == MountOptions()


@pytest.mark.parametrize("word", ["uid=me", "uid=", "uid", "gid=-1", "umask=8", "umask=01000", "uid=4294967295"])
def test_bad_mount_options(word: str) -> None:
    """A number out of range is a usage error that names the option."""
    with pytest.raises(UsageError, match=word.partition("=")[0]):
        MountOptions.parse([word])


def test_a_comma_in_an_option() -> None:
    """A backslash keeps a comma inside a word, as in mount(8)."""
    assert split_mount_options([r"prefix=a\,b,ro", "", "x"]) == ["prefix=a,b", "ro", "x"]


def test_settings_hide_secrets() -> None:
    """Neither the password nor the URL that may hold one shows in the repr of Settings."""
    settings = Config(target="redis://:s3cret@h", password="s3cret", mountpoint=Path("/mnt"))
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in str(settings)


def test_defaults() -> None:
    """A mount is read-only, checks conflicts and filters junk unless told otherwise."""
    settings = Config(target="redis://h", mountpoint=Path("/mnt"))
    assert not settings.write
    assert settings.conflict_check
    assert settings.junk_filter
    assert not settings.options.allow_other
    assert DEFAULTS["render_limit"] == settings.render_limit == 10_000
