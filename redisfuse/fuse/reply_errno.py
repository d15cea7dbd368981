"""The errno of the reply for any exception."""

from __future__ import annotations

import contextlib
import errno
import logging

from redisfuse.errors import RedisFuseError

log = logging.getLogger("redisfuse.fuse")

_MAX_ERRNO = 4095  # the kernel's MAX_ERRNO: anything above makes it reject the reply


def errno_from_exception(error: BaseException, operation: str) -> int:
    """Return the errno (positive) for an exception of an operation.

    An unexpected exception is EIO, with its traceback in the log.
    """
    if isinstance(error, RedisFuseError | OSError):
        number = error.errno
        if isinstance(number, int) and 0 < number <= _MAX_ERRNO:
            # After ENOSYS the kernel would never send this request again.
            return number if number != errno.ENOSYS else errno.ENOTSUP
    with contextlib.suppress(BaseException):  # a failing log handler must not turn into a missing reply
        log.error("%s: unexpected %s", operation, type(error).__name__, exc_info=error)
    return errno.EIO
