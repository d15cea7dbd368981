"""Ctrl-C on a terminal, during commands that change or read many keys.

The server is paused meanwhile, so that the key is pressed during a batch, however fast the machine is.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from redisfuse.journal.change_filter import ChangeFilter
from redisfuse.journal.models import ServerIdentity, SessionMetadata
from redisfuse.transactions.key_writer import KeyWriter
from redisfuse.transactions.rollback import MAX_CHANGES_PER_BATCH
from tests.support.edit_bench import EditBench
from tests.support.mounts import wait_until
from tests.support.redis_server import RedisServer

KEYS = 600
PAUSE_MS = 100_000


@pytest.fixture
def bench(redis_server: RedisServer, tmp_path: Path) -> Iterator[EditBench]:
    """Create a bench whose session records the server's address, and changes of many keys."""
    bench = EditBench.create(tmp_path / "state", redis_server)
    identity = ServerIdentity(host="127.0.0.1", port=redis_server.port, redacted_url=redis_server.tcp_url())
    bench.session = bench.journal.begin_session(SessionMetadata(identity))
    bench.key_writer = KeyWriter(bench.server, bench.journal, bench.session)
    yield bench
    bench.redis.client_unpause()
    bench.close()


class Terminal:
    """A command on a terminal of 80 columns."""

    def __init__(self, bench: EditBench, *words: str) -> None:
        bench.journal.flush()
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "TERM": "xterm",
            "REDISFUSE_JOURNAL_FILE": str(bench.journal.path),
        }
        arguments = ["-m", "redisfuse.cli.main", *words]
        self.child = pexpect.spawn(
            sys.executable,
            arguments,
            env=environment,
            timeout=60,
            encoding="utf-8",
            codec_errors="replace",  # the terminal writes ^C between the bytes of a character
            dimensions=(24, 80),
        )

    def press_ctrl_c(self) -> None:
        """Press Ctrl-C: the terminal sends SIGINT to the foreground process."""
        self.child.sendintr()

    def finish(self) -> tuple[int | None, str]:
        """Wait for the end; return the exit status and the output, with single spaces."""
        output = self.child.read()
        self.child.close()
        return self.child.exitstatus, " ".join(output.split())


def count_pending(bench: EditBench) -> int:
    """Return the number of changes whose outcome is not known."""
    return len(list(bench.journal.find_changes(ChangeFilter(outcomes=("pending",)))))


def make_keys(bench: EditBench) -> None:
    """Set KEYS keys to `before`."""
    bench.redis.mset({f"key:{number}": "before" for number in range(KEYS)})


def make_changes(bench: EditBench) -> None:
    """Change KEYS keys from `before` to `after`."""
    make_keys(bench)
    for number in range(KEYS):
        bench.save(b"key:%d" % number, b"after")


def count_restored(bench: EditBench) -> int:
    """Return the number of keys that are as before."""
    return bench.redis.mget([f"key:{number}" for number in range(KEYS)]).count(b"before")


@pytest.mark.parametrize("presses", [1, 2])
def test_a_rollback_is_continued_after_ctrl_c(bench: EditBench, presses: int) -> None:
    """The first Ctrl-C ends it after the batch, the second one at once; the same command finishes it."""
    make_changes(bench)
    words = ("rollback", "--session", str(bench.session), "--yes", "--timeout", "60")
    bench.redis.client_pause(PAUSE_MS, all=False)
    terminal = Terminal(bench, *words)
    wait_until(lambda: count_pending(bench) == MAX_CHANGES_PER_BATCH, 60)
    for _ in range(presses):
        terminal.press_ctrl_c()
        terminal.child.expect_exact("^C")  # one signal at a time
    if presses == 2:
        # Two signals are one for a program that has not handled the first: press again, as a user would.
        while terminal.child.expect_exact(["continues", pexpect.TIMEOUT], timeout=5):
            terminal.press_ctrl_c()
    bench.redis.client_unpause()
    status, output = terminal.finish()
    assert status == 130, output
    if presses == 1:
        assert f"{MAX_CHANGES_PER_BATCH} changes rolled back, {KEYS - MAX_CHANGES_PER_BATCH} left" in output
        assert "the same command continues" in output
        assert (count_pending(bench), count_restored(bench)) == (0, MAX_CHANGES_PER_BATCH)
    else:
        assert count_pending(bench) == MAX_CHANGES_PER_BATCH
    status, output = Terminal(bench, *words).finish()
    assert status == 0, output
    assert (count_pending(bench), count_restored(bench)) == (0, KEYS)
    assert bench.redis.dbsize() == KEYS


def test_a_load_is_continued_after_ctrl_c(bench: EditBench, redis_server: RedisServer, tmp_path: Path) -> None:
    """Ctrl-C ends it after the batch; the same command finishes it."""
    make_keys(bench)
    url, archive = redis_server.tcp_url(), str(tmp_path / "keys.jsonl")
    assert Terminal(bench, "dump", url, archive).finish()[0] == 0
    bench.redis.flushdb()
    bench.redis.client_pause(PAUSE_MS, all=False)
    terminal = Terminal(bench, "load", archive, url, "--timeout", "60")
    wait_until(lambda: count_pending(bench) > 0, 60)
    terminal.press_ctrl_c()
    terminal.child.expect_exact("^C")
    bench.redis.client_unpause()
    status, output = terminal.finish()
    loaded = bench.redis.dbsize()
    assert (status, count_pending(bench)) == (130, 0), output
    assert 0 < loaded < KEYS
    assert f"{loaded} keys: {loaded} created redisfuse: interrupted; the same command finishes the load" in output
    status, output = Terminal(bench, "load", archive, url).finish()
    assert f"{KEYS} keys: {KEYS - loaded} created, {loaded} unchanged" in output
    assert (status, count_restored(bench)) == (0, KEYS)
