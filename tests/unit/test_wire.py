"""fuse/wire.py: notifications that a request handler writes."""

import os
import threading
import time

from redisfuse.fuse.wire import inval_attributes, write_in_thread


def test_it_is_written_when_that_returns() -> None:
    """The notification is written before the callback replies, so the kernel's next request comes after it."""
    read, write = os.pipe()
    try:
        write_in_thread(write, inval_attributes(7))
        os.set_blocking(read, False)
        assert os.read(read, 100) == inval_attributes(7)
    finally:
        os.close(read)
        os.close(write)


def test_one_that_has_to_wait() -> None:
    """The callback continues, which unblocks the notification; it is written then."""
    read, write = os.pipe()
    try:
        os.set_blocking(write, False)
        try:
            while True:
                os.write(write, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(write, True)
        began = time.monotonic()
        write_in_thread(write, b"notice")
        assert 0.5 < time.monotonic() - began < 10
        while os.read(read, 65536)[-6:] != b"notice":
            pass
    finally:
        os.close(read)
        os.close(write)
    for thread in threading.enumerate():
        if thread.name == "fuse-aside":
            thread.join(10)
            assert not thread.is_alive()


def test_a_connection_that_has_ended() -> None:
    """Without a kernel at the other end, a notification is dropped."""
    read, write = os.pipe()
    os.close(read)
    write_in_thread(write, b"notice")
    os.close(write)
