"""Reading through a real mount: every key is a file with its bytes, and only reading commands are sent."""

import contextlib
import hashlib
import itertools
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redisfuse.client.allowlist import READ_ALLOWLIST
from tests.support.mounts import MountedServer, mount_server, wait_until
from tests.support.redis_server import RedisServer

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def mount(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedServer]:
    with mount_server(tmp_path_factory.mktemp("reading"), server.tcp_url()) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    client = server.client()
    client.flushall()
    wait_until(lambda: mount.status()["ready"] and not os.listdir(mount.path))
    return client


def contents(path: Path) -> dict[tuple[bytes, bytes | None], bytes]:
    """Return every file below a mount point, by the key and field in its extended attributes; none twice."""
    files: dict[tuple[bytes, bytes | None], bytes] = {}
    for directory, _subdirectories, names in os.walk(os.fsencode(path), onerror=raise_error):
        for name in names:
            file = os.path.join(directory, name)
            assert len(name) <= 255
            key = os.getxattr(file, "user.redis.key")
            field = os.getxattr(file, "user.redis.field") if b"user.redis.field" in xattrs(file) else None
            assert (key, field) not in files, f"{file!r} is listed twice"
            files[key, field] = Path(os.fsdecode(file)).read_bytes()
    return files


def xattrs(file: bytes) -> list[bytes]:
    return [os.fsencode(name) for name in os.listxattr(file)]


def raise_error(error: OSError) -> None:
    raise error


parts = st.binary(max_size=6) | st.sampled_from([b"", b".", b"..", b"a", b"a.b", b"%", b"\xff", b"x" * 260, b"/"])
keys = st.lists(parts, min_size=1, max_size=4).map(b":".join)
hashes = st.dictionaries(
    st.binary(max_size=8) | st.sampled_from([b"", b"b", b"b.c", b":"]), st.binary(max_size=9), min_size=1, max_size=4
)
data = st.dictionaries(keys, st.binary(max_size=20) | hashes, max_size=25)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data)
def test_every_key_and_field_is_found_once_with_its_bytes(
    client: redis.Redis, mount: MountedServer, keys_and_values: dict[bytes, bytes | dict[bytes, bytes]]
) -> None:
    """A walk finds each string and each hash field exactly once, with its bytes, whatever its name is."""
    client.flushall()
    expected: dict[tuple[bytes, bytes | None], bytes] = {}
    for key, value in keys_and_values.items():
        if isinstance(value, bytes):
            client.set(key, value)
            expected[key, None] = value
        else:
            client.hset(key, mapping=value)  # type: ignore[arg-type]
            expected |= {(key, field): content for field, content in value.items()}
    found: dict[tuple[bytes, bytes | None], bytes] = {}

    def are_found() -> bool:
        nonlocal found
        with contextlib.suppress(FileNotFoundError):  # of the keys before FLUSHALL
            found = contents(mount.path)
        return found == expected

    with contextlib.suppress(AssertionError):
        wait_until(are_found)
    assert found == expected


def test_long_names_and_paths(client: redis.Redis, mount: MountedServer) -> None:
    """Names over 255 bytes and paths over 3000 are found, each once."""
    keys_and_values = {
        b"n" * 1000: b"1",
        b"d" * 600 + b":" + b"e" * 300: b"2",
        b":".join([b"p" * 100] * 40): b"3",
        b"\xff" * 1500: b"4",
    }
    for key, value in keys_and_values.items():
        client.set(key, value)
    client.hset("h", mapping={b"f" * 4000: b"5", b"g": b"6"})
    wait_until(lambda: mount.status()["keys"] == 5)
    expected: dict[tuple[bytes, bytes | None], bytes] = {(key, None): value for key, value in keys_and_values.items()}
    assert contents(mount.path) == expected | {(b"h", b"f" * 4000): b"5", (b"h", b"g"): b"6"}


def test_every_type_can_be_read(client: redis.Redis, mount: MountedServer) -> None:
    """Collections read as lines, sorted sets with scores; a whole hash and the views open by name."""
    client.rpush("list", "a", "b\nc", b"\xff")
    client.sadd("set", "m")
    client.zadd("zset", {"x": 1.5, "y": -2})
    client.hset("hash", mapping={"f": "v\tw"})
    client.xadd("stream", {"k": "v"}, id="5-1")
    client.set("text", "hello")
    path = mount.path
    wait_until(lambda: mount.status()["keys"] == 6)
    assert (path / "list").read_bytes() == b"a\nb\\nc\n\\xff\n"
    assert (path / "set").read_bytes() == b"m\n"
    assert (path / "zset").read_bytes() == b"-2\ty\n1.5\tx\n"
    assert (path / "hash").read_bytes() == b"f\tv\\tw\n"
    assert (path / "stream").read_bytes() == b"5-1\tk=v\n"
    assert sorted(os.listdir(path)) == ["hash.f", "list", "set", "stream", "text", "zset"]
    assert (path / "list").stat().st_size == len(b"a\nb\\nc\n\\xff\n")
    assert b'"value": "hello"' in (path / "text%json").read_bytes()
    assert (path / "text%dump").read_bytes() == client.dump("text")
    assert (path / "text%").read_bytes() == b"hello"


def test_a_large_collection_streams(client: redis.Redis, mount: MountedServer) -> None:
    """Above --render-limit a file has size 0 and still reads to its end."""
    client.rpush("big", *range(20_000))
    wait_until(lambda: mount.status()["keys"] == 1)
    file = mount.path / "big"
    assert file.stat().st_size == 0
    assert file.read_bytes() == b"".join(b"%d\n" % number for number in range(20_000))
    assert file.stat().st_size == 0
    for command, expected in (
        ("head -n 2", b"0\n1\n"),
        ("tail -n 1", b"19999\n"),
        ("grep -c 7", b"6878\n"),
        ("cat", None),
    ):
        output = subprocess.run([*command.split(), file], capture_output=True, check=True, timeout=20).stdout
        assert output == (file.read_bytes() if expected is None else expected), command
    with file.open("rb", buffering=0) as opened:
        assert opened.read(10) == b"0\n1\n2\n3\n4\n"
        assert opened.seek(0, os.SEEK_END) == len(file.read_bytes())


def test_a_large_collection_streams_with_ask_on_open(client: redis.Redis, tmp_path: Path) -> None:
    """With --ask-on-open, a streamed file has size 0 and direct I/O."""
    client.rpush("big", *range(20_000))
    url = f"unix://{client.connection_pool.connection_kwargs['path']}"
    with mount_server(tmp_path, url, "--ask-on-open") as mount:
        file = mount.path / "big"
        assert file.stat().st_size == 0
        assert file.read_bytes() == b"".join(b"%d\n" % number for number in range(20_000))
        assert subprocess.run(["tail", "-n", "1", file], capture_output=True, check=True).stdout == b"19999\n"


def test_concurrent_readers_of_a_growing_collection(client: redis.Redis, mount: MountedServer) -> None:
    """Each reader gets all elements, in order, while others read and stat the file and elements are appended."""
    client.rpush("big", *range(30_000))
    wait_until(lambda: mount.status()["keys"] == 1)
    file, done = mount.path / "big", threading.Event()

    def append() -> None:
        writer = client.__class__(connection_pool=client.connection_pool)
        for number in itertools.count(30_000):
            if done.wait(0.002):
                return
            writer.rpush("big", number)

    def stat_repeatedly() -> None:
        while not done.wait(0.0005):
            file.stat()

    others = [threading.Thread(target=append), threading.Thread(target=stat_repeatedly)]
    for thread in others:
        thread.start()
    try:
        for _ in range(10):
            readers = [subprocess.Popen(["cat", file], stdout=subprocess.PIPE) for _ in range(6)]
            for reader in readers:
                text, _ = reader.communicate(timeout=30)
                lines = text.splitlines()
                assert len(lines) >= 30_000
                assert text.endswith(b"\n")
                assert lines == [b"%d" % number for number in range(len(lines))]
    finally:
        done.set()
        for thread in others:
            thread.join(20)


def test_extended_attributes(client: redis.Redis, mount: MountedServer) -> None:
    """A file has its key, type, time to live, encoding and length as attributes; a directory its prefix."""
    client.set("a:b", "12345", px=60_000)
    client.hset("h", "f", "xyz")
    wait_until(lambda: mount.status()["keys"] == 2)
    path = mount.path / "a" / "b"
    values = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    assert 0 < int(values.pop("user.redis.ttl")) <= 60_000
    assert values == {
        "user.redis.key": b"a:b",
        "user.redis.type": b"string",
        "user.redis.encoding": b"int",
        "user.redis.length": b"5",
    }
    assert os.getxattr(mount.path / "a", "user.redis.prefix") == b"a:"
    assert os.getxattr(mount.path / "h.f", "user.redis.field") == b"f"
    assert os.getxattr(mount.path / "h.f", "user.redis.length") == b"3"
    with pytest.raises(OSError, match="No data"):
        os.getxattr(path, "user.other")


def test_modes_are_owner_only(client: redis.Redis, mount: MountedServer) -> None:
    """Files are 0400 and directories 0500, and belong to the user who mounted."""
    client.set("a:b", "x")
    wait_until(lambda: mount.status()["keys"] == 1)
    assert (mount.path / "a" / "b").stat().st_mode & 0o7777 == 0o400
    assert (mount.path / "a").stat().st_mode & 0o7777 == 0o500
    assert (mount.path / "a" / "b").stat().st_uid == os.getuid()


def commands(client: redis.Redis) -> dict[str, int]:
    """Return how often each command was called since the statistics were reset."""
    return {name.removeprefix("cmdstat_"): facts["calls"] for name, facts in client.info("commandstats").items()}


def test_listing_costs_two_commands_a_key(client: redis.Redis, mount: MountedServer) -> None:
    """`ls -l` of 20 000 strings sends TYPE and STRLEN once for each, in pipelines."""
    pipe = client.pipeline(transaction=False)
    for number in range(20_000):
        pipe.set(f"many:{number}", "x" * (number % 50))
    pipe.execute()
    wait_until(lambda: mount.status()["keys"] == 20_000 and mount.status()["live"])
    time.sleep(0.5)
    client.config_resetstat()
    before = mount.status()["round_trips"]
    listing = subprocess.run(["ls", "-l", mount.path / "many"], capture_output=True, check=True, timeout=60)
    assert listing.stdout.count(b"\n") == 20_001
    used = commands(client)
    assert used["type"] <= 20_000 + 10
    assert used["strlen"] <= 20_000 + 10
    assert mount.status()["round_trips"] - before < 100


def test_cat_costs_two_round_trips(client: redis.Redis, mount: MountedServer) -> None:
    """`cat` of a small string is at most 2 round trips cold, and at most 1 after `ls -l`."""
    client.mset({f"one:{number}": "1" for number in range(6)})
    wait_until(lambda: mount.status()["keys"] == 6)
    time.sleep(0.5)  # late announcements of the writes make the mount query again

    def cost(number: int) -> int:
        before = mount.status()["round_trips"]
        assert (mount.path / "one" / str(number)).read_text() == "1"
        spent: int = mount.status()["round_trips"] - before
        return spent

    assert min(cost(number) for number in (0, 1, 2)) <= 2, "a keep-alive may be among one, not all of them"
    subprocess.run(["ls", "-l", mount.path / "one"], capture_output=True, check=True, timeout=60)
    assert min(cost(number) for number in (3, 4, 5)) <= 1


def test_first_listing_costs_little_more_than_the_scan(tmp_path: Path) -> None:
    """Listing the root of 100 000 keys takes at most 101 SCANs and a handful of other commands."""
    with RedisServer(tcp=True) as server:
        client = server.client()
        pipe = client.pipeline(transaction=False)
        for number in range(100_000):
            pipe.set(f"user:{number % 1000}:{number}", "x")
        pipe.execute()
        client.config_resetstat()
        with mount_server(tmp_path, server.tcp_url(), wait=False) as mount:
            assert os.listdir(mount.path) == ["user"]
            used = commands(client)
    assert used.pop("scan") <= 101
    assert sum(used.values()) < 25, used


@pytest.mark.possible_log("has not answered for 2 s", "answers again")  # while it moves 500 MB
def test_a_large_string_is_exact_in_little_memory(client: redis.Redis, mount: MountedServer) -> None:
    """Reading 500 MB keeps the process below 64 MiB over idle and gives exactly the bytes."""
    random_bytes = os.urandom(MIB)
    digest = hashlib.sha256()
    for number in range(476):
        block = random_bytes[number:] + random_bytes[:number]
        client.append("large", block)
        digest.update(block)
    size = client.strlen("large")
    process = psutil.Process(mount.process.pid)
    wait_until(lambda: mount.status()["keys"] == 1)
    idle = process.memory_info().rss
    highest = idle
    digest_read = hashlib.sha256()
    with open(mount.path / "large", "rb", buffering=0) as file:
        assert os.fstat(file.fileno()).st_size == size
        while block := file.read(128 * 1024):
            digest_read.update(block)
            highest = max(highest, process.memory_info().rss)
    assert digest_read.digest() == digest.digest()
    assert highest - idle < 64 * MIB
    client.delete("large")


def test_changes_between_listing_and_opening(client: redis.Redis, mount: MountedServer) -> None:
    """A deleted key is ENOENT; a key that changed its type reads as its new content, never as an empty file."""
    client.mset({"gone": "1", "other": "2", "same": "3"})
    wait_until(lambda: mount.status()["keys"] == 3)
    os.listdir(mount.path)
    client.delete("gone", "other")
    client.rpush("other", "x")
    deadline = time.monotonic() + 1

    def settled() -> bool:
        try:
            (mount.path / "gone").read_bytes()
        except FileNotFoundError:
            return (mount.path / "other").read_bytes() == b"x\n"
        return False

    wait_until(settled, deadline - time.monotonic())
    assert (mount.path / "same").read_bytes() == b"3"


def test_only_reading_commands_are_sent(tmp_path: Path) -> None:
    """In a walk over every type the server receives only readonly commands and those of a connection."""
    with RedisServer(tcp=True) as server:
        client = server.client()
        client.rpush("t:list", *range(3000))
        client.sadd("t:set", *range(3000))
        client.zadd("t:zset", {str(number): number for number in range(3000)})
        client.hset("t:hash", mapping={"a": 1, "b": 2})
        client.hset("t:big", mapping={str(number): number for number in range(3000)})
        client.xadd("t:stream", {"a": 1})
        client.set("t:text", "x")
        client.set("t:large", "y" * (3 * MIB))
        client.pfadd("t:hll", "a")
        client.geoadd("t:geo", (1.0, 2.0, "m"))
        sent: set[str] = set()
        done = threading.Event()
        with client.monitor() as monitor:

            def listen() -> None:
                for event in monitor.listen():
                    words = event["command"].split()
                    if words[0].upper() == "ECHO":
                        done.set()
                        return
                    sent.add(" ".join(words[: 2 if words[0].upper() in ("CLIENT", "MEMORY", "OBJECT") else 1]).upper())

            listener = threading.Thread(target=listen, daemon=True)
            listener.start()
            with mount_server(tmp_path, server.tcp_url()) as mount:
                for directory, _, names in os.walk(mount.path):
                    for name in [*names, "text%json", "zset%json", "hash%dump"]:
                        file = Path(directory) / name
                        if file.exists():
                            file.read_bytes()
                            [os.getxattr(file, attribute) for attribute in os.listxattr(file)]
            server.client().execute_command("ECHO", "end")
            assert done.wait(20)
        connection = {"HELLO", "AUTH", "SELECT", "PING", "INFO", "SUBSCRIBE", "CLIENT SETNAME", "CLIENT TRACKING"}
        connection |= {"CLIENT NO-TOUCH", "CLIENT SETINFO", "TIME"}
        for command in sent - connection:
            [facts] = client.execute_command("COMMAND", "INFO", command.replace(" ", "|")).values()
            assert "readonly" in facts["flags"], f"{command} is not a read"
            assert READ_ALLOWLIST.allows([word.encode() for word in command.split()]), (
                f"{command} is not on the allow-list"
            )
        assert sent & {"TYPE", "STRLEN", "LRANGE", "GETRANGE"} == {"TYPE", "STRLEN", "LRANGE", "GETRANGE"}
        assert not sent & {"GET", "HGETALL", "SMEMBERS", "KEYS"}


def test_a_view_has_the_current_time_to_live(client: redis.Redis, mount: MountedServer) -> None:
    """NAME%json of a key that expires is never an outdated document."""
    client.set("k", "v", px=100_000)
    wait_until(lambda: mount.status()["keys"] == 1)
    first = json.loads((mount.path / "k%json").read_bytes())["ttl"]
    time.sleep(0.1)
    assert json.loads((mount.path / "k%json").read_bytes())["ttl"] < first


def test_a_view_has_the_current_groups(client: redis.Redis, mount: MountedServer) -> None:
    """NAME%json of a stream has the current pending counts, though the server announces no change of a group."""
    client.xadd("s", {"a": "b"}, id="1-0")
    client.xgroup_create("s", "g", "0")
    wait_until(lambda: mount.status()["keys"] == 1)

    def read_group() -> tuple[int, int]:
        [group] = json.loads((mount.path / "s%json").read_bytes())["groups"]
        return group["pending"], group["lag"]

    assert read_group() == (0, 1)
    client.xreadgroup("g", "worker", {"s": ">"})
    wait_until(lambda: read_group() == (1, 0))
    client.xack("s", "g", "1-0")
    wait_until(lambda: read_group() == (0, 0))


def test_a_view_of_an_expiring_set_is_sorted(client: redis.Redis, mount: MountedServer) -> None:
    """NAME%json of a set with a time to live, which has no exact size, is sorted all the same."""
    client.sadd("t", *[f"{number} member" for number in range(500)])
    client.expire("t", 1000)
    wait_until(lambda: mount.status()["keys"] == 1)
    members = json.loads((mount.path / "t%json").read_bytes())["value"]
    assert members == sorted(members)
    assert len(members) == 500
