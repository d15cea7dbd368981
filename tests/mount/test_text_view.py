"""`NAME%text` in a real mount, the attribute `user.redis.decoded`, and `redisfuse grep --decode`."""

import base64
import gzip
import json
import os
import pickle
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import redis

from redisfuse.paths.grammar import PathCodec
from tests.support.errno_of import errno_name
from tests.support.mounts import MountedServer, mount_server, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer

MIB = 1 << 20
DECODED = "user.redis.decoded"
CODEC = PathCodec(b":")
MAIL = {"to": "ada@example.com"}


@pytest.fixture(scope="module", params=[False, True], ids=["read-only", "write"])
def mount(
    server: RedisServer, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[MountedServer]:
    folder = tmp_path_factory.mktemp("text_view")
    with mount_server(folder, server.tcp_url(), "--decode-input", "64K", write=request.param) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    client = server.client()
    client.flushall()
    wait_until(lambda: mount.status()["ready"] and not os.listdir(mount.path))
    return client


def read(mount: MountedServer, name: str) -> str:
    """Return a file, whose size must be that of its content."""
    path = mount.path / name
    text = path.read_text()
    assert os.stat(path).st_size == len(text.encode())
    return text


def test_strings_and_fields(mount: MountedServer, client: redis.Redis) -> None:
    """A string and a field are decoded; a view is not listed; a field wins over a key of the same name."""
    client.set("cache:1", zlib.compress(pickle.dumps({"u": "ada"})))
    client.set("plain", "hello")
    client.set("a.b", '{"key": 1}')
    client.hset("job:1", mapping={"data": gzip.compress(msgpack.packb(MAIL)), "": "[1]", "é": '{"x": 1}'})
    folder = mount.path / "job"
    wait_until(lambda: folder.is_dir() and sorted(os.listdir(folder)) == ["1.%", "1.data", "1.é"])
    assert read(mount, "cache/1%text").startswith("# zlib > pickle\n    0: \\x80 PROTO")
    assert read(mount, "plain%text") == "hello\n"
    assert read(mount, "a.b%text") == '# JSON\n{\n  "key": 1\n}\n'
    assert read(mount, "job/1.data%text") == '# gzip > msgpack\n{\n  "to": "ada@example.com"\n}\n'
    assert read(mount, "job/1.%%text") == "# JSON\n[\n  1\n]\n"
    assert read(mount, "job/1.é%text") == '# JSON\n{\n  "x": 1\n}\n'
    assert read(mount, "job/1%text").splitlines()[:2] == ["# field : JSON", "["]
    client.hset("a", "b", "[2]")
    wait_until(lambda: "2" in (mount.path / "a.b%text").read_text())
    assert "key" in read(mount, "a%2Eb%text")
    assert "%text" not in "".join(os.listdir(mount.path) + os.listdir(mount.path / "job"))


def test_collections(mount: MountedServer, client: redis.Redis) -> None:
    """Elements that are encoded follow a line with their place; the others are as in the file."""
    body = base64.b64encode(json.dumps([["x"], {}, {}]).encode()).decode()
    client.rpush("celery", json.dumps({"body": body}), "a\tplain element")
    client.zadd("retry", {json.dumps(MAIL): 12.5, "plain": 13})
    client.sadd("tags", "x", "y")
    client.xadd("events", {"a": "1", "m": msgpack.packb(MAIL)}, id="1-0")
    wait_until(lambda: len(os.listdir(mount.path)) == 4)
    celery = read(mount, "celery%text")
    assert celery.startswith('# 0: JSON\n{\n  "body": "')
    assert celery.endswith("  {},\n  {}\n]\na\\tplain element\n")
    assert "\n# .body: base64 > JSON\n" in celery
    assert read(mount, "retry%text") == '# score 12.5: JSON\n{\n  "to": "ada@example.com"\n}\n13\tplain\n'
    assert read(mount, "tags%text") == "x\ny\n"
    assert read(mount, "events%text").splitlines()[1:] == ["# 1-0 m: msgpack", "{", '  "to": "ada@example.com"', "}"]


def test_what_was_decoded_is_reported(mount: MountedServer, client: redis.Redis) -> None:
    """The attribute is on values and their view, listed only where it costs nothing more; %json has the same."""
    client.set("m", gzip.compress(msgpack.packb(MAIL)))
    client.set("plain", "hello")
    client.rpush("list", "[1]")
    wait_until(lambda: len(os.listdir(mount.path)) == 3)
    for name in ("m", "m%text", "m%json"):
        assert os.getxattr(mount.path / name, DECODED) == b"gzip > msgpack"
        assert (DECODED in os.listxattr(mount.path / name)) == (name == "m%text")
    assert os.getxattr(mount.path / "plain", DECODED) == b"text"
    assert errno_name(lambda: os.getxattr(mount.path / "list", DECODED)) == "ENODATA"
    assert json.loads((mount.path / "m%json").read_text())["decoded"] == "gzip > msgpack"
    assert "decoded" not in json.loads((mount.path / "plain%json").read_text())


def test_a_change_is_seen(mount: MountedServer, client: redis.Redis) -> None:
    """A view that was read shows a change of its key or field; so does one that did not exist."""
    client.set("k", "[1]")
    client.hset("h", "f", "[1]")
    wait_until(lambda: sorted(os.listdir(mount.path)) == ["h.f", "k"])
    assert not (mount.path / "later%text").exists()
    for name in ("k%text", "h.f%text", "h%text"):
        assert "1" in read(mount, name)
    client.set("k", "[2222]")
    client.hset("h", "f", "[2222]")
    client.set("later", "[2222]")
    for name in ("k%text", "h.f%text", "h%text", "later%text"):
        wait_until(lambda name=name: (mount.path / name).exists() and "2222" in (mount.path / name).read_text())
        assert "2222" in read(mount, name)
    client.delete("h")
    wait_until(lambda: not (mount.path / "h.f%text").exists())


def test_a_view_is_read_only(mount: MountedServer, client: redis.Redis) -> None:
    """Writing, creating, renaming and removing fail as they do for the other views."""
    client.set("k", "[1]")
    client.hset("h", "f", "[1]")
    wait_until(lambda: sorted(os.listdir(mount.path)) == ["h.f", "k"])

    def attempts(name: str, view: str) -> list[str]:
        path = mount.path / (name + view)
        return [
            errno_name(lambda: path.write_text("x")),
            errno_name(lambda: os.truncate(path, 0)),
            errno_name(path.unlink),
            errno_name(lambda: path.rename(mount.path / "other")),
            errno_name(lambda: os.setxattr(path, "user.redis.ttl", b"1000")),
            errno_name(lambda: (mount.path / ("new" + view)).write_text("x")),
        ]

    expected = attempts("k", "%json")
    assert "" not in expected[:2]
    assert attempts("k", "%text") == expected
    assert attempts("h.f", "%text") == expected
    assert client.get("k") == b"[1]"
    assert client.hgetall("h") == {b"f": b"[1]"}


def test_large_values(mount: MountedServer, client: redis.Redis) -> None:
    """Of a value beyond --decode-input, the beginning is decoded; of a large field, too."""
    document = json.dumps([{"id": number} for number in range(20_000)])
    client.set("big", document)
    client.hset("h", "f", document * 8)
    wait_until(lambda: sorted(os.listdir(mount.path)) == ["big", "h.f"])
    for name, size in (("big", len(document)), ("h.f", 8 * len(document))):
        text = read(mount, f"{name}%text")
        assert text.startswith("# JSON\n[\n  {\n")
        assert text.endswith(f"\n# the first 64KiB of {size} bytes were decoded (--decode-input)\n")


READ_ONLY = pytest.mark.parametrize("mount", [False], indirect=True, ids=["read-only"])


@READ_ONLY
def test_hostile_values_cost_little(mount: MountedServer, client: redis.Redis) -> None:
    """Bombs and damaged values read without an error, with a reason; the raw value and the mount are unharmed."""
    values: dict[str, bytes] = {
        "gzip": gzip.compress(b"x" * (64 * MIB)),
        "nested": b"\x81\xa1a" * 10_000,
        "declared": b"\xdf\xff\xff\xff\xff\xa1a",
        "pickle": b"\x80\x04cos\nsystem\nX\x05\x00\x00\x00false\x85R",
        "damaged": zlib.compress(b"text" * 99)[:-9],
    }
    for name, value in values.items():
        client.set(name, value)
    wait_until(lambda: len(os.listdir(mount.path)) == len(values))
    reasons = {"gzip": "--decode-output", "nested": "--decode-depth", "pickle": "stopped", "damaged": "ends early"}
    for name, value in values.items():
        text = (mount.path / f"{name}%text").read_text()
        assert reasons.get(name, "") in text
        assert (mount.path / name).read_bytes() == value
    assert mount.process.poll() is None


@READ_ONLY
def test_grep_decode(mount: MountedServer, client: redis.Redis, tmp_path: Path) -> None:
    """`grep --decode` selects the lines that `grep` selects in the views, and prints their paths."""
    client.set("m", gzip.compress(msgpack.packb(MAIL)))
    client.set("plain", "mail ada@example.com")
    client.set("x" * 200, "[1]")
    client.hset("job:1", mapping={"data": base64.b64encode(json.dumps(MAIL).encode()), "n": "1"})
    client.rpush("celery", json.dumps(MAIL), "nothing")
    client.set("long", gzip.compress(("ada " * 30_000).encode()))
    client.sadd("many", *(json.dumps({"n": number}) for number in range(300)))
    wait_until(lambda: len(os.listdir(mount.path)) == 7)

    def grep(*words: str) -> list[str]:
        done = run_redisfuse(tmp_path, "grep", "--decode", *words)
        assert done.returncode == 0, done.stderr
        return sorted(done.stdout.splitlines())

    folder = str(mount.path)
    names = ("m", "plain", "celery", "job/1.data", "long")
    assert grep("-l", "ada", folder) == sorted(f"{folder}/{name}%text" for name in names)
    expected = [
        f"{path}:{number}"
        for path in (mount.path / "celery%text", mount.path / "job/1.data%text", mount.path / "m%text")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "ada@" in line
    ]
    found = [line.rpartition(":  ")[0] for line in grep("-n", '"ada@', folder)]
    assert found == sorted(expected)
    assert grep("-c", '"n"', f"{folder}/many") == [f"{folder}/many%text:300"]
    assert grep("-l", "ada", f"{folder}/m%text") == [f"{folder}/m%text"]
    assert grep("-l", "--decode-input", "16", "many", folder, "-v", "--name", "m") == [f"{folder}/m%text"]


@pytest.mark.parametrize("kind", ["string", "hash", "field"])
def test_views_of_names_that_just_fit(mount: MountedServer, client: redis.Redis, kind: str) -> None:
    """The name of a view is cut, although the name of the file is not; it changes and ends with its key."""
    names = {letter * length: letter for length, letter in zip(range(250, 256), "abcdef", strict=True)}
    if kind == "field":
        names = {f"{letter}.{name[2:]}": letter for name, letter in names.items()}
    view = "json" if kind == "hash" else "text"
    views = {name: mount.path / os.fsdecode(CODEC.view_path(name.encode(), view)) for name in names}
    assert not any(path.exists() for path in views.values())  # which the kernel remembers
    set_values(client, kind, names, gzip.compress(b'{"x": 1}'))
    wait_until(lambda: len(os.listdir(mount.path)) == len(names))
    for name, path in views.items():
        wait_until(path.exists)
        text = path.read_text()
        assert json.loads(text)["key"] == name if kind == "hash" else '"x": 1' in text
        if kind == "string":
            marked = b"/".join(CODEC.split_name(name.encode() + b"%"))
            assert gzip.decompress((mount.path / os.fsdecode(marked)).read_bytes()) == b'{"x": 1}'
        if path.parent != mount.path and kind != "hash":
            assert os.listdir(path.parent) == []
            assert errno_name(lambda path=path: os.mkdir(path.parent / "d")) in ("EINVAL", "EROFS")
            assert errno_name(lambda path=path: os.rmdir(path.parent)) in ("ENOTEMPTY", "EROFS")
    set_values(client, kind, names, b"[2, 3]")
    wait_until(lambda: all("3" in path.read_text() for path in views.values()))
    client.flushdb()
    wait_until(lambda: not any(path.exists() for path in views.values()))
    assert not any(path.parent.exists() for path in views.values() if path.parent != mount.path)


def set_values(client: redis.Redis, kind: str, names: dict[str, str], value: bytes) -> None:
    """Set a string of each name; or the field `f` of a hash; or the field, of which the letter is the hash."""
    for name, letter in names.items():
        if kind == "string":
            client.set(name, value)
        elif kind == "hash":
            client.hset(name, "f", value)
        else:
            client.hset(letter, name[2:], value)
