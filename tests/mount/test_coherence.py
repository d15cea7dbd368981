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

from tests.support.mount_logs import INTERRUPTED
from tests.support.mounts import MountedServer, mount_server, wait_until
from tests.support.redis_server import RedisServer

SECOND = 1.0


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


def within_a_second(condition: Callable[[], object]) -> None:
    """The condition comes true within a second (a little more is allowed for this machine's scheduling)."""
    wait_until(condition, SECOND)


def read(path: Path) -> bytes | None:
    """A file's content, None if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def test_changes_by_others_show(client: redis.Redis, mount: MountedServer) -> None:
    """Keys that come, change, expire, are renamed, change type or go show within a second, also where they were not."""
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
    client.set("e", "1", px=700)
    within_a_second(lambda: read(path / "e") == b"1")
    time.sleep(0.7)
    within_a_second(lambda: read(path / "e") is None and "e" not in os.listdir(path))
    client.hset("h", "f", "1")
    within_a_second(lambda: read(path / "h.f") == b"1")
    client.hset("h", "g", "2")
    within_a_second(lambda: sorted(name for name in os.listdir(path) if name[0] == "h") == ["h.f", "h.g"])
    client.hdel("h", "f")
    within_a_second(lambda: read(path / "h.f") is None)
    client.flushall()
    within_a_second(lambda: os.listdir(path) == [])


def test_mtime_moves(client: redis.Redis, mount: MountedServer) -> None:
    """A change moves the file's mtime, so that `tail -F`, editors and make notice."""
    client.set("k", "1")
    within_a_second(lambda: (mount.path / "k").exists())
    before = (mount.path / "k").stat().st_mtime_ns
    client.set("k", "2")
    within_a_second(lambda: (mount.path / "k").stat().st_mtime_ns > before)


def test_nothing_is_older_than_a_second(client: redis.Redis, mount: MountedServer) -> None:
    """Random writers on the server, random readers on the mount: no read gives what was replaced over a second ago,
    and none what never was."""
    names = [f"n{number}" for number in range(6)] + [f"dir:{number}" for number in range(4)] + ["mapped"]
    history: dict[str, list[tuple[float, bytes | None]]] = {name: [(0.0, None)] for name in names}
    done = threading.Event()
    problems: list[str] = []
    reads = [0]
    cut = [0]

    def write() -> None:
        chance = random.Random(1)
        writer = client
        while not done.is_set():
            name = chance.choice(names)
            # What is mapped keeps its length: a page beyond the end of a file is SIGBUS in any filesystem.
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
        """What the key held at some moment after `since`."""
        states = history[name]
        first = max(index for index, (when, _) in enumerate(states) if when <= since or index == 0)
        return [value for _, value in states[first:]]

    def check(kind: str, name: str, began: float, found: bytes | None) -> None:
        reads[0] += 1
        states = allowed(name, began - SECOND)
        if found not in states:
            time.sleep(0.02)  # the writer notes its write a moment after it is done
            states = allowed(name, began - SECOND)
        if found in states:
            return
        # A file has one length for all who read it: a change between a program's open and its read may cut it there.
        lengths = {len(each) for each in states if each is not None}
        if found and len(found) in lengths and any(each and each.startswith(found) for each in states):
            cut[0] += 1
        else:
            problems.append(f"{kind} of {name}: {found!r:.30}, allowed {[repr(each)[:30] for each in states]}")

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
                    found = path.stat().st_size if path.exists() else None
                    sizes = [None if each is None else len(each) for each in allowed(name, began - SECOND)]
                    if found not in sizes:
                        time.sleep(0.02)
                        sizes = [None if each is None else len(each) for each in allowed(name, began - SECOND)]
                    if found not in sizes:
                        problems.append(f"stat of {name}: {found}, allowed {sizes}")
                elif kind == "mmap":
                    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
                        check(kind, name, began, mapping[:])
                else:
                    there = path.name in os.listdir(path.parent)
                    states = allowed(name, began - SECOND)
                    if not any((each is not None) == there for each in states):
                        time.sleep(0.02)
                        states = allowed(name, began - SECOND)
                    if not any((each is not None) == there for each in states):
                        problems.append(f"list: {name} {'shown' if there else 'missing'}, allowed {states!r:.60}")
            except (FileNotFoundError, OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno not in (
                    2,
                    19,
                    116,
                    5,
                ):  # 19: changed at this moment, so no mmap
                    problems.append(f"{kind} of {name}: {error}")
                if isinstance(error, OSError) and error.errno == 5:
                    problems.append(f"{kind} of {name}: EIO")

    threads = [threading.Thread(target=write)] + [threading.Thread(target=reader, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(8)
    done.set()
    for thread in threads:
        thread.join(20)
    assert reads[0] > 200
    assert cut[0] <= reads[0] // 100
    assert not problems, "\n".join(problems[:10])


def test_an_idle_mount_sends_only_keep_alives(client: redis.Redis, mount: MountedServer) -> None:
    """Nobody asks anything: nothing but PING and INFO is sent."""
    client.mset({f"k:{number}": "x" for number in range(100)})
    subprocess.run(["ls", "-lR", mount.path], capture_output=True, check=True, timeout=30)
    time.sleep(1)
    before = mount.status()["commands"]
    time.sleep(5)
    assert mount.status()["commands"] - before <= 8


def test_what_is_warm_costs_nothing(client: redis.Redis, mount: MountedServer) -> None:
    """A second `ls -l` of 20 000 strings and a second `cat` send no command."""
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
    assert sent <= 3, "a keep-alive may fall into it"


@contextlib.contextmanager
def readers(mount: MountedServer, count: int) -> Iterator[list[str]]:
    """Programs that read right answers all the time; what they find wrong is in the list."""
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


def test_many_programs_read_at_once(client: redis.Redis, mount: MountedServer) -> None:
    """32 programs make progress together and get right answers."""
    client.mset({f"r{number}": b"%d" % number * 50 for number in range(32)})
    wait_until(lambda: mount.status()["keys"] == 32)
    with readers(mount, 32) as wrong:
        time.sleep(2)
    assert not wrong


@pytest.mark.expected_log(INTERRUPTED)
def test_a_killed_follower_comes_back(client: redis.Redis, mount: MountedServer) -> None:
    """CLIENT KILL of every connection: what changes meanwhile shows within a second of the mount's return."""
    client.set("k", "1")
    within_a_second(lambda: read(mount.path / "k") == b"1")
    for each in client.client_list():
        if each["name"] == "redisfuse":
            client.client_kill_filter(_id=each["id"])
    client.set("k", "2")
    wait_until(lambda: mount.status()["kernel_cache"], 5)
    within_a_second(lambda: read(mount.path / "k") == b"2")


def listing_error(mount: MountedServer) -> int:
    """The errno of listing the root, 0 if it works."""
    try:
        os.listdir(mount.path)
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.expected_log(INTERRUPTED)
def test_a_server_that_comes_back_with_other_data(tmp_path: Path) -> None:
    """After a restart nothing of what was before is shown: a listing is an error or the new truth."""
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
def test_a_user_that_may_not_track_is_told_so(tmp_path: Path) -> None:
    """Without the right to track, keys are read again by the clock, attributes live a second, and status says why."""
    with RedisServer(tcp=True) as server:
        client = server.client()
        client.acl_setuser(
            "guest", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-client|tracking"]
        )
        client.set("k", "1")
        url = f"redis://guest:secret@127.0.0.1:{server.port}/0"
        with mount_server(tmp_path, url) as mount:
            status = mount.status()
            assert not status["live"]
            assert not status["kernel_cache"]
            assert "tracking" in status["reason"]
            assert read(mount.path / "k") == b"1"
            client.set("k", "2")
            wait_until(lambda: read(mount.path / "k") == b"2", 2.5)
            assert "secret" not in mount.read_log()
            assert "secret" not in Path("/proc/mounts").read_text()
            assert "secret" not in Path(f"/proc/{mount.process.pid}/cmdline").read_text()


def test_tail_follows(client: redis.Redis, mount: MountedServer) -> None:
    """`tail -F` shows what is appended to a small and to a large string."""
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
def test_who_began_to_read_goes_on_with_that(client: redis.Redis, mount: MountedServer) -> None:
    """A program that has read a part reads the rest of the same, also when the follower was lost meanwhile; of a string
    over 1 MiB, which is not held in memory, that or ESTALE. Who opens it afterwards reads what it is then."""
    for name, size, lost in (("small", 600_000, False), ("kept", 600_000, True), ("large", 3_000_000, False)):
        client.set(name, "a" * size)
        path = mount.path / name
        within_a_second(path.exists)
        with path.open("rb", buffering=0) as file:
            assert file.read(1000) == b"a" * 1000
            if lost:
                follower = [each for each in client.client_list() if "t" in each["flags"]]
                client.client_kill_filter(_id=follower[0]["id"])
            client.set(name, "b" * (size + 5))
            wait_until(lambda path=path, size=size: rest_of(path) == b"b" * (size + 5))  # type: ignore[misc]
            rest = rest_of(file)
            assert rest == b"a" * (size - 1000) or (rest is None and name == "large")
        assert read(path) == b"b" * (size + 5)


def rest_of(file: Path | BinaryIO) -> bytes | None:
    """What is read to the end; None if the program is told that it has changed meanwhile."""
    try:
        with file.open("rb", buffering=0) if isinstance(file, Path) else contextlib.nullcontext(file) as opened:
            return b"".join(iter(lambda: opened.read(65536), b""))
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return None


def test_what_changes_all_the_time_is_read_whole(client: redis.Redis, mount: MountedServer) -> None:
    """Values that get another length 300 times a second, and a list that now and then is not there for a moment: each
    read gives one value, never a mixture, a part, zeros, or nothing; few are refused (ESTALE)."""
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
        reads, refused, cut, ends = 0, 0, 0, time.monotonic() + 3
        while time.monotonic() < ends:
            for name in ("hot", "hash.field"):
                found = rest_of(mount.path / name)
                assert found is None or len(set(found)) == 1
                refused += found is None
            found = read(mount.path / "list")
            if found is not None:
                assert all(len(set(line)) == 1 for line in found.splitlines())
                cut += not found.endswith(b"\n")
            reads += 1
    finally:
        done.set()
        writer.join(20)
    assert reads > 100
    assert refused <= reads // 50
    assert cut <= (reads // 50 if "--ask-on-open" in mount.process.args else 0)  # type: ignore[operator]


def test_a_warm_file_is_opened_and_read_without_a_request(client: redis.Redis, mount: MountedServer) -> None:
    """Opening, reading and closing files that were read before asks nobody, until they change; nor the server, where
    each open is told."""
    client.mset({f"warm:{number}": f"value {number}" for number in range(100)})
    wait_until(lambda: mount.status()["keys"] == 100)
    time.sleep(1.1)  # what has just changed is not believed for long
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
    asked = requests(mount) - before  # what follows the server reads too, now and then
    assert asked > 1000 if "--ask-on-open" in mount.process.args else asked < 100  # type: ignore[operator]
    client.set("warm:7", "changed")
    within_a_second(lambda: paths[7].read_bytes() == b"changed")


def requests(mount: MountedServer) -> int:
    """How often the mount has called read(2): for each request of the kernel, and now and then for other things."""
    counts = dict(line.split(": ") for line in Path(f"/proc/{mount.process.pid}/io").read_text().splitlines())
    return int(counts["syscr"])
