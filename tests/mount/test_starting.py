"""Starting and stopping mounts: foreground, daemon, fstab, errors, secrets."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from redisfuse.cli import _mount_helper
from tests.support import mounts
from tests.support.mounts import MOUNT_TIMEOUT_SECONDS, is_mounted, mount_server, wait_until
from tests.support.redis_server import RedisServer, find_free_port

SECRET = "s3cr3t/@:word"  # contains characters that a URL must quote
QUOTED = "s3cr3t%2F%40%3Aword"
HELPER = "import sys; from redisfuse.cli._mount_helper import main; sys.exit(main())"


@pytest.fixture
def locked_redis() -> Iterator[RedisServer]:
    """Start a server that requires a password, with one key."""
    with RedisServer(tcp=True, password=SECRET) as server:
        server.client().set("app:key", b"value")
        yield server


def with_password(url: str) -> str:
    """Return the URL of a server with SECRET in it."""
    return url.replace("://", f"://:{QUOTED}@", 1)


def run_mount_helper(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the helper of mount(8) as mount(8) does."""
    return subprocess.run(
        [sys.executable, "-c", HELPER, *words],
        env=mounts.isolated_environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def find_daemons(path: Path) -> list[psutil.Process]:
    """Return the processes that serve a mount point."""
    return [process for process in psutil.process_iter(["cmdline"]) if str(path) in (process.info["cmdline"] or ())]


@contextmanager
def mountpoint(folder: Path) -> Iterator[Path]:
    """Yield a mount point; afterwards unmount it and terminate its processes."""
    path = folder / "mnt"
    path.mkdir()
    try:
        yield path
    finally:
        if is_mounted(path):
            subprocess.run(["fusermount", "-uz", str(path)], check=False, timeout=MOUNT_TIMEOUT_SECONDS)
        remaining = find_daemons(path)
        for process in remaining:
            with suppress(psutil.NoSuchProcess):  # it may end by the unmount
                process.terminate()
        psutil.wait_procs(remaining, timeout=MOUNT_TIMEOUT_SECONDS)


def one_line(text: str) -> str:
    """Return the only line of a command's output."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_mount(redis_server: RedisServer, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM unmount; the mount has printed one line with the server and how to unmount."""
    with mount_server(tmp_path, redis_server.url()) as mount:
        message = one_line(mount.read_log())
        assert redis_server.socket_path in message
        assert f"redisfuse umount {mount.path}" in message
        assert mount.stop(number) in (0, 130)
        assert not is_mounted(mount.path)


def test_umount_ends_a_mount(redis_server: RedisServer, tmp_path: Path) -> None:
    """`redisfuse umount` ends the mount and its process silently; a second one fails with a message."""
    with mount_server(tmp_path, redis_server.url()) as mount:
        done = mounts.run_redisfuse(tmp_path, "umount", str(mount.path))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert not is_mounted(mount.path)
        assert mount.process.wait(MOUNT_TIMEOUT_SECONDS) == 0
        again = mounts.run_redisfuse(tmp_path, "umount", str(mount.path))
        assert again.returncode == 1
        assert "not mounted" in one_line(again.stderr)


def test_umount_of_a_mount_in_use(redis_server: RedisServer, tmp_path: Path) -> None:
    """A mount that a program uses is unmounted only with --lazy."""
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


def test_a_daemon_returns_when_it_is_ready(redis_server: RedisServer, tmp_path: Path) -> None:
    """With --daemon the command returns when the mount is ready, and the mount continues without it."""
    redis_server.client().set("key", b"value")
    with mountpoint(tmp_path) as path:
        done = mounts.run_redisfuse(tmp_path, "--daemon", redis_server.url(), str(path))
        assert done.returncode == 0, done.stderr
        assert (path / "key").read_bytes() == b"value"
        assert "umount" in one_line(done.stderr)
        assert mounts.run_redisfuse(tmp_path, "umount", str(path)).returncode == 0
        wait_until(lambda: not find_daemons(path))


@pytest.mark.expected_log("ERROR connecting to 127.0.0.1")
def test_a_failing_daemon_prints_the_reason(tmp_path: Path) -> None:
    """With --daemon, too, a mount that fails exits with 1 and one line, and leaves no process."""
    with mountpoint(tmp_path) as path:
        done = mounts.run_redisfuse(tmp_path, "--daemon", "127.0.0.1", str(find_free_port()), str(path))
        assert done.returncode == 1
        assert "127.0.0.1" in one_line(done.stderr)
        assert not is_mounted(path)
        assert not find_daemons(path)


def test_fstab(redis_server: RedisServer, tmp_path: Path) -> None:
    """The helper of mount(8) mounts in the background, and accepts long options in -o."""
    client = redis_server.client()
    client.set("app:key", b"value")
    client.set("other:key", b"value")
    with mountpoint(tmp_path) as path:
        done = run_mount_helper(
            tmp_path, redis_server.url(), str(path), "-o", "rw,dev,suid,prefix=app:,_netdev,x-systemd.automount"
        )
        assert done.returncode == 0, done.stderr
        assert os.listdir(path) == ["app"]
        assert mounts.run_redisfuse(tmp_path, "umount", str(path)).returncode == 0


def test_fstab_failing(tmp_path: Path) -> None:
    """If the server is down, the helper exits with mount(8)'s status for a failure."""
    with mountpoint(tmp_path) as path:
        done = run_mount_helper(tmp_path, f"redis://127.0.0.1:{find_free_port()}/0", str(path), "-o", "rw")
        assert done.returncode == 32
        assert one_line(done.stderr).startswith("redisfuse: ")
        assert _mount_helper.main(["redis://h", str(path), "-o", "prefix"]) == 1


@pytest.mark.parametrize("case", ["missing", "file", "full", "mounted", "down", "password", "not redis"])
def test_mounts_that_fail(case: str, redis_server: RedisServer, locked_redis: RedisServer, tmp_path: Path) -> None:
    """A mount that fails exits with 1 and one line with the reason; nothing remains mounted."""
    with mountpoint(tmp_path) as path:
        url, where, expected = redis_server.url(), path, str(path)
        if case == "missing":
            where = tmp_path / "nowhere"
            expected = "does not exist"
        elif case == "file":
            where = tmp_path / "file"
            where.touch()
            expected = "not a directory"
        elif case == "full":
            (path / "something").touch()
            expected = "not empty"
        elif case == "mounted":
            assert mounts.run_redisfuse(tmp_path, "--daemon", url, str(path)).returncode == 0
            expected = "already mounted"
        elif case == "down":
            url = f"redis://127.0.0.1:{(port := find_free_port())}/0"
            expected = str(port)
        elif case == "password":
            url = locked_redis.tcp_url()
            expected = "password"
        else:
            url = f"unix://{tmp_path}/nothing.sock"
            expected = "nothing.sock"
        done = mounts.run_redisfuse(tmp_path, url, str(where))
        assert done.returncode == 1
        assert expected in one_line(done.stderr)
        assert is_mounted(where) == (case == "mounted")


def test_no_secret_is_visible(locked_redis: RedisServer, tmp_path: Path) -> None:
    """The password of a URL is in no argument list, mount table, status, log or journal of a running mount."""
    with mount_server(tmp_path, with_password(locked_redis.tcp_url()), "--debug", write=True, as_program=True) as mount:
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
def test_sources_of_the_password(
    how: str, locked_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password is accepted from the environment, a file, the configuration and the URL."""
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
    """A wrong password exits with 1 and one line without the password; nothing is mounted."""
    with mountpoint(tmp_path) as path:
        done = mounts.run_redisfuse(tmp_path, locked_redis.tcp_url().replace("://", f"://:{password}@"), str(path))
        assert done.returncode == 1
        assert "s3cr3t" not in one_line(done.stderr)
        assert not is_mounted(path)
