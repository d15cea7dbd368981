"""Mounting and unmounting with both bindings: real kernel mounts of `tests/support/kernel_tree.py`."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from redisfuse.errors import MountError, UsageError
from redisfuse.fuse import mountpoint as mountpoints
from redisfuse.fuse.device import list_bindings, select_device
from redisfuse.mount.preflight import validate_mountpoint
from tests.support.bindings import BINDINGS
from tests.support.memory_mount import LIBC, MemoryMount, call_errno, within


@pytest.fixture(scope="module", params=BINDINGS)
def binding(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts(binding: str, number: int) -> None:
    """The process ends well and at once, and nothing stays mounted."""
    with MemoryMount(binding) as mounted:
        assert os.listdir(mounted.path) == []
        mounted.process.send_signal(number)
        assert mounted.wait_for_exit(10) == 0
        assert not mounted.is_mounted
        assert mounted.log.read_text().strip() == "ended"


def test_it_can_be_stopped_from_inside(binding: str) -> None:
    """`stop` ends the mount."""
    with MemoryMount(binding) as mounted:
        mounted.send_request("stop")
        assert mounted.wait_for_exit(10) == 0
        assert mounted.log.read_text().strip() == "ended"


def test_unmounting_from_outside_ends_the_process(binding: str) -> None:
    """`umount` is as good as a signal."""
    with MemoryMount(binding) as mounted:
        mountpoints.unmount(mounted.path)
        assert mounted.wait_for_exit(10) == 0
        assert mounted.log.read_text().strip() == "ended"


def test_a_signal_unmounts_while_in_use(binding: str) -> None:
    """The mount goes away at once; a program that still has a file open gets an error, not a hang."""
    with MemoryMount(binding) as mounted:
        mounted.put_file("/file", "content")
        number = os.open(mounted.path / "file", os.O_RDONLY)
        assert call_errno(lambda: mountpoints.try_unmount(mounted.path, lazy=False)) == errno.EBUSY
        with pytest.raises(MountError, match="in use"):
            mountpoints.unmount(mounted.path, retry_seconds=0)
        mounted.process.send_signal(signal.SIGTERM)
        assert mounted.wait_for_exit(10) == 0
        assert not mounted.is_mounted
        assert mounted.log.read_text().strip() == "ended"
        assert call_errno(lambda: os.read(number, 10)) in (errno.ENOTCONN, errno.ECONNABORTED)
        os.close(number)


@pytest.mark.expected_log("a call did not end within 1 s")
def test_a_call_that_never_ends_does_not_keep_the_process(binding: str) -> None:
    """After the time that calls may take, the process gives up, with an error."""
    with MemoryMount(binding, stop_timeout=1) as mounted:
        hung = subprocess.Popen(["stat", mounted.path / "hang"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert within(5, lambda: mounted.take_counts()["hanging"] > 0)
        mounted.process.send_signal(signal.SIGTERM)
        assert mounted.wait_for_exit(10) == 1
        assert not mounted.is_mounted
        assert "did not end within 1 s" in mounted.log.read_text()
        assert hung.wait(10) == 1


def test_an_aborted_connection_ends_the_process(binding: str) -> None:
    """`umount --force` of a mount in use aborts the connection; the process ends."""
    with MemoryMount(binding, tree={"d": 1}) as mounted, open(mounted.path / "d/f000000", "rb"):
        assert LIBC.umount2(os.fsencode(mounted.path), 1) == -1
        assert ctypes.get_errno() == errno.EBUSY
        assert mounted.wait_for_exit(10) == 0
        assert mounted.log.read_text().strip() == "ended"


@pytest.mark.expected_log("UnavailableError: nothing to serve")
def test_a_failed_init_is_a_failed_mount(binding: str) -> None:
    """`run` raises the exception of `init`, and nothing stays mounted."""
    mounted = MemoryMount(binding, fail_start=True)
    mounted.start()
    try:
        assert mounted.wait_for_exit(10) == 1
        assert mounted.log.read_text().strip() == "UnavailableError: nothing to serve"
        assert not mounted.is_mounted
    finally:
        mounted.__exit__()


def test_how_it_is_shown(binding: str, tmp_path: Path) -> None:
    """Type, source and mount point are in the table of mounts, odd characters too; read-only is EROFS."""
    odd = tmp_path / "a b\\c\td"
    odd.mkdir()
    source = r"redisfuse#redis://u:***@host/0,x\y z"
    with MemoryMount(binding, mountpoint=odd, fsname=source, read_only=True) as mounted:
        shown = mountpoints.find_mount(odd)
        assert shown is not None
        assert (shown.fs_type, shown.source) == ("fuse.redisfuse", source)
        assert shown in mountpoints.list_redisfuse_mounts()
        assert os.readlink(f"/proc/{mounted.process.pid}/cwd") == os.getcwd()
        assert call_errno(lambda: (odd / "new").touch()) == errno.EROFS


def test_a_dead_mount_is_cleaned_away(binding: str) -> None:
    """A running mount occupies its mount point; one whose process was killed is stale, and is unmounted."""
    with MemoryMount(binding) as mounted:
        assert not mountpoints.is_stale(mounted.path)
        with pytest.raises(MountError, match=r"already mounted at .*redisfuse umount"):
            validate_mountpoint(mounted.path)
        mounted.process.kill()
        mounted.wait_for_exit()
        assert mountpoints.is_stale(mounted.path)
        assert validate_mountpoint(mounted.path) == mounted.path
        assert not mounted.is_mounted


@pytest.mark.expected_log("MountError: .*(no_such_option|attr_timeout|entry_timeout)")
@pytest.mark.parametrize("option", ["no_such_option", "attr_timeout=5", "entry_timeout=5"])
def test_an_unknown_option_is_named(binding: str, option: str) -> None:
    """An option that the mount does not know, or that was libfuse's own, is an error of one line that names it."""
    mounted = MemoryMount(binding, extra=[option])
    mounted.start()
    try:
        assert mounted.wait_for_exit(10) == 1
        text = mounted.log.read_text().strip()
        assert text.startswith("MountError: ")
        assert option.partition("=")[0] in text
        assert "\n" not in text
        assert not mounted.is_mounted
    finally:
        mounted.__exit__()


def test_mount_points_that_can_not_be_used(tmp_path: Path) -> None:
    """A missing, occupied or non-empty mount point, or a file, is an error of one line."""
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "file", "is not a directory"),
        (tmp_path, "is not empty"),
        (Path("/proc"), "already mounted"),
    ):
        with pytest.raises(MountError, match=f"^[^\n]*{reason}[^\n]*$"):
            validate_mountpoint(path)
    assert validate_mountpoint(tmp_path, nonempty=True) == tmp_path
    for path, reason in ((tmp_path, "is not mounted"), (Path("/proc"), "not a redisfuse mount")):
        with pytest.raises(MountError, match=reason):
            mountpoints.unmount(path)


def test_choosing_a_binding() -> None:
    """Both can be used here, libfuse 3 is preferred, and an unknown name is a usage error."""
    assert list_bindings() == {"fusepy": "", "mfusepy": ""}
    assert select_device().name == "mfusepy"
    assert select_device("fusepy").library.startswith("libfuse 2.")
    with pytest.raises(UsageError, match="no binding 'pyfuse3'"):
        select_device("pyfuse3")
