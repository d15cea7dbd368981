"""systemd: what a mount reports to it, and the unit that `redisfuse service` prints."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from redisfuse.mount.service_manager import ServiceManager
from tests.support import mounts
from tests.support.mounts import MOUNT_TIMEOUT_SECONDS, is_mounted, mount_server, run_redisfuse
from tests.support.other_users import needs_open_checkout
from tests.support.redis_server import RedisServer

AS_ORDINARY_USER = """
import os, pwd, sys
from redisfuse.cli import main, service
os.setuid(pwd.getpwnam("games").pw_uid)
sys.exit(main.main(sys.argv[1:]))
"""


class Manager:
    """The socket of a service manager."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(MOUNT_TIMEOUT_SECONDS)

    def receive(self) -> dict[str, str]:
        """Return the next message."""
        return dict(line.split("=", 1) for line in self._socket.recv(65536).decode().splitlines())

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


@contextmanager
def service_manager(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> Iterator[Manager]:
    """Yield a manager that mounts report to."""
    path = str(folder / "notify")
    address = path if kind == "path" else f"\0{path}"
    manager = Manager(address)
    isolated = mounts.isolated_environment
    monkeypatch.setattr(
        mounts, "isolated_environment", lambda place: isolated(place) | {"NOTIFY_SOCKET": address.replace("\0", "@")}
    )
    try:
        yield manager
    finally:
        manager.close()


@pytest.mark.parametrize(("kind", "end"), [("path", "SIGTERM"), ("abstract", "umount")])
def test_a_mount_reports_its_start_and_end(
    kind: str, end: str, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """READY=1 arrives when the mount answers, STOPPING=1 when it ends; the exit status of both ends is 0."""
    redis_server.client().set("key", b"value")
    with (
        service_manager(tmp_path, monkeypatch, kind) as manager,
        mount_server(tmp_path, redis_server.url(), wait=False) as mount,
    ):
        ready = manager.receive()
        assert ready["READY"] == "1"
        assert ready["STATUS"].endswith(f" is mounted at {mount.path} (read-only)")
        assert (mount.path / "key").read_bytes() == b"value"
        if end == "SIGTERM":
            assert mount.stop(signal.SIGTERM) == 0
        else:
            assert run_redisfuse(tmp_path, "umount", str(mount.path)).returncode == 0
            assert mount.process.wait(MOUNT_TIMEOUT_SECONDS) == 0
        assert manager.receive()["STOPPING"] == "1"


def test_a_mount_that_fails_is_never_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that can't be reached is a failure, after which systemd tries again."""
    (tmp_path / "mnt").mkdir()
    with service_manager(tmp_path, monkeypatch, "path") as manager:
        done = run_redisfuse(tmp_path, f"unix://{tmp_path}/none.sock", str(tmp_path / "mnt"))
        assert done.returncode == 1
        manager._socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.receive()


@pytest.mark.expected_log("the service manager at .* can't be notified: No such file or directory")
def test_a_manager_that_is_gone_does_not_end_the_mount(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its socket, the mount continues, and logs why it could not report."""
    isolated = mounts.isolated_environment
    gone = {"NOTIFY_SOCKET": str(tmp_path / "gone")}
    monkeypatch.setattr(mounts, "isolated_environment", lambda place: isolated(place) | gone)
    with mount_server(tmp_path, redis_server.url()) as mount:
        assert os.listdir(mount.path) == []


def test_programs_that_a_mount_starts_do_not_inherit_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is removed when it is read."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    ServiceManager.from_environment()
    assert "NOTIFY_SOCKET" not in os.environ


# -- units -----------------------------------------------------------------------------------------------------------


def read_unit(text: str) -> dict[str, str]:
    """Return the settings of a unit."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def split_command(command: str) -> list[str]:
    """Return the words that systemd executes."""
    return [word.replace("$$", "$").replace("%%", "%") for word in shlex.split(command)]


def test_the_command_of_a_unit_mounts(redis_server: RedisServer, tmp_path: Path) -> None:
    """Every word reaches the mount as it was given, whatever characters it has."""
    redis_server.client().set('a$b"c%d\\e:key', b"value")
    path = tmp_path / "a mount 100%"
    path.mkdir()
    words = ["--prefix", 'a$b"c%d\\e:', "--separator", ":", "-o", "umask=022", redis_server.url(), str(path)]
    done = run_redisfuse(tmp_path, "service", *words)
    assert done.returncode == 0, done.stderr
    command = split_command(read_unit(done.stdout)["ExecStart"])
    with subprocess.Popen(command, env=mounts.isolated_environment(tmp_path), stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            assert b"is mounted at" in process.stderr.readline()
            assert [entry.name for entry in path.iterdir()] == ['a$b"c%25d\\e']
        finally:
            process.terminate()
            assert process.wait(MOUNT_TIMEOUT_SECONDS) == 0
    assert not is_mounted(path)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_a_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` has no complaint, and the configuration's settings stay there."""
    folder = tmp_path / "config" / "redisfuse"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f'[server.prod]\nurl = "redis://h"\nmountpoint = "{tmp_path}"\n')
    done = run_redisfuse(tmp_path, "service", "prod", "--rate", "500", "--allow", "a$b:*")
    assert done.returncode == 0, done.stderr
    verify_unit(tmp_path, done.stdout, "--system")
    settings = read_unit(done.stdout)
    assert settings["Type"] == "notify"
    assert split_command(settings["ExecStart"])[-5:] == ["mount", "--allow=a$b:*", "--rate=500", "--", "prod"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@needs_open_checkout
def test_systemd_accepts_the_units_of_an_ordinary_user(tmp_path: Path) -> None:
    """Such a user gets a unit of their own, and with --system one that runs as this user."""
    for words, scope, expected in (
        (["h", "/m"], "--user", ("default.target", None)),
        (["--system", "h", "/m"], "--system", ("multi-user.target", "games")),
    ):
        done = subprocess.run(
            [sys.executable, "-c", AS_ORDINARY_USER, "service", *words],
            env=mounts.isolated_environment(Path("/nonexistent")),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        verify_unit(tmp_path, done.stdout, scope)
        settings = read_unit(done.stdout)
        assert (settings["WantedBy"], settings.get("User")) == expected


def verify_unit(folder: Path, text: str, scope: str) -> None:
    """Check a unit with systemd's own parser."""
    unit = folder / "redisfuse-prod.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", scope, "verify", str(unit)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_unit_has_the_environment_and_the_configuration_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the caller's environment become options, because a service has another environment."""
    file = tmp_path / "c.toml"
    file.write_text("timeout = 7\n")
    isolated = mounts.isolated_environment
    own = {"REDISFUSE_RATE": "9", "XDG_STATE_HOME": "/srv/50% state", "XDG_CONFIG_HOME": ""}
    monkeypatch.setattr(mounts, "isolated_environment", lambda place: isolated(place) | own)
    done = run_redisfuse(tmp_path, "--config", str(file), "service", "h:6380", "/srv/a-b c")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith(r"/redisfuse-srv-a\x2db\x20c.service")
    unit = read_unit(done.stdout)
    assert unit["Environment"] == '"XDG_STATE_HOME=/srv/50%% state"'  # the journal's place
    command = split_command(unit["ExecStart"])
    assert command[: command.index("mount")][-1] == f"--config={file}"
    assert command[command.index("mount") :] == ["mount", "--rate=9", "--", "h:6380", "/srv/a-b c"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["redis://:s3cr3t@h", "/m"], "--password-file"),
        (["--daemon", "h", "/m"], "systemd runs the mount"),
        (["h"], "MOUNTPOINT"),
        (["--max-lag", "3", "h", "/m"], "--replicas"),
        (["--prefix", "a\nb", "h", "/m"], "line break"),
    ],
)
def test_a_unit_that_could_not_work_is_refused(words: list[str], problem: str, tmp_path: Path) -> None:
    """The settings are checked when the unit is printed, not at the next boot."""
    done = run_redisfuse(tmp_path, "service", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr
    assert "s3cr3t" not in done.stderr


def test_fstab_with_the_name_of_a_server(redis_server: RedisServer, tmp_path: Path) -> None:
    """mount(8) with its own helper mounts a server of the configuration, with the section's settings."""
    client = redis_server.client()
    client.set("app:key", b"value")
    client.set("other:key", b"value")
    folder = tmp_path / "config" / "redisfuse"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f'[server.prod]\nurl = "{redis_server.url()}"\nprefix = "app:"\n')
    path = tmp_path / "mnt"
    path.mkdir()
    helper = "import sys; from redisfuse.cli._mount_helper import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", helper, "prod", str(path), "-o", "rw,_netdev"],
        env=mounts.isolated_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    try:
        assert done.returncode == 0, done.stderr
        assert os.listdir(path) == ["app"]
    finally:
        assert run_redisfuse(tmp_path, "umount", str(path)).returncode == 0
