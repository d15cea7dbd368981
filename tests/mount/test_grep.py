"""`redisfuse grep` gives the answers of `grep -r` on a mount, for data of every type."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.support.forkserver import run_forked
from tests.support.mounts import MountedServer, isolated_environment, mount_server, redisfuse_command, run_redisfuse
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20


def fill(server: RedisServer) -> None:
    """Write keys of every type: small, large, empty, binary, and with names that need escapes."""
    client = server.client()
    client.mset(
        {
            "text:plain": "foo bar\nbar foo\nbaz\n",
            "text:no-end": "foo\n\nlast line foo",
            "text:empty": "",
            "text:newlines": "\n\n\n",
            "text:blank": " \t foo \t",
            "text:unicode": "Füße foo\nÉTÉ été\nword_foo foo-word 3.14\n",
            "text:words": "foobar foo barfoo\nfoo_bar\n(foo) [foo] foo+ f.o a*b {2} $5 x^y\n",
            "text:repeat": "aa bb abab aaa\nabcabc\n",
            "text:carriage": "foo\r\nbar\r\n",
            "text": "foo beside a folder",
            "odd:new\nline": "foo",
            "odd:100%": "foo 100%",
            b"odd:\xff": "foo",
            "binary:nul": b"foo\n\0bar\nfoo\n",
            "binary:latin": b"foo\nf\xfc\xdfe foo\nfoo again\n",
            "binary:unmatched": b"\0\1\2",
            "large:lines": "".join(f"line {number} foo{number % 1000}\n" for number in range(40_000)),
            "large:one-line": "x" * (3 * MIB) + "needle" + "y" * MIB + "\nfoo after\n",
            "large:edge": "z" * ((16 << 10) - 3) + "needle foo\n" + "w" * (MIB - 9) + "\u00e9needle\nfoo\n",
        }
    )
    client.rpush("list:small", "foo", "bar", "multi\nline foo", "tab\tfoo", "", b"\xff foo", "back\\slash foo")
    client.rpush("list:large", *(f"element {number} foo{number % 777}" for number in range(1500)))
    client.sadd("set:small", "foo", "bar", "foo bar")
    client.sadd("set:large", *(f"member {number} foo{number % 77}" for number in range(3000)))
    client.zadd("zset:small", {"foo": 1, "bar": 2.5, "foo bar": float("inf")})
    client.zadd("zset:large", {f"member {number} foo": number for number in range(3000)})
    client.hset("hash:small", mapping={"foo": "field value", "mail": "foo@bar\nsecond foo", "": "foo", "n\nl": "foo"})
    client.hset("hash:large", mapping={f"field{number}": f"foo {number}" for number in range(700)})
    client.hset("hash", "text:plain", "foo")
    for number in range(300):
        client.xadd("stream:large", {"type": "foo", "number": number}, id=f"{number + 1}-1")
    client.xadd("stream:small", {"a=b": "foo", "x": "multi\nline"}, id="1-1")
    client.xgroup_create("stream:empty", "g", mkstream=True)


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory, server: RedisServer) -> Iterator[MountedServer]:
    """Mount the data."""
    fill(server)
    with mount_server(tmp_path_factory.mktemp("grep"), server.tcp_url()) as mount:
        yield mount


def run_grep(mount: MountedServer, *words: str) -> list[bytes]:
    """Return the lines of `grep -r` in the mount, sorted, in the form of `redisfuse grep`."""
    done = subprocess.run(
        ["grep", "-r", "--exclude=.updater", *words],
        cwd=mount.path,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    lines = done.stdout.split(b"\n")[:-1]
    if words[0] in ("-c", "-cv"):
        lines = [line for line in lines if not line.endswith(b":0")]  # of which redisfuse prints none
    return sorted(lines)


def run_search(folder: Path, mount: MountedServer, *words: str) -> list[bytes]:
    """Return the lines of `redisfuse grep` in the mount, sorted."""
    done = run_forked(["grep", *words], isolated_environment(folder), directory=mount.path)
    binary = [line for line in done.stderr.splitlines() if b"binary file matches" in line]
    assert done.stderr.splitlines() == binary
    assert done.returncode == (0 if done.stdout or binary else 1)
    return sorted(done.stdout.split(b"\n")[:-1])


@pytest.mark.parametrize(
    "words",
    [
        ("foo",),
        ("-n", "foo"),
        ("-c", "foo"),
        ("-l", "foo"),
        ("-i", "FOO"),
        ("-i", "été"),
        ("-in", "ÉTÉ"),
        ("-a", "foo"),
        ("-w", "foo"),
        ("-x", "foo"),
        ("-nv", "o"),
        ("-cv", "foo"),
        ("-lv", "foo"),
        ("-o", "fo*"),
        ("-on", "f[a-z]*"),
        ("-F", "a*b"),
        ("-F", "foo+"),
        ("-F", "foo\nbaz"),
        ("-E", "foo|baz"),
        ("-E", "^(foo|last)"),
        ("-E", "fo{2}$"),
        ("-E", "(ab)\\1"),
        ("-E", "\\(foo\\)|\\{2\\}"),
        ("-E", "F..e"),
        ("^foo",),
        ("foo$",),
        ("^$",),
        ("-n", "^.$"),
        ("f.o",),
        ("\\(ab\\)\\1",),
        ("foo\\|baz",),
        ("fo\\{2\\}b",),
        ("*b",),
        ("x^y",),
        ("$5",),
        ("\\<foo\\>",),
        ("\\bfoo\\b",),
        ("[[:upper:]]",),
        ("[^[:alnum:][:space:]]foo",),
        ("[]]",),
        ("[^]o]o]",),
        ("[a-c]*c$",),
        ("\\wfoo",),
        ("-E", "[0-9]+\\.[0-9]+"),
        ("-e", "-word"),
        ("-m", "1", "foo"),
        ("-A", "1", "-n", "bar"),
        ("-C", "1", "last"),
        ("-n", "-B", "2", "needle$"),
        ("",),
        ("-c", ""),
        ("nothing has this",),
        ("\t",),
        ("\\\\",),
        ("element 1499",),
        ("needle",),
        ("-c", "needle"),
        ("-l", "yneedle\\|xneedle"),
        ("^needle",),
        ("-n", "\u00e9needle$"),
    ],
    ids=" ".join,
)
def test_the_answers_of_grep(tmp_path: Path, mounted: MountedServer, words: tuple[str, ...]) -> None:
    """The selected lines, counts and paths are those of `grep -r` on the mount."""
    # The number of separators of GNU grep depends on which file is the first: a binary one begins no group.
    mine = [line for line in run_search(tmp_path, mounted, *words) if line != b"--"]
    theirs = [line for line in run_grep(mounted, *words) if line != b"--"]
    if mine != theirs:
        only_mine, only_theirs = sorted({*mine} - {*theirs}), sorted({*theirs} - {*mine})
        cut = [line[:200] for line in (*only_mine[:5], b"--- grep:", *only_theirs[:5])]
        pytest.fail(f"{len(mine)} lines, grep has {len(theirs)}: {cut}")


def test_json(tmp_path: Path, mounted: MountedServer) -> None:
    """--json has a line for each selected line, with key, field, number and text; bytes as base64."""
    done = run_redisfuse(tmp_path, "grep", "--json", "second foo", str(mounted.path / "hash"))
    assert json.loads(done.stdout) == {
        "path": f"{mounted.path}/hash/small.mail",
        "key": "hash:small",
        "field": "mail",
        "line": 2,
        "text": "second foo",
        "selected": True,
    }
    done = run_redisfuse(tmp_path, "grep", "--json", "e foo", str(mounted.path / "binary"))
    assert json.loads(done.stdout)["text"] == {"base64": "Zvzf" + "ZSBmb28="}


def test_names(tmp_path: Path, mounted: MountedServer) -> None:
    """With --names, the names of keys and fields are searched, too."""
    done = run_redisfuse(tmp_path, "grep", "--names", "-l", "mail", str(mounted.path))
    assert done.stdout.splitlines() == [f"{mounted.path}/hash/small.mail"]
    done = run_redisfuse(tmp_path, "grep", "--names", "-l", "100%", str(mounted.path), "--type", "string")
    assert done.stdout.splitlines() == [f"{mounted.path}/odd/100%25"]


def test_one_file_and_null(tmp_path: Path, mounted: MountedServer) -> None:
    """WHERE can be one file; -lZ ends each path with a NUL byte."""
    done = run_redisfuse(tmp_path, "grep", "-lZ", "foo", str(mounted.path / "text%"))
    assert done.stdout == f"{mounted.path}/text%\0"
    done = run_redisfuse(tmp_path, "grep", "second", "hash/small", cwd=mounted.path)
    assert done.stdout == "hash/small.mail:second foo\n"
    done = run_redisfuse(tmp_path, "grep", "second", "small.mail", cwd=mounted.path / "hash")
    assert done.stdout == "small.mail:second foo\n"


def test_a_terminal_is_coloured_and_safe(tmp_path: Path, server: RedisServer, mounted: MountedServer) -> None:
    """Matches are coloured on a terminal; nothing in a value reaches it as a control character."""
    server.client().set("evil", "before \x1b[31mred\x07 after")
    words = redisfuse_command("grep", "red", str(mounted.path), "--name", "evil")
    environment = {**isolated_environment(tmp_path), "TERM": "xterm"}
    del environment["NO_COLOR"]
    child = pexpect.spawn(words[0], words[1:], env=environment, dimensions=(50, 200), timeout=60)
    shown = child.read().decode()
    child.close()
    server.client().delete("evil")
    assert "before \\x1b[31m\x1b[1;31mred\x1b[m\\x07 after" in shown


def test_usage_errors(tmp_path: Path, mounted: MountedServer) -> None:
    """An invalid pattern and contradicting options are errors."""
    for words, message in [
        (("\\(", mounted.path), "the pattern '\\\\(' is invalid"),
        (("-E", "-F", "x", mounted.path), "-E and -F contradict"),
        (("--json", "-l", "x", mounted.path), "--json prints selected lines"),
        ((), "no pattern is given"),
    ]:
        done = run_redisfuse(tmp_path, "grep", *map(str, words))
        assert (done.returncode, done.stdout) == (2, ""), done
        assert message in done.stderr


def test_a_slow_server_is_waited_for(tmp_path: Path) -> None:
    """No program waits in the kernel, so a reply may take longer than in a mount; --timeout limits it."""
    with RedisServer() as slow, Proxy(slow.socket_path) as proxy:
        slow.client().set("text", "foo")
        environment = isolated_environment(tmp_path) | {"REDISFUSE_TIMEOUT": "2"}  # of a mount, and for connecting
        for command in ("SCAN", "GETRANGE"):
            proxy.inject("delay", command, seconds=3.0, times=1)
            done = subprocess.run(
                redisfuse_command("grep", "foo", proxy.url()),
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, "text:foo\n", ""), command
            proxy.clear()
        proxy.inject("delay", "GETRANGE", seconds=3.0)
        done = run_redisfuse(tmp_path, "grep", "foo", "--timeout", "2", proxy.url())
        assert done.returncode == 1
        assert "did not reply in time: it is down, hung or too slow (see --timeout)" in done.stderr
