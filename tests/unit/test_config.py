"""config.py: sizes, mount options and the defaults of a mount."""

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
    """K, M, G and KiB, MiB, GiB are powers of 1024, kB, MB, GB of 1000; case is ignored."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1e3", "1 TiB", "1,5G", "٣"])
def test_invalid_sizes(text: str) -> None:
    """Any other text is a usage error with examples of sizes."""
    with pytest.raises(UsageError, match="512MiB"):
        parse_size(text)


@given(st.integers(0, 2**50))
def test_sizes_round_trip(size: int) -> None:
    """parse_size is the inverse of format_size."""
    assert parse_size(format_size(size)) == size


def test_mount_options() -> None:
    """redisfuse's own options are parsed, those of mount(8) and systemd dropped, others passed on."""
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


@pytest.mark.parametrize(
    "word", ["attr_timeout=5", "entry_timeout=5", "kernel_cache", "hard_remove", "max_readahead=9"]
)
def test_options_of_libfuse_are_refused(word: str) -> None:
    """An option that libfuse implements itself is a usage error that names it, as it would have no effect."""
    with pytest.raises(UsageError, match=f"-o {word.partition('=')[0]} is an option of libfuse's own"):
        MountOptions.parse([f"ro,{word}"])


def test_no_mount_options() -> None:
    """The options that mount(8) adds (rw, dev, suid) do not change the defaults."""
    assert MountOptions.parse(["rw,dev,suid,exec,async,auto,nouser,relatime,defaults", ""]) == MountOptions()


@pytest.mark.parametrize("word", ["uid=me", "uid=", "uid", "gid=-1", "umask=8", "umask=01000", "uid=4294967295"])
def test_bad_mount_options(word: str) -> None:
    """A number out of range is a usage error that names the option."""
    with pytest.raises(UsageError, match=word.partition("=")[0]):
        MountOptions.parse([word])


def test_a_comma_in_an_option() -> None:
    """A backslash escapes a comma, as in mount(8)."""
    assert split_mount_options([r"prefix=a\,b,ro", "", "x"]) == ["prefix=a,b", "ro", "x"]


def test_repr_contains_no_secrets() -> None:
    """The repr of Config contains neither the password nor the URL."""
    settings = Config(target="redis://:s3cret@h", password="s3cret", mountpoint=Path("/mnt"))
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in str(settings)


def test_defaults() -> None:
    """By default a mount is read-only, checks conflicts and filters junk."""
    settings = Config(target="redis://h", mountpoint=Path("/mnt"))
    assert not settings.write
    assert settings.conflict_check
    assert settings.junk_filter
    assert not settings.options.allow_other
    assert DEFAULTS["render_limit"] == settings.render_limit == 10_000
