"""`redisfuse dump` and `load`: archives of keys of every type, between servers of one version and of two."""

import gzip
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from redisfuse.cli.main import main
from redisfuse.errors import ExistsError, UsageError
from redisfuse.journal.models import State
from redisfuse.paths.grammar import PathCodec
from redisfuse.transactions.archive_file import create_archive
from redisfuse.transactions.archive_record import ArchivedKey, ArchiveHeader
from redisfuse.transactions.load import batch_keys
from tests.support.mounts import isolated_environment, mount_server, redisfuse_command, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.timeout(120)

NOW_MS = int(time.time() * 1000)
AT = NOW_MS + 3_600_123

RedisClient = redis.Redis


@pytest.fixture(scope="module")
def source(server: RedisServer) -> RedisServer:
    """Fill a server with keys of every type, odd names, expiries, and values longer than a piece."""
    client = server.client()
    client.set("user:1", "hello\n", pxat=AT)
    client.set("user:1:bytes", b"\x00\xff\r\n")
    client.set(b"user:\xff\xfe", "a name that is not UTF-8")
    client.set("user:empty", "")
    client.set("user:counter", 12345)
    client.set("user:long", b"ab\xff" * 1_000_000)
    client.set("user:" + "n" * 700, "a long name")
    client.rpush("user:list", *range(300))
    client.rpush("user:long-list", *(f"{number:06}" * 40 for number in range(10_000)))
    client.sadd("user:set", "b", "a", b"\xff")
    client.zadd("user:zset", {"a": 1.5, "b": float("inf"), "c": -3})
    client.hset("user:hash", mapping={"name": "Ada", "photo": b"\xff\xd8"})
    client.pexpireat("user:hash", AT)
    client.pfadd("user:log", *range(100))
    client.xadd("user:stream", {"a": "b"}, id="1-1")
    client.xadd("user:stream", {"a": "c"}, id="1-2")
    client.xgroup_create("user:stream", "workers", id="1-0")
    client.xreadgroup("workers", "me", {"user:stream": ">"}, count=1)
    client.set("other", "no user")
    return server


@pytest.fixture
def target(redis_server: RedisServer) -> RedisServer:
    """Return an empty server of the same version."""
    return redis_server


@pytest.fixture
def archive(source: RedisServer, tmp_path: Path) -> Path:
    """Dump the keys of the prefix `user:`."""
    file = tmp_path / "users.jsonl"
    assert run(tmp_path, "dump", f"{source.tcp_url()}#user:", str(file)) == f"14 keys written to {file}"
    return file


def run(folder: Path, *words: str, status: int = 0) -> str:
    """Run a command and return its last line."""
    done = run_redisfuse(folder, *words, timeout=90)
    assert done.returncode == status, done
    return (done.stdout or done.stderr).strip().rpartition("\n")[2]


def exact_state(client: RedisClient) -> dict[bytes, tuple[Any, Any]]:
    """Return the DUMP and the absolute expiry of each key of a user.

    Of a set its members: each server has them in an order of its own.
    """
    return {
        key: (
            client.smembers(key) if client.type(key) == b"set" else client.dump(key),
            client.execute_command("PEXPIRETIME", key),
        )
        for key in client.keys("user:*")
    }


def logical_state(client: RedisClient) -> dict[bytes, tuple[Any, ...]]:
    """Return the value and the absolute expiry of each key of a user, read with ordinary commands."""
    readers = {
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"hash": client.hgetall,
        b"stream": lambda key: (client.xrange(key), client.xinfo_groups(key)[0]["last-delivered-id"]),
    }
    return {
        key: (readers[client.type(key)](key), client.execute_command("PEXPIRETIME", key))
        for key in client.keys("user:*")
    }


# -- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["users.jsonl", "users.jsonl.gz", "users.jsonl.zst", "users/"])
def test_a_round_trip_is_exact(source: RedisServer, target: RedisServer, tmp_path: Path, name: str) -> None:
    """DUMP and expiry of each key are the same afterwards; a second load changes nothing."""
    file = f"{tmp_path}/{name}"
    run(tmp_path, "dump", f"{source.tcp_url()}#user:", file)
    assert run(tmp_path, "load", file, target.tcp_url(), "--dry-run") == "14 keys: 14 created (dry run)"
    assert target.client().dbsize() == 0
    assert run(tmp_path, "load", file, target.tcp_url()) == "14 keys: 14 created"
    assert exact_state(target.client()) == exact_state(source.client())
    assert run(tmp_path, "load", file, target.tcp_url()) == "14 keys: 0 created, 14 unchanged"
    assert os.stat(file).st_mode & 0o077 == 0


def test_another_maker_gets_the_elements(
    source: RedisServer, target: RedisServer, newer_redis: RedisServer, archive: Path, tmp_path: Path
) -> None:
    """Valkey 9 gets exact copies from Redis 7, and Redis 7 the elements from Valkey 9: one row is a failed try."""
    newer = newer_redis.client()
    newer.flushall()
    assert run(tmp_path, "load", str(archive), newer_redis.tcp_url()) == "14 keys: 14 created"
    assert logical_state(newer) == logical_state(source.client())
    newer.execute_command("HPEXPIREAT", "user:hash", AT, "FIELDS", 1, "name")
    back = str(tmp_path / "back.jsonl.gz")
    run(tmp_path, "dump", newer_redis.tcp_url(), back)
    done = run_redisfuse(tmp_path, "load", back, target.tcp_url())
    assert (done.returncode, done.stdout) == (0, "14 keys: 14 created\n")
    assert "elements were written" in done.stderr
    has_field_ttl = int(target.client().info("server")["redis_version"].partition(".")[0]) >= 8  # it came with 7.4
    assert ("1 key: without expiries of fields" in done.stderr) != has_field_ttl
    # Valkey refuses the exact copies of Redis 7.4 and newer, so the pending entries are lost on the way there already.
    assert ("not their 1 pending entries" in done.stderr) != has_field_ttl
    assert logical_state(target.client()) == logical_state(source.client())
    assert run(tmp_path, "load", back, target.tcp_url()) == "14 keys: 0 created, 14 unchanged"
    operation = json.loads(run(tmp_path, "log", "--json", "--limit", "1"))
    assert operation["changes"] == 15
    newer.flushall()
    run(tmp_path, "load", back, newer_redis.tcp_url())
    assert newer.execute_command("HPEXPIRETIME", "user:hash", "FIELDS", 2, "name", "photo") == [AT, -1]


def test_standard_streams(source: RedisServer, target: RedisServer, tmp_path: Path) -> None:
    """`-` is standard output and input; a compressed stream is recognized."""
    command = redisfuse_command("dump", f"{source.tcp_url()}#user:", "-")
    dumped = subprocess.run(command, capture_output=True, env=isolated_environment(tmp_path), check=True, timeout=30)
    assert dumped.stderr == b"14 keys written to -\n"
    command = redisfuse_command("load", "-", target.tcp_url())
    loaded = subprocess.run(
        command,
        input=gzip.compress(dumped.stdout),
        capture_output=True,
        env=isolated_environment(tmp_path),
        check=True,
        timeout=30,
    )
    assert loaded.stdout == b"14 keys: 14 created\n"
    assert exact_state(target.client()) == exact_state(source.client())


def test_large_collections_have_their_elements_only(source: RedisServer, target: RedisServer, tmp_path: Path) -> None:
    """Above --dump-limit, a collection is not DUMPed; the load rebuilds it."""
    file = str(tmp_path / "a")
    summary = run(tmp_path, "dump", f"{source.tcp_url()}#user:", file, "--dump-limit", "299", "--type", "list")
    assert summary == f"2 keys written to {file}; of 2 keys the elements only, because of --dump-limit"
    assert '"dump"' not in Path(file).read_text()
    assert run(tmp_path, "load", file, target.tcp_url()) == "2 keys: 2 created"
    client = target.client()
    assert [client.llen("user:list"), client.llen("user:long-list")] == [300, 10_000]
    assert client.lrange("user:long-list", 0, -1) == source.client().lrange("user:long-list", 0, -1)


# -- conflicts --------------------------------------------------------------------------------------------------------


def test_conflicts(target: RedisServer, archive: Path, tmp_path: Path) -> None:
    """Existing keys are refused, skipped or replaced; a rollback restores what was replaced."""
    client, url = target.client(), target.tcp_url()
    client.set("user:1", "mine", pxat=AT)
    client.set("user:counter", 12345, pxat=AT)
    client.sadd("user:list", "mine")
    done = run_redisfuse(tmp_path, "load", str(archive), url)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "14 keys: 11 created, 3 conflicts"
    assert sorted(done.stderr.splitlines()) == [
        "redisfuse: user:1: conflict: it exists with another value",
        "redisfuse: user:counter: conflict: it exists with another expiry",
        "redisfuse: user:list: conflict: it exists as a set",
    ]
    assert run(tmp_path, "load", str(archive), url, "--skip") == "14 keys: 0 created, 14 skipped"
    client.delete("user:1", "user:counter")
    done = run_redisfuse(tmp_path, "load", str(archive), url, "--dry-run")
    assert done.stdout.splitlines()[0] == "14 keys: 2 created, 11 unchanged, 1 conflict (dry run)"
    client.set("user:1", "mine", pxat=AT)
    client.set("user:counter", 12345, pxat=AT)
    assert client.get("user:1") == b"mine"
    counts = json.loads(run(tmp_path, "load", str(archive), url, "--replace", "--dry-run", "--json"))
    assert (counts["replaced"], counts["unchanged"], counts["dry_run"]) == (3, 11, True)
    assert run(tmp_path, "load", str(archive), url, "--replace") == "14 keys: 0 created, 3 replaced, 11 unchanged"
    assert (client.get("user:1"), client.type("user:list")) == (b"hello\n", b"list")
    assert client.ttl("user:counter") == -1
    run(tmp_path, "rollback", "--last", "--yes")
    assert (client.get("user:1"), client.smembers("user:list")) == (b"mine", {b"mine"})
    run(tmp_path, "rollback", "--last", "2", "--yes")
    assert sorted(client.keys()) == [b"user:1", b"user:counter", b"user:list"]


def test_keys_that_have_expired_are_left_out(target: RedisServer, archive: Path, tmp_path: Path) -> None:
    """A key whose expiry has passed since the dump is not created."""
    archive.write_text(archive.read_text().replace(str(AT), str(NOW_MS - 1)))
    assert run(tmp_path, "load", str(archive), target.tcp_url()) == "14 keys: 12 created, 2 expired"


def test_names(target: RedisServer, archive: Path, tmp_path: Path) -> None:
    """--rename replaces prefixes; keys outside of WHERE are refused before anything is written."""
    url = target.tcp_url()
    done = run_redisfuse(tmp_path, "load", str(archive), f"{url}#copy:")
    assert done.returncode == 2
    assert "--rename user:=copy:" in done.stderr
    assert target.client().dbsize() == 0
    summary = run(tmp_path, "load", str(archive), f"{url}#copy:", "--rename", "user:1=copy:one", "--rename", "=copy:")
    assert summary == "14 keys: 14 created"
    assert set(target.client().keys("copy:one*")) == {b"copy:one", b"copy:one:bytes"}
    assert len(target.client().keys("copy:user:*")) == 12


# -- comparisons ------------------------------------------------------------------------------------------------------


def diff(folder: Path, *words: str, status: int) -> list[str]:
    """Return the kinds and keys of the differences, sorted."""
    done = run_redisfuse(folder, "diff", "--live", *words)
    assert done.returncode == status, done
    return sorted(line.rpartition("\t")[0] for line in done.stdout.splitlines())


def test_a_comparison(source: RedisServer, newer_redis: RedisServer, archive: Path, tmp_path: Path) -> None:
    """Two servers, of two makers too, and an archive are compared by key, as diff -r does."""
    newer = newer_redis.client()
    newer.flushall()
    users, copies = f"{source.tcp_url()}#user:", f"{newer_redis.tcp_url()}#copy:user:"
    run(tmp_path, "load", str(archive), newer_redis.tcp_url(), "--rename", "=copy:")
    assert diff(tmp_path, users, copies, status=0) == []
    assert diff(tmp_path, str(archive), copies, status=0) == []
    whole = run_redisfuse(tmp_path, "diff", "--live", users, newer_redis.tcp_url())
    assert {line.split("\t")[0] for line in whole.stdout.splitlines()} == {"gone", "added"}
    assert "without the prefixes, which differ: 'user:' in A, none in B" in whole.stderr
    newer.set("copy:user:counter", 54321)
    newer.persist("copy:user:1")
    newer.delete("copy:user:set")
    newer.set("copy:user:new\n", "x")
    differences = ["added\tcopy:user:new\\n", "changed\tuser:counter", "expiry\tuser:1", "gone\tuser:set"]
    assert diff(tmp_path, users, copies, status=1) == differences
    assert diff(tmp_path, str(archive), copies, status=1) == differences
    mirrored = run_redisfuse(tmp_path, "diff", "--live", copies, str(archive), "--json")
    rows = {row["key"]: row for row in map(json.loads, mirrored.stdout.splitlines())}
    assert {key: row["difference"] for key, row in rows.items()} == {
        "copy:user:new\n": "gone",
        "user:counter": "changed",
        "user:1": "expiry",
        "user:set": "added",
    }
    assert (rows["user:1"]["a"]["expires_at"], rows["user:1"]["b"]["expires_at"]) == (None, AT)


def test_comparisons_that_fail(target: RedisServer, archive: Path, tmp_path: Path) -> None:
    """Trouble has exit status 2, as in diff(1)."""
    url = target.tcp_url()
    assert diff(tmp_path, url, "redis://127.0.0.1:1/0", status=2) == []
    assert diff(tmp_path, str(archive), str(archive), status=2) == []
    assert diff(tmp_path, url, status=2) == []
    archive.write_text("".join(archive.read_text().splitlines(keepends=True)[:-1]))
    done = run_redisfuse(tmp_path, "diff", "--live", str(archive), url)
    assert (done.returncode, "incomplete" in done.stderr) == (2, True)
    assert "is an option of --live" in run_redisfuse(tmp_path, "diff", "1", "--db", "3").stderr


# -- archives that are damaged or unfinished ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n", "its first line is not a header"),
        ('{"redisfuse_archive": 9, "server": "", "prefix": "", "created_at": ""}\n', "has format 9"),
        ("HEADER{}\n", "line 2 is not the record of a key"),
        ('HEADER{"key": "k", "type": "string"}\n', "a string has no value"),
        ('HEADER{"key": "k", "type": "TDIS-TYPE"}\n', "has no dump"),
        ('HEADER{"key": "k", "type": "list", "elements": [3]}\n', "an element is not an array"),
        ('HEADER{"key": "k", "type": "string", "value": {"base64": "?"}}\n', "line 2 is not the record"),
        ('HEADER{"key": "k", "type": "string", "value": "v", "more": true}\n', "ends within the record"),
        ('HEADER{"key": "k", "type": "string", "value": "v"}\n', "has no end"),
        ('HEADER{"end": true, "keys": 2}\n', "has 0 keys, its end says 2"),
    ],
)
def test_a_damaged_archive_is_an_error(
    target: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    message: str,
) -> None:
    """The message has the place, and the exit status is 1."""
    header = '{"redisfuse_archive": 1, "server": "redis 7", "prefix": "", "created_at": ""}\n'
    file = tmp_path / "damaged"
    file.write_text(text.replace("HEADER", header))
    for name, value in isolated_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    assert main(["load", str(file), target.tcp_url()]) == 1
    assert message in capsys.readouterr().err


def test_an_edited_value_is_loaded(target: RedisServer, tmp_path: Path, archive: Path) -> None:
    """Without its dump, a key gets the elements of the archive, in any order and spelling."""
    rows = [json.loads(line) for line in archive.read_text().splitlines()]
    [row] = [row for row in rows if row.get("key") == "user:set"]
    del row["dump"]
    row["elements"] = [["z"], ["é"], ["a"]]
    archive.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    run(tmp_path, "load", str(archive), target.tcp_url())
    assert target.client().smembers("user:set") == {b"z", b"a", "é".encode()}
    assert run(tmp_path, "load", str(archive), target.tcp_url()) == "14 keys: 0 created, 14 unchanged"


def test_a_dump_replaces_nothing(source: RedisServer, archive: Path, tmp_path: Path) -> None:
    """A file that exists is kept without --force, a directory must be empty."""
    url = source.tcp_url()
    assert "exists" in run(tmp_path, "dump", url, str(archive), status=1)
    assert run(tmp_path, "dump", url, str(archive), "--force").startswith("15 keys")
    assert "not empty" in run(tmp_path, "dump", url, str(tmp_path), status=1)
    assert "can't be written" in run(tmp_path, "dump", url, str(tmp_path / "no" / "file"), status=2)
    assert "no archive given" in run(tmp_path, "dump", status=2)


def test_a_denied_key_is_reported(own_redis: RedisServer, tmp_path: Path) -> None:
    """The other keys are dumped, and the exit status is 1."""
    client = own_redis.client()
    client.mset({f"a:{number}": "x" for number in range(10)})
    client.set("b:1", "secret")
    client.acl_setuser("reader", enabled=True, nopass=True, keys=["a:*"], commands=["+@all"])
    url = own_redis.tcp_url().replace("//", "//reader:x@")
    done = run_redisfuse(tmp_path, "dump", url, str(tmp_path / "a"))
    assert done.returncode == 1
    assert "1 key could not be read" in done.stderr
    assert done.stdout.startswith("10 keys written")


# -- interruption, and many keys ---------------------------------------------------------------------------------------


@pytest.fixture
def many(own_redis: RedisServer) -> RedisServer:
    """Fill a server with 6000 keys of some types."""
    pipeline = own_redis.client().pipeline(transaction=False)
    for number in range(6000):
        if number % 2:
            pipeline.set(f"m:{number}", f"value {number}")
        else:
            pipeline.hset(f"m:{number}", mapping={"a": number, "b": "x"})
    pipeline.execute()
    own_redis.client().config_resetstat()
    return own_redis


@pytest.fixture
def random_values(own_redis: RedisServer) -> RedisServer:
    """Fill a server with 2000 strings of 4 KiB that can't be compressed."""
    pipeline = own_redis.client().pipeline(transaction=False)
    for number in range(2000):
        pipeline.set(f"random:{number}", os.urandom(4096))
    pipeline.execute()
    return own_redis


def test_an_interrupted_load_is_finished(many: RedisServer, target: RedisServer, tmp_path: Path) -> None:
    """Ctrl-C ends a load between two transactions; the same command loads the rest, and one rollback undoes a load."""
    file = str(tmp_path / "many.gz")
    assert run(tmp_path, "dump", many.tcp_url(), file).startswith("6,000 keys")
    calls = {name: row["calls"] for name, row in many.client().info("commandstats").items()}
    assert calls["cmdstat_dump"] == calls["cmdstat_hlen"] == calls["cmdstat_hscan"] == 3000
    assert calls["cmdstat_type"] == calls["cmdstat_pexpiretime"] == 6000
    assert calls["cmdstat_strlen"] == calls["cmdstat_getrange"] == 3000
    client = target.client()
    with subprocess.Popen(
        redisfuse_command("load", file, target.tcp_url()),
        env=isolated_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        wait_until(client.dbsize)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"the same command finishes the load" in errors
    loaded = client.dbsize()
    assert 0 < loaded < 6000
    pending = run_redisfuse(tmp_path, "log", "--keys", "--state", "pending").stdout
    assert pending == ""
    done = run_redisfuse(tmp_path, "load", file, target.tcp_url(), timeout=90)
    assert done.stdout == f"6,000 keys: {6000 - loaded:,} created, {loaded:,} unchanged\n"
    assert client.dbsize() == 6000
    assert client.hgetall("m:4") == {b"a": b"4", b"b": b"x"}


def test_dumps_that_can_not_be_resumed(tmp_path: Path) -> None:
    """Only an incomplete archive of the same keys can be finished."""
    codec, header = PathCodec(b":"), ArchiveHeader("redis 7.0.15", b"a:")
    folder = tmp_path / "tree"
    create_archive(f"{folder}/", header, codec, force=False)
    for other in (ArchiveHeader("redis 7.0.15", b"b:"), ArchiveHeader("valkey 9.1.0", b"a:")):
        with pytest.raises(ExistsError, match="other keys, or by another server"):
            create_archive(f"{folder}/", other, codec, force=False, resume=True)
    with pytest.raises(UsageError, match="needs a file or a directory"):
        create_archive("-", header, codec, force=False, resume=True)
    with pytest.raises(ExistsError, match="not an archive"):
        create_archive(f"{tmp_path}/", header, codec, force=False, resume=True)
    create_archive(f"{folder}/", header, codec, force=False, resume=True).finish()
    with pytest.raises(ExistsError, match="is a complete archive"):
        create_archive(f"{folder}/", header, codec, force=False, resume=True)


def read_strings(client: RedisClient) -> dict[bytes, Any]:
    """Return all keys and their values."""
    keys = client.execute_command("KEYS", "*")
    return dict(zip(keys, client.mget(keys), strict=True))


@pytest.mark.parametrize(
    ("name", "number"),
    [("keys", signal.SIGINT), ("keys.gz", signal.SIGKILL), ("keys.zst", signal.SIGINT)],
)
def test_an_interrupted_file_is_resumed(
    random_values: RedisServer, target: RedisServer, tmp_path: Path, name: str, number: signal.Signals
) -> None:
    """The whole records stay, as they were read; the other keys are read, as they are then."""
    client, url = random_values.client(), random_values.tcp_url()
    file, part = tmp_path / name, tmp_path / f"{name}.part"
    before = read_strings(client)
    with subprocess.Popen(
        redisfuse_command("dump", url, str(file), "--rate", "4000"),
        env=isolated_environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: part.exists() and part.stat().st_size > 3 << 20)
        process.send_signal(number)
        errors = process.communicate(timeout=30)[1]
    assert not file.exists()
    if number == signal.SIGINT:
        assert (process.returncode, "add --resume" in errors) == (130, True)
    assert "add --resume" in run(tmp_path, "dump", url, str(file), status=1)
    client.mset(dict.fromkeys(before, b"changed"))
    client.set("random:new", "new")
    client.config_resetstat()
    words = run(tmp_path, "dump", url, str(file), "--resume").replace(",", "").split()
    written, kept = int(words[0]), int(words[5])
    assert (written + kept, kept > 100, written > 100) == (len(before) + 1, True, True)
    assert client.info("commandstats")["cmdstat_getrange"]["calls"] == written
    assert not part.exists()
    total = f"{len(before) + 1:,}"
    assert run(tmp_path, "load", str(file), target.tcp_url()) == f"{total} keys: {total} created"
    loaded, now = read_strings(target.client()), read_strings(client)
    assert sum(value == before.get(key) for key, value in loaded.items()) == kept
    assert sum(value == now[key] for key, value in loaded.items()) == written


def test_an_interrupted_dump_is_resumed(own_redis: RedisServer, target: RedisServer, tmp_path: Path) -> None:
    """--resume reads only the keys that the directory lacks, and completes it."""
    client = own_redis.client()
    for number in range(1000):
        client.rpush(f"list:{number}", "a", str(number))
    folder, url = tmp_path / "tree", own_redis.tcp_url()
    run(tmp_path, "dump", url, f"{folder}/", "--key", "list:1*")
    written = len(list(folder.glob("list/*")))
    header = folder / "%archive.json"
    header.write_bytes(header.read_bytes().splitlines(keepends=True)[0])  # a kill leaves no end,
    (folder / "%unfinished").write_bytes(b"half")  # and a file that was being written
    assert "--resume" in run(tmp_path, "dump", url, f"{folder}/", status=1)
    client.delete("list:17")  # since it was dumped
    client.config_resetstat()
    report = run(tmp_path, "dump", url, f"{folder}/", "--resume")
    assert report == f"{1000 - written:,} keys written to {folder}/; {written - 1:,} keys were there"
    assert client.info("commandstats")["cmdstat_dump"]["calls"] == 1000 - written
    assert not (folder / "%unfinished").exists()
    assert run(tmp_path, "load", f"{folder}/", target.tcp_url()) == "1,000 keys: 1,000 created"
    assert target.client().lrange("list:17", 0, -1) == [b"a", b"17"]


def test_a_batch_has_neighbouring_keys() -> None:
    """Keys are loaded in the order of their names; of a repeated key the last record counts."""
    numbers = [number * 7919 % 1300 for number in range(1300)]
    keys = [ArchivedKey(b"key:%04d" % number, State.from_value(b"first")) for number in numbers]
    keys.append(ArchivedKey(b"key:0700", State.from_value(b"last")))
    batches = list(batch_keys(keys))
    assert [len(batch) for batch, _ in batches] == [500, 500, 300]
    assert sum(share for _, share in batches) == pytest.approx(1)
    loaded = [archived for batch, _ in batches for archived in batch]
    assert [archived.key for archived in loaded] == [b"key:%04d" % number for number in range(1300)]
    assert loaded[700].state == State.from_value(b"last")


# -- mounts -----------------------------------------------------------------------------------------------------------


def test_paths_of_mounts(redis_server: RedisServer, tmp_path: Path) -> None:
    """A load obeys the mount's mode and --allow, uses its journal, and is seen at once."""
    client = redis_server.client()
    client.mset({"user:1": "one", "user:2": "two", "other:1": "x"})
    with mount_server(tmp_path, redis_server.url()) as mount:
        assert run(tmp_path, "dump", f"{mount.path}/user", str(tmp_path / "users")).startswith("2 keys")
        assert run(tmp_path, "dump", f"{mount.path}/user/1", str(tmp_path / "one")).startswith("1 key ")
        assert run(tmp_path, "dump", str(mount.path), str(tmp_path / "all")).startswith("3 keys")
        assert "read-only" in run(tmp_path, "load", str(tmp_path / "users"), str(mount.path), status=2)
        assert "is a key" in run(tmp_path, "load", str(tmp_path / "users"), f"{mount.path}/user/1", status=2)
    client.delete("user:1", "other:1")
    with mount_server(tmp_path, redis_server.url(), "--allow", "user:*", write=True) as mount:
        done = run_redisfuse(tmp_path, "load", str(tmp_path / "all"), str(mount.path))
        assert (done.returncode, done.stdout) == (1, "3 keys: 1 created, 1 unchanged, 1 failed\n")
        assert "other:1: not written: --allow" in done.stderr
        wait_until((mount.path / "user" / "1").exists)
        changes = run_redisfuse(tmp_path, "log", "--keys", "--json", "--journal-file", str(mount.journal)).stdout
        assert [json.loads(line)["key"] for line in changes.splitlines()] == ["user:1"]
