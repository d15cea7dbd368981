"""Files that another user could have prepared are refused, and a mount creates private ones.

tests/unit/test_trusted_files.py has the rule itself.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import mounts
from tests.support.bindings import BINDINGS
from tests.support.mounts import is_mounted, mount_server, run_redisfuse
from tests.support.redis_server import RedisServer

OTHER_UID = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="files of another user need root")


@pytest.fixture(params=BINDINGS)
def binding(request: pytest.FixtureRequest) -> str:
    """Return the name of a binding."""
    return str(request.param)


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Set a umask that removes no permission."""
    before = os.umask(0)
    yield
    os.umask(before)


def refused(folder: Path, url: str, *options: str) -> str:
    """Return the message with which a mount is refused; nothing is mounted."""
    path = folder / "mnt"
    path.mkdir(exist_ok=True)
    done = run_redisfuse(folder, *options, url, str(path))
    assert done.returncode in (1, 2), done.stderr
    assert not is_mounted(path)
    (line,) = done.stderr.splitlines()
    return line


@needs_root
@pytest.mark.parametrize("owner", [OTHER_UID, 0])
@pytest.mark.parametrize("name", ["config.toml", "junk", "password"])
def test_prepared_settings(redis_server: RedisServer, tmp_path: Path, name: str, owner: int) -> None:
    """A configuration, junk patterns or a password that another user owns or can write decide nothing."""
    file = tmp_path / "config" / "redisfuse" / name
    file.parent.mkdir(parents=True)
    file.write_text("[mount]\nwrite = true\n" if name == "config.toml" else "text")
    os.chown(file, owner, -1)
    file.chmod(0o600 if owner == OTHER_UID else 0o622)
    options = {"config.toml": [], "junk": ["--junk-file", str(file)], "password": ["--password-file", str(file)]}
    message = refused(tmp_path, redis_server.url(), *options[name])
    assert str(file) in message
    assert ("belongs to another user" if owner == OTHER_UID else "chmod") in message


@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o770])
def test_a_journal_where_others_can_create_files(redis_server: RedisServer, tmp_path: Path, mode: int) -> None:
    """A journal is neither created nor opened in a folder where another user could plant its -wal."""
    redis_server.client().set("k", "TOPSECRET")
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    options = ["--write", "--journal-file", str(folder / "j.db")]
    message = refused(tmp_path, redis_server.url(), *options)
    assert str(folder) in message
    assert os.listdir(folder) == []
    folder.chmod(0o700)
    with mount_server(tmp_path, redis_server.url(), *options) as mount:
        (mount.path / "k").write_text("new")
    folder.chmod(mode)
    done = run_redisfuse(tmp_path, "log", "--journal-file", str(folder / "j.db"))
    assert (done.returncode, done.stdout) == (1, "")
    assert str(folder) in done.stderr


@needs_root
@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
@pytest.mark.parametrize("planted", ["file", "readable", "link", "pipe"])
def test_planted_files_of_a_journal(redis_server: RedisServer, tmp_path: Path, suffix: str, planted: str) -> None:
    """A file that was planted beside the journal, before its folder was private, is refused and not written."""
    with mount_server(tmp_path, redis_server.url(), write=True) as mount:
        journal = mount.journal
    path, target = journal.with_name(journal.name + suffix), tmp_path / "target"
    assert not path.exists()
    if planted == "link":
        target.touch(0o600)
        path.symlink_to(target)
    elif planted == "pipe":
        os.mkfifo(path, 0o600)
    else:
        path.touch(0o600)
        os.chown(path, OTHER_UID if planted == "file" else 0, -1)
        path.chmod(0o600 if planted == "file" else 0o644)
    message = refused(tmp_path, redis_server.url(), "--write")
    assert str(path) in message
    assert not target.exists() or not target.read_bytes()


@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize("daemon", [False, True])
def test_logs_are_private(redis_server: RedisServer, tmp_path: Path, daemon: bool) -> None:
    """Every file that a mount creates is its owner's alone, whatever the umask; so are their folders."""
    log, state = tmp_path / "logs" / "mount.txt", tmp_path / "state" / "redisfuse"
    options = ["--write", "--log-file", str(log)]
    redis_server.client().set("k", "v")
    if daemon:
        path = tmp_path / "mnt"
        path.mkdir()
        done = run_redisfuse(tmp_path, *options, "--daemon", redis_server.url(), str(path))
        assert done.returncode == 0, done.stderr
        (path / "k").write_text("new")
        files = [log, *state.iterdir()]
        modes = {stat.S_IMODE(file.stat().st_mode) for file in files}
        assert run_redisfuse(tmp_path, "umount", str(path)).returncode == 0
    else:
        with mount_server(tmp_path, redis_server.url(), *options) as mount:
            (mount.path / "k").write_text("new")
            files = [log, *state.iterdir()]
            modes = {stat.S_IMODE(file.stat().st_mode) for file in files}
    assert {file.name for file in files} == {"mount.txt", "journal.db", "journal.db-wal", "journal.db-shm"}
    assert modes == {0o600}
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (log.parent, state, state.parent)} == {0o700}


@needs_root
@pytest.mark.parametrize("daemon", [[], ["--daemon"]])
def test_planted_logs(redis_server: RedisServer, tmp_path: Path, daemon: list[str]) -> None:
    """A log that another user owns, can write, or could have planted is refused, and nothing is written to it."""
    folder = tmp_path / "logs"
    folder.mkdir(0o700)
    log, target = folder / "log", tmp_path / "target"
    options = [*daemon, "--log-file", str(log)]
    log.touch(0o600)
    os.chown(log, OTHER_UID, -1)
    assert "belongs to another user" in refused(tmp_path, redis_server.url(), *options)
    os.chown(log, 0, -1)
    log.chmod(0o606)
    assert f"chmod go-w {log}" in refused(tmp_path, redis_server.url(), *options)
    assert log.read_bytes() == b""
    log.unlink()
    folder.chmod(0o1777)
    log.symlink_to(target)
    assert f"all users can create files in {folder}" in refused(tmp_path, redis_server.url(), *options)
    assert not target.exists()


def test_a_log_that_can_not_be_opened(redis_server: RedisServer, tmp_path: Path) -> None:
    """A log that can't be opened is a usage error with the reason."""
    (tmp_path / "log").mkdir()
    message = refused(tmp_path, redis_server.url(), "--log-file", str(tmp_path / "log"))
    assert f"the log file {tmp_path}/log can't be opened: Is a directory" in message


def test_a_subtype_of_its_own(redis_server: RedisServer, tmp_path: Path, binding: str) -> None:
    """A mount with `-o subtype=` is one of redisfuse's: status, refresh and umount know it."""
    redis_server.client().set("k", "v")
    with mount_server(tmp_path, redis_server.url(), "--binding", binding, "-o", "subtype=x") as mount:
        table = Path("/proc/self/mountinfo").read_text().splitlines()
        assert any(f" {mount.path} " in line and " fuse.x " in line for line in table)
        for words in (["status"], ["refresh"], ["umount"]):
            done = run_redisfuse(tmp_path, *words, str(mount.path))
            assert done.returncode == 0, done.stderr
        assert not is_mounted(mount.path)
        assert mount.process.wait(mounts.MOUNT_TIMEOUT_SECONDS) == 0
    message = refused(tmp_path, redis_server.url(), "--binding", binding, "-o", "subtype=x,fsname=y")
    assert "fsname= and subtype=" in message


@needs_root
def test_a_password_from_a_shell(own_redis: RedisServer) -> None:
    """`--password-file <(command)` works: no other user can have prepared the pipe."""
    own_redis.client().config_set("requirepass", "s3cret")
    script = f"exec {' '.join(mounts.redisfuse_command('doctor'))} --password-file <(echo s3cret) {own_redis.url()}"
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr


@needs_root
def test_a_mount_of_another_user_is_not_unmounted(redis_server: RedisServer, tmp_path: Path) -> None:
    """The message says why: fusermount's own is that the mount does not exist."""
    command = f"""
import os, sys
from pathlib import Path
from redisfuse.errors import MountError
from redisfuse.fuse import mountpoint
os.setuid({OTHER_UID})
try:
    mountpoint.unmount(Path(sys.argv[1]))
except MountError as error:
    print(error)
"""
    tmp_path.chmod(0o755)
    with mount_server(tmp_path, redis_server.url()) as mount:
        done = subprocess.run(
            [sys.executable, "-c", command, str(mount.path)], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout == f"{mount.path} is a mount of another user (uid 0): only that user or root can end it\n"
        assert os.path.ismount(mount.path)
