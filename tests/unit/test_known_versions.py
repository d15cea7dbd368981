"""The versions that programs have read are found for the same process only, and are bounded."""

from __future__ import annotations

import os
import subprocess
import threading

from redisfuse.mount import procfs
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions.precondition import Precondition
from redisfuse.vfs import known_versions
from redisfuse.vfs.known_versions import KnownVersions

KEY, FIELD = KeyRef(b"k"), KeyRef(b"k", b"f")
ONE, TWO = Precondition.from_bytes(b"1"), Precondition.from_bytes(b"2")


def test_threads_of_one_process() -> None:
    """Threads are of one process, also while others run; a process that started later is another one."""
    own, moment = os.getpid(), procfs.now()
    threads: list[int] = []
    thread = threading.Thread(target=lambda: threads.append(threading.get_native_id()))
    thread.start()
    thread.join()
    assert procfs.is_same_process(own, moment, threading.get_native_id())
    assert not procfs.is_same_process(own, 0.0, own)  # seen before it started: another one of the same number
    with subprocess.Popen(["sleep", "60"]) as child:
        assert not procfs.is_same_process(own, moment, child.pid)
        assert procfs.is_same_process(child.pid, procfs.now(), child.pid)
        assert not procfs.is_same_process(child.pid, moment - 10, child.pid)
        child.kill()
    assert not procfs.is_same_process(0, moment, 0)


def test_versions() -> None:
    """A process finds what it read last, and what it has changed that to; others find nothing."""
    versions, own = KnownVersions(procfs), os.getpid()
    with subprocess.Popen(["sleep", "60"]) as child:
        assert versions.find([KEY, FIELD], own) is None
        versions.record_change(KEY, [own], ONE)  # a process that has read nothing
        assert versions.find([KEY], own) is None
        versions.record_read(FIELD, own, ONE)
        versions.record_read(FIELD, child.pid, ONE)
        assert versions.find([KEY, FIELD], own) == (FIELD, ONE)
        versions.record_change(FIELD, [own], TWO)
        assert versions.find([FIELD], own) == (FIELD, TWO)
        assert versions.find([FIELD], child.pid) == (FIELD, ONE)
        versions.record_change(FIELD, [own], None)
        assert versions.find([FIELD], own) is None
        assert versions.find([FIELD], child.pid) == (FIELD, ONE)
        versions.forget_below(b"k")
        assert versions.find([FIELD], child.pid) is None
        child.kill()


def test_the_table_is_bounded() -> None:
    """The versions that were read the longest ago are forgotten."""
    versions, own = KnownVersions(procfs), os.getpid()
    for number in range(known_versions.MAX_TARGETS + 1):
        versions.record_read(KeyRef(b"%d" % number), own, ONE)
    assert versions.find([KeyRef(b"0")], own) is None
    assert versions.find([KeyRef(b"1")], own) == (KeyRef(b"1"), ONE)
