"""Mounts that fail or end in unusual ways: exit status, message, clean-up.

The most frequent failures (server down, mount point missing, wrong password…) are in test_starting.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pexpect
import psutil
import pytest

from tests.support import mounts
from tests.support.forkserver import ROOT
from tests.support.mount_logs import INTERRUPTED
from tests.support.mounts import (
    MOUNT_TIMEOUT_SECONDS,
    is_mounted,
    isolated_environment,
    mount_server,
    redisfuse_command,
    start_redisfuse,
    wait_until,
)
from tests.support.redis_server import RedisServer, find_free_port

SECRET = "s3cr3t"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="private mount namespaces need root")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Create a mount point; unmount it after the test."""
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    if is_mounted(path):
        subprocess.run(["fusermount", "-uz", str(path)], check=False, timeout=MOUNT_TIMEOUT_SECONDS)


def find_processes(path: Path) -> list[psutil.Process]:
    """Return the processes of a mount at a path."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(path) in process.cmdline():
                processes.append(process)
    return processes


def outcome(folder: Path, *words: str, seconds: float = MOUNT_TIMEOUT_SECONDS) -> tuple[int, str]:
    """Return the exit status and the output of a command.

    It is terminated after `seconds`.
    """
    log = folder / "output"
    log.unlink(missing_ok=True)
    process = start_redisfuse(folder, log, *words)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
    return process.wait(), log.read_text()


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the only line that a failed command prints."""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("redisfuse: ")
    return done.stderr


# -- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["HOST"], "HOST PORT MOUNTPOINT"),
        (["127.0.0.1", "6399"], "HOST PORT MOUNTPOINT"),
        (["127.0.0.1", "port", "PATH"], "port"),
        (["127.0.0.1", "99999", "PATH"], "port"),
        (["redis://127.0.0.1:6399/0"], "mount point"),
        (["redis://127.0.0.1:6399/zero", "PATH"], "database"),
        (["http://127.0.0.1", "PATH"], "not an address of a Redis server"),
        (["--journal", "127.0.0.1", "6399", "PATH"], "--write"),
        (["--write", "-o", "ro", "127.0.0.1", "6399", "PATH"], "ro"),
        (["--daemon", "-f", "127.0.0.1", "6399", "PATH"], "--daemon"),
        (["--binding", "none", "127.0.0.1", "6399", "PATH"], "none"),
        (["--separator", "", "127.0.0.1", "6399", "PATH"], "--separator"),
        (["--timeout", "-1", "127.0.0.1", "6399", "PATH"], "timeout"),
        (["--cache-memory", "much", "127.0.0.1", "6399", "PATH"], "much"),
        (["--nonsense", "127.0.0.1", "6399", "PATH"], "--nonsense"),
        (["--password-file", "/does/not/exist", "127.0.0.1", "6399", "PATH"], "/does/not/exist"),
    ],
)
def test_usage(tmp_path: Path, path: Path, words: list[str], expected: str) -> None:
    """An invalid command line exits with 2 and one line with the reason; nothing is mounted."""
    status, output = outcome(tmp_path, *(str(path) if word == "PATH" else word for word in words))
    assert status == 2, output
    assert len(output.splitlines()) == 1
    assert expected in output
    assert not is_mounted(path)


# -- missing programs and devices ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("binding", "library"), [("fusepy", "libfuse 2"), ("mfusepy", "libfuse 3"), ("auto", "libfuse")]
)
def test_no_libfuse(
    redis_server: RedisServer, tmp_path: Path, path: Path, binding: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without libfuse a mount exits with 1 and one line with the library and how to install it."""
    real = mounts.isolated_environment
    missing = {"FUSE_LIBRARY_PATH": "/does/not/exist/libfuse.so"}  # fusepy and mfusepy load this file
    monkeypatch.setattr(mounts, "isolated_environment", lambda folder: real(folder) | missing)
    done = mounts.run_redisfuse(tmp_path, "--binding", binding, redis_server.url(), str(path), as_program=True)
    assert done.returncode == 1
    assert f"{library}" in one_line(done)
    assert "apt install" in done.stderr
    assert not is_mounted(path)


@contextlib.contextmanager
def run_in_namespace(folder: Path, script: str, *arguments: str) -> Iterator[subprocess.CompletedProcess[str]]:
    """Run a shell script in a new mount namespace, which disappears afterwards."""
    words = ["unshare", "--mount", "sh", "-ec", script, "sh", *arguments]
    yield subprocess.run(
        words, env=isolated_environment(folder), capture_output=True, text=True, timeout=60, check=False
    )


@needs_root
def test_no_fuse_device(redis_server: RedisServer, tmp_path: Path, path: Path) -> None:
    """Without /dev/fuse a mount exits with 1 and one line with the remedy."""
    script = 'mount -t tmpfs tmpfs /dev; mknod /dev/null c 1 3; mknod /dev/urandom c 1 9; exec "$@"'
    with run_in_namespace(tmp_path, script, *redisfuse_command(redis_server.url(), str(path))) as done:
        assert done.returncode == 1
        assert "/dev/fuse" in one_line(done)
        assert "modprobe fuse" in done.stderr


# Makes everything that an unprivileged user can't reach or open available to uid 65534.
UNPRIVILEGED_SCRIPT = """
base=$1 python=$2 site=$3 source=$4 programs=$5 url=$6
mount -t tmpfs tmpfs "$base"
mknod "$base/fuse" c 10 229; chmod 666 "$base/fuse"; mount --bind "$base/fuse" /dev/fuse
for each in python site source; do mkdir "$base/$each"; done
mount --bind "$python" "$base/python"; mount --bind "$site" "$base/site"; mount --bind "$source" "$base/source"
mkdir "$base/bin"; for each in $programs; do ln -s "$(command -v $each)" "$base/bin/"; done
mkdir -p "$base/home/mnt"; chown -R 65534:65534 "$base/home"
cd "$base/home"
exec setpriv --reuid 65534 --regid 65534 --clear-groups env -i HOME="$base/home" PATH="$base/bin" \\
    XDG_STATE_HOME="$base/home/state" LD_LIBRARY_PATH="$base/python/lib" PYTHONDONTWRITEBYTECODE=1 \\
    PYTHONPATH="$base/site:$base/source" run="$base/python/bin/python3 -m redisfuse.cli.main" url="$url" sh -c '
$run --write --journal --daemon "$url" mnt || exit
grep -q " $HOME/mnt .*user_id=65534" /proc/self/mountinfo || exit 10
[ "$(cat mnt/k)" = old ] || exit 11
printf new > mnt/k || exit 12
$run umount mnt || exit 13
if grep -q " $HOME/mnt " /proc/self/mountinfo; then exit 14; fi
'
"""


def mount_unprivileged(url: str, *, fusermount: bool) -> subprocess.CompletedProcess[str]:
    """Mount, save and unmount as an unprivileged user."""
    programs = "sh env grep cat" + (" fusermount fusermount3" if fusermount else "")
    # Not below pytest's folder: each other run of pytest that starts makes that private again.
    with tempfile.TemporaryDirectory(prefix="redisfuse-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "base").mkdir()
        places = (folder / "base", sys.base_prefix, sysconfig.get_paths()["purelib"], ROOT)
        with run_in_namespace(folder, UNPRIVILEGED_SCRIPT, *map(str, places), programs, url) as done:
            return done


@needs_root
def test_not_root(own_redis: RedisServer) -> None:
    """An unprivileged user mounts, saves and unmounts, with fusermount."""
    client = own_redis.client()
    client.set("k", "old")
    done = mount_unprivileged(own_redis.tcp_url(), fusermount=True)
    assert done.returncode == 0, done.stderr
    assert client.get("k") == b"new"


@needs_root
def test_no_fusermount(own_redis: RedisServer) -> None:
    """Without fusermount, a mount of an unprivileged user exits with 1 and one line with the remedy."""
    done = mount_unprivileged(own_redis.tcp_url(), fusermount=False)
    assert done.returncode == 1
    assert "fusermount is missing" in one_line(done)
    assert "apt install fuse3" in done.stderr


# -- mount points ----------------------------------------------------------------------------------------------------


def test_odd_mount_points(redis_server: RedisServer, tmp_path: Path) -> None:
    """Special characters in a mount point, a symbolic link to it and a relative path all work.

    Tested are blanks, commas, backslashes, quotes and letters outside ASCII.
    """
    redis_server.client().set("k", "value")
    odd = tmp_path / "a b,c\\d'e\"é"
    odd.mkdir()
    (tmp_path / "link").symlink_to(odd)
    for where, options in ((str(odd), {}), (str(tmp_path / "link"), {}), (odd.name, {"cwd": tmp_path})):
        done = mounts.run_redisfuse(tmp_path, "--daemon", redis_server.url(), where, **options)
        assert done.returncode == 0, done.stderr
        assert (odd / "k").read_bytes() == b"value"
        done = mounts.run_redisfuse(tmp_path, "umount", where, **options)
        assert (done.returncode, done.stderr) == (0, "")
        assert os.listdir(odd) == []


def test_already_mounted(redis_server: RedisServer, tmp_path: Path) -> None:
    """A second mount at the same path fails, even with -o nonempty, and the first continues."""
    redis_server.client().set("k", "value")
    with mount_server(tmp_path, redis_server.url()) as mount:
        for options in ([], ["-o", "nonempty"], ["--daemon"]):
            done = mounts.run_redisfuse(tmp_path, *options, redis_server.url(), str(mount.path))
            assert done.returncode == 1
            assert "already mounted" in one_line(done)
        assert (mount.path / "k").read_bytes() == b"value"


def test_a_dead_mount_is_removed(redis_server: RedisServer, tmp_path: Path) -> None:
    """The remains of a killed mount are removed by the next mount there, and by `redisfuse umount`."""
    redis_server.client().set("k", "value")
    for next_ in ("umount", "mount"):
        with mount_server(tmp_path, redis_server.url()) as mount:
            mount.process.kill()
            mount.process.wait(MOUNT_TIMEOUT_SECONDS)
            assert is_mounted(mount.path)
            if next_ == "umount":
                done = mounts.run_redisfuse(tmp_path, "umount", str(mount.path))
                assert (done.returncode, done.stderr) == (0, "")
            else:
                done = mounts.run_redisfuse(tmp_path, "--daemon", redis_server.url(), str(mount.path))
                assert done.returncode == 0, done.stderr
                assert (mount.path / "k").read_bytes() == b"value"
                assert mounts.run_redisfuse(tmp_path, "umount", str(mount.path)).returncode == 0
            assert not is_mounted(mount.path)


# -- unmounting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGHUP", "redisfuse umount", "umount"])
def test_ends_cleanly(redis_server: RedisServer, tmp_path: Path, how: str, write: bool) -> None:
    """Ctrl-C, SIGTERM, SIGHUP, `redisfuse umount` and umount(8) end a mount with status 0.

    No process and no mount remains, and only the first line is printed.
    """
    with mount_server(tmp_path, redis_server.url(), write=write, as_program=True) as mount:
        processes = find_processes(mount.path)
        assert len(processes) == 2  # the mount and its AbortWatchdog
        if how == "redisfuse umount":
            assert mounts.run_redisfuse(tmp_path, "umount", str(mount.path)).returncode == 0
        elif how == "umount":
            words = ["umount", str(mount.path)] if os.geteuid() == 0 else ["fusermount", "-u", str(mount.path)]
            subprocess.run(words, check=True, timeout=MOUNT_TIMEOUT_SECONDS)
        else:
            mount.process.send_signal(signal.Signals[how])
        assert mount.process.wait(MOUNT_TIMEOUT_SECONDS) == 0
        assert not is_mounted(mount.path)
        wait_until(lambda: not any(process.is_running() for process in processes), 5)
        assert len(mount.read_log().splitlines()) == 1


def test_control_c_at_a_terminal(redis_server: RedisServer, tmp_path: Path, path: Path) -> None:
    """Ctrl-C at a terminal, which interrupts the whole process group, ends the mount with status 0."""
    program, *words = redisfuse_command(redis_server.url(), str(path))
    child = pexpect.spawn(program, words, env=isolated_environment(tmp_path), timeout=MOUNT_TIMEOUT_SECONDS)
    try:
        child.expect_exact("is mounted at")
        wait_until(lambda: is_mounted(path))
        os.listdir(path)
        child.sendintr()
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0
        assert not is_mounted(path)
        assert not find_processes(path)
    finally:
        child.close(force=True)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("down", marks=pytest.mark.expected_log("ERROR connecting to .* failed")),
        pytest.param("password", marks=pytest.mark.expected_log("ERROR authentication with .* failed")),
        pytest.param("journal", marks=pytest.mark.expected_log("ERROR the journal .* is a directory")),
        "mount point",
    ],
)
def test_a_daemon_that_fails(tmp_path: Path, path: Path, case: str) -> None:
    """With --daemon an error is reported as one line and status 1, and no process remains."""
    words: list[str] = []
    where = path
    with RedisServer(tcp=True, password=SECRET) as server:
        url = server.tcp_url().replace("://", f"://:{SECRET}@")
        if case == "down":
            url, expected = f"redis://127.0.0.1:{find_free_port()}/0", "127.0.0.1"
        elif case == "password":
            url, expected = server.tcp_url().replace("://", "://:wr0ng@"), "password"
        elif case == "journal":
            (tmp_path / "journal").mkdir()
            words, expected = ["--write", "--journal", "--journal-file", str(tmp_path / "journal")], "journal"
        else:
            where, expected = tmp_path / "nowhere", "does not exist"
        done = mounts.run_redisfuse(tmp_path, "--daemon", *words, url, str(where))
    assert done.returncode == 1
    assert expected in one_line(done)
    assert "wr0ng" not in done.stderr
    assert SECRET not in done.stderr
    assert not is_mounted(path)
    wait_until(lambda: not find_processes(where), 5)


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_no_secret_is_visible_in_failures(tmp_path: Path, path: Path) -> None:
    """In all failures, even with --debug, the password of a URL is neither printed nor logged."""
    with RedisServer(tcp=True) as server:
        server.client().execute_command("ACL", "SETUSER", "user", "on", f">{SECRET}", "~*", "+get", "&*")
        good, bad = f"user:{SECRET}@127.0.0.1:{server.port}", f"user:wr0ng{SECRET}@127.0.0.1:{server.port}"
        cases = [
            f"redis://{bad}/0",
            f"redis://{good}/0",  # this user may not even SCAN
            f"redis://user:{SECRET}@127.0.0.1:{find_free_port()}/0",
            f"rediss://{good}/0",
            f"redis://{good}/zero",
            f"redis://user:{SECRET}@no such host:1/0",
            f"http://{good}/0",
            f"redis+cluster://{good}",
            f"unix://user:{SECRET}@{tmp_path}/none.sock",
            f"redis://127.0.0.1:{server.port}/0?password={SECRET}",
        ]
        for url in cases:
            for options in ([], ["--debug"], ["--daemon", "--log-file", str(tmp_path / "log")]):
                words = ["--timeout", "0.5", *options, url, str(path)]
                _, output = outcome(tmp_path, *words, seconds=2)
                assert SECRET not in output, (url, options)
                if is_mounted(path):
                    mounts.run_redisfuse(tmp_path, "umount", str(path))
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file


@pytest.mark.expected_log(INTERRUPTED)
@pytest.mark.possible_log("looking up changed keys failed")  # while the server is down
def test_no_secret_is_visible_in_a_running_mount(tmp_path: Path) -> None:
    """The password of an ACL user in the URL is not visible anywhere.

    Checked are ps, /proc/mounts, status, logs, errors, and all files that the mount writes, including the journal.
    """
    with RedisServer(tcp=True) as server:
        client = server.client()
        client.set("k", "old")
        client.execute_command("ACL", "SETUSER", "user", "on", f">{SECRET}", "~*", "&*", "+@all")
        url = f"redis://user:{SECRET}@127.0.0.1:{server.port}/0"
        with mount_server(tmp_path, url, "--debug", write=True) as mount:
            (mount.path / "k").write_bytes(b"new")
            client.execute_command("ACL", "SETUSER", "user", "-get", "-getrange")
            with contextlib.suppress(OSError):
                (mount.path / "k").read_bytes()
            server.kill()
            with contextlib.suppress(OSError):
                (mount.path / "other").read_bytes()
            server.start()
            shown = {
                "ps": subprocess.run(["ps", "-ww", "-ef"], capture_output=True, timeout=20, check=True).stdout,
                "mounts": Path("/proc/mounts").read_bytes(),
                "status": mounts.run_redisfuse(tmp_path, "status", "--json").stdout.encode(),
                "log": mounts.run_redisfuse(tmp_path, "log", "--json").stdout.encode(),
            }
    shown |= {str(file): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert any("journal.db" in name for name in shown)
    for name, text in shown.items():
        assert SECRET.encode() not in text, name


def test_required_programs_are_installed() -> None:
    """The programs of these tests are installed (.ci/setup), so that no test is skipped."""
    for program in ("strace", "fusermount", "umount", "unshare", "setpriv", "ps"):
        assert shutil.which(program), program
