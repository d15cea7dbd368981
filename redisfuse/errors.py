"""Every error that redisfuse raises on purpose: one hierarchy, each class with its errno and its exit status.

`errno` is what a program sees through the mount (see errno(3)); `exit_status` is what a command ends with
(1 refused or found trouble, 2 usage). The text is one line: what, why, and what to do next.
"""

import errno as _errno


class RedisFuseError(Exception):
    """The root: anything that went wrong in a way that redisfuse knows."""

    errno: int = _errno.EIO
    exit_status: int = 1
    change_id: int | None = None  # the row of the journal that has what could not be written


# -- the command line ------------------------------------------------------------------------------------------------


class UsageError(RedisFuseError):
    """The command, an option or the configuration makes no sense."""

    errno = _errno.EINVAL
    exit_status = 2


class MountError(RedisFuseError):
    """The mount could not be made or ended: mount point, libfuse, fusermount."""


# -- the tree --------------------------------------------------------------------------------------------------------


class NotFoundError(RedisFuseError):
    """No such key, field or directory, or a spelling that no key has."""

    errno = _errno.ENOENT


class ExistsError(RedisFuseError):
    """It exists already (O_EXCL, mkdir, RENAME_NOREPLACE)."""

    errno = _errno.EEXIST


class IsDirectoryError(RedisFuseError):
    """A file was asked for; this is a directory."""

    errno = _errno.EISDIR


class NotDirectoryError(RedisFuseError):
    """A directory was asked for; this is a file."""

    errno = _errno.ENOTDIR


class NotEmptyError(RedisFuseError):
    """The directory still has something in it."""

    errno = _errno.ENOTEMPTY


class BadNameError(RedisFuseError):
    """A name that can't be created, since no key is spelled so."""

    errno = _errno.EINVAL


class NameTooLongError(RedisFuseError):
    """A name of more than 255 bytes."""

    errno = _errno.ENAMETOOLONG


class BadHandleError(RedisFuseError):
    """The file is not open in the way that the call needs."""

    errno = _errno.EBADF


class InvalidArgumentError(RedisFuseError):
    """An argument out of range."""

    errno = _errno.EINVAL


class NotPermittedError(RedisFuseError):
    """An operation that this kind of filesystem does not have (links, devices)."""

    errno = _errno.EPERM


class NotSupportedError(RedisFuseError):
    """An operation that is not offered here."""

    errno = _errno.ENOTSUP


class NoAttributeError(RedisFuseError):
    """No such extended attribute."""

    errno = _errno.ENODATA


class CrossDeviceError(RedisFuseError):
    """A rename that this filesystem can't do as one step; the program copies instead."""

    errno = _errno.EXDEV


class AccessError(RedisFuseError):
    """Not allowed: a read-only kind of file, a key outside --allow, or an ACL of the server (NOPERM, NOAUTH)."""

    errno = _errno.EACCES


class ReadOnlyError(RedisFuseError):
    """The mount, or the server (a replica, MISCONF), takes no writes."""

    errno = _errno.EROFS


class TooLargeError(RedisFuseError):
    """Larger than a Redis string may be (512 MiB), or than a limit that has an option."""

    errno = _errno.EFBIG


class NoSpaceError(RedisFuseError):
    """The server is out of memory (OOM), or scratch or the journal's disk is full."""

    errno = _errno.ENOSPC


class ConflictError(RedisFuseError):
    """What is in Redis is not what the file was opened on, or not what a rollback would undo."""

    errno = _errno.ESTALE


class BusyError(RedisFuseError):
    """The key kept changing, or the journal stayed locked."""

    errno = _errno.EBUSY


class InterruptedWaitError(RedisFuseError):
    """The waiting program was interrupted."""

    errno = _errno.EINTR


# -- the server ------------------------------------------------------------------------------------------------------


class UnavailableError(RedisFuseError):
    """The server can't be reached, hung up, timed out, or answered garbage."""


class ConnectionLostError(UnavailableError):
    """The connection broke, other than by time-out, before the answer had come: a read may be asked again elsewhere."""


class TryAgainError(UnavailableError):
    """The server said, until the time-out, that it can't answer now (LOADING, BUSY, TRYAGAIN)."""

    errno = _errno.EAGAIN


class WrongTypeError(RedisFuseError):
    """The key holds another type than the command needs: it changed meanwhile."""

    errno = _errno.ESTALE


class ServerReplyError(RedisFuseError):
    """Any other error reply of the server; its text (never a secret) is kept."""


class ForbiddenCommandError(RedisFuseError):
    """A command that is not on the connection's allow-list was about to be sent; it was not."""

    errno = _errno.EROFS


class OutcomeUnknownError(UnavailableError):
    """A write was sent and its answer never came. The journal row says what could be found out."""


# -- the journal -----------------------------------------------------------------------------------------------------


class JournalError(RedisFuseError):
    """The journal can't be opened or is not what it should be (corrupt, other schema, others can read it)."""


class JournalFullError(JournalError):
    """The journal's disk is full."""

    errno = _errno.ENOSPC


class JournalReadOnlyError(JournalError):
    """The journal can't be written."""

    errno = _errno.EROFS


class JournalLockedError(JournalError):
    """Another process kept the journal locked past the busy time-out."""

    errno = _errno.EBUSY
