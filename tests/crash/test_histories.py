"""Histories of programs and faults, as Jepsen's: what was acknowledged is there, what was refused is not.

Programs on two mounts and clients of the server add tokens to shared strings, hash fields and a value of more than
1 MiB, while the network, the server and the mounts fail. In the end each acknowledged token is there once, each other
one at most once, and none that was refused with ESTALE or EBUSY.

REDISFUSE_TEST_HISTORY_SECONDS=600 makes each history longer; REDISFUSE_TEST_HISTORY_SEED repeats one's faults.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from redisfuse.journal.change_rows import ChangeFilter
from redisfuse.journal.journal import Journal
from tests.crash.history_faults import FaultInjector
from tests.crash.history_record import FILLER, SLOT_BYTES, TARGETS, Attempt, Settings, Target
from tests.support.bindings import BINDINGS
from tests.support.forkserver import ROOT
from tests.support.mounts import MountedServer, clean_up_mount, run_redisfuse, start_mount
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer

SECONDS = float(os.environ.get("REDISFUSE_TEST_HISTORY_SECONDS", "10"))
SEED = int(os.environ.get("REDISFUSE_TEST_HISTORY_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
PROGRAMS_PER_MOUNT = 3
CLIENTS = 2
MOUNTS = 2
PROGRAM_TIMEOUT_SECONDS = 60.0
MOUNT_OPTIONS = ("--timeout", "1", "--park-seconds", "1")
MAX_REPORTED = 50  # violations
TOKEN = re.compile(rb"\[\d{3}\.\d{6}\]")


@pytest.fixture
def persistent_redis() -> Iterator[RedisServer]:
    """Run a server that keeps what it has acknowledged."""
    with RedisServer(persist=True) as server:
        yield server


@pytest.mark.timeout(120 + 2 * SECONDS)
@pytest.mark.possible_log(r"(?s)\A(?!.*Traceback)")
@pytest.mark.parametrize("binding", BINDINGS)
def test_acknowledged_is_durable_and_refused_is_refused(
    persistent_redis: RedisServer, tmp_path: Path, binding: str
) -> None:
    """Acknowledged tokens are there once, refused ones are not, and no row of the journal is pending."""
    server = persistent_redis
    client = server.client()
    for target in TARGETS:
        value = FILLER * (target.slot_count * SLOT_BYTES)
        client.set(target.key, value) if target.field is None else client.hset(target.key, target.field, value)
    client.mset({f"untouched{number}": number for number in range(20)})  # by which a restarted server is recognized
    journal = tmp_path / "journal.db"

    def mount(index: int) -> MountedServer:
        folder = tmp_path / f"mount{index}"
        folder.mkdir(exist_ok=True)
        words = ("--binding", binding, "--journal-file", str(journal), *MOUNT_OPTIONS)
        return start_mount(folder, proxies[index].url(), *words, write=True)

    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(Proxy(server.socket_path)) for _ in range(MOUNTS)]
        mounts: list[MountedServer] = []
        stack.callback(lambda: [clean_up_mount(mount) for mount in mounts])
        for index in range(MOUNTS):
            mounts.append(mount(index))
        programs = stack.enter_context(_running_programs(tmp_path, server, mounts))
        injector = FaultInjector(server, proxies, mounts, mount, SEED)
        injector.run(SECONDS)
        for program in programs:
            program.communicate(timeout=PROGRAM_TIMEOUT_SECONDS)
            assert program.returncode == 0, "a program failed"
        for each in mounts:
            clean_up_mount(each)
        recovered = run_redisfuse(tmp_path, "recover", "--journal-file", str(journal))
        assert recovered.returncode == 0, recovered.stderr
    attempts = _read_attempts(tmp_path)
    values = {target: _fetch_value(server, target) for target in TARGETS}
    violations = [*_find_violations(attempts, values), *_find_unsettled_rows(journal)]
    summary = f"seed {SEED}, {_count_outcomes(attempts)}"
    print(summary, *injector.events, recovered.stdout, sep="\n")
    assert not violations, f"{summary}: {len(violations)} violations\n" + "\n".join(violations[:MAX_REPORTED])


@contextlib.contextmanager
def _running_programs(
    folder: Path, server: RedisServer, mounts: list[MountedServer]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run the programs; they end when their standard input is closed."""
    places: list[MountedServer | None] = [*mounts * PROGRAMS_PER_MOUNT, *[None] * CLIENTS]
    programs: list[subprocess.Popen[bytes]] = []
    try:
        for number, mount in enumerate(places):
            locks = folder if mount is None else mount.path.parent / "locks"
            locks.mkdir(exist_ok=True)
            settings = Settings(
                number=number,
                program_count=len(places),
                seed=SEED,
                record=str(folder / f"record{number}.jsonl"),
                locks=str(locks),
                mount=None if mount is None else str(mount.path),
                socket_path=server.socket_path,
            )
            words = [sys.executable, "-m", "tests.crash.history_program", json.dumps(asdict(settings))]
            programs.append(subprocess.Popen(words, stdin=subprocess.PIPE, cwd=ROOT))
        yield programs
    finally:
        for program in programs:
            program.kill()
            program.wait()


def _read_attempts(folder: Path) -> list[Attempt]:
    lines = [line for path in folder.glob("record*.jsonl") for line in path.read_text().splitlines()]
    return [Attempt(**json.loads(line)) for line in lines]


def _fetch_value(server: RedisServer, target: Target) -> bytes:
    client = server.client()
    value = client.get(target.key) if target.field is None else client.hget(target.key, target.field)
    assert isinstance(value, bytes)
    return value


def _find_violations(attempts: list[Attempt], values: dict[Target, bytes]) -> Iterator[str]:
    by_token = {attempt.token: attempt for attempt in attempts}
    assert len(by_token) == len(attempts)
    places: dict[str, list[str]] = {}
    for target, value in values.items():
        for token in TOKEN.findall(value):
            places.setdefault(token.decode(), []).append(target.name)
        rest = TOKEN.sub(b"", value).replace(FILLER, b"")
        if rest:
            yield f"{target.name} has bytes of no token: {rest[:50]!r}"
    for token, names in places.items():
        attempt = by_token.get(token)
        if attempt is None:
            yield f"{token} is in {names}, but was not recorded"
        elif names != [attempt.target]:
            yield f"{attempt} is in {names}"
        elif attempt.outcome == "refused":
            yield f"{attempt} was refused, but is there"
    for attempt in attempts:
        if attempt.outcome == "acknowledged" and attempt.token not in places:
            yield f"{attempt} was acknowledged, but is lost"


def _find_unsettled_rows(path: Path) -> Iterator[str]:
    with Journal.open(path, writable=False) as journal:
        for change in journal.find_changes(ChangeFilter(oldest_first=True)):
            if change.outcome in ("pending", "held"):
                yield f"change {change.id} of {change.path!r} is {change.outcome}"


def _count_outcomes(attempts: list[Attempt]) -> str:
    counts = Counter((attempt.kind, attempt.outcome) for attempt in attempts)
    totals = Counter(attempt.outcome for attempt in attempts)
    return f"{dict(totals)}, { ({' '.join(key): count for key, count in sorted(counts.items())}) }"
