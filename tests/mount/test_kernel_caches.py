"""The kernel's caches, and notifications, on real kernel mounts of `tests/support/kernel_tree.py`."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from redisfuse.fuse.notify import MAX_QUEUED_NOTIFICATIONS
from tests.support.memory_mount import MemoryMount, call_errno, within


@pytest.fixture(scope="module")
def cached(binding: str) -> Iterator[MemoryMount]:
    """Mount so that the kernel caches everything for an hour, until it is invalidated."""
    with MemoryMount(binding, tree={"d": 100}, valid=3600, keep_cache=True, explicit_invalidation=True) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def unopened(binding: str) -> Iterator[MemoryMount]:
    """Mount read-only; the kernel opens files without a request."""
    with MemoryMount(binding, tree={"d": 100}, valid=3600, no_open=True, read_only=True) as mounted:
        yield mounted


def notify(mounted: MemoryMount, what: str, path: str = "/") -> None:
    mounted.send_request("notify", what=what, path=path)
    assert mounted.send_request("drain")


def test_what_is_cached_stays_in_the_kernel(cached: MemoryMount) -> None:
    """Warm stat, read and missing names cost no request but OPEN and RELEASE; a change unnotified is not seen."""
    file = cached.path / "d/f000001"
    for _ in range(2):  # after a READ the kernel asks for the time of access
        assert file.read_text() == "content of 1\n"
    assert not (cached.path / "d/missing").exists()
    cached.send_request("counts")
    for _ in range(10):
        assert file.read_text() == "content of 1\n"
        assert not (cached.path / "d/missing").exists()
    counts = cached.take_counts()
    assert set(counts) <= {"open", "release"}
    cached.put_file("/d/f000001", "CONTENT OF 1\n")
    assert file.read_text() == "content of 1\n"
    notify(cached, "inode", "/d/f000001")
    assert file.read_text() == "CONTENT OF 1\n"


def test_each_reply_has_its_own_time_outs(cached: MemoryMount) -> None:
    """A reply that may not be cached is followed by a request, one that may be is not."""
    file = cached.path / "d/f000003"
    for seconds in (0, 3600):
        cached.send_request("valid", seconds=seconds)
        notify(cached, "expire", "/d/f000003")
        os.stat(file)
        cached.send_request("counts")
        os.stat(file)
        counts = cached.take_counts()
        assert (counts["lookup"] + counts["getattr"] > 0) == (seconds == 0)


def test_pages_are_dropped_at_open_unless_kept(binding: str, cached: MemoryMount) -> None:
    """A second open reads again, unless the reply to OPEN has FOPEN_KEEP_CACHE."""
    with MemoryMount(binding, valid=3600) as uncached:
        for mounted, reads in ((uncached, 1), (cached, 0)):
            mounted.put_file("/again", "same")
            assert (mounted.path / "again").read_text() == "same"
            mounted.send_request("counts")
            assert (mounted.path / "again").read_text() == "same"
            assert mounted.take_counts()["read"] == reads


def test_every_change_is_seen_at_once(cached: MemoryMount) -> None:
    """After INVAL_INODE, stat, read, mmap and an open descriptor show the change, which the kernel could cache."""
    file = cached.path / "d/f000004"
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        assert mapped[:] == b"content of 4\n"
        for index in range(30):
            before = os.stat(file).st_mtime_ns
            content = b"change no %03d" % index
            cached.put_file("/d/f000004", content.decode())
            notify(cached, "inode", "/d/f000004")
            if index % 2:
                notify(cached, "expire", "/d/f000004")
            assert os.stat(file).st_mtime_ns == os.fstat(opened.fileno()).st_mtime_ns == before + 1_000_000_000
            assert mapped[:] == content
            assert os.pread(opened.fileno(), 20, 0) == content
            assert file.read_bytes() == content
        cached.put_file("/d/f000004", "longer than all before")
        notify(cached, "inode", "/d/f000004")
        assert os.stat(file).st_size == os.fstat(opened.fileno()).st_size == 22
        assert file.read_bytes() == b"longer than all before"


def test_each_of_several_neighbours_is_invalidated(cached: MemoryMount) -> None:
    """Notifications for one file after the other of a directory each have an effect on its open descriptor."""
    files = [cached.path / f"d/f{index:06d}" for index in range(10, 40)]
    descriptors = [os.open(file, os.O_RDONLY) for file in files]
    assert [os.pread(descriptor, 7, 0) for descriptor in descriptors] == [b"content"] * 30
    for index, file in enumerate(files, 10):
        cached.put_file(f"/d/{file.name}", f"changed to {index}")
        notify(cached, "expire", f"/d/{file.name}")
        notify(cached, "inode", f"/d/{file.name}")
    for index, descriptor in enumerate(descriptors, 10):
        assert os.pread(descriptor, 50, 0) == b"changed to %d" % index
        os.close(descriptor)


def test_a_written_file_can_be_mapped(cached: MemoryMount) -> None:
    """After a write or truncate through the mount the kernel knows the size, so that mmap works at once."""
    file = cached.path / "mapped"
    file.write_bytes(b"written")
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == b"written"
    os.truncate(file, 3)
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == b"wri"


def test_mapped_pages_are_dropped(cached: MemoryMount) -> None:
    """INVAL_INODE reaches a mapping; INVAL_INODE of attributes alone keeps the pages."""
    file = cached.path / "d/f000002"
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == b"content of 2\n"
        before = os.fstat(opened.fileno()).st_mtime_ns
        cached.put_file("/d/f000002", "CONTENT OF 2\n")
        notify(cached, "attributes", "/d/f000002")
        assert os.fstat(opened.fileno()).st_mtime_ns > before
        assert mapped[:] == b"content of 2\n"
        notify(cached, "inode", "/d/f000002")
        assert mapped[:] == b"CONTENT OF 2\n"


def test_names_that_come_and_go(cached: MemoryMount) -> None:
    """INVAL_ENTRY drops an absent name and a present one."""
    file = cached.path / "d/coming"
    for index in range(5):
        assert not file.exists()
        cached.put_file("/d/coming", f"here {index}")
        assert not file.exists()
        notify(cached, "entry", "/d/coming")
        assert file.read_text() == f"here {index}"
        cached.send_request("drop", path="/d/coming")
        assert file.exists()
        notify(cached, "entry", "/d/coming")
    with open(file, "x") as created:
        created.write("made here")
    cached.send_request("drop", path="/d/coming")
    notify(cached, "entry", "/d/coming")
    with open(file, "w") as created:
        created.write("made again")
    assert file.read_text() == "made again"


def test_directories_that_come_and_go(cached: MemoryMount) -> None:
    """A directory appears with a file, gets another, and vanishes; each state is seen after its notifications."""
    folder = cached.path / "new"
    assert not folder.exists()
    cached.send_request("mkdir", path="/new")
    cached.put_file("/new/in", "1")
    notify(cached, "entry", "/new")
    assert os.listdir(folder) == ["in"]
    assert not (folder / "more").exists()
    cached.put_file("/new/more", "2")
    notify(cached, "inode", "/new")
    notify(cached, "entry", "/new/more")
    assert sorted(os.listdir(folder)) == ["in", "more"]
    assert (folder / "more").read_text() == "2"
    for path in ("/new/in", "/new/more", "/new"):
        cached.send_request("drop", path=path)
    for path in ("/new", "/"):
        notify(cached, "entry" if path == "/new" else "inode", path)
    assert not (folder / "in").exists()
    assert not folder.exists()
    assert "new" not in os.listdir(cached.path)
    assert "refused a notification" not in cached.log.read_text()


def test_the_working_directory_holds(cached: MemoryMount) -> None:
    """getcwd(3) works after its directory's attributes, pages and name expired, and after a rename above it."""
    (cached.path / "above/work").mkdir(parents=True)
    script = "import os, sys\nfor line in sys.stdin: print(os.getcwd(), flush=True)"
    inside = subprocess.Popen(
        ["python3", "-c", script], cwd=cached.path / "above/work", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert inside.stdin is not None
    assert inside.stdout is not None

    def working_directory() -> str:
        inside.stdin.write(b"\n")  # type: ignore[union-attr]
        inside.stdin.flush()  # type: ignore[union-attr]
        return inside.stdout.readline().decode().strip()  # type: ignore[union-attr]

    assert working_directory() == str(cached.path / "above/work")
    for what in ("inode", "expire"):
        for path in ("/above", "/above/work"):
            notify(cached, what, path)
        assert working_directory() == str(cached.path / "above/work")
        assert (cached.path / "above/work").is_dir()
    if cached.send_request("counts")["has_inc_epoch"]:
        notify(cached, "epoch")
        assert working_directory() == str(cached.path / "above/work")
    os.rename(cached.path / "above", cached.path / "below")
    assert working_directory() == str(cached.path / "below/work")
    inside.stdin.close()
    assert inside.wait(10) == 0


def test_everything_is_looked_up_again(cached: MemoryMount) -> None:
    """INC_EPOCH lets every name be looked up again, where the kernel has it."""
    if not cached.send_request("counts")["has_inc_epoch"]:
        pytest.skip("this kernel has no INC_EPOCH")
    assert not (cached.path / "d/epoch").exists()
    cached.put_file("/d/epoch", "new")
    notify(cached, "epoch")
    assert (cached.path / "d/epoch").read_text() == "new"


def test_bytes_can_be_stored(cached: MemoryMount) -> None:
    """STORE fills the page cache: what is read then costs no READ."""
    cached.put_file("/d/stored", "0123456789")
    notify(cached, "entry", "/d/stored")
    assert (cached.path / "d/stored").stat().st_size == 10
    cached.send_request("store", path="/d/stored", data="ABCDEFGHIJ")
    cached.send_request("counts")
    assert (cached.path / "d/stored").read_text() == "ABCDEFGHIJ"
    assert cached.take_counts()["read"] == 0


def test_notifications_during_requests_never_hang(cached: MemoryMount) -> None:
    """Reads and listings continue while all is invalidated as fast as possible, and the last change is seen."""
    stop = threading.Event()
    rounds = [0] * 4

    def use(worker: int) -> None:
        while not stop.is_set():
            assert len(os.listdir(cached.path / "d")) >= 100
            content = (cached.path / f"d/f{50 + worker:06d}").read_bytes()
            assert content in (b"content of %d\n" % (50 + worker), b"CONTENT OF %d\n" % (50 + worker))
            rounds[worker] += 1

    workers = [threading.Thread(target=use, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        for index in range(4):
            for what in ("inode", "expire"):
                cached.send_request("notify", what=what, path=f"/d/f{50 + index:06d}")
        cached.send_request("notify", what="inode", path="/d")
    for index in range(50, 54):
        cached.put_file(f"/d/f{index:06d}", f"CONTENT OF {index}\n")
        notify(cached, "inode", f"/d/f{index:06d}")
    fresh = [(cached.path / f"d/f{index:06d}").read_text() for index in range(50, 54)]
    assert fresh == [f"CONTENT OF {index}\n" for index in range(50, 54)]
    stop.set()
    for worker in workers:
        worker.join(20)
    assert not any(worker.is_alive() for worker in workers)
    assert min(rounds) > 3


def test_many_notifications_at_once(cached: MemoryMount) -> None:
    """100 000 notifications for names that the kernel never cached are written within seconds, and none is refused."""
    cached.send_request("expire_absent", count=100_000)
    assert within(20, lambda: bool(cached.send_request("drain")))
    assert "refused a notification" not in cached.log.read_text()


def test_too_many_notifications_invalidate_everything_once(cached: MemoryMount) -> None:
    """While none can be written, the queue is bounded; afterwards no change is missed."""
    files = [cached.path / f"d/f{index:06d}" for index in range(60, 70)]
    cached.send_request("mkdir", path="/apart")
    notify(cached, "entry", "/apart")
    assert all(file.read_text().startswith("content") for file in files)
    cached.send_request("counts")
    hung = subprocess.Popen(["stat", cached.path / "apart/hang"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert within(10, lambda: cached.take_counts()["hanging"] > 0)
    cached.put_file("/apart/blocking", "")
    cached.send_request("notify", what="entry", path="/apart/blocking")  # waits for the look-up under way
    assert within(10, lambda: cached.send_request("counts")["queued"] == 0)
    for file in files:
        cached.put_file(f"/d/{file.name}", "changed")
        cached.send_request("notify", what="inode", path=f"/d/{file.name}")
    cached.send_request("expire_absent", count=MAX_QUEUED_NOTIFICATIONS + 1)
    assert cached.send_request("counts")["queued"] == 1
    cached.send_request("expire_absent", count=10)
    cached.send_request("notify", what="everything")
    assert cached.send_request("counts")["queued"] == 1
    cached.send_request("unhang")
    assert hung.wait(20) == 1
    assert within(20, lambda: bool(cached.send_request("drain")))
    assert cached.take_counts()["everything"] == 1
    assert [file.read_text() for file in files] == ["changed"] * len(files)
    assert "refused a notification" not in cached.log.read_text()


# -- files that are opened without a request ---------------------------------------------------------------------------


def test_nothing_is_sent_for_warm_reads_without_open(unopened: MemoryMount) -> None:
    """After one OPEN that is answered ENOSYS, neither OPEN, FLUSH nor RELEASE comes, and warm reads cost nothing."""
    names = [unopened.path / f"d/f{index:06d}" for index in range(50)]
    for name in names:
        name.read_bytes()
    unopened.send_request("counts")
    for name in names:
        assert name.read_bytes().startswith(b"content of")
    assert set(unopened.take_counts()) <= {"getattr", "opendir", "releasedir"}


def test_writing_is_refused_without_open(unopened: MemoryMount) -> None:
    """The kernel refuses to write, as in any read-only mount."""
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        assert call_errno(lambda flags=flags: os.open(unopened.path / "d/f000000", flags)) == errno.EROFS  # type: ignore[misc]
    assert call_errno(lambda: os.rename(unopened.path / "d", unopened.path / "moved")) == errno.EROFS


def test_a_new_version_is_a_new_inode(unopened: MemoryMount) -> None:
    """Without OPEN, a changed file is a new inode under the same name; open descriptors keep reading the old one."""
    file = unopened.path / "d/f000090"
    with open(file, "rb", buffering=0) as opened:
        assert opened.read(4) == b"cont"
        unopened.send_request("replace", path="/d/f000090", data="something longer than before\n")
        notify(unopened, "expire", "/d/f000090")
        assert file.read_text() == "something longer than before\n"
        assert file.stat().st_size == 29
        assert opened.read() == b"ent of 90\n"
        assert os.pread(opened.fileno(), 7, 0) == b"content"
        inodes = unopened.send_request("counts")["inodes"]
    assert within(5, lambda: unopened.send_request("counts")["inodes"] == inodes - 1)
