"""The speed of the journal: changes per second, fsyncs, and the cost of reading a million rows.

    python -m tests.benchmarks.bench_journal [--rows 1000000] [--folder DIR]

Prints one line per figure. The first rate is that of a bare append and fsync on the same disk, for comparison.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from redisfuse.journal.content import Blob
from redisfuse.journal.journal import Journal, now_ms
from redisfuse.journal.models import ChangeIntent, ServerIdentity, SessionMetadata, State
from redisfuse.journal.prune import prune_journal

INFO = SessionMetadata(ServerIdentity(host="127.0.0.1", port=6379), mountpoint="/mnt/redis", options={"write": True})
ROWS_PER_TRANSACTION = 1000  # rows of one transaction while filling
MAX_EXTRA_SECONDS = 0.3  # seconds that a reading command may take longer than `redisfuse --version`


def save(journal: Journal, session: int, number: int) -> None:
    """Record one change of a small string, as a save does."""
    prior, new = State.from_value(b"value before %d" % number), State.from_value(b"value after %d" % number)
    path = b"user/%d/name" % (number % 5000)
    ids = journal.record_intents(session, [ChangeIntent(path, "write", path.replace(b"/", b":"), None, prior, new)])
    journal.record_outcome(ids, "applied")


def fill_journal(journal: Journal, rows: int, sessions: int = 50) -> None:
    """Fill a journal with rows like those of a busy production: many sessions and keys, few failures."""
    for part in range(sessions):
        session = journal.begin_session(INFO)
        first, last = rows * part // sessions, rows * (part + 1) // sessions
        for start in range(first, last, ROWS_PER_TRANSACTION):
            ids = journal.record_intents(
                session,
                [_build_change(n) for n in range(start, min(start + ROWS_PER_TRANSACTION, last))],
                grouping=False,
            )
            failed = [id for id in ids if id % 977 == 0]
            journal.record_outcome([id for id in ids if id % 977], "applied")
            journal.record_outcome(failed, "failed", "OOM")
        journal.end_session(session)
    journal.flush()


def _build_change(number: int) -> ChangeIntent:
    op = "expire" if number % 20_011 == 7 else "remove" if number % 50 == 0 else "write"
    path = b"service/%d/user/%d" % (number % 7, number % 200_003)
    return ChangeIntent(
        path,
        op,
        path.replace(b"/", b":"),
        None,
        State.from_value(b"%d" % (number % 1000)),
        State.from_value(b"%d" % number),
    )


def measure_writes(folder: Path) -> None:
    """Print the changes per second of one and of several threads, beside a bare fsync."""
    with (folder / "plain").open("wb", buffering=0) as file:
        began = time.perf_counter()
        for _ in range(300):
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
        print(f"append 4 KiB and fdatasync, alone:   {300 / (time.perf_counter() - began):8.0f} /s")
    with Journal.open(folder / "writing.db", create=True) as journal:
        session = journal.begin_session(INFO)
        alone = 0.0
        for writers in (1, 8, 16):
            rate = _save_rate(journal, session, writers)
            alone = alone or rate
            print(f"journaled changes, {writers:2} writers:       {rate:8.0f} /s  ({rate / alone:.1f} times one)")
        large = folder / "large"
        with large.open("wb") as out:
            for _ in range(200):
                out.write(os.urandom(1 << 20))
        with large.open("rb") as source:
            began = time.perf_counter()
            content = Blob.from_file(source)
            journal.record_intents(
                session, [ChangeIntent(b"l", "write", b"l", None, State("absent"), State.from_value(content))]
            )
            print(f"a random string of 200 MiB:          {200 / (time.perf_counter() - began):8.0f} MiB/s")


def _save_rate(journal: Journal, session: int, writers: int) -> float:
    """Return the changes per second of some threads."""
    each = 1600 // writers

    def work(first: int) -> None:
        for number in range(first, first + each):
            save(journal, session, number)

    threads = [threading.Thread(target=work, args=(number * each,)) for number in range(writers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return each * writers / (time.perf_counter() - began)


def print_fsync_counts(folder: Path) -> None:
    """Print the fsyncs of 400 changes, counted by strace."""
    if not shutil.which("strace"):
        return
    for writers in (1, 8):
        script = (
            "import sys, threading; from pathlib import Path; from tests.benchmarks.bench_journal import *\n"
            f"with Journal.open(Path({str(folder)!r}) / 'fsyncs{writers}.db', create=True) as journal:\n"
            "    session = journal.begin_session(INFO)\n"
            f"    ts = [threading.Thread(target=lambda: [save(journal, session, n) for n in range({400 // writers})])\n"
            f"          for _ in range({writers})]\n"
            "    [t.start() for t in ts]; [t.join() for t in ts]\n"
        )
        log = folder / "strace"
        command = ["strace", "-f", "-o", str(log), "-e", "trace=fsync,fdatasync", sys.executable, "-c", script]
        subprocess.run(command, check=True, timeout=300)
        number = len(re.findall(r"\b(?:fsync|fdatasync)\(", log.read_text()))
        print(f"fsyncs for 400 changes, {writers} writers:   {number:8}    (opening and closing included)")


def measure_commands(folder: Path, rows: int) -> None:
    """Print the time to the first output of each command with many rows, beside `redisfuse --version`."""
    path = folder / "reading.db"
    with Journal.open(path, create=True) as journal:
        began = time.perf_counter()
        fill_journal(journal, rows)
        took = time.perf_counter() - began
    size = path.stat().st_size
    print(f"filled {rows} rows:  {rows / took:8.0f} /s, {size / rows:.0f} bytes a row")
    middle = str(rows // 2)
    base = first_byte_seconds([], path)
    print(f"{'redisfuse --version':60} {base * 1000:6.0f} ms")
    for words in (
        ["log"],
        ["log", "--limit", "20"],
        ["log", "--session", "3"],
        ["log", "--key", "service:3:user:77*", "--limit", "20"],
        ["log", "--key", f"service:{int(middle) % 7}:user:{int(middle) % 200_003}"],
        ["log", "--key", "nothing:*"],
        ["log", "--path", "service/3", "--limit", "20"],
        ["log", "--path", "no/such"],
        ["log", "--since", "1h", "--limit", "20"],
        ["log", "--since", "now"],
        ["log", "--until", "2020-01-01"],
        ["log", "--state", "failed", "--limit", "20"],
        ["log", "--state", "pending"],
        ["log", "--op", "expire"],
        ["log", "--op", "mkdir"],
        ["show", middle],
        ["show", middle, "--prior"],
        ["diff", middle],
        ["diff", "--session", "3"],
        ["sessions"],
    ):
        extra = first_byte_seconds(words, path) - base
        verdict = "" if extra < MAX_EXTRA_SECONDS else "   MORE THAN 0.3 s"
        print(f"{'redisfuse ' + ' '.join(words):60} {extra * 1000:+6.0f} ms{verdict}")


def measure_prune(folder: Path, rows: int) -> None:
    """Prune the older half of the rows, and print the time and the space that it saves."""
    path = folder / "reading.db"
    size = path.stat().st_size
    with Journal.open(path) as journal:
        began = time.perf_counter()
        done = prune_journal(journal, before_ms=now_ms() + 1000, keep_last=rows // 2)
        took = time.perf_counter() - began
    smaller = (size - path.stat().st_size) / size
    print(f"prune of {done.changes} changes: {took:.1f} s, the file is {smaller:.0%} smaller")


def first_byte_seconds(words: list[str], path: Path) -> float:
    """Return the seconds until the first byte of the output, or its end (median of 5)."""
    command = [str(Path(sys.executable).with_name("redisfuse")), *(words or ["--version"])]
    environment = {**os.environ, "REDISFUSE_JOURNAL_FILE": str(path)}
    times = []
    for _ in range(5):
        began = time.perf_counter()
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.read(1)
            times.append(time.perf_counter() - began)
            process.kill()
    return statistics.median(times)


def main() -> None:
    """Run all measurements in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name) / "state"
        folder.mkdir(0o700)
        measure_writes(folder)
        print_fsync_counts(folder)
        measure_commands(folder, options.rows)
        measure_prune(folder, options.rows)


if __name__ == "__main__":
    main()
