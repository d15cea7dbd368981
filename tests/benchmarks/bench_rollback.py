"""Rollback of a session of 10 000 small changes, beside a bare loop of the same commands, and parallel saves.

Run it manually: `python -m tests.benchmarks.bench_rollback [CHANGES]`. Prints one line per measurement.
"""

import sys
import tempfile
import threading
import time
from pathlib import Path

from redisfuse.journal.content import Blob
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.combined_change import count_changes
from redisfuse.transactions.precondition import Precondition
from redisfuse.transactions.rollback_plan import plan_rollback
from tests.support.edit_bench import EditBench, select_for_rollback
from tests.support.redis_server import RedisServer


def print_rate(label: str, count: int, seconds: float) -> None:
    """Print one measurement."""
    print(f"{label:<46} {count / seconds:>9.0f}/s  {seconds:8.3f} s")


def make_changes(bench: EditBench, changes: int, *, keys: int) -> None:
    """Save small strings with eight threads, `changes` in all, to `keys` keys in turn."""
    for number in range(keys):
        bench.redis.set(f"key:{number}", "before")

    def work(thread: int) -> None:
        for number in range(thread, changes, 8):
            name = b"key:%d" % (number % keys)
            value = b"value %d" % number
            bench.key_writer.save(
                KeyRef(name), Blob.from_bytes(value), precondition=Precondition.unconditional(), path=name
            )

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure_bare_sets(bench: EditBench, changes: int, keys: int) -> float:
    """Return the seconds of the writes alone, one after the other, by redis-py."""
    started = time.perf_counter()
    for number in range(changes):
        bench.redis.execute_command("SET", f"bare:{number % keys}", "before", "KEEPTTL")
    return time.perf_counter() - started


def measure_rollback(changes: int, keys: int) -> None:
    """Print the speed of selecting, planning and rolling back."""
    with RedisServer() as server, tempfile.TemporaryDirectory() as folder:
        bench = EditBench.create(Path(folder) / "state", server)
        try:
            make_changes(bench, changes, keys=keys)
            print_rate(f"bare SETs, {keys} keys", changes, measure_bare_sets(bench, changes, keys))
            started = time.perf_counter()
            groups = select_for_rollback(bench.journal, session_id=bench.session)
            selected = time.perf_counter()
            print_rate(f"selecting, {keys} keys", changes, selected - started)
            plan = plan_rollback(bench.journal, bench.server, groups.groups, groups.ids)
            planned = time.perf_counter()
            print_rate(f"planning, {keys} keys", changes, planned - selected)
            done = bench.create_rollback().run(plan.groups, groups.ids)
            print_rate(f"rolling back, {keys} keys", changes, time.perf_counter() - planned)
            assert done.is_clean
            assert count_changes(done.reverted) == changes
            assert bench.redis.get("key:0") == b"before"
        finally:
            bench.close()


def measure_parallel_saves(saves: int) -> None:
    """Print the speed of saves by one and by eight threads, which share transactions."""
    with RedisServer() as server, tempfile.TemporaryDirectory() as folder:
        bench = EditBench.create(Path(folder) / "state", server)
        try:
            for writers in (1, 8):

                def work(writer: int, writers: int = writers) -> None:
                    for number in range(saves // writers):
                        name = b"%d:%d:%d" % (writers, writer, number)
                        bench.key_writer.save(
                            KeyRef(name), Blob.from_bytes(name), precondition=Precondition.absent(), path=name
                        )

                threads = [threading.Thread(target=work, args=(writer,)) for writer in range(writers)]
                started = time.perf_counter()
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                print_rate(f"small saves, {writers} writers", saves, time.perf_counter() - started)
        finally:
            bench.close()


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    measure_parallel_saves(min(number, 2_000))
    measure_rollback(number, number)
    measure_rollback(number, max(1, number // 100))
