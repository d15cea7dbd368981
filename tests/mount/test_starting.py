"""How mounts begin and end: in the foreground, as a daemon, from fstab; what is said if it fails; no secret shows."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from redisfuse.cli import _mount_helper
from tests.support import mounts
from tests.support.mounts import MOUNT_TIMEOUT_SECONDS, is_mounted, mount_server, wait_until
from tests.support.redis_server import RedisServer, find_free_port

SECRET = "s3cr3t/@:word"  # what a URL must quote
QUOTED = "s3cr3t%2F%40%3Aword"
HELPER = "import sys; from redisfuse.cli._mount_helper import main; sys.exit(main())"


@pytest.fixture
def locked_redis() -> Iterator[RedisServer]:
    """A server that wants a password, with one key."""
    with RedisServer(tcp=True, password=SECRET) as server:
        server.client().set("app:key", b"value")
        yield server


def with_password(url: str) -> str:
    """The URL of a server with SECRET in it."""
    return url.replace("://", f"://:{QUOTED}@", 1)


def fstab(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Call mount(8)'s helper, as it would."""
    return subprocess.run(
        [sys.executable, "-c", HELPER, *words],
        env=mounts.isolated_environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def daemons(path: Path) -> list[psutil.Process]:
    """The processes that serve a mount point."""
    return [process for process in psutil.process_iter(["cmdline"]) if str(path) in (process.info["cmdline"] or ())]


@contextmanager
def mountpoint(folder: Path) -> Iterator[Path]:
    """A folder to mount at; afterwards nothing is mounted there and nobody serves it."""
    path = folder / "mnt"
    path.mkdir()
    try:
        yield path
    finally:
        if is_mounted(path):
            subprocess.run(["fusermount", "-uz", str(path)], check=False, timeout=MOUNT_TIMEOUT_SECONDS)
        left = daemons(path)
        for process in left:
            process.terminate()
        psutil.wait_procs(left, timeout=MOUNT_TIMEOUT_SECONDS)


def one_line(text: str) -> str:
    """The one line that a failed command says."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_mount(redis_server: RedisServer, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM unmount; the mount has said in one line what it mounted and how to leave."""
    with mount_server(tmp_path, redis_server.url()) as mount:
        said = one_line(mount.read_log())
        assert redis_server.socket_path in said
        assert f"redisfuse umount {mount.path}" in said
        assert mount.stop(number) in (0, 130)
        assert not is_mounted(mount.path)


def test_umount_ends_a_mount(redis_server: RedisServer, tmp_path: Path) -> None:
    """`redisfuse umount` ends the mount and its process, silently; a second time it says that nothing is mounted."""
    with mount_server(tmp_path, redis_server.url()) as mount:
        done = mounts.run_redisfuse(tmp_path, "umount", str(mount.path))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert not is_mounted(mount.path)
        assert mount.process.wait(MOUNT_TIMEOUT_SECONDS) == 0
        again = mounts.run_redisfuse(tmp_path, "umount", str(mount.path))
        assert again.returncode == 1
        assert "not mounted" in one_line(again.stderr)


def test_umount_of_a_mount_in_use(redis_server: RedisServer, tmp_path: Path) -> None:
    """A mount that a program is in is not unmounted, but with --lazy."""
    with mount_server(tmp_path, redis_server.url()) as mount:
        inside = os.open(mount.path, os.O_RDONLY)
        try:
            busy = mounts.run_redisfuse(tmp_path, "umount", str(mount.path))
            assert busy.returncode == 1
            assert "--lazy" in one_line(busy.stderr)
            assert mounts.run_redisfuse(tmp_path, "umount", "--lazy", str(mount.path)).returncode == 0
            assert not is_mounted(mount.path)
        finally:
            os.close(inside)


def test_a_daemon_returns_when_it_answers(redis_server: RedisServer, tmp_path: Path) -> None:
    """With --daemon the command returns when the mount answers, and the mount goes on without it."""
    redis_server.client().set("key", b"value")
    with mountpoint(tmp_path) as path:
        done = mounts.run_redisfuse(tmp_path, "--daemon", redis_server.url(), str(path))
        assert done.returncode == 0, done.stderr
        assert (path / "key").read_bytes() == b"value"
        assert "umount" in one_line(done.stderr)
        assert mounts.run_redisfuse(tmp_path, "umount", str(path)).returncode == 0
        wait_until(lambda: not daemons(path))


def test_a_daemon_that_fails_says_why(tmp_path: Path) -> None:
    """With --daemon, too, a mount that can't be made ends with status 1 and one line, and leaves nothing."""
    with mountpoint(tmp_path) as path:
        done = mounts.run_redisfuse(tmp_path, "--daemon", "127.0.0.1", str(find_free_port()), str(path))
        assert done.returncode == 1
        assert "127.0.0.1" in one_line(done.stderr)
        assert not is_mounted(path)
        assert not daemons(path)


def test_fstab(redis_server: RedisServer, tmp_path: Path) -> None:
    """The helper of mount(8) mounts in the background, with long options among those of fstab."""
    client = redis_server.client()
    client.set("app:key", b"value")
    client.set("other:key", b"value")
    with mountpoint(tmp_path) as path:
        done = fstab(
            tmp_path, redis_server.url(), str(path), "-o", "rw,dev,suid,prefix=app:,_netdev,x-systemd.automount"
        )
        assert done.returncode == 0, done.stderr
        assert os.listdir(path) == ["app"]
        assert mounts.run_redisfuse(tmp_path, "umount", str(path)).returncode == 0


def test_fstab_failing(tmp_path: Path) -> None:
    """Where the server is down the helper ends with mount(8)'s status for a failure."""
    with mountpoint(tmp_path) as path:
        done = fstab(tmp_path, f"redis://127.0.0.1:{find_free_port()}/0", str(path), "-o", "rw")
        assert done.returncode == 32
        assert one_line(done.stderr).startswith("redisfuse: ")
        assert _mount_helper.main(["redis://h", str(path), "-o", "prefix"]) == 1


@pytest.mark.parametrize("case", ["missing", "file", "full", "mounted", "down", "password", "not redis"])
def test_mounts_that_cant_be_made(
    case: str, redis_server: RedisServer, locked_redis: RedisServer, tmp_path: Path
) -> None:
    """A mount that can't be made ends with status 1 and one line that names what is wrong; nothing is left mounted."""
    with mountpoint(tmp_path) as path:
        url, where, what = redis_server.url(), path, str(path)
        if case == "missing":
            where = tmp_path / "nowhere"
            what = "does not exist"
        elif case == "file":
            where = tmp_path / "file"
            where.touch()
            what = "not a directory"
        elif case == "full":
            (path / "something").touch()
            what = "not empty"
        elif case == "mounted":
            assert mounts.run_redisfuse(tmp_path, "--daemon", url, str(path)).returncode == 0
            what = "already mounted"
        elif case == "down":
            url = f"redis://127.0.0.1:{(port := find_free_port())}/0"
            what = str(port)
        elif case == "password":
            url = locked_redis.tcp_url()
            what = "password"
        else:
            url = f"unix://{tmp_path}/nothing.sock"
            what = "nothing.sock"
        done = mounts.run_redisfuse(tmp_path, url, str(where))
        assert done.returncode == 1
        assert what in one_line(done.stderr)
        assert is_mounted(where) == (case == "mounted")


def test_no_secret_shows(locked_redis: RedisServer, tmp_path: Path) -> None:
    """A password given in the URL is in no argument list, mount table, status, log or journal of a running mount."""
    with mount_server(tmp_path, with_password(locked_redis.tcp_url()), "--debug", write=True) as mount:
        (mount.path / "app" / "key").write_bytes(b"new")
        shown = {
            "cmdline": Path(f"/proc/{mount.process.pid}/cmdline").read_bytes(),
            "mounts": Path("/proc/self/mountinfo").read_bytes(),
            "status": mounts.run_redisfuse(tmp_path, "status", str(mount.path)).stdout.encode(),
            "json": mounts.run_redisfuse(tmp_path, "status", "--json", str(mount.path)).stdout.encode(),
            "sessions": mounts.run_redisfuse(tmp_path, "sessions", "--json").stdout.encode(),
        }
    shown["log"] = mount.log.read_bytes()
    shown |= {path.name: path.read_bytes() for path in mount.journal.parent.iterdir()}
    assert b"***" in shown["cmdline"]
    for where, text in shown.items():
        for form in (SECRET, QUOTED, "s3cr3t"):
            assert form.encode() not in text, where


@pytest.mark.parametrize("how", ["environment", "file", "config", "url"])
def test_ways_to_give_a_password(
    how: str, locked_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password may come from the environment, a file, the configuration or the URL."""
    url, options = locked_redis.tcp_url(), []
    file = tmp_path / "secret"
    file.touch(0o600)
    if how == "environment":
        real = mounts.isolated_environment
        monkeypatch.setattr(
            mounts, "isolated_environment", lambda folder: real(folder) | {"REDISFUSE_PASSWORD": SECRET}
        )
    elif how == "file":
        file.write_text(SECRET + "\n")
        options = ["--password-file", str(file)]
    elif how == "config":
        file.write_text(f'password = "{SECRET}"\n')
        options = ["--config", str(file)]
    else:
        url = with_password(url)
    with mount_server(tmp_path, url, *options) as mount:
        assert (mount.path / "app" / "key").read_bytes() == b"value"


@pytest.mark.parametrize("password", ["wrong-s3cr3t", ""])
def test_a_wrong_password(password: str, locked_redis: RedisServer, tmp_path: Path) -> None:
    """A wrong password is one line without the password, status 1, nothing mounted."""
    with mountpoint(tmp_path) as path:
        done = mounts.run_redisfuse(tmp_path, locked_redis.tcp_url().replace("://", f"://:{password}@"), str(path))
        assert done.returncode == 1
        assert "s3cr3t" not in one_line(done.stderr)
        assert not is_mounted(path)
