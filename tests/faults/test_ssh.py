"""`--ssh`: servers are reached through a real sshd on loopback, with keys of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.support.mounts import mount_server, run_redisfuse, wait_until
from tests.support.redis_server import RedisServer
from tests.support.sentinels import find_low_port

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

pytestmark = pytest.mark.skipif(
    SSHD is None, reason="needs sshd; .ci/setup does not install a service (openssh-server)"
)


@pytest.fixture
def bastion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run an sshd, and an `ssh` in PATH that uses its port and keys; return USER@HOST."""
    assert SSHD is not None
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    port = find_low_port()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nPidFile none\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/authorized\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    programs = tmp_path / "bin"
    programs.mkdir()
    options = f"-F none -p {port} -i {folder}/user -o UserKnownHostsFile={folder}/known"
    (programs / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} {options} "$@"\n')
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        wait_until(lambda: "listening" in (folder / "log").read_text())
        yield f"{getpass.getuser()}@127.0.0.1"
    finally:
        process.terminate()
        process.wait(10)


def ssh_masters(folder: Path) -> list[psutil.Process]:
    """Return the ssh processes that carry the tunnels of a test."""
    processes = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "-M" in words and any(str(folder) in word for word in words):
            processes.append(process)
    return processes


@pytest.mark.possible_log("ssh .* ended with status", "the connection to .* was (lost|closed)", "was interrupted")
def test_a_mount_through_a_bastion(tmp_path: Path, own_redis: RedisServer, bastion: str) -> None:
    """The mount follows and writes through one ssh, survives its end, and ends it."""
    client = own_redis.client()
    client.set("k", "1")
    with mount_server(tmp_path, own_redis.tcp_url(), "--ssh", bastion, write=True) as mount:
        mount.wait_coherent()
        assert (mount.path / "k").read_text() == "1"
        (mount.path / "k").write_text("2")
        assert client.get("k") == b"2"
        (master,) = ssh_masters(tmp_path)
        client.set("k", "3")
        wait_until(lambda: (mount.path / "k").read_text() == "3", 2.0)
        master.kill()
        wait_until(lambda: mount.status()["live"] and ssh_masters(tmp_path) not in ([], [master]))
        assert (mount.path / "k").read_text() == "3"
    wait_until(lambda: not ssh_masters(tmp_path))
    result = run_redisfuse(tmp_path, "rollback", "1", "--ssh", bastion, "--force")
    assert result.returncode == 0, result.stderr


def test_a_killed_mount_leaves_no_ssh(tmp_path: Path, own_redis: RedisServer, bastion: str) -> None:
    """The kernel ends ssh when the mount is killed."""
    with mount_server(tmp_path, own_redis.tcp_url(), "--ssh", bastion) as mount:
        assert ssh_masters(tmp_path)
        mount.process.send_signal(signal.SIGKILL)
        wait_until(lambda: not ssh_masters(tmp_path))
        time.sleep(0.1)


def test_errors_of_ssh(tmp_path: Path, own_redis: RedisServer, bastion: str) -> None:
    """The output of ssh is in the message: a refused key, a port on which nothing listens."""
    folder = tmp_path / "mnt"
    folder.mkdir()
    closed = find_low_port()
    result = run_redisfuse(tmp_path, "--ssh", bastion, f"redis://127.0.0.1:{closed}", str(folder))
    assert result.returncode == 1
    assert "Connection refused" in result.stderr
    (tmp_path / "ssh" / "authorized").write_text("")
    result = run_redisfuse(tmp_path, "--ssh", bastion, own_redis.tcp_url(), str(folder))
    assert result.returncode == 1
    assert "Permission denied (publickey" in result.stderr
    result = run_redisfuse(tmp_path, "--ssh", "-oProxyCommand=touch${IFS}x", own_redis.tcp_url(), str(folder))
    assert result.returncode == 2
