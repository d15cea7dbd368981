"""`redisfuse find` with a mount and without: paths, output, and how a mount's server is found."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from redisfuse.cli import _where
from redisfuse.errors import UsageError
from redisfuse.fuse.mountpoint import MountInfo
from redisfuse.text import escape_text
from tests.support.mounts import MountedServer, isolated_environment, mount_server, redisfuse_command, run_redisfuse
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.timeout(120)


def fill(server: RedisServer) -> None:
    """Write keys of every type, some with names that need escapes."""
    client = server.client()
    client.mset(
        {"user": "file beside a folder", "user:new\nline": "x", "user:100%": "y", "a.b": "string", b"\xff:\xfe": "z"}
    )
    client.set("session:1", "s" * 2000, ex=600)
    client.set("session:2", "s", ex=60_000)
    client.rpush("queue:email", *range(20))
    client.sadd("tags", "x", "y")
    client.zadd("board", {"one": 1})
    client.hset("user:1001", mapping={"name": "Ada", "e.mail": "a@b", "": "empty"})
    client.hset("v1.2", mapping={"field": "x"})
    client.xadd("events", {"a": "b"}, id="1-1")


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory, server: RedisServer) -> Iterator[MountedServer]:
    """Mount the server, with each hash as one file."""
    fill(server)
    with mount_server(tmp_path_factory.mktemp("find"), server.tcp_url(), "--hashes", "files") as mount:
        yield mount


def find(folder: Path, *words: object, cwd: Path | None = None, status: int = 0) -> list[str]:
    """Return the lines that `redisfuse find` prints, sorted."""
    done = run_redisfuse(folder, "find", *map(str, words), cwd=cwd)
    assert done.returncode == status, done.stderr
    return sorted(done.stdout.splitlines())


def list_files(path: Path) -> list[str]:
    """Return what find(1) lists: the files below a folder."""
    done = subprocess.run(["find", path, "-type", "f"], check=True, capture_output=True, text=True)
    return sorted(line for line in done.stdout.splitlines() if not line.endswith("/.updater"))


def test_the_paths_are_those_of_the_mount(tmp_path: Path, mounted: MountedServer) -> None:
    """`redisfuse find` lists what find(1) lists, for the mount, for a folder and for a relative path."""
    path = mounted.path
    expected = list_files(path)
    assert len(expected) == 13
    assert find(tmp_path, path) == expected
    assert find(tmp_path, path / "user") == list_files(path / "user")
    assert find(tmp_path, "user", cwd=path) == [os.path.relpath(one, path) for one in list_files(path / "user")]
    assert find(tmp_path, cwd=path / "user") == sorted(os.listdir(path / "user"))
    assert find(tmp_path, ".", cwd=path / "user") == sorted(f"./{name}" for name in os.listdir(path / "user"))


def test_the_paths_without_a_mount_are_the_same(tmp_path: Path, server: RedisServer, mounted: MountedServer) -> None:
    """A URL and HOST PORT give the same paths, from the root; `#` and --prefix select keys."""
    relative = [os.path.relpath(one, mounted.path) for one in list_files(mounted.path)]
    assert find(tmp_path, server.tcp_url()) == relative
    assert find(tmp_path, "127.0.0.1", server.port) == relative
    sessions = ["session/1", "session/2"]
    assert find(tmp_path, f"{server.tcp_url()}#session:") == sessions
    assert find(tmp_path, server.tcp_url(), "--prefix", "session:") == sessions


def test_a_path_of_one_key(tmp_path: Path, mounted: MountedServer) -> None:
    """A file is a search of one key or field; fields of a hash are beside it."""
    path = mounted.path
    assert find(tmp_path, path / "user%") == [f"{path}/user%"]
    assert find(tmp_path, path / "tags", "--type", "list") == []
    assert find(tmp_path, path / "user/1001.name", "--size", "3") == [f"{path}/user/1001.name"]
    assert find(tmp_path, path / "user/1001", "--field", "*") == [
        f"{path}/user/1001.%",
        f"{path}/user/1001.e.mail",
        f"{path}/user/1001.name",
    ]


def test_fields_open(tmp_path: Path, mounted: MountedServer) -> None:
    """With --field, the paths of fields are printed, and each opens."""
    done = run_redisfuse(tmp_path, "find", str(mounted.path), "--field", "*", "--print0")
    paths = done.stdout.split("\0")[:-1]
    assert sorted(Path(path).read_text() for path in paths) == ["Ada", "a@b", "empty", "x"]


def test_conditions_and_order(tmp_path: Path, mounted: MountedServer) -> None:
    """Conditions select, --sort and --limit order, --count counts."""
    path = str(mounted.path)
    assert find(tmp_path, path, "--ttl", "-1h") == [f"{path}/session/1"]
    assert find(tmp_path, path, "--elements", "+10") == [f"{path}/queue/email"]
    assert find(tmp_path, path, "--size", "+1K", "--ttl", "any") == [f"{path}/session/1"]
    assert find(tmp_path, path, "--type", "zset,set") == [f"{path}/board", f"{path}/tags"]
    assert find(tmp_path, path, "--type", "hash", "--count") == ["2"]
    assert find(tmp_path, path, "--sort", "size", "--limit", "1") == [f"{path}/session/1"]
    by_expiry = run_redisfuse(tmp_path, "find", path, "--sort", "ttl").stdout.splitlines()
    assert by_expiry == [f"{path}/session/1", f"{path}/session/2"]
    by_expiry = run_redisfuse(tmp_path, "find", path, "--sort", "ttl", "--reverse").stdout.splitlines()
    assert by_expiry == [f"{path}/session/2", f"{path}/session/1"]


def test_json_and_long_lines(tmp_path: Path, server: RedisServer, mounted: MountedServer) -> None:
    """--json has path, key, type, length and TTL; --ls has them between tabs; --keys prints keys."""
    done = run_redisfuse(tmp_path, "find", str(mounted.path), "--name", "email", "--json")
    assert json.loads(done.stdout) == {
        "path": f"{mounted.path}/queue/email",
        "key": "queue:email",
        "type": "list",
        "length": 20,
        "ttl_ms": -1,
    }
    done = run_redisfuse(tmp_path, "find", server.tcp_url(), "--name", "email", "--ls", "--memory", "+1")
    type_name, length, ttl, memory, path = done.stdout.rstrip("\n").split("\t")
    assert (type_name, length, ttl, path) == ("list", "20", "-1", "queue/email")
    assert int(memory) == server.client().memory_usage("queue:email")
    assert find(tmp_path, server.tcp_url(), "--keys", "--key", "user:new*") == ["user:new\\nline"]
    keys = [escape_text(key) for key in server.client().scan_iter()]
    assert sorted(find(tmp_path, server.tcp_url(), "--keys")) == sorted(keys)
    assert len(find(tmp_path, server.tcp_url(), "--keys", "--limit", "3")) == 3
    assert find(tmp_path, server.tcp_url(), "--keys", "-0", "--key", "user:new*") == ["line\0", "user:new"]


def test_keys_that_contain_nul(tmp_path: Path, own_redis: RedisServer) -> None:
    """Between NUL bytes such a key would be two, so it is left out with a message; its path has an escape."""
    own_redis.client().mset({"a\0b": "1", "c": "2"})
    url = own_redis.tcp_url()
    for words in ((), ("--size", "1")):  # the quick way, and record by record
        done = run_redisfuse(tmp_path, "find", url, "--keys", "-0", *words)
        assert (done.returncode, done.stdout) == (0, "c\0")
        assert "1 key with a NUL byte left out" in done.stderr
    assert sorted(run_redisfuse(tmp_path, "find", url, "-0").stdout.split("\0")) == ["", "a%00b", "c"]


def test_a_misspelt_server(tmp_path: Path, server: RedisServer) -> None:
    """The nearest server of the configuration is named; HOST:PORT in one word is a server, too."""
    file = tmp_path / "c.toml"
    file.write_text(f'[server.prod]\nurl = "{server.tcp_url()}"\n')
    done = run_redisfuse(tmp_path, "--config", str(file), "find", "prdo")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("and no such path; did you mean 'prod'?\n")
    found = run_redisfuse(tmp_path, "find", f"127.0.0.1:{server.port}").stdout
    assert found == run_redisfuse(tmp_path, "--config", str(file), "find", "prod").stdout != ""


def test_a_terminal(tmp_path: Path, server: RedisServer, mounted: MountedServer) -> None:
    """On a terminal --ls is for people, and nothing in a name reaches it as a control character."""
    server.client().set("evil:\x1b[31m\u202e", "x")
    words = redisfuse_command("find", str(mounted.path), "--ls")
    child = pexpect.spawn(words[0], words[1:], env=isolated_environment(tmp_path), dimensions=(50, 200), timeout=60)
    shown = child.read().decode()
    child.close()
    server.client().delete("evil:\x1b[31m\u202e")
    assert child.exitstatus == 0
    assert "20 el." in shown
    assert "2.0 KiB" in shown
    assert "evil/%1B[31m\\u202e" in shown
    assert "\x1b" not in shown


def test_usage_errors(tmp_path: Path, mounted: MountedServer) -> None:
    """Wrong combinations and values are errors that name the right ones."""
    for words, message in [
        ((), "the current directory is not in a mount"),
        ((tmp_path,), "is not in a mount"),
        ((mounted.path, "--db", "3"), "--db needs a server"),
        ((mounted.path, "--prefix", "x"), "--prefix needs a server"),
        ((mounted.path, "--ttl", "soon"), "--ttl soon: not a time"),
        ((mounted.path, "--print0", "--json"), "can't be combined"),
        ((mounted.path, "--type", "strng"), "no type 'strng': the types are string, list,"),
        (("a", "1", "b"), "'b' is one argument too many"),
        (("prod", "staging"), "'staging' is one argument too many"),
    ]:
        done = run_redisfuse(tmp_path, "find", *map(str, words), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    done = run_redisfuse(tmp_path, "find", str(mounted.path / "nope"))
    assert (done.returncode, done.stderr) == (1, f"redisfuse: {mounted.path}/nope: No such file or directory\n")


def test_the_mounts_password_file_and_prefix_are_used(tmp_path: Path) -> None:
    """A path needs neither password nor prefix: the mount's own apply, and its database."""
    secret = tmp_path / "password"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    with RedisServer(tcp=True, password="s3cret") as server:
        server.client(db=2).mset({"app:x:1": "1", "app:y": "2", "other": "3"})
        options = ("--password-file", str(secret), "--prefix", "app:", "--separator", ":")
        with mount_server(tmp_path, server.tcp_url(2), *options) as mount:
            assert find(tmp_path, mount.path) == [f"{mount.path}/app/x/1", f"{mount.path}/app/y"]
            assert find(tmp_path, "app/x", cwd=mount.path) == ["app/x/1"]


def test_a_password_that_only_the_mount_has(tmp_path: Path) -> None:
    """Where the mount has its password from its URL, the error says how to give it; the environment works."""
    with RedisServer(tcp=True, password="s3cret") as server:
        server.client().set("k", "v")
        url = server.tcp_url().replace("redis://", "redis://:s3cret@")
        with mount_server(tmp_path, url) as mount:
            done = run_redisfuse(tmp_path, "find", str(mount.path))
            assert done.returncode == 2
            assert "set REDISFUSE_PASSWORD" in done.stderr
            environment = {**isolated_environment(tmp_path), "REDISFUSE_PASSWORD": "s3cret"}
            words = redisfuse_command("find", str(mount.path))
            done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=True)
            assert done.stdout == f"{mount.path}/k\n"
            assert "s3cret" not in json.dumps(mount.status())


def test_the_mount_of_another_user_is_not_believed(mounted: MountedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's mount could name a server that collects passwords: it is refused."""
    assert _where.locate_in_mount(f"{mounted.path}/user/../tags") == (mounted.path, "tags")
    monkeypatch.setattr(MountInfo, "owner_uid", property(lambda _self: 12345))
    with pytest.raises(UsageError, match="another user"):
        _where.locate_in_mount(str(mounted.path))


def test_a_broken_pipe_is_quiet(tmp_path: Path, server: RedisServer) -> None:
    """`redisfuse find … | head -1` prints one line and no error."""
    words = " ".join([*redisfuse_command("find", server.tcp_url()), "| head -1"])
    done = subprocess.run(
        words, shell=True, env=isolated_environment(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
