"""The status of a mount, read from its root."""

import errno
import os
import queue
import threading
from pathlib import Path

STATUS_TIMEOUT_SECONDS = 5.0  # for the reply of a mount
STATUS_XATTR = "user.redisfuse.status"  # of a mount's root; served by mount/adapter.py


def fetch_status(mountpoint: Path) -> bytes:
    """Return a mount's status as JSON.

    Raises OSError, also if the mount does not reply in time (its process may be stopped).
    """
    replies: queue.SimpleQueue[bytes | OSError] = queue.SimpleQueue()

    def read_xattr() -> None:
        try:
            replies.put(os.getxattr(mountpoint, STATUS_XATTR))
        except OSError as error:
            replies.put(error)

    threading.Thread(target=read_xattr, daemon=True).start()
    try:
        reply = replies.get(timeout=STATUS_TIMEOUT_SECONDS)
    except queue.Empty:
        raise TimeoutError(errno.ETIMEDOUT, f"no reply within {STATUS_TIMEOUT_SECONDS:g} s") from None
    if isinstance(reply, OSError):
        raise reply
    return reply
