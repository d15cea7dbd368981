"""Real programs on a write mount: those of the original project's README, and more."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.bindings import BINDINGS
from tests.support.changes import journal_rows, last_change_id
from tests.support.expected_state import read_tree
from tests.support.mounts import MountedServer, flush_and_wait, mount_server, wait_until
from tests.support.redis_server import RedisServer
from tests.support.shell import run_script


@pytest.fixture(scope="module", params=BINDINGS)
def mount(
    request: pytest.FixtureRequest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedServer]:
    """Mount a server so that every new file is a string, as source trees need it."""
    folder = tmp_path_factory.mktemp("programs")
    words = ("--binding", request.param, "--new-files", "string")
    with mount_server(folder, server.tcp_url(), *words, write=True) as mount:
        yield mount


@pytest.fixture
def client(server: RedisServer, mount: MountedServer) -> redis.Redis:
    flush_and_wait(server, mount)
    run_script(mount.path, "rm -rf -- * .git")
    return server.client()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder of 150 files like a source tree.

    They are nested, empty, binary or hidden, and README is beside README.md.
    """
    folder = tmp_path_factory.mktemp("sources")
    for number in range(140):
        path = folder / f"lib{number % 7}" / f"part{number % 3}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# module {number}\n" * (number % 50 + 1))
    for name, content in {
        "README": b"read me\n",
        "README.md": b"# read me\n",
        "empty": b"",
        ".gitignore": b"*.o\n",
        ".config/settings.json": b"{}\n",
        "a b/c d.txt": b"spaces\n",
        "data/binary.bin": bytes(range(256)) * 300,
        "data/large.bin": os.urandom(1_500_000),
        "ümlaut/日本.txt": "ü\n".encode(),
        "percent%20.txt": b"%\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# -- the three tests of the original project ---------------------------------------------------------------------------


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_git_repository_survives_a_remount(redis_server: RedisServer, tmp_path: Path, binding: str) -> None:
    """A repository made on the mount is intact after a remount: clean status, full history, no error from fsck."""
    words = (redis_server.tcp_url(), "--binding", binding)
    with mount_server(tmp_path, *words, write=True) as mount:
        run_script(
            mount.path,
            """
            git init -q -b main repo && cd repo
            mkdir -p sub/deeper && echo one > first && echo two > sub/second && echo three > sub/deeper/third
            git add -A && git commit -qm first
            git checkout -q -b topic && echo more >> sub/second && git rm -q first && git commit -qam 'on the topic'
            git checkout -q main && echo fourth > fourth && git add fourth && git commit -qm second
            git merge -q -m merged topic && git tag v1 && git stash list && git fsck --strict
            """,
        )
        before = run_script(
            mount.path / "repo", "git status --short; git log --format='%H %s'; git branch; git ls-files"
        )
        assert mount.stop() == 0
    with mount_server(tmp_path, *words, write=True) as mount:
        repository = mount.path / "repo"
        assert (
            run_script(repository, "git status --short; git log --format='%H %s'; git branch; git ls-files") == before
        )
        assert run_script(repository, "git status --short") == ""
        run_script(repository, "git fsck --strict --full && git diff --exit-code HEAD && git checkout -q topic")
        assert (repository / "sub" / "second").read_text() == "two\nmore\n"
        run_script(
            repository, "git checkout -q main && echo again >> fourth && git commit -qam third && git fsck --strict"
        )


@pytest.mark.parametrize("binding", BINDINGS)
def test_hashes(redis_server: RedisServer, tmp_path: Path, binding: str) -> None:
    """`echo > hash.field` makes a field, `cat` and `ls` show it, and `rm` removes it, at last the hash too."""
    client = redis_server.client()
    with mount_server(tmp_path, redis_server.tcp_url(), "--binding", binding, write=True) as mount:
        assert run_script(mount.path, "echo world > hello.howdy; echo 2 > hello.two; cat hello.howdy; ls") == (
            "world\nhello.howdy\nhello.two\n"
        )
        assert client.hgetall("hello") == {b"howdy": b"world\n", b"two": b"2\n"}
        assert run_script(mount.path, "echo again > hello.howdy; cat hello.howdy; cat hello") == (
            "again\nhowdy\tagain\\n\ntwo\t2\\n\n"
        )
        assert run_script(mount.path, "rm hello.two; ls; rm hello.howdy; ls") == "hello.howdy\n"
        assert client.dbsize() == 0


@pytest.mark.parametrize("binding", BINDINGS)
def test_directories(redis_server: RedisServer, tmp_path: Path, binding: str) -> None:
    """mkdir, nested files, mv and rm -r work as in any filesystem, and Redis has only the files' keys, with colons."""
    client = redis_server.client()
    with mount_server(tmp_path, redis_server.tcp_url(), "--binding", binding, write=True) as mount:
        run_script(mount.path, "mkdir -p a/b/c; echo 1 > a/b/c/one; echo 2 > a/two; mkdir a/empty")
        assert sorted(client.keys()) == [b"a:b:c:one", b"a:two"]
        assert run_script(mount.path, "find . | sort").split() == [
            *(".", "./a", "./a/b", "./a/b/c", "./a/b/c/one", "./a/empty", "./a/two")
        ]
        run_script(mount.path, "mv a/b/c/one a/b/moved; mv a renamed; mv renamed/b .; rmdir b/c; ! rmdir b 2>/dev/null")
        assert sorted(client.keys()) == [b"b:moved", b"renamed:two"]
        assert run_script(mount.path, "cat b/moved renamed/two; rm -r b renamed; ls -A") == "1\n2\n"
        assert client.dbsize() == 0


# -- programs that the original failed with ----------------------------------------------------------------------------


def test_git_clone_into_the_mount(client: redis.Redis, mount: MountedServer, sources: Path, tmp_path: Path) -> None:
    """A repository of 300 files is cloned into the mount and is intact after `git gc`; every file is a string."""
    run_script(
        tmp_path, f"cp -r {sources}/. origin && cd origin && git init -q -b main && git add -A && git commit -qm all"
    )
    run_script(tmp_path / "origin", "for n in 1 2 3; do echo $n >> README; git commit -qam $n; done")
    (tmp_path / "origin" / "percent%20.txt").unlink()
    run_script(tmp_path / "origin", "git commit -qam 'without a name that has another spelling here'")
    run_script(mount.path, f"git clone -q file://{tmp_path}/origin clone")
    clone = mount.path / "clone"
    run_script(clone, "git fsck --strict --full && git diff --exit-code HEAD")
    assert run_script(clone, "git status --short") == ""
    assert files(clone) == files(tmp_path / "origin")
    run_script(
        clone, "echo here >> README && git commit -qam here && git gc -q --prune=now && git fsck --strict --full"
    )
    run_script(clone, "git repack -adq && git pack-refs --all && git status --short && git fsck --full")
    assert run_script(tmp_path / "origin", f"git pull -q {clone} main && git log --format=%s -1 && cat README") == (
        "here\nread me\n1\n2\n3\nhere\n"
    )
    assert {client.type(key) for key in client.keys("clone*")} == {b"string"}
    assert client.keys("*fuse_hidden*") == client.keys("*.lock") == client.keys("*tmp_*") == []


def files(folder: Path) -> dict[str, object]:
    """Return the contents of the files of a working tree, by path."""
    return {
        name: content
        for name, content in read_tree(folder).items()
        if content is not None and not name.startswith(".git/")
    }


def test_rsync_in_and_out(client: redis.Redis, mount: MountedServer, sources: Path, tmp_path: Path) -> None:
    """`rsync -a` copies all bytes into the mount, again with changes, and out of it; no temporary files remain."""
    copy = tmp_path / "copy"
    run_script(tmp_path, f"rsync -a {sources}/ copy/ && rm copy/percent* && rsync -a copy/ {mount.path}/in/")
    assert read_tree(mount.path / "in") == read_tree(copy)
    run_script(copy, "echo changed >> README; rm empty; echo new > lib0/new; mv data moved")
    run_script(tmp_path, f"rsync -a --delete --checksum copy/ {mount.path}/in/")
    assert read_tree(mount.path / "in") == read_tree(copy)
    for mode in ("644", "755"):
        run_script(copy, f"echo once more >> README; chmod {mode} README")
        before = last_change_id(mount)
        run_script(tmp_path, f"rsync -a --checksum copy/README {mount.path}/in/")
        assert [row["op"] for row in journal_rows(mount, before)] == ["write"]
    run_script(copy, "echo inplace >> README")
    run_script(tmp_path, f"rsync -a --inplace copy/README {mount.path}/in/")
    run_script(tmp_path, f"rsync -a {mount.path}/in/ out/")
    assert read_tree(tmp_path / "out") == read_tree(copy)
    expected = sum(content is not None for content in read_tree(copy).values())
    assert len(client.keys("in:*")) == expected


def test_cp_and_tar(client: redis.Redis, mount: MountedServer, sources: Path, tmp_path: Path) -> None:
    """`cp -r`, `cp -a`, `mv` and `tar` in and out keep every byte."""
    run_script(tmp_path, f"rsync -a --exclude 'percent*' {sources}/ plain/")
    plain = read_tree(tmp_path / "plain")
    run_script(
        tmp_path, f"cp -r plain {mount.path}/cp && cp -a plain {mount.path}/archive && cp -r {mount.path}/cp back"
    )
    run_script(tmp_path, f"tar -cf in.tar -C plain . && mkdir {mount.path}/tar && tar -xf in.tar -C {mount.path}/tar")
    run_script(tmp_path, f"tar -cf out.tar -C {mount.path}/tar . && mkdir untarred && tar -xf out.tar -C untarred")
    for folder in (
        mount.path / "cp",
        mount.path / "archive",
        mount.path / "tar",
        tmp_path / "back",
        tmp_path / "untarred",
    ):
        assert read_tree(folder) == plain, folder
    run_script(
        tmp_path, f"mv {mount.path}/cp {mount.path}/moved && mv {mount.path}/moved out && mv out {mount.path}/in"
    )
    assert read_tree(mount.path / "in") == plain
    assert client.keys("moved*") == client.keys("cp*") == []
    run_script(mount.path, "rm -r archive tar in")
    assert os.listdir(mount.path) == []
    assert client.dbsize() == 0


def test_names_that_encode_no_key(client: redis.Redis, mount: MountedServer, tmp_path: Path) -> None:
    """A name that encodes no key is EINVAL; `cp` names it in its message and copies the rest."""
    run_script(tmp_path, "mkdir s && echo 1 > s/fine && echo 2 > 's/50%' && echo 3 > s/a:b")
    output = run_script(tmp_path, f"cp -r s {mount.path}/ 2>&1 || echo status $?")
    assert "a:b" in output
    assert "status 1" in output
    assert client.get("s:fine") == b"1\n"
    assert client.keys("s:a*") == []


def test_sqlite(client: redis.Redis, mount: MountedServer, tmp_path: Path) -> None:
    """A database in a value is read, changed, rolled back and vacuumed through the mount."""
    path = tmp_path / "made.db"
    with sqlite3.connect(path) as made:
        made.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY, text)")
        made.executemany("INSERT INTO numbers VALUES (?, ?)", [(n, "x" * 100) for n in range(20_000)])
    made.close()
    client.set("some:database", path.read_bytes())
    here = mount.path / "some" / "database"
    wait_until(here.exists)
    query = "SELECT count(*), sum(n) FROM numbers; PRAGMA integrity_check;"
    assert run_script(mount.path, f"sqlite3 'file:{here}?mode=ro&immutable=1' '{query}'") == "20000|199990000\nok\n"
    script = "BEGIN; DELETE FROM numbers; ROLLBACK; BEGIN; DELETE FROM numbers WHERE n >= 100; COMMIT; VACUUM;"
    assert run_script(mount.path, f"sqlite3 {here} '{script} {query}'") == "100|4950\nok\n"
    # A truncation alone is saved when the kernel releases the file, which can be after the program has ended.
    wait_until(lambda: client.strlen("some:database") == here.stat().st_size)
    assert client.keys("some:*") == [b"some:database"]
    path.write_bytes(client.get("some:database"))
    with sqlite3.connect(path) as changed:
        assert changed.execute("SELECT count(*) FROM numbers").fetchone() == (100,)
    changed.close()


def test_find_and_grep(client: redis.Redis, mount: MountedServer) -> None:
    """`find`, `grep -r`, `wc` and `sort` read the keys of the server."""
    client.mset({f"user:{number}:name": f"name{number}\n" for number in range(200)})
    client.rpush("queue", *range(10))
    wait_until(lambda: mount.status()["keys"] == 201)
    assert run_script(mount.path, "find . -type f | wc -l").strip() == "201"
    assert run_script(mount.path, "find user -size -9c -name name | wc -l").strip() == "200"
    assert run_script(mount.path, "grep -rl '^name77$' .").strip() == "./user/77/name"
    assert run_script(mount.path, "grep -rh name1 user | sort | head -1").strip() == "name1"
    assert run_script(mount.path, "wc -l < queue").strip() == "10"
    assert run_script(mount.path, "find user -type f -exec cat {} + | sort -u | wc -l").strip() == "200"
