"""Changes by other clients show within a second, and a quiet mount sends nothing."""

import contextlib
import errno
import mmap
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
import redis

from tests.support.errno_of import errno_name
from tests.support.mount_logs import INTERRUPTED
from tests.support.mounts import MountedServer, mount_server, wait_until
from tests.support.redis_server import RedisServer

SECOND = 3.0  # a second, and what a busy machine adds


@pytest.fixture(scope="module", params=["fusepy", "mfusepy", "mfusepy --ask-on-open"])
def mount(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedServer]:
    with mount_server(
        tmp_path_factory.mktemp("living"), server.tcp_url(), "--binding", *request.param.split()
    ) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    client = server.client()
    client.flushall()
    wait_until(lambda: mount.status()["kernel_cache"] and not mount.status()["keys"])
    return client


@pytest.fixture
def asks_on_open(request: pytest.FixtureRequest) -> bool:
    options: str = request.node.callspec.params["mount"]
    return "--ask-on-open" in options


def within_a_second(condition: Callable[[], object]) -> None:
    """Wait until the condition is true, at most a second; more is allowed for this machine's scheduling."""
    wait_until(condition, SECOND)


def read(path: Path) -> bytes | None:
    """Return a file's content, None if there is no file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def test_changes_by_other_clients_show(client: redis.Redis, mount: MountedServer) -> None:
    """Show each change of a key within a second, also where a missing file was looked up.

    Keys are created, changed, renamed and deleted, they expire, and they change their type.
    """
    path = mount.path
    assert read(path / "k") is None
    assert not (path / "d").exists()
    client.set("k", "1")
    within_a_second(lambda: read(path / "k") == b"1")
    within_a_second(lambda: os.listdir(path) == ["k"])
    client.set("k", "2")
    within_a_second(lambda: read(path / "k") == b"2")
    client.append("k", "22")
    within_a_second(lambda: (path / "k").stat().st_size == 3)
    client.set("d:x", "1")
    within_a_second(lambda: (path / "d").is_dir())
    within_a_second(lambda: os.listdir(path / "d") == ["x"])
    client.rename("k", "d:y")
    within_a_second(lambda: read(path / "k") is None and read(path / "d" / "y") == b"222")
    client.delete("d:y", "d:x")
    within_a_second(lambda: not (path / "d").exists())
    client.set("t", "text")
    within_a_second(lambda: read(path / "t") == b"text")
    client.delete("t")
    client.rpush("t", "a")
    within_a_second(lambda: read(path / "t") == b"a\n")
    client.set("e", "1", px=1500)
    within_a_second(lambda: read(path / "e") == b"1")
    time.sleep(1.5)
    within_a_second(lambda: read(path / "e") is None and "e" not in os.listdir(path))
    client.hset("h", "f", "1")
    within_a_second(lambda: read(path / "h.f") == b"1")
    client.hset("h", "g", "2")
    within_a_second(lambda: sorted(name for name in os.listdir(path) if name[0] == "h") == ["h.f", "h.g"])
    client.hdel("h", "f")
    within_a_second(lambda: read(path / "h.f") is None)
    client.flushall()
    within_a_second(lambda: os.listdir(path) == [])


def list_with_attributes(directory: Path) -> dict[str, int]:
    """List a directory as `ls -l`, without looking its names up; return their sizes."""
    with os.scandir(directory) as entries:
        return {entry.name: entry.stat().st_size for entry in entries}


def test_a_listed_name_leads_to_a_field(client: redis.Redis, mount: MountedServer) -> None:
    """A listed, unread file is another one once a field has its name, and after that."""
    client.mset({"d:a.b": "of the key", "d:other": "x"})
    client.hset("d:a", "c", "x")
    directory = mount.path / "d"
    within_a_second(lambda: list_with_attributes(directory) == {"a.b": 10, "a.c": 1, "other": 1})
    client.hset("d:a", "b", "a field")
    within_a_second(lambda: (directory / "a.b").stat().st_size == 7)
    assert (directory / "a.b").read_bytes() == b"a field"
    assert (directory / "a%2Eb").read_bytes() == b"of the key"
    client.hdel("d:a", "b")
    within_a_second(lambda: list_with_attributes(directory) == {"a.b": 10, "a.c": 1, "other": 1})
    assert (directory / "a.b").read_bytes() == b"of the key"


def test_a_listed_name_leads_to_a_directory(client: redis.Redis, mount: MountedServer) -> None:
    """A listed file is a directory once there are keys below its name, and a file again after them."""
    client.mset({"d:a": "of the key", "d:other": "x"})
    directory = mount.path / "d"
    within_a_second(lambda: list_with_attributes(directory) == {"a": 10, "other": 1})
    client.set("d:a:below", "1")
    within_a_second((directory / "a").is_dir)
    assert os.listdir(directory / "a") == ["below"]
    assert (directory / "a%").read_bytes() == b"of the key"
    client.delete("d:a:below")
    within_a_second((directory / "a").is_file)
    assert list_with_attributes(directory) == {"a": 10, "other": 1}
    assert (directory / "a").read_bytes() == b"of the key"


def test_a_name_changes_between_file_and_directory(
    client: redis.Redis, mount: MountedServer, asks_on_open: bool
) -> None:
    """Descriptors keep what they read, or fail with ESTALE; the kernel takes no inode for damaged (EIO)."""
    client.mset({"d:folder:x": "1", "d:file": "2", "d:unread": "3"})
    directory = mount.path / "d"
    within_a_second((directory / "folder").is_dir)
    list_with_attributes(directory)
    folder = os.open(directory / "folder", os.O_RDONLY | os.O_DIRECTORY)
    file, unread = (os.open(directory / name, os.O_RDONLY) for name in ("file", "unread"))
    try:
        assert os.pread(file, 9, 0) == b"2"
        with client.pipeline() as pipe:
            pipe.delete("d:folder:x", "d:file", "d:unread")
            pipe.mset({"d:folder": "a file", "d:file:below": "1", "d:unread:below": "1"})
            pipe.execute()
        within_a_second((directory / "folder").is_file)
        within_a_second((directory / "file").is_dir)
        assert errno_name(os.fstat, folder) == "ESTALE"
        assert (os.pread(file, 9, 0), os.fstat(file).st_size) == (b"2", 1)
        if asks_on_open:
            assert (os.pread(unread, 9, 0), os.fstat(unread).st_size) == (b"3", 1)
        else:
            assert errno_name(os.pread, unread, 9, 0) == "ESTALE"
        assert (directory / "folder").read_bytes() == b"a file"
        assert os.listdir(directory / "file") == ["below"]
    finally:
        for descriptor in (folder, file, unread):
            os.close(descriptor)


@pytest.mark.parametrize("change", ["replaced", "deleted", "of another type", "expired"])
def test_a_listed_file_changes_before_it_is_read(client: redis.Redis, mount: MountedServer, change: str) -> None:
    """The first read of a listed file returns what its key holds by then."""
    directory = mount.path / "d"
    client.mset({f"d:{number}": "before" for number in range(100)})
    within_a_second(lambda: len(list_with_attributes(directory)) == 100)
    if change == "replaced":
        client.mset({f"d:{number}": "and after" for number in range(100)})
        within_a_second(lambda: (directory / "99").stat().st_size == 9)
        expected = b"and after"
    elif change == "of another type":
        for number in range(100):
            client.delete(f"d:{number}")
            client.rpush(f"d:{number}", "one", "two")
        within_a_second(lambda: (directory / "99").read_bytes() == b"one\ntwo\n")
        expected = b"one\ntwo\n"
    else:
        for number in range(100):
            client.pexpire(f"d:{number}", 1 if change == "expired" else 0)
        within_a_second(lambda: not (directory / "99").exists())
        assert not directory.exists() or not os.listdir(directory)
        return
    for number in range(100):
        within_a_second(lambda path=directory / str(number): path.read_bytes() == expected)


def test_a_value_grows_before_it_is_read(client: redis.Redis, mount: MountedServer, asks_on_open: bool) -> None:
    """The first read returns the old value or the new one, not the new one's beginning up to the old length."""
    chance, count = random.Random(1), 300
    client.mset({f"grows:{number}": b"old" for number in range(count)})
    within_a_second(lambda: len(list_with_attributes(mount.path / "grows")) == count)
    for number in range(count):
        path = mount.path / "grows" / str(number)
        assert path.stat().st_size == 3
        with contextlib.nullcontext() if asks_on_open else path.open("rb") as file:
            client.set(f"grows:{number}", b"and new")
            until = time.monotonic() + chance.random() * 0.004  # the server's message arrives at any step of the read
            while time.monotonic() < until:
                pass
            assert (file.read() if file is not None else path.read_bytes()) in (b"old", b"and new")


def test_a_held_file_grows_while_its_directory_is_listed(client: redis.Redis, mount: MountedServer) -> None:
    """A program such as `tail -f` sees bytes that are appended, at whatever moment another one lists the directory."""
    client.mset({f"log:{number}": b"one\n" for number in range(10)})
    within_a_second(lambda: len(os.listdir(mount.path / "log")) == 10)
    with contextlib.ExitStack() as stack:
        paths = [mount.path / "log" / str(number) for number in range(10)]
        files = [stack.enter_context(path.open("rb", buffering=0)) for path in paths]
        assert {file.read(100) + file.read(100) for file in files} == {b"one\n"}
        time.sleep(1.1)  # else the changes are so frequent that listings have no attributes
        for number in range(10):
            client.append(f"log:{number}", b"two\n")
            until = time.monotonic() + 0.04  # the server's message and the kernel's notification are within it
            while time.monotonic() < until:
                list_with_attributes(mount.path / "log")
        for number, file in enumerate(files):
            within_a_second(lambda file=file: os.fstat(file.fileno()).st_size == 8)  # type: ignore[misc]
            assert file.read(100) == b"two\n"
            client.append(f"log:{number}", b"three\n")
            within_a_second(lambda file=file: file.read(100) == b"three\n")  # type: ignore[misc]


def test_a_descriptor_has_the_size_of_what_it_reads(
    client: redis.Redis, mount: MountedServer, asks_on_open: bool
) -> None:
    """Also while other programs list and read the same files, whose values change their lengths.

    The kernel has one size for each inode. Where it sends OPEN, a program may open one that another has just opened
    with its former value; a few reads may be cut (docs/reading.md).
    """
    client.mset({f"sizes:{number}": "x" for number in range(4)})
    directory, done, reads = mount.path / "sizes", threading.Event(), [0]
    mixtures, wrong_sizes = list[str](), list[str]()
    within_a_second(lambda: len(os.listdir(directory)) == 4)

    def read_constantly(seed: int) -> None:
        chance = random.Random(seed)
        while not done.is_set():
            with contextlib.suppress(OSError):  # ESTALE
                if chance.random() < 0.5:
                    list_with_attributes(directory)
                with (directory / str(chance.randrange(4))).open("rb", buffering=0) as file:
                    content, size = file.readall(), os.fstat(file.fileno()).st_size
                reads[0] += 1
                text = f"{content[:9]!r}, {len(content)} bytes, st_size {size}"
                if not any(value.startswith(content) for value in list(written)):
                    mixtures.append(text)
                elif size != len(content) or content not in written:
                    wrong_sizes.append(text)

    written = {b"x"}
    threads = [threading.Thread(target=read_constantly, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    chance, until = random.Random(0), time.monotonic() + 4
    while time.monotonic() < until:
        value = b"%d " % chance.randrange(10**9) * chance.choice([1, 2, 40, 2000])
        written.add(value)
        client.set(f"sizes:{chance.randrange(4)}", value)
        time.sleep(chance.choice([0.002, 0.02, 0.1]))
    done.set()
    for thread in threads:
        thread.join(20)
    assert not mixtures, "\n".join(mixtures[:10])
    assert len(wrong_sizes) <= (3 if asks_on_open else 0), "\n".join(wrong_sizes[:10])
    assert reads[0] > 100


def test_a_change_updates_mtime(client: redis.Redis, mount: MountedServer) -> None:
    """A change updates the file's mtime, which `tail -F`, editors and make check."""
    client.set("k", "1")
    within_a_second(lambda: (mount.path / "k").exists())
    before = (mount.path / "k").stat().st_mtime_ns
    client.set("k", "2")
    within_a_second(lambda: (mount.path / "k").stat().st_mtime_ns > before)


def test_no_read_is_staler_than_a_second(client: redis.Redis, mount: MountedServer) -> None:
    """Random writers on the server, random readers on the mount.

    No read returns a value that was replaced over a second ago, or one that was never written.
    """
    names = [f"n{number}" for number in range(6)] + [f"dir:{number}" for number in range(4)] + ["mapped"]
    history: dict[str, list[tuple[float, bytes | None]]] = {name: [(0.0, None)] for name in names}
    done = threading.Event()
    problems: list[str] = []
    reads = [0]
    truncated = [0]

    def write() -> None:
        chance = random.Random(1)
        writer = client
        while not done.is_set():
            name = chance.choice(names)
            # The mapped key keeps its length: a page beyond the end of a file is SIGBUS in any filesystem.
            if name == "mapped":
                value: bytes | None = b"%09d" % chance.randrange(10**9) * 5
            else:
                value = b"%d" % chance.randrange(10**9) * chance.choice([1, 3, 700])
                value = None if chance.random() < 0.25 else value
            if value is None:
                writer.delete(name)
            else:
                writer.set(name, value)
            history[name].append((time.monotonic(), value))
            time.sleep(chance.choice([0.001, 0.01, 0.2]))

    def allowed(name: str, since: float) -> list[bytes | None]:
        """Return each value that the key had after `since`, None where it did not exist."""
        states = history[name]
        first = max(index for index, (when, _) in enumerate(states) if when <= since or index == 0)
        return [value for _, value in states[first:]]

    def check(kind: str, name: str, began: float, content: bytes | None) -> None:
        reads[0] += 1
        states = allowed(name, began - SECOND)
        if content not in states:
            time.sleep(0.02)  # the writer records a write a moment after it is done
            states = allowed(name, began - SECOND)
        if content in states:
            return
        # A file has one length for all its readers: a change between an open and a read may truncate the read there.
        lengths = {len(state) for state in states if state is not None}
        if content and len(content) in lengths and any(state and state.startswith(content) for state in states):
            truncated[0] += 1
        else:
            problems.append(f"{kind} of {name}: {content!r:.30}, allowed {[repr(state)[:30] for state in states]}")

    def reader(seed: int) -> None:
        chance = random.Random(seed)
        while not done.is_set():
            name = chance.choice(names)
            path = mount.path / name.replace(":", "/")
            began = time.monotonic()
            kind = chance.choice(["read", "stat", "list"]) if name != "mapped" else "mmap"
            try:
                if kind == "read":
                    check(kind, name, began, read(path))
                elif kind == "stat":
                    size = path.stat().st_size if path.exists() else None
                    sizes = [None if state is None else len(state) for state in allowed(name, began - SECOND)]
                    if size not in sizes:
                        time.sleep(0.02)
                        sizes = [None if state is None else len(state) for state in allowed(name, began - SECOND)]
                    if size not in sizes:
                        problems.append(f"stat of {name}: {size}, allowed {sizes}")
                elif kind == "mmap":
                    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
                        check(kind, name, began, mapping[:])
                else:
                    listed = path.name in os.listdir(path.parent)
                    states = allowed(name, began - SECOND)
                    if not any((state is not None) == listed for state in states):
                        time.sleep(0.02)
                        states = allowed(name, began - SECOND)
                    if not any((state is not None) == listed for state in states):
                        problems.append(f"list: {name} {'listed' if listed else 'missing'}, allowed {states!r:.60}")
            except (FileNotFoundError, OSError, ValueError) as error:
                # ENODEV: the file is being changed, so it can't be mapped.
                expected = (errno.ENOENT, errno.ENODEV, errno.ESTALE)
                if isinstance(error, OSError) and error.errno not in expected:
                    problems.append(f"{kind} of {name}: {error}")

    threads = [threading.Thread(target=write)] + [threading.Thread(target=reader, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(8)
    done.set()
    for thread in threads:
        thread.join(20)
    assert reads[0] > 200
    assert truncated[0] <= reads[0] // 100
    assert not problems, "\n".join(problems[:10])


def test_an_idle_mount_sends_only_keep_alives(client: redis.Redis, mount: MountedServer) -> None:
    """A mount without requests sends only a PING each second, or two INFO."""
    client.mset({f"k:{number}": "x" for number in range(100)})
    subprocess.run(["ls", "-lR", mount.path], capture_output=True, check=True, timeout=30)
    time.sleep(1)
    before = mount.status()["commands"]
    time.sleep(5)
    assert mount.status()["commands"] - before <= 10


def test_warm_reads_send_no_commands(client: redis.Redis, mount: MountedServer) -> None:
    """Send no command for the second `ls -l` of 20 000 strings and the second `cat`."""
    pipe = client.pipeline(transaction=False)
    for number in range(20_000):
        pipe.set(f"many:{number}", "x")
    pipe.execute()
    wait_until(lambda: mount.status()["keys"] == 20_000)
    time.sleep(1)
    for _ in range(2):
        before = mount.status()["commands"]
        subprocess.run(["ls", "-l", mount.path / "many"], capture_output=True, check=True, timeout=60)
        (mount.path / "many" / "7").read_bytes()
        sent = mount.status()["commands"] - before
    assert sent <= 3, "a keep-alive may be among them"


@pytest.mark.parametrize("expiring", [True, False])
def test_extended_attributes_are_cached(client: redis.Redis, mount: MountedServer, expiring: bool) -> None:
    """Send at most 5 commands a key for all attributes of all files, and none for the second time.

    A hash's field takes one more, HPTTL, on a server whose fields can expire.
    """
    pipe = client.pipeline(transaction=False)
    for number in range(200):
        pipe.set(f"x:string:{number}", "x", px=100_000 if expiring else None)
        pipe.set(f"x:dotted:{number}.txt", "x")
        pipe.rpush(f"x:list:{number}", "a", "b")
        pipe.zadd(f"x:zset:{number}", {"a": number})
        pipe.hset(f"x:hash:{number}", "f", "value")
    pipe.execute()
    wait_until(lambda: mount.status()["keys"] == 1000)
    time.sleep(2)  # until no key counts as changed just now
    sent = []
    for _ in range(2):
        before = mount.status()["commands"]
        result = subprocess.run(["getfattr", "-R", "-d", mount.path], capture_output=True, check=True, timeout=60)
        sent.append(mount.status()["commands"] - before)
        assert result.stdout.count(b"user.redis.encoding") == 1000
        assert result.stdout.count(b"user.redis.ttl") == 1000
        assert result.stdout.count(b'user.redis.ttl="-1"') == (800 if expiring else 1000)
    others = 100  # keep-alives, and keys that two requests fetch at the same time
    assert sent[0] <= 5 * 1000 + 200 + others
    assert sent[1] <= others
    client.persist("x:string:7")
    client.pexpire("x:list:7", 100_000)
    within_a_second(lambda: os.getxattr(mount.path / "x" / "string" / "7", "user.redis.ttl") == b"-1")
    within_a_second(lambda: int(os.getxattr(mount.path / "x" / "list" / "7", "user.redis.ttl")) > 0)


@contextlib.contextmanager
def readers(mount: MountedServer, count: int) -> Iterator[list[str]]:
    """Read `count` files in as many threads, and yield the list of the files with wrong content."""
    wrong: list[str] = []
    done = threading.Event()

    def work(number: int) -> None:
        while not done.is_set():
            with contextlib.suppress(FileNotFoundError):
                if (mount.path / f"r{number}").read_bytes() != b"%d" % number * 50:
                    wrong.append(f"r{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        done.set()
        for thread in threads:
            thread.join(20)


def test_many_concurrent_readers(client: redis.Redis, mount: MountedServer) -> None:
    """Serve 32 concurrent readers, all of which make progress and read the right content."""
    client.mset({f"r{number}": b"%d" % number * 50 for number in range(32)})
    wait_until(lambda: mount.status()["keys"] == 32)
    with readers(mount, 32) as wrong:
        time.sleep(2)
    assert not wrong


@pytest.mark.expected_log(INTERRUPTED)
def test_killed_connections_are_replaced(client: redis.Redis, mount: MountedServer) -> None:
    """After CLIENT KILL of every connection, the mount connects again.

    A change in the meantime shows within a second of the mount being coherent again.
    """
    client.set("k", "1")
    within_a_second(lambda: read(mount.path / "k") == b"1")
    interruptions = mount.read_log().count(INTERRUPTED)
    for connection in client.client_list():
        if connection["name"] == "redisfuse":
            client.client_kill_filter(_id=connection["id"])
    client.set("k", "2")
    wait_until(lambda: mount.read_log().count(INTERRUPTED) > interruptions)
    mount.wait_coherent()
    within_a_second(lambda: read(mount.path / "k") == b"2")


def listing_error(mount: MountedServer) -> int:
    """Return the errno of listing the root, 0 if it succeeds."""
    try:
        os.listdir(mount.path)
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.expected_log(INTERRUPTED)
def test_a_server_that_restarts_with_other_data(tmp_path: Path) -> None:
    """After a restart no earlier key is listed: a listing is an error or the new keys."""
    with RedisServer(tcp=True) as server:
        server.client().mset({"old:1": "1", "old:2": "2"})
        with mount_server(tmp_path, server.tcp_url(), "--timeout", "1") as mount:
            assert sorted(os.listdir(mount.path / "old")) == ["1", "2"]
            server.kill()
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                if listing_error(mount) == 5:
                    break
                time.sleep(0.05)
            server.start()
            server.client().set("new", "3")
            wait_until(lambda: mount.status()["live"], 10)
            wait_until(lambda: os.listdir(mount.path) == ["new"], 5)
            assert read(mount.path / "old" / "1") is None


@pytest.mark.expected_log("changes by other clients appear after up to 30 s: .*tracking")
def test_a_user_without_the_right_to_track(tmp_path: Path) -> None:
    """Without the right to track, keys are read again periodically.

    Attributes are cached for a second, and `status` reports the reason.
    """
    with RedisServer(tcp=True) as server:
        client = server.client()
        client.acl_setuser(
            "guest", enabled=True, passwords=["+s3cr3t-word"], keys=["*"], commands=["+@all", "-client|tracking"]
        )
        client.set("k", "1")
        url = f"redis://guest:s3cr3t-word@127.0.0.1:{server.port}/0"
        with mount_server(tmp_path, url, as_program=True) as mount:
            status = mount.status()
            assert not status["live"]
            assert not status["kernel_cache"]
            assert "tracking" in status["reason"]
            assert read(mount.path / "k") == b"1"
            client.set("k", "2")
            wait_until(lambda: read(mount.path / "k") == b"2")
            assert "s3cr3t-word" not in mount.read_log()
            assert "s3cr3t-word" not in Path("/proc/mounts").read_text()
            assert "s3cr3t-word" not in Path(f"/proc/{mount.process.pid}/cmdline").read_text()


def test_tail_follows(client: redis.Redis, mount: MountedServer) -> None:
    """`tail -F` shows the lines appended to a small and to a large string."""
    for name, start in (("log:small", b"first\n"), ("log:large", b"x" * 3_000_000 + b"\nfirst\n")):
        client.set(name, start)
        path = mount.path / name.replace(":", "/")
        within_a_second(path.exists)
        with subprocess.Popen(["tail", "-n", "1", "-s", "0.1", "-F", path], stdout=subprocess.PIPE) as tail:
            assert tail.stdout is not None
            assert tail.stdout.readline() == b"first\n"
            for number in range(3):
                client.append(name, b"line %d\n" % number)
                assert tail.stdout.readline() == b"line %d\n" % number
            tail.terminate()
            tail.wait(10)


@pytest.mark.expected_log(INTERRUPTED)
def test_a_reader_keeps_the_content_that_it_began_to_read(client: redis.Redis, mount: MountedServer) -> None:
    """A program that has read a part reads the rest of the same content.

    This holds also if the tracking connection was lost in the meantime. Of a string over 1 MiB, which is not cached in
    memory, the rest is the same content or ESTALE. A later open reads the new content.
    """
    for name, size, lost in (("small", 600_000, False), ("kept", 600_000, True), ("large", 3_000_000, False)):
        client.set(name, "a" * size)
        path = mount.path / name
        within_a_second(path.exists)
        with path.open("rb", buffering=0) as file:
            assert file.read(1000) == b"a" * 1000
            if lost:
                tracking = [connection for connection in client.client_list() if "t" in connection["flags"]]
                client.client_kill_filter(_id=tracking[0]["id"])
            client.set(name, "b" * (size + 5))
            wait_until(lambda path=path, size=size: rest_of(path) == b"b" * (size + 5))  # type: ignore[misc]
            rest = rest_of(file)
            assert rest == b"a" * (size - 1000) or (rest is None and name == "large")
        assert read(path) == b"b" * (size + 5)


@pytest.mark.parametrize("difference", [5, -5, 100_000, -3000])
@pytest.mark.parametrize("size", [5000, 600_000])
@pytest.mark.parametrize("kind", ["string", "field"])
def test_a_reader_keeps_its_content_and_size(
    client: redis.Redis, mount: MountedServer, kind: str, size: int, difference: int
) -> None:
    """A value that gets longer or shorter is neither cut off nor filled with zeros for its reader, nor for others."""
    for number in range(4):
        name = f"kept{number}"
        path = mount.path / (name if kind == "string" else f"{name}.f")

        def put(value: str, name: str = name) -> None:
            client.set(name, value) if kind == "string" else client.hset(name, "f", value)

        put("a" * size)
        within_a_second(path.exists)
        with path.open("rb", buffering=0) as file:
            assert file.read(1000) == b"a" * 1000
            put("b" * (size + difference))
            within_a_second(lambda path=path: rest_of(path) == b"b" * (size + difference))  # type: ignore[misc]
            assert os.fstat(file.fileno()).st_size == size
            assert rest_of(file) == b"a" * (size - 1000)
            within_a_second(lambda path=path: path.stat().st_size == size + difference)  # type: ignore[misc]
        assert read(path) == b"b" * (size + difference)


def rest_of(file: Path | BinaryIO) -> bytes | None:
    """Return the content up to the end, None if it has changed in the meantime (ESTALE)."""
    try:
        with file.open("rb", buffering=0) if isinstance(file, Path) else contextlib.nullcontext(file) as opened:
            return b"".join(iter(lambda: opened.read(65536), b""))
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return None


def test_a_name_that_is_looked_up_during_a_reset(client: redis.Redis, mount: MountedServer) -> None:
    """A name that was absent while everything was invalidated shows within a second of its creation."""
    for round_number in range(25):
        path = mount.path / f"new{round_number}"
        client.flushall()
        ends = time.monotonic() + 0.01
        while time.monotonic() < ends:
            assert read(path) is None
        client.set(path.name, "1")
        within_a_second(lambda path=path: read(path) == b"1")  # type: ignore[misc]


def test_a_value_that_changes_constantly_is_read_whole(
    client: redis.Redis, mount: MountedServer, asks_on_open: bool
) -> None:
    """Each read returns one value, never a mixture, a part, zeros, or nothing.

    Two values get another length 300 times a second, and a list is now and then deleted for a moment. Few reads fail
    (ESTALE).
    """
    client.set("hot", "x" * 10)
    client.hset("hash", "field", "x")
    client.rpush("list", "a")
    done = threading.Event()

    def write() -> None:
        chance = random.Random(1)
        while not done.wait(0.003):
            value = bytes([chance.randrange(97, 123)]) * chance.randrange(1, 20_000)
            client.set("hot", value)
            client.hset("hash", "field", value)
            if chance.random() < 0.05:
                client.delete("list")
            client.rpush("list", value[:100])

    writer = threading.Thread(target=write)
    writer.start()
    within_a_second((mount.path / "hot").exists)
    try:
        reads, refused, truncated, start = 0, 0, 0, time.monotonic()
        while (elapsed := time.monotonic() - start) < 3 or (reads <= 100 and elapsed < 60):
            for name in ("hot", "hash.field"):
                content = rest_of(mount.path / name)
                assert content is None or len(set(content)) == 1
                refused += content is None
            content = read(mount.path / "list")
            if content is not None:
                assert all(len(set(line)) == 1 for line in content.splitlines())
                truncated += not content.endswith(b"\n")
            reads += 1
    finally:
        done.set()
        writer.join(20)
    assert reads > 100
    assert refused <= max(5, reads // 50)
    assert truncated <= (reads // 50 if asks_on_open else 0)


def test_a_warm_file_is_opened_and_read_without_a_request(
    client: redis.Redis, mount: MountedServer, asks_on_open: bool
) -> None:
    """Opening, reading and closing files that were read before sends no request, until they change.

    With --ask-on-open, the kernel requests each open from the mount, which sends no command to the server.
    """
    client.mset({f"warm:{number}": f"value {number}" for number in range(100)})
    wait_until(lambda: mount.status()["keys"] == 100)
    time.sleep(1.1)  # a key that has just changed is cached only briefly
    paths = [mount.path / "warm" / str(number) for number in range(100)]
    for _ in range(2):
        assert [path.read_bytes() for path in paths] == [b"value %d" % number for number in range(100)]
    before, commands = requests(mount), mount.status()["commands"]
    for _ in range(10):
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            assert os.read(descriptor, 100)
            os.close(descriptor)
    assert mount.status()["commands"] - commands < 10
    count = requests(mount) - before  # includes a few reads from the server by the keyspace monitor
    assert count > 1000 if asks_on_open else count < 100
    client.set("warm:7", "changed")
    within_a_second(lambda: paths[7].read_bytes() == b"changed")


def requests(mount: MountedServer) -> int:
    """Return how often the mount has called read(2).

    It calls it for each request of the kernel, and now and then for other purposes.
    """
    counts = dict(line.split(": ") for line in Path(f"/proc/{mount.process.pid}/io").read_text().splitlines())
    return int(counts["syscr"])
