"""Both bindings on a real kernel mount, over the filesystem in memory of tests/support/memory_calls.py."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from redisfuse.errors import MountError, UsageError
from redisfuse.fuse import mountpoint as mountpoints
from redisfuse.fuse.backends import list_bindings, select_binding
from tests.support.memory_mount import MemoryMount

BINDINGS = ["fusepy", "mfusepy"]
LOGGED = pytest.mark.expected_log("getattr: unexpected [A-Z]")
LIBC = ctypes.CDLL(None, use_errno=True)
LONG: dict[str, Any] = {"entry_timeout": 3600, "attr_timeout": 3600, "negative_timeout": 3600, "keep_cache": True}


@pytest.fixture(scope="module", params=BINDINGS)
def binding(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def shared(binding: str) -> Iterator[MemoryMount]:
    """A mount for the tests that leave it as it was, apart from files of their own."""
    with MemoryMount(binding, tree={"small": 2000, "large": 100_000}) as mounted:
        yield mounted


@pytest.fixture
def mount(shared: MemoryMount) -> MemoryMount:
    shared.send_request("counts")
    return shared


@pytest.fixture(scope="module")
def cached(binding: str) -> Iterator[MemoryMount]:
    """A mount that lets the kernel believe everything for an hour, and pushes changes to it."""
    with MemoryMount(binding, tree={"d": 100}, notify=True, **LONG) as mounted:
        yield mounted


def call_errno(call: Callable[[], object]) -> int:
    """The errno with which a call fails."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is compared
        call()
    return caught.value.errno or 0


def within(seconds: float, what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# -- what programs see -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("raise-notfound", errno.ENOENT),
        ("raise-access", errno.EACCES),
        ("raise-stale", errno.ESTALE),
        ("raise-unavailable", errno.EIO),
        ("raise-oserror", errno.ENOSPC),
        pytest.param("raise-oserror-bare", errno.EIO, marks=LOGGED),
        pytest.param("raise-oserror-negative", errno.EIO, marks=LOGGED),
        pytest.param("raise-valueerror", errno.EIO, marks=LOGGED),
        pytest.param("raise-baseexception", errno.EIO, marks=LOGGED),
        pytest.param("raise-systemexit", errno.EIO, marks=LOGGED),
        pytest.param("raise-keyboard", errno.EIO, marks=LOGGED),
        ("raise-enosys", errno.ENOTSUP),
    ],
)
def test_every_exception_becomes_its_errno(mount: MemoryMount, name: str, expected: int) -> None:
    """An error of ours has its own errno, anything unexpected is EIO, and the mount goes on."""
    assert call_errno(lambda: os.stat(mount.path / name)) == expected
    assert call_errno(lambda: os.stat(mount.path / name)) == expected
    assert stat.S_ISDIR(os.stat(mount.path).st_mode)


@LOGGED
def test_only_unexpected_errors_are_logged(mount: MemoryMount) -> None:
    """A bug leaves its traceback in the log; an error that is meant for the program does not."""
    assert call_errno(lambda: os.stat(mount.path / "raise-valueerror")) == errno.EIO
    assert call_errno(lambda: os.stat(mount.path / "raise-access")) == errno.EACCES
    log = mount.log.read_text()
    assert "ValueError: a bug" in log
    assert "AccessError" not in log


def test_names_are_bytes(mount: MemoryMount) -> None:
    """A name that is not UTF-8 can be created, listed, read, renamed and removed, and spoils no listing."""
    folder = os.fsencode(mount.path)
    first, second = folder + b"/\xff\xfe bad\n", folder + b"/\x80"
    with open(first, "wb") as file:
        file.write(b"content")
    assert b"\xff\xfe bad\n" in os.listdir(folder)
    os.rename(first, second)
    with open(second, "rb") as file:
        assert file.read() == b"content"
    os.unlink(second)
    assert b"\x80" not in os.listdir(folder)


def test_a_large_directory_is_listed_in_pieces(mount: MemoryMount) -> None:
    """All of 100 000 names come, once each; the first one does not wait for the rest."""
    listed = subprocess.run(["ls", "-f", mount.path / "large"], capture_output=True, check=True, timeout=30)
    names = listed.stdout.split()
    assert len(names) == len(set(names)) == 100_002
    mount.send_request("counts")
    with os.scandir(mount.path / "large") as entries:
        next(entries)
        assert mount.take_counts()["entries"] < 2000


def test_a_listing_does_not_grow_the_process(mount: MemoryMount) -> None:
    """A second listing of 100 000 names takes no memory that the first did not."""
    command = ["ls", "-f", str(mount.path / "large")]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=30)
    before = mount.send_request("counts")["rss"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=30)
    assert mount.send_request("counts")["rss"] - before < 8 << 20


def test_a_directory_can_be_sought_in(mount: MemoryMount) -> None:
    """seekdir comes back to the same names, and rewinddir to the first."""
    libc = ctypes.CDLL(None)
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    libc.telldir.argtypes = libc.readdir.argtypes = libc.rewinddir.argtypes = libc.closedir.argtypes = [ctypes.c_void_p]
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    directory = libc.opendir(os.fsencode(mount.path / "small"))

    def names(count: int) -> list[bytes]:
        return [ctypes.string_at(libc.readdir(directory) + 19) for _ in range(count)]  # d_name of struct dirent64

    first = names(3)
    names(700)
    place = libc.telldir(directory)
    some = names(900)
    libc.seekdir(directory, place)
    assert names(900) == some
    libc.rewinddir(directory)
    assert names(3) == first == [b".", b"..", b"f000000"]
    libc.closedir(directory)


def test_types_come_with_the_names(mount: MemoryMount) -> None:
    """Looking for files by type asks for no attributes."""
    found = subprocess.run(
        ["find", mount.path / "small", "-type", "f"], capture_output=True, check=True, timeout=30
    ).stdout.split()
    assert len(found) == 2000
    assert mount.take_counts()["getattr"] <= 10


def test_attributes_come_with_the_names_on_libfuse_3(binding: str) -> None:
    """A first `ls -l` of a directory on libfuse 3 asks for at most ten attributes one by one."""
    with MemoryMount(binding, tree={"d": 2000}, entry_timeout=3600, attr_timeout=3600) as fresh:
        fresh.send_request("counts")
        subprocess.run(["ls", "-l", fresh.path / "d"], stdout=subprocess.DEVNULL, check=True, timeout=30)
        asked = fresh.take_counts()["getattr"]
    assert asked <= 10 if binding == "mfusepy" else asked >= 2000


def test_attributes_come_also_to_who_reads_all_names_first(binding: str) -> None:
    """grep and find read a whole directory before they open its files: they need no look-ups on libfuse 3 either."""
    with MemoryMount(binding, tree={"d": 2000}, entry_timeout=3600, attr_timeout=3600) as fresh:
        fresh.send_request("counts")
        for name in os.listdir(fresh.path / "d"):
            os.stat(fresh.path / "d" / name)
        asked = fresh.take_counts()["getattr"]
    assert asked <= 10 if binding == "mfusepy" else asked >= 2000


def test_attributes_past_the_first_names_only_for_who_wants_them() -> None:
    """In a directory of very many names, who only counts them is not given attributes, and who asks for them is."""
    many = 30_000  # mfusepy._WITH_ATTRIBUTES, and some more
    for wanting in (True, False):
        with MemoryMount("mfusepy", tree={"d": many}, entry_timeout=3600, attr_timeout=3600) as fresh:
            fresh.send_request("counts")
            with os.scandir(fresh.path / "d") as entries:
                found = [(entry.name, entry.stat().st_size if wanting else 0) for entry in entries]
            assert len({name for name, _ in found}) == many
            asked = fresh.take_counts()["getattr"]
            assert asked < 100
            for name, _ in found[-1000:]:
                os.stat(fresh.path / "d" / name)
            more = fresh.take_counts()["getattr"]
            assert more <= 10 if wanting else more == 1000


def test_direct_io_reads_past_the_size(mount: MemoryMount) -> None:
    """A file that shows no size and is opened for direct I/O is read to its end, with the program's own sizes."""
    mount.put_file("/direct-1", "x" * 200_000)
    assert os.stat(mount.path / "direct-1").st_size == 0
    assert len((mount.path / "direct-1").read_bytes()) == 200_000
    mount.put_file("/direct-stream", "stream")
    with open(mount.path / "direct-stream", "rb", buffering=0) as file:
        assert call_errno(lambda: os.lseek(file.fileno(), 0, os.SEEK_SET)) == errno.ESPIPE
        assert file.read() == b"stream"


def test_pages_are_dropped_at_open_unless_kept(mount: MemoryMount, cached: MemoryMount) -> None:
    """With keep_cache a second open reads nothing again; without, it does."""
    for mounted, reads in ((mount, 1), (cached, 0)):
        mounted.put_file("/again", "same")
        assert (mounted.path / "again").read_text() == "same"
        mounted.send_request("counts")
        assert (mounted.path / "again").read_text() == "same"
        assert mounted.take_counts()["read"] == reads


def test_truncating(mount: MemoryMount) -> None:
    """truncate comes with the path, ftruncate with the handle, and O_TRUNC with open, without a truncate."""
    file = mount.path / "cut"
    file.write_bytes(b"0123456789")
    mount.send_request("counts")
    os.truncate(file, 8)
    with open(file, "r+b") as opened:
        os.ftruncate(opened.fileno(), 4)
    assert file.read_bytes() == b"0123"
    assert [line for line in mount.take_calls() if "trunc" in line] == ["truncate /cut 8", "truncate by-handle 4"]
    os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))
    assert file.read_bytes() == b""
    assert [line for line in mount.take_calls() if "trunc" in line] == ["open-truncating /cut"]


def test_creating_tells_flags_and_mode(mount: MemoryMount) -> None:
    """O_EXCL and the permission bits of a new file arrive."""
    os.close(os.open(mount.path / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    assert f"create /new EXCL {oct(stat.S_IFREG | 0o600)}" in mount.take_calls()


def test_large_reads_come_in_large_pieces(mount: MemoryMount) -> None:
    """A program that reads 8 MiB past the page cache gets them in pieces of 1 MiB, on both libraries."""
    mount.put_file("/direct-large", "x" * (8 << 20))
    number = os.open(mount.path / "direct-large", os.O_RDONLY)
    mount.send_request("counts")
    assert len(os.read(number, 8 << 20)) == 8 << 20
    os.close(number)
    assert mount.take_counts()["read"] <= 9


def test_appending_and_writing_at_an_offset(mount: MemoryMount) -> None:
    """Appended bytes go to the end, written ones to their offset."""
    file = mount.path / "ends"
    file.write_bytes(b"abc")
    with open(file, "ab") as opened:
        opened.write(b"def")
    with open(file, "r+b") as opened:
        opened.seek(1)
        opened.write(b"XY")
    assert file.read_bytes() == b"aXYdef"


def rename_with(flags: int, old: Path, new: Path) -> int:
    """renameat2(2); 0 or the errno."""
    result = LIBC.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)
    return ctypes.get_errno() if result else 0


def test_rename_flags_arrive_or_are_refused(binding: str, mount: MemoryMount) -> None:
    """RENAME_NOREPLACE and RENAME_EXCHANGE are done on libfuse 3 and refused on libfuse 2, never dropped."""
    one, two, three = (mount.path / name for name in ("one", "two", "three"))
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    assert rename_with(1, one, two) == errno.EEXIST
    if binding == "fusepy":
        assert rename_with(1, one, three) == rename_with(2, one, two) == errno.EINVAL
        assert (one.read_bytes(), two.read_bytes()) == (b"1", b"2")
        return
    assert rename_with(2, one, two) == 0
    assert (one.read_bytes(), two.read_bytes()) == (b"2", b"1")
    assert rename_with(1, one, three) == 0
    assert [line for line in mount.take_calls() if line.startswith("rename")] == [
        "rename /one /two 2",
        "rename /one /three 1",
    ]


def test_a_file_removed_while_open_stays_usable(mount: MemoryMount) -> None:
    """It is told as what it is, vanishes from the tree, and its descriptor works until the last close."""
    file = mount.path / "gone"
    file.write_bytes(b"content")
    with open(file, "r+b") as opened:
        mount.send_request("counts")
        os.unlink(file)
        assert not file.exists()
        assert not [name for name in os.listdir(mount.path) if "gone" in name or "hidden" in name]
        assert opened.read() == b"content"
        opened.write(b" and more")
        opened.flush()
        number = opened.fileno()
        os.ftruncate(number, 3)
        os.fchmod(number, 0o600)
        os.utime(number, ns=(5, 5))
        assert os.fstat(number).st_size == 3
        assert os.pread(number, 10, 0) == b"con"
        calls = mount.take_calls()
        assert "unlink_open /gone" in calls
        assert not [line for line in calls if line.startswith(("rename", "unlink /"))]
    assert within(5, lambda: any(line.startswith("unlink /.fuse_hidden") for line in mount.take_calls()))


def test_a_rename_over_an_open_file(mount: MemoryMount) -> None:
    """The file that was there is told as removed while open, then the rename comes; the old bytes stay readable."""
    old, new = mount.path / "from", mount.path / "over"
    old.write_bytes(b"new")
    new.write_bytes(b"old")
    with open(new, "rb") as opened:
        mount.send_request("counts")
        os.rename(old, new)
        assert [line for line in mount.take_calls() if "rename" in line or "unlink" in line] == [
            "unlink_open /over",
            "rename /from /over 0",
        ]
        assert opened.read() == b"old"
    assert new.read_bytes() == b"new"


def test_times_and_owners_arrive(mount: MemoryMount) -> None:
    """Nanoseconds, "now", "leave it", and an id that stays are told apart."""
    file = mount.path / "touched"
    file.touch()
    mount.send_request("counts")
    os.utime(file, ns=(1_000_000_001, 2_000_000_002))
    os.utime(file)
    subprocess.run(["touch", "-m", "-d", "@5", file], check=True, timeout=10)
    os.chown(file, 5, -1)
    calls = mount.take_calls()
    assert "utimens 1000000001 2000000002" in calls
    assert "utimens now now" in calls
    assert "utimens None 5000000000" in calls
    assert "chown 5 -1" in calls


def test_extended_attributes(mount: MemoryMount) -> None:
    """They are set, read, listed and removed; those of ACLs are not supported, without asking."""
    file = mount.path / "extended"
    file.touch()
    os.setxattr(file, "user.a", b"\x00binary\xff")
    assert os.listxattr(file) == ["user.a"]
    assert os.getxattr(file, "user.a") == b"\x00binary\xff"
    os.removexattr(file, "user.a")
    assert call_errno(lambda: os.getxattr(file, "user.a")) == errno.ENODATA
    mount.send_request("counts")
    assert call_errno(lambda: os.getxattr(file, "system.posix_acl_access")) == errno.ENOTSUP
    assert mount.take_counts()["getxattr"] == 0


def test_what_there_is_not(mount: MemoryMount) -> None:
    """Links and devices are refused with the errno that was raised; statvfs shows what was told."""
    assert call_errno(lambda: os.symlink("target", mount.path / "link")) == errno.EPERM
    (mount.path / "some").touch()
    assert call_errno(lambda: os.link(mount.path / "some", mount.path / "hard")) == errno.ENOTSUP
    assert call_errno(lambda: os.mkfifo(mount.path / "fifo")) == errno.EPERM
    space = os.statvfs(mount.path)
    assert (space.f_blocks, space.f_bavail, space.f_namemax) == (1000, 400, 255)


def test_directories(mount: MemoryMount) -> None:
    """They are made and removed, not while something is in them; `cd` and access(2) work."""
    folder = mount.path / "made"
    folder.mkdir()
    (folder / "in").touch()
    assert call_errno(folder.rmdir) == errno.ENOTEMPTY
    (folder / "in").unlink()
    assert os.access(folder, os.X_OK)
    subprocess.run(["true"], cwd=folder, check=True, timeout=10)
    folder.rmdir()
    assert not folder.exists()


def test_one_hung_call_stops_nobody_else(mount: MemoryMount) -> None:
    """While one answer does not come, sixteen programs at once get theirs."""
    hung = subprocess.Popen(["stat", mount.path / "hang"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wrong: list[object] = []

    def read(worker: int) -> None:
        for index in range(worker, 2000, 40):
            content = (mount.path / f"small/f{index:06d}").read_bytes()
            if content != b"content of %d\n" % index:
                wrong.append((index, content))

    threads = [threading.Thread(target=read, args=(worker,)) for worker in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert hung.poll() is None
    mount.send_request("unhang")
    assert hung.wait(10) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_waiting_program_can_be_interrupted(mount: MemoryMount, number: int) -> None:
    """A callback learns that the program it works for was interrupted, and the program ends at once."""
    waiting = subprocess.Popen(["stat", mount.path / "wait"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert within(5, lambda: mount.take_counts()["getattr"] > 0)
    waiting.send_signal(number)
    assert waiting.wait(5) == -number


def test_nothing_is_left_open(mount: MemoryMount) -> None:
    """Every handle that was given is released."""
    for index in range(50):
        (mount.path / f"small/f{index:06d}").read_bytes()
        os.listdir(mount.path)
    assert within(5, lambda: mount.send_request("counts")["handles"] == 0)


# -- mounting and unmounting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts(binding: str, number: int) -> None:
    """The process ends well and at once, and nothing stays mounted."""
    with MemoryMount(binding) as mounted:
        assert os.listdir(mounted.path) == []
        mounted.process.send_signal(number)
        assert mounted.wait_for_exit(10) == 0
        assert not mounted.is_mounted
        assert mounted.log.read_text().strip() == "ended"


def test_unmounting_from_outside_ends_the_process(binding: str) -> None:
    """`umount` is as good as a signal."""
    with MemoryMount(binding) as mounted:
        mountpoints.unmount(mounted.path)
        assert mounted.wait_for_exit(10) == 0


def test_a_signal_unmounts_while_in_use(binding: str) -> None:
    """The mount goes away at once; who still has a file open gets an error, not a hang."""
    with MemoryMount(binding, keep_cache=False) as mounted:
        mounted.put_file("/direct", "content")
        number = os.open(mounted.path / "direct", os.O_RDONLY)
        assert call_errno(lambda: mountpoints.try_unmount(mounted.path, lazy=False)) == errno.EBUSY
        with pytest.raises(MountError, match="in use"):
            mountpoints.unmount(mounted.path, retry_seconds=0)
        mounted.process.send_signal(signal.SIGTERM)
        assert mounted.wait_for_exit(10) == 0
        assert not mounted.is_mounted
        assert mounted.log.read_text().strip() == "ended"
        assert call_errno(lambda: os.read(number, 10)) in (errno.ENOTCONN, errno.ECONNABORTED)
        assert call_errno(lambda: os.close(number)) in (errno.ENOTCONN, errno.ECONNABORTED)


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


@pytest.mark.expected_log("UnavailableError: nothing to serve")
def test_a_failed_start_is_a_failed_mount(binding: str) -> None:
    """What `started` raises is what `run` raises, and nothing stays mounted."""
    mounted = MemoryMount(binding, fail_start=True)
    mounted.start()
    try:
        assert mounted.wait_for_exit(10) == 1
        assert mounted.log.read_text().strip() == "UnavailableError: nothing to serve"
        assert not mounted.is_mounted
    finally:
        mounted.__exit__()


def test_how_it_is_shown(binding: str, tmp_path: Path) -> None:
    """Type, source and mount point are in the table of mounts, odd characters too; the process stays where it was."""
    odd = tmp_path / "a b\\c\td"
    odd.mkdir()
    source = r"redisfuse#redis://u:***@host/0,x\y z"
    with MemoryMount(binding, mountpoint=odd, fsname=source, read_only=True) as mounted:
        shown = mountpoints.find_mount(odd)
        assert shown is not None
        assert (shown.fs_type, shown.source) == ("fuse.redisfuse", source)
        assert odd in [mount.mountpoint for mount in mountpoints.list_redisfuse_mounts()]
        assert os.readlink(f"/proc/{mounted.process.pid}/cwd") == os.getcwd()
        assert call_errno(lambda: (odd / "new").touch()) == errno.EROFS


def test_a_dead_mount_is_cleaned_away(binding: str) -> None:
    """A mount whose process was killed is known as stale, and mounting there again just works."""
    with MemoryMount(binding) as mounted:
        assert not mountpoints.is_stale(mounted.path)
        mounted.process.kill()
        mounted.wait_for_exit()
        assert mountpoints.is_stale(mounted.path)
        assert mountpoints.validate_mountpoint(mounted.path) == mounted.path
        assert not mounted.is_mounted


@pytest.mark.expected_log("MountError: .*no_such_option")
def test_an_unknown_option_is_named(binding: str) -> None:
    """What libfuse says of an option that it doesn't know becomes the error, on one line."""
    mounted = MemoryMount(binding, extra=["no_such_option"])
    mounted.start()
    try:
        assert mounted.wait_for_exit(10) == 1
        text = mounted.log.read_text().strip()
        assert text.startswith("MountError: ")
        assert "no_such_option" in text
        assert "\n" not in text
    finally:
        mounted.__exit__()


def test_mount_points_that_can_not_be_used(tmp_path: Path) -> None:
    """Missing, a file, not empty, or taken: one line that says so."""
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match="does not exist"):
        mountpoints.validate_mountpoint(tmp_path / "missing")
    with pytest.raises(MountError, match="is not a directory"):
        mountpoints.validate_mountpoint(tmp_path / "file")
    with pytest.raises(MountError, match="is not empty"):
        mountpoints.validate_mountpoint(tmp_path)
    assert mountpoints.validate_mountpoint(tmp_path, nonempty=True) == tmp_path
    with pytest.raises(MountError, match="already mounted"):
        mountpoints.validate_mountpoint(Path("/proc"))
    with pytest.raises(MountError, match="is not mounted"):
        mountpoints.unmount(tmp_path)
    with pytest.raises(MountError, match="not a redisfuse mount"):
        mountpoints.unmount(Path("/proc"))


def test_a_mount_point_that_is_taken_by_us(mount: MemoryMount) -> None:
    """A second mount at the same place is refused, with how to leave the first."""
    with pytest.raises(MountError, match=r"already mounted at .*redisfuse umount"):
        mountpoints.validate_mountpoint(mount.path)


def test_choosing_a_binding() -> None:
    """Both can be used here, libfuse 3 is preferred, and an unknown name is a usage error."""
    assert [(found.name, found.reason) for found in list_bindings()] == [("fusepy", ""), ("mfusepy", "")]
    assert select_binding().name == "mfusepy"
    assert select_binding("fusepy").library.startswith("libfuse 2.")
    with pytest.raises(UsageError, match="no binding 'pyfuse3'"):
        select_binding("pyfuse3")


# -- the kernel's caches -----------------------------------------------------------------------------------------------


def told(mounted: MemoryMount, *paths: str, **more: bool) -> None:
    """Tell the notifier of a change, and wait until it told the kernel."""
    mounted.send_request("invalidate", paths=list(paths), **more)
    assert mounted.send_request("drain")


def test_a_change_that_is_told_is_seen_at_once(cached: MemoryMount) -> None:
    """stat, read, mmap and an open descriptor show each change, though the kernel was told to believe for an hour."""
    file = cached.path / "d/f000001"
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        assert mapped[:] == b"content of 1\n"
        for index in range(30):
            before = os.stat(file).st_mtime_ns
            content = b"change no %03d" % index
            cached.put_file("/d/f000001", content.decode())
            told(cached, "d/f000001", keep_dentry=index % 2 == 1)
            assert os.stat(file).st_mtime_ns == os.fstat(opened.fileno()).st_mtime_ns == before + 1_000_000_000
            assert mapped[:] == content
            assert os.pread(opened.fileno(), 20, 0) == content
            assert file.read_bytes() == content
        cached.put_file("/d/f000001", "longer than all before")
        told(cached, "d/f000001")
        assert os.stat(file).st_size == os.fstat(opened.fileno()).st_size == 22
        assert file.read_bytes() == b"longer than all before"


def test_without_being_told_the_kernel_believes(cached: MemoryMount) -> None:
    """What was not told is not seen (so the other tests show the notifier, and not the time-outs)."""
    file = cached.path / "d/f000002"
    before = os.stat(file).st_mtime_ns
    cached.put_file("/d/f000002", "other")
    cached.send_request("counts")
    assert os.stat(file).st_mtime_ns == before
    assert cached.take_counts()["getattr"] == 0


def test_files_that_come_and_go(cached: MemoryMount) -> None:
    """A name that was not found appears, and one that was found vanishes, also under a name that is created again."""
    file = cached.path / "d/comes"
    for index in range(5):
        assert not file.exists()
        cached.put_file("/d/comes", f"here {index}")
        told(cached, "d/comes")
        assert file.read_text() == f"here {index}"
        cached.send_request("drop", path="/d/comes")
        told(cached, "d/comes")
    with open(file, "x") as created:
        created.write("made here")
    cached.send_request("drop", path="/d/comes")
    told(cached, "d/comes")
    with open(file, "w") as created:  # a believed, vanished file is made again, not an error
        created.write("again")
    assert file.read_text() == "again"


def test_a_vanished_file_can_be_created_untold(cached: MemoryMount) -> None:
    """Opening a file to write it, that the kernel wrongly believes to be there, creates it."""
    file = cached.path / "d/untold"
    file.write_text("before")
    assert file.exists()
    cached.send_request("drop", path="/d/untold")
    file.write_text("after")
    assert file.read_text() == "after"
    cached.send_request("drop", path="/d/untold")
    assert call_errno(file.read_bytes) == errno.ENOENT


def test_neighbours_can_be_told_of_one_after_the_other(cached: MemoryMount) -> None:
    """A notification for one name does not hide the next ones in the same directory."""
    files = [cached.path / f"d/f{index:06d}" for index in range(10, 40)]
    descriptors = [os.open(file, os.O_RDONLY) for file in files]
    assert [os.pread(descriptor, 50, 0)[:7] for descriptor in descriptors] == [b"content"] * 30
    for index, file in enumerate(files, 10):
        cached.put_file(f"/d/{file.name}", f"changed to {index}")
        told(cached, f"d/{file.name}", ancestors=True)
    for index, descriptor in enumerate(descriptors, 10):
        assert os.pread(descriptor, 50, 0) == b"changed to %d" % index
        os.close(descriptor)


def test_directories_that_come_and_go(cached: MemoryMount) -> None:
    """A directory's names change below it and it vanishes; what is asked next is true, at every depth."""
    folder = cached.path / "new"
    assert not folder.exists()
    cached.send_request("mkdir", path="/new")
    cached.put_file("/new/in", "1")
    told(cached, "new/in", ancestors=True)
    assert os.listdir(folder) == ["in"]
    assert (folder / "in").read_text() == "1"
    cached.put_file("/new/more", "2")
    told(cached, "new/more", ancestors=True)
    assert sorted(os.listdir(folder)) == ["in", "more"]
    for name in ("in", "more"):
        cached.send_request("drop", path=f"/new/{name}")
    cached.send_request("drop", path="/new")
    told(cached, "new/in", "new/more", "new", ancestors=True)
    assert not (folder / "in").exists()
    assert not folder.exists()
    assert "new" not in os.listdir(cached.path)


def test_what_an_open_file_saw_stays_its_own(cached: MemoryMount) -> None:
    """A file opened before a change reads what it was; one opened after it what it is, during and afterwards."""
    file = cached.path / "snap"
    cached.put_file("/snap", "old" * 10_000)
    with open(file, "rb", buffering=0) as before:
        assert before.read(3) == b"old"
        cached.put_file("/snap", "new" * 10_000)
        told(cached, "snap")
        assert before.read(3) == b"old"
        with open(file, "rb", buffering=0) as after:
            assert after.read() == b"new" * 10_000
            assert before.read(3) == b"old"
    assert within(5, lambda: cached.send_request("counts")["handles"] == 0)
    assert file.read_bytes() == b"new" * 10_000


def test_a_length_that_the_kernel_does_not_know_yet(cached: MemoryMount) -> None:
    """A file that became shorter or longer untold is read as it is, neither cut nor filled with zeros."""
    file = cached.path / "snap-size"
    for content in ("x" * 100, "short", "much longer than it was before"):
        cached.put_file("/snap-size", content)
        assert file.read_bytes() == content.encode()
    for content in ("listed", "listed and changed"):
        cached.put_file("/snap-size", content)
        told(cached, "snap-size", ancestors=True)
        subprocess.run(["ls", "-l", cached.path], stdout=subprocess.DEVNULL, check=True, timeout=10)
        cached.put_file("/snap-size", content * 2)
        assert file.read_bytes() == content.encode() * 2


@pytest.fixture(scope="module")
def unopened(binding: str) -> Iterator[MemoryMount]:
    """A read-only mount with long time-outs whose files are read without being opened."""
    long = {"entry_timeout": 3600.0, "attr_timeout": 3600.0, "negative_timeout": 3600.0}
    with MemoryMount(binding, notify=True, no_open=True, read_only=True, tree={"many": 200}, **long) as mount:
        yield mount


def test_a_warm_read_never_leaves_the_kernel(unopened: MemoryMount) -> None:
    """Files that were read once are opened, read and closed without a request; nor are they opened before."""
    names = [unopened.path / "many" / f"f{index:06d}" for index in range(200)]
    unopened.take_counts()
    assert [name.read_bytes() for name in names] == [b"content of %d\n" % index for index in range(200)]
    first = unopened.take_counts()
    assert first["read_node"] == 200
    assert first["open"] == first["release"] == 0
    for name in names:
        descriptor = os.open(name, os.O_RDONLY)
        assert os.read(descriptor, 4096)
        os.close(descriptor)
    assert not unopened.take_counts()


def test_writing_is_refused_where_files_are_not_opened(unopened: MemoryMount) -> None:
    """The kernel refuses, as in any read-only mount."""
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        assert call_errno(lambda flags=flags: os.open(unopened.path / "many" / "f000000", flags)) == errno.EROFS  # type: ignore[misc]
    assert call_errno(lambda: os.rename(unopened.path / "many", unopened.path / "moved")) == errno.EROFS


def test_who_began_to_read_goes_on_with_that(unopened: MemoryMount) -> None:
    """A program that has read a part of a file reads the rest of the same, whatever becomes of the file; who opens it
    after the change was told reads what it is; and both again after the next change."""
    file = unopened.path / "text"
    contents = [letter * 300_000 for letter in "abc"]
    unopened.put_file("/text", contents[0])
    told(unopened, "text", ancestors=True)
    with contextlib.ExitStack() as stack:
        opened = []
        for content in contents:
            unopened.put_file("/text", content)
            told(unopened, "text")
            opened.append(stack.enter_context(file.open("rb", buffering=0)))
            assert opened[-1].read(1000) == content[:1000].encode()
        for handle, content in zip(opened, contents, strict=True):
            rest = b"".join(iter(lambda handle=handle: handle.read(65536), b""))  # type: ignore[misc]
            assert rest == content[1000:].encode()
        unopened.send_request("drop", path="/text")
        told(unopened, "text")
        assert os.pread(opened[0].fileno(), 10, 5) == b"a" * 10
        assert os.fstat(opened[0].fileno()).st_size == 300_000
        assert not file.exists()
    unopened.put_file("/text", "new")
    told(unopened, "text")
    assert file.read_text() == "new"


def test_who_has_not_read_yet_reads_what_is_there(unopened: MemoryMount) -> None:
    """A file that was opened before a change, and that nobody had read, is read as it is, whole; if somebody had, as it
    was when it was opened."""
    for number, content in enumerate(("longer than it was", "x", "y" * 10_000)):
        file = unopened.path / f"later{number}"
        unopened.put_file(f"/{file.name}", "short")
        told(unopened, file.name, ancestors=True)
        with open(file, "rb", buffering=0) as handle:
            unopened.put_file(f"/{file.name}", content)
            told(unopened, file.name)
            assert handle.read() == content.encode()
        with open(file, "rb", buffering=0) as handle:
            unopened.put_file(f"/{file.name}", "something else")
            told(unopened, file.name)
            assert handle.read() == content.encode()
            assert file.read_text() == "something else"


def test_a_length_that_is_out_of_date(unopened: MemoryMount) -> None:
    """Untold: what became longer is read whole; what became shorter is an error, not filled with zeros."""
    file = unopened.path / "length"
    unopened.put_file("/length", "1234")
    told(unopened, "length", ancestors=True)
    with open(file, "rb", buffering=0) as handle:
        unopened.put_file("/length", "123456789")
        assert b"".join(iter(lambda: handle.read(100), b"")) == b"123456789"
    unopened.put_file("/length", "1" * 100)
    told(unopened, "length")
    assert file.stat().st_size == 100
    unopened.put_file("/length", "12")
    assert call_errno(file.read_bytes) == errno.ESTALE
    told(unopened, "length")
    assert file.read_bytes() == b"12"


def test_what_has_no_length_is_read_to_its_end(unopened: MemoryMount) -> None:
    """A file of size 0 whose content is known only when it is read."""
    file = unopened.path / "direct-long"
    unopened.put_file("/direct-long", "0123456789" * 50_000)
    told(unopened, "direct-long", ancestors=True)
    for _ in range(2):
        assert file.stat().st_size == 0
        assert file.read_bytes() == b"0123456789" * 50_000
    assert subprocess.run(["head", "-c", "5", file], capture_output=True, check=True, timeout=10).stdout == b"01234"


def test_all_at_once_where_files_are_not_opened(binding: str) -> None:
    """After all was invalidated, who has begun goes on, and everybody else reads what is there; also on old kernels."""
    long = {"entry_timeout": 3600.0, "attr_timeout": 3600.0}
    for notify in (True, "old"):
        with MemoryMount(binding, notify=notify, no_open=True, read_only=True, tree={"many": 20}, **long) as mount:
            names = [mount.path / "many" / f"f{index:06d}" for index in range(20)]
            handles = [open(name, "rb", buffering=0) for name in names]  # noqa: SIM115
            assert [handle.read(3) for handle in handles] == [b"con"] * 20
            for index in range(20):
                mount.put_file(f"/many/f{index:06d}", f"changed to {index}\n")
            mount.send_request("invalidate_all")
            assert mount.send_request("drain")
            assert [name.read_text() for name in names] == [f"changed to {index}\n" for index in range(20)]
            assert [handle.read() for handle in handles] == [b"tent of %d\n" % index for index in range(20)]
            for handle in handles:
                handle.close()


def test_what_the_kernel_forgets_is_let_go(unopened: MemoryMount) -> None:
    """Nothing is kept of a retired file that nobody has open."""
    file = unopened.path / "kept"
    unopened.put_file("/kept", "1" * 100)
    told(unopened, "kept", ancestors=True)
    with open(file, "rb", buffering=0) as handle:
        assert handle.read(10) == b"1" * 10
        unopened.put_file("/kept", "2" * 100)
        told(unopened, "kept")
        assert file.read_text() == "2" * 100
        unopened.take_counts()
    assert within(5, lambda: unopened.take_counts()["forgotten"] > 0)


def test_what_was_just_written_can_be_mapped(cached: MemoryMount) -> None:
    """After a write or truncate through the mount the kernel's length is known to be right, so mmap works at once."""
    file = cached.path / "snap-mapped"
    file.write_bytes(b"written")
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == b"written"
    os.truncate(file, 3)
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == b"wri"


@pytest.mark.parametrize("notify", [True, "old"])
def test_everything_can_be_forgotten_at_once(binding: str, notify: object) -> None:
    """After `invalidate_all`, files, missing names, open descriptors and kept pages are all asked about again."""
    with MemoryMount(binding, tree={"d": 20}, notify=notify, **LONG) as mounted:
        files = [mounted.path / f"d/f{index:06d}" for index in range(20)]
        missing = [mounted.path / "no", mounted.path / "d/no"]
        for _ in range(2):
            assert all(file.read_bytes().startswith(b"content of") for file in files)
            assert not any(file.exists() for file in missing)
        with open(files[0], "rb") as opened:
            os.fstat(opened.fileno())
            for file in files:
                mounted.put_file(f"/d/{file.name}", "CONTENT OF " + file.read_text()[11:])
            mounted.put_file("/no", "yes")
            mounted.put_file("/d/no", "yes")
            before = os.fstat(opened.fileno()).st_mtime_ns
            mounted.send_request("invalidate_all")
            assert mounted.send_request("drain")
            assert os.fstat(opened.fileno()).st_mtime_ns > before
        assert all(file.read_bytes().startswith(b"CONTENT OF") for file in files)
        assert all(file.read_bytes() == b"yes" for file in missing)
        assert mounted.send_request("counts")["notifier"]["epochs"] == (notify is True)


def test_time_outs_can_change_while_mounted(cached: MemoryMount) -> None:
    """From one second to an hour and back, for what is asked from then on."""
    file = cached.path / "d/f000090"
    assert cached.send_request("counts")["can_set_timeouts"]
    cached.send_request("timeouts", value=0)
    told(cached, "d/f000090")
    os.stat(file)
    cached.send_request("counts")
    os.stat(file)
    assert cached.take_counts()["getattr"] > 0
    cached.send_request("timeouts", value=3600)
    os.stat(file)
    cached.send_request("counts")
    os.stat(file)
    assert cached.take_counts()["getattr"] == 0


def test_telling_much_at_once(cached: MemoryMount) -> None:
    """A hundred thousand paths that the kernel never heard of are told within seconds, and the caller never waits."""
    started = time.monotonic()
    cached.send_request("invalidate", paths=[f"d/unknown{index}" for index in range(100_000)])
    assert time.monotonic() - started < 3
    assert within(20, lambda: bool(cached.send_request("drain")))
    assert cached.send_request("counts")["notifier"]["failed"] == 0


def test_telling_during_requests_never_hangs(cached: MemoryMount) -> None:
    """Reads, listings and attributes go on while changes are told as fast as possible; the end is fresh."""
    stop = threading.Event()

    def use(worker: int) -> None:
        while not stop.is_set():
            os.listdir(cached.path / "d")
            file = cached.path / f"d/f{50 + worker:06d}"
            assert file.read_bytes() in (b"content of %d\n" % (50 + worker), b"later, in %d \n" % (50 + worker))

    workers = [threading.Thread(target=use, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        cached.send_request("invalidate", paths=[f"d/f{50 + index:06d}" for index in range(4)], ancestors=True)
    for index in range(4):
        cached.put_file(f"/d/f{50 + index:06d}", f"later, in {50 + index} \n")
    told(cached, *[f"d/f{50 + index:06d}" for index in range(4)])
    fresh = [(cached.path / f"d/f{50 + index:06d}").read_bytes() for index in range(4)]
    stop.set()
    for worker in workers:
        worker.join(20)
    assert not any(worker.is_alive() for worker in workers)
    assert fresh == [b"later, in %d \n" % (50 + index) for index in range(4)]
