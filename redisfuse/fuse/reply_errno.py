"""From any exception to the errno that the kernel is given: the one place where that is decided."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable
from typing import Any

from redisfuse.errors import RedisFuseError

log = logging.getLogger("redisfuse.fuse")

_MAX_ERRNO = 4095  # the kernel's MAX_ERRNO: anything above makes it reject the answer as garbage


def errno_from_exception(error: BaseException, operation: str) -> int:
    """The errno (positive) for an exception of `call`. What nobody expected is EIO, with its traceback in the log."""
    if isinstance(error, RedisFuseError | OSError):
        number = error.errno
        if isinstance(number, int) and 0 < number <= _MAX_ERRNO:
            # ENOSYS would make the kernel stop asking for good.
            return number if number != errno.ENOSYS else errno.ENOTSUP
    with contextlib.suppress(BaseException):  # a failing log handler must not turn into an undefined answer
        log.error("%s: unexpected %s", operation, type(error).__name__, exc_info=error)
    return errno.EIO


def reply_errors(
    operation: str, function: Callable[..., int], before_call: Callable[[], None] | None
) -> Callable[..., int]:
    """`function` as a libfuse callback: -errno for every exception, BaseException included; after `before`, if any."""

    def reply(*arguments: Any) -> int:
        try:
            if before_call is not None:
                before_call()
            return function(*arguments)
        except BaseException as error:
            return -errno_from_exception(error, operation)

    return reply
