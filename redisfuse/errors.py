"""The errors that redisfuse raises: one hierarchy, with errno and exit status.

A program that uses the mount sees `errno` (errno(3)). A command exits with `exit_status`: 2 for a usage error, 1 for
all others. A message is one line: what happened, why, and what to do next.

    RedisFuseError                    EIO           1
     ├─ UsageError                    EINVAL        2
     │   └─ UntrustedFileError        EINVAL        2
     ├─ MountError                    EIO           1
     │  the file tree
     ├─ NotFoundError                 ENOENT        1
     ├─ ExistsError                   EEXIST        1
     ├─ IsDirectoryError              EISDIR        1
     ├─ NotDirectoryError             ENOTDIR       1
     ├─ NotEmptyError                 ENOTEMPTY     1
     ├─ BadNameError                  EINVAL        1
     ├─ NameTooLongError              ENAMETOOLONG  1
     ├─ BadHandleError                EBADF         1
     ├─ InvalidArgumentError          EINVAL        1
     ├─ NotPermittedError             EPERM         1
     ├─ NotSupportedError             ENOTSUP       1
     ├─ NoAttributeError              ENODATA       1
     ├─ CrossDeviceError              EXDEV         1
     ├─ AccessError                   EACCES        1
     ├─ ReadOnlyError                 EROFS         1
     ├─ TooLargeError                 EFBIG         1
     ├─ NoSpaceError                  ENOSPC        1
     ├─ ConflictError                 ESTALE        1
     ├─ BusyError                     EBUSY         1
     ├─ InterruptedWaitError          EINTR         1
     │  the server
     ├─ UnavailableError              EIO           1
     │   ├─ ConnectionLostError       EIO           1
     │   ├─ ReplyTooLargeError        EIO           1
     │   ├─ TryAgainError             EAGAIN        1
     │   ├─ RedirectedError           EIO           1
     │   ├─ UnconfirmedWriteError     EAGAIN        1
     │   └─ OutcomeUnknownError       EIO           1
     ├─ WrongTypeError                ESTALE        1
     ├─ ServerReplyError              EIO           1
     ├─ ForbiddenCommandError         EROFS         1
     │  the journal
     └─ JournalError                  EIO           1
         ├─ JournalFullError          ENOSPC        1
         ├─ JournalReadOnlyError      EROFS         1
         └─ JournalLockedError        EBUSY         1
"""

import errno as _errno


class RedisFuseError(Exception):
    """The base class: any failure that redisfuse anticipates."""

    errno: int = _errno.EIO
    exit_status: int = 1
    reply_code: str = ""  # the code of the error reply that this is, such as EXECABORT
    change_id: int | None = None  # the journal row with the data that could not be written


# -- the command line ------------------------------------------------------------------------------------------------


class UsageError(RedisFuseError):
    """A command, an option or a setting is invalid."""

    errno = _errno.EINVAL
    exit_status = 2


class UntrustedFileError(UsageError):
    """A file that another user could have prepared (`redisfuse.trusted_files`)."""


class MountError(RedisFuseError):
    """Mounting or unmounting failed: mount point, libfuse or fusermount."""


# -- the file tree ---------------------------------------------------------------------------------------------------


class NotFoundError(RedisFuseError):
    """No such key, field or directory, or a name that no key can have."""

    errno = _errno.ENOENT


class ExistsError(RedisFuseError):
    """The name exists already (O_EXCL, mkdir, RENAME_NOREPLACE)."""

    errno = _errno.EEXIST


class IsDirectoryError(RedisFuseError):
    """The operation needs a file; this is a directory."""

    errno = _errno.EISDIR


class NotDirectoryError(RedisFuseError):
    """The operation needs a directory; this is a file."""

    errno = _errno.ENOTDIR


class NotEmptyError(RedisFuseError):
    """The directory is not empty."""

    errno = _errno.ENOTEMPTY


class BadNameError(RedisFuseError):
    """A name that can't be created, because no key has this name."""

    errno = _errno.EINVAL


class NameTooLongError(RedisFuseError):
    """A name of more than 255 bytes, or a path that is too long."""

    errno = _errno.ENAMETOOLONG


class BadHandleError(RedisFuseError):
    """The file is not open in the mode that the call needs."""

    errno = _errno.EBADF


class InvalidArgumentError(RedisFuseError):
    """An argument is out of range."""

    errno = _errno.EINVAL


class NotPermittedError(RedisFuseError):
    """No such operation in this filesystem (links, devices)."""

    errno = _errno.EPERM


class NotSupportedError(RedisFuseError):
    """The operation is not supported here."""

    errno = _errno.ENOTSUP


class NoAttributeError(RedisFuseError):
    """No such extended attribute."""

    errno = _errno.ENODATA


class CrossDeviceError(RedisFuseError):
    """A rename that can't be done in one step; the program copies instead."""

    errno = _errno.EXDEV


class AccessError(RedisFuseError):
    """Access denied.

    By a read-only kind of file, by --allow, or by an ACL of the server (NOPERM, NOAUTH).
    """

    errno = _errno.EACCES


class ReadOnlyError(RedisFuseError):
    """The mount or the server (a replica, MISCONF) accepts no writes."""

    errno = _errno.EROFS


class TooLargeError(RedisFuseError):
    """The value exceeds 512 MiB, a Redis string's maximum, or a limit option."""

    errno = _errno.EFBIG


class NoSpaceError(RedisFuseError):
    """The server (OOM), the memory filesystem or the journal's disk is full."""

    errno = _errno.ENOSPC


class ConflictError(RedisFuseError):
    """The value in Redis is not the one that the operation expects.

    Saving expects the value as of the open; a rollback expects the value that the change wrote.
    """

    errno = _errno.ESTALE


class BusyError(RedisFuseError):
    """The key kept changing, or the journal remained locked."""

    errno = _errno.EBUSY


class InterruptedWaitError(RedisFuseError):
    """The waiting program was interrupted."""

    errno = _errno.EINTR


# -- the server ------------------------------------------------------------------------------------------------------


class UnavailableError(RedisFuseError):
    """The server can't be reached, disconnected, timed out or sent garbage."""


class ConnectionLostError(UnavailableError):
    """The connection broke before the reply arrived, other than by time-out.

    A read may be repeated on another connection.
    """


class ReplyTooLargeError(UnavailableError):
    """A reply had more bytes than was requested, or than one reply may have.

    The connection was closed. Fewer elements may fit.
    """


class TryAgainError(UnavailableError):
    """The server replied LOADING, BUSY or TRYAGAIN until the time-out."""

    errno = _errno.EAGAIN


class RedirectedError(UnavailableError):
    """The key is on another node of the cluster (MOVED), or moving there (ASK).

    `target` is the node's endpoint as the reply has it: `127.0.0.1:7001`, or without a host `:7001`.
    """

    slot: int = -1
    target: str = ""


class UnconfirmedWriteError(UnavailableError):
    """The server executed a write during a fail-over, or too few replicas have it.

    Raised to the caller only if the write turned out to be lost.
    """

    errno = _errno.EAGAIN


class WrongTypeError(RedisFuseError):
    """The key has another type than the command needs: it has changed."""

    errno = _errno.ESTALE


class ServerReplyError(RedisFuseError):
    """Any other error reply of the server, with its text (never a secret)."""


class ForbiddenCommandError(RedisFuseError):
    """A command that is not on the connection's allow-list was not sent."""

    errno = _errno.EROFS


class OutcomeUnknownError(UnavailableError):
    """A write was sent and no reply arrived.

    The journal row has what could be determined.
    """


# -- the journal -----------------------------------------------------------------------------------------------------


class JournalError(RedisFuseError):
    """The journal can't be opened or used.

    It is corrupt, has another schema, or is readable by other users.
    """


class JournalFullError(JournalError):
    """The journal's disk is full."""

    errno = _errno.ENOSPC


class JournalReadOnlyError(JournalError):
    """The journal can't be written."""

    errno = _errno.EROFS


class JournalLockedError(JournalError):
    """Another process held the journal's lock past the busy time-out."""

    errno = _errno.EBUSY
