"""`redisfuse status` as metrics, as a live view, and the mount points that completion offers."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from prometheus_client.parser import text_string_to_metric_families

from redisfuse.cli._status_metrics import format_metrics
from tests.support.mounts import (
    MOUNT_TIMEOUT_SECONDS,
    MountedServer,
    isolated_environment,
    mount_server,
    redisfuse_command,
    run_redisfuse,
)
from tests.support.redis_server import RedisServer

STRANGE_NAME = 'a "b" \\n\nc\udcff'  # every character that a label escapes, and a byte that is not UTF-8


def read_metrics(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Return the samples by name and labels, as Prometheus reads them."""
    samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type in ("gauge", "counter")
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            by_labels = samples.setdefault(sample.name, {})
            assert labels not in by_labels
            by_labels[labels] = sample.value
            assert sample.name.endswith("_total") == (family.type == "counter")
    return samples


def test_metrics_of_a_mount(redis_server: RedisServer, tmp_path: Path) -> None:
    """Prometheus's own parser reads the figures of the status."""
    redis_server.client().mset({"a": "1", "b": "2"})
    with mount_server(tmp_path, redis_server.url()) as mount:
        (mount.path / "a").read_bytes()
        mount.wait_coherent()
        done = run_redisfuse(tmp_path, "status", "--prometheus", str(mount.path))
        assert (done.returncode, done.stderr) == (0, "")
        samples = read_metrics(done.stdout)
        labels = (("mountpoint", str(mount.path)),)
        status = mount.status()
        assert samples["redisfuse_up"] == {labels: 1}
        assert samples["redisfuse_keys"] == {labels: 2}
        assert samples["redisfuse_tracking"] == {labels: 1}
        assert samples["redisfuse_resident_memory_bytes"][labels] > 1 << 20
        assert 0 < samples["redisfuse_commands_total"][labels] <= status["commands"]
        assert samples["redisfuse_cache_limit_bytes"] == {labels: 64 << 20}
        ((info, one),) = samples["redisfuse_info"].items()
        assert dict(info)["server_version"] == status["server_version"]
        assert one == 1
        assert "redisfuse_replica_lag_seconds" not in samples
        # A process that is stopped is a mount that is down, not a missing one.
        mount.process.send_signal(signal.SIGSTOP)
        try:
            done = run_redisfuse(tmp_path, "status", "--prometheus", str(mount.path))
        finally:
            mount.process.send_signal(signal.SIGCONT)
        assert done.returncode == 1
        assert "does not respond" in done.stderr
        assert read_metrics(done.stdout) == {"redisfuse_up": {labels: 0}}


def test_metrics_of_a_path_that_is_not_mounted(tmp_path: Path) -> None:
    """An expected mount that does not exist is down."""
    done = run_redisfuse(tmp_path, "status", "--prometheus", str(tmp_path))
    assert done.returncode == 1
    assert read_metrics(done.stdout) == {"redisfuse_up": {(("mountpoint", str(tmp_path)),): 0}}


def test_metrics_of_several_mounts_are_grouped(redis_server: RedisServer, tmp_path: Path) -> None:
    """Each family has one head; what only clusters, replicas and Sentinels have is in their metrics."""
    with mount_server(tmp_path, redis_server.url()) as mount:
        facts = mount.status()
    cluster = facts | {
        "mountpoint": "/cluster",
        "shards": [
            {"node": "n1:6379", "live": True, "slots": 8192, "lag_seconds": 0.5, "master_link": {"is_up": True}},
            {"node": "n2:6379", "live": False, "slots": 8192, "lag_seconds": None, "master_link": None},
        ],
        "master_link": {"is_up": False},
        "lag_seconds": 2.5,
        "sentinels": [2, 3],
        "ready": False,
    }
    text = "\n".join(format_metrics({facts["mountpoint"]: facts, "/cluster": cluster, f"/{STRANGE_NAME}": None})) + "\n"
    assert text.count("# TYPE redisfuse_up ") == 1
    samples = read_metrics(text)
    here = ("mountpoint", "/cluster")
    assert samples["redisfuse_shard_tracking"] == {(here, ("node", "n1:6379")): 1, (here, ("node", "n2:6379")): 0}
    assert samples["redisfuse_shard_replica_lag_seconds"] == {(here, ("node", "n1:6379")): 0.5}
    assert samples["redisfuse_shard_master_link_up"] == {(here, ("node", "n1:6379")): 1}
    assert samples["redisfuse_replica_lag_seconds"] == {(here,): 2.5}
    assert samples["redisfuse_master_link_up"] == {(here,): 0}
    assert samples["redisfuse_sentinels_answering"] == {(here,): 2}
    assert (here,) not in samples["redisfuse_keys"]
    assert samples["redisfuse_up"][("mountpoint", f"/{STRANGE_NAME.replace(chr(0xDCFF), chr(0xFFFD))}"),] == 0


@pytest.mark.parametrize("end", ["q", "Ctrl-C"])
def test_watching_on_a_terminal(end: str, redis_server: RedisServer, tmp_path: Path) -> None:
    """The view follows the mount; q and Ctrl-C end it with status 0, and leave the last state on the terminal."""
    client = redis_server.client()
    with mount_server(tmp_path, redis_server.url()) as mount:
        program, *words = redisfuse_command("status", "--watch", "--interval", "0.2", str(mount.path))
        environment = {**isolated_environment(tmp_path), "TERM": "xterm"}
        view = pexpect.spawn(program, words, env=environment, timeout=MOUNT_TIMEOUT_SECONDS, dimensions=(40, 120))
        try:
            view.expect("keys +0")
            client.set("key", b"value")
            view.expect("keys +1")
            view.expect("commands/s in")
            view.send("x")  # no key of the view
            view.expect("q ends")
            view.send("q" if end == "q" else "\x03")
            view.expect(pexpect.EOF)
        finally:
            view.close()
        assert view.exitstatus == 0
        after = view.before.rpartition(b"\x1b[?1049l")[2]  # the end of the alternate screen
        assert b"keys         1" in after
        assert b"q ends" not in after


def test_watching_in_a_pipe(redis_server: RedisServer, tmp_path: Path) -> None:
    """Lines of JSON can be piped, the view can't; the end of the mount is an error."""
    with mount_server(tmp_path, redis_server.url()) as mount:
        done = run_redisfuse(tmp_path, "status", "--watch", str(mount.path))
        assert done.returncode == 2
        assert "--json" in done.stderr
        watch = subprocess.Popen(
            redisfuse_command("status", "--watch", "--json", "--interval", "0.1", str(mount.path)),
            env=isolated_environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert watch.stdout is not None
        assert [json.loads(watch.stdout.readline())["mountpoint"] for _ in range(3)] == [str(mount.path)] * 3
        mount.stop()
        _, errors = watch.communicate(timeout=MOUNT_TIMEOUT_SECONDS)
        assert watch.returncode == 1
        assert b"is not a redisfuse mount" in errors or b"does not respond" in errors


def test_options_that_contradict_each_other(tmp_path: Path) -> None:
    """Metrics are printed once."""
    for other in ("--json", "--watch"):
        done = run_redisfuse(tmp_path, "status", "--prometheus", other)
        assert done.returncode == 2
        assert other in done.stderr


# -- completion ------------------------------------------------------------------------------------------------------


def complete(folder: Path, *words: str, cwd: Path) -> list[str]:
    """Return what the shell offers for the last word."""
    environment = {
        **isolated_environment(folder),
        "HOME": str(folder),
        "_REDISFUSE_COMPLETE": "zsh_complete",
        "COMP_WORDS": " ".join(["redisfuse", *words]),
        "COMP_CWORD": str(len(words)),
    }
    program = "import sys; from redisfuse.cli.main import main; sys.argv[0] = 'redisfuse'; main()"
    done = subprocess.run(
        [redisfuse_command()[0], "-c", program],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=MOUNT_TIMEOUT_SECONDS,
        check=True,
    )
    rows = done.stdout.splitlines() if done.stdout.strip() else []
    return [name for kind, name in zip(rows[::3], rows[1::3], strict=True) if kind == "plain"]


def test_completion_of_mount_points(tmp_path: Path, mounted: MountedServer) -> None:
    """Mounts are offered in the user's spelling, also when they don't respond."""
    mounted.process.send_signal(signal.SIGSTOP)
    try:
        for command in ("umount", "status", "refresh"):
            assert complete(tmp_path, command, f"{tmp_path}/m", cwd=Path("/")) == [str(mounted.path)]
        assert complete(tmp_path, "umount", "--lazy", "~/", cwd=Path("/")) == ["~/mnt"]
        assert complete(tmp_path, "umount", "m", cwd=tmp_path) == ["mnt"]
        assert complete(tmp_path, "umount", "./", cwd=tmp_path) == ["./mnt"]
        assert str(mounted.path) in complete(tmp_path, "umount", "", cwd=tmp_path)
        assert complete(tmp_path, "umount", "/nowhere", cwd=tmp_path) == []
    finally:
        mounted.process.send_signal(signal.SIGCONT)


def test_bash_quotes_what_it_completes(redis_server: RedisServer, tmp_path: Path) -> None:
    """A mount point with a space is one word, however the user began it."""
    folder = tmp_path / "my $HOME, too"
    folder.mkdir()
    environment = {
        **os.environ,
        **isolated_environment(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PS1": "$ ",
        "TERM": "dumb",
    }
    with mount_server(folder, redis_server.url()) as mount:
        shell = pexpect.spawn("bash", ["--norc", "--noprofile"], env=environment, cwd=tmp_path, encoding="utf-8")
        shell.timeout, shell.delaybeforesend = MOUNT_TIMEOUT_SECONDS, None
        shell.setwinsize(40, 500)
        shell.sendline('eval "$(_REDISFUSE_COMPLETE=bash_source redisfuse)"; printf "%s\\n" rea""dy')
        shell.expect("ready")
        for beginning in (f"{tmp_path}/my\\ ", f'"{tmp_path}/my ', f"'{tmp_path}/m", "./m"):
            shell.send(f"redisfuse umount {beginning}\t")
            shell.expect("mnt")
            shell.send("\x01printf '[%s]' \r")
            path = "./" + str(mount.path.relative_to(tmp_path)) if beginning == "./m" else str(mount.path)
            shell.expect_exact(f"[redisfuse][umount][{path}]")
        shell.close(force=True)


@pytest.fixture
def mounted(redis_server: RedisServer, tmp_path: Path) -> Iterator[MountedServer]:
    """Mount a server."""
    with mount_server(tmp_path, redis_server.url()) as mount:
        yield mount
