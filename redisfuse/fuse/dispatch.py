"""Dispatching requests: from their bytes to a call, from its result to a reply.

Every request except FORGET, BATCH_FORGET and INTERRUPT gets exactly one reply, whatever it contains: a truncated
request is answered EINVAL, an unknown opcode ENOSYS (logged once), an exception with its errno.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import struct
from collections.abc import Callable
from functools import partial

from redisfuse.errors import RedisFuseError
from redisfuse.fuse import wire
from redisfuse.fuse.interface import TIME_NOW, Buffer, FuseOperations, RequestContext, SetAttributes
from redisfuse.fuse.request import MalformedRequestError, Request
from redisfuse.fuse.wire import IN_HEADER_SIZE, OUT_HEADER_SIZE, Opcode, SetattrField

log = logging.getLogger("redisfuse.fuse")

Reply = bytes | tuple[bytes, Buffer]
_MAX_JOINED_BYTES = 32768  # bytes up to which copying a payload behind its header is cheaper than writev(2)

# Attributes that every `ls -l`, write or exec requests and that no file here has. (After ENOTSUP, ls requests none
# again on this device; ENOSYS would disable all extended attributes.)
_UNSUPPORTED_XATTR_PREFIXES = (b"system.posix_acl_", b"security.")

# Constant replies. After ENOSYS the kernel does without the operation, and mostly never requests it again.
_CONSTANT_ERRNOS = {
    Opcode.READLINK: errno.EINVAL,
    Opcode.SYMLINK: errno.EPERM,
    Opcode.LINK: errno.EPERM,
    Opcode.FALLOCATE: errno.EOPNOTSUPP,
    Opcode.TMPFILE: errno.EOPNOTSUPP,
    **dict.fromkeys((Opcode.GETLK, Opcode.SETLK, Opcode.SETLKW, Opcode.BMAP, Opcode.IOCTL, Opcode.POLL), errno.ENOSYS),
    **dict.fromkeys((Opcode.LSEEK, Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64), errno.ENOSYS),
    **dict.fromkeys((Opcode.SYNCFS, Opcode.STATX), errno.ENOSYS),
}
_WITHOUT_REPLY = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT}
_OPERATION_NAMES = {Opcode.RENAME2: "rename", Opcode.READDIRPLUS: "readdir"}
_MAX_LOGGED_OPCODES = 100
_MAX_ERRNO = 4095  # MAX_ERRNO of the kernel, which rejects a reply with a larger one
_WRITE_DATA_OFFSET = IN_HEADER_SIZE + wire.WRITE_IN.size
_unpack_header, _pack_header = wire.IN_HEADER.unpack_from, wire.OUT_HEADER.pack
_unpack_read = wire.READ_IN_HEAD.unpack_from
_unpack_handle = wire.UINT64.unpack_from


class _ReplyErrno(Exception):
    """Reply this errno, ENOSYS included, which operations may not reply."""

    def __init__(self, number: int) -> None:
        self.number = number


_Handler = Callable[[Request], Buffer | None]


class Dispatcher:
    """The handlers of one mount, by opcode.

    `requests` are those of all threads, for INTERRUPT.
    """

    def __init__(self, operations: FuseOperations, read_only: bool) -> None:
        self._operations = operations
        self.requests: list[Request] = []
        self._logged_opcodes: set[int] = set()
        self._handlers: list[_Handler] = [self._reply_unknown] * (max(Opcode) + 1)
        self._min_sizes = [IN_HEADER_SIZE] * len(self._handlers)
        for opcode, number in _CONSTANT_ERRNOS.items():
            self._handlers[opcode] = _always_reply(number)
        for opcode, (body_size, handler) in self._list_handlers(operations).items():
            blocking = _OPERATION_NAMES.get(opcode, opcode.name.lower()) in operations.blocking_operations
            self._handlers[opcode] = _promote_first(handler) if blocking else handler
            self._min_sizes[opcode] = IN_HEADER_SIZE + body_size
        if read_only:  # no close can fail: after ENOSYS the kernel sends no FLUSH for any file
            self._handlers[Opcode.FLUSH] = _always_reply(errno.ENOSYS)

    def _list_handlers(self, operations: FuseOperations) -> dict[Opcode, tuple[int, _Handler]]:
        """Return by opcode the minimum size of the body in bytes, and the handler."""
        return {
            Opcode.LOOKUP: (2, self._lookup),
            Opcode.FORGET: (wire.UINT64.size, self._forget),
            Opcode.BATCH_FORGET: (wire.BATCH_FORGET_IN.size, self._batch_forget),
            Opcode.GETATTR: (wire.GETATTR_IN.size, self._getattr),
            Opcode.SETATTR: (wire.SETATTR_IN.size, self._setattr),
            Opcode.ACCESS: (wire.ACCESS_IN.size, self._access),
            Opcode.MKNOD: (wire.MKNOD_IN.size + 2, self._mknod),
            Opcode.MKDIR: (wire.MKDIR_IN.size + 2, self._mkdir),
            Opcode.UNLINK: (2, _handle_name(operations.unlink)),
            Opcode.RMDIR: (2, _handle_name(operations.rmdir)),
            Opcode.RENAME: (wire.RENAME_IN.size + 4, partial(self._rename, wire.RENAME_IN)),
            Opcode.RENAME2: (wire.RENAME2_IN.size + 4, partial(self._rename, wire.RENAME2_IN)),
            Opcode.OPEN: (wire.OPEN_IN.size, self._open),
            Opcode.CREATE: (wire.CREATE_IN.size + 2, self._create),
            Opcode.READ: (wire.READ_IN.size, self._read),
            Opcode.WRITE: (wire.WRITE_IN.size, self._write),
            Opcode.FLUSH: (wire.FLUSH_IN.size, _handle_file_handle(operations.flush)),
            Opcode.FSYNC: (wire.FSYNC_IN.size, _handle_sync(operations.fsync)),
            Opcode.RELEASE: (wire.RELEASE_IN.size, _handle_file_handle(operations.release)),
            Opcode.OPENDIR: (wire.OPEN_IN.size, self._opendir),
            Opcode.READDIR: (wire.READ_IN.size, partial(self._readdir, False)),
            Opcode.READDIRPLUS: (wire.READ_IN.size, partial(self._readdir, True)),
            Opcode.RELEASEDIR: (wire.RELEASE_IN.size, _handle_file_handle(operations.releasedir)),
            Opcode.FSYNCDIR: (wire.FSYNC_IN.size, _handle_sync(operations.fsyncdir)),
            Opcode.STATFS: (0, self._statfs),
            Opcode.GETXATTR: (wire.GETXATTR_IN.size + 2, self._getxattr),
            Opcode.LISTXATTR: (wire.GETXATTR_IN.size, self._listxattr),
            Opcode.SETXATTR: (wire.SETXATTR_IN.size + 2, self._setxattr),
            Opcode.REMOVEXATTR: (2, _handle_name(operations.removexattr)),
            Opcode.INTERRUPT: (wire.INTERRUPT_IN.size, self._interrupt),
            Opcode.DESTROY: (0, lambda _request: b""),
        }

    def process(self, request: Request, size: int) -> Reply | None:
        """Serve the request of `size` bytes in the buffer.

        Returns the reply; None if the kernel expects none.
        """
        if size < IN_HEADER_SIZE:
            log.error("the kernel sent a request of %d bytes, less than its header", size)
            return None
        request.size = size
        _, opcode, request.unique, request.node_id = _unpack_header(request.buffer)
        try:
            if opcode >= len(self._handlers):
                self._reply_unknown(request)
            if size < self._min_sizes[opcode]:
                raise MalformedRequestError(f"{size} bytes")
            payload = self._handlers[opcode](request)
            if payload is None:
                return None
            header = _pack_header(OUT_HEADER_SIZE + len(payload), 0, request.unique)
            return header + payload if len(payload) <= _MAX_JOINED_BYTES else (header, payload)
        except _ReplyErrno as error:
            number = error.number
        except MalformedRequestError as error:
            log.error("the kernel sent a malformed request (opcode %d): %s", opcode, error)
            number = errno.EINVAL
        except BaseException as error:
            number = _errno_from_exception(error, Opcode(opcode).name)
        if opcode in _WITHOUT_REPLY:
            return None
        return _pack_header(OUT_HEADER_SIZE, -number, request.unique)

    def _reply_unknown(self, request: Request) -> bytes:
        (opcode,) = wire.UINT32.unpack_from(request.buffer, wire.OPCODE_OFFSET)
        if opcode not in self._logged_opcodes and len(self._logged_opcodes) < _MAX_LOGGED_OPCODES:
            self._logged_opcodes.add(opcode)
            log.warning("the kernel sent opcode %d, which is not implemented", opcode)
        raise _ReplyErrno(errno.ENOSYS)

    # -- names -----------------------------------------------------------------------------------------------------

    def _lookup(self, request: Request) -> bytes:
        reply = self._operations.lookup(request, request.names(IN_HEADER_SIZE, 1)[0])
        if isinstance(reply, tuple):
            return wire.pack_entry(reply)
        if reply <= 0:
            raise _ReplyErrno(errno.ENOENT)
        return wire.pack_negative_entry(reply)

    def _forget(self, request: Request) -> None:
        (count,) = wire.UINT64.unpack_from(request.buffer, IN_HEADER_SIZE)
        self._operations.forget([(request.node_id, count)])

    def _batch_forget(self, request: Request) -> None:
        count, _ = wire.BATCH_FORGET_IN.unpack_from(request.buffer, IN_HEADER_SIZE)
        start = IN_HEADER_SIZE + wire.BATCH_FORGET_IN.size
        end = start + count * wire.FORGET_ONE.size
        if end > request.size:
            raise MalformedRequestError(f"BATCH_FORGET of {count} nodes in {request.size} bytes")
        self._operations.forget(list(wire.FORGET_ONE.iter_unpack(request.buffer[start:end])))

    def _mknod(self, request: Request) -> bytes:
        mode, device, _, _ = wire.MKNOD_IN.unpack_from(request.buffer, IN_HEADER_SIZE)
        (name,) = request.names(IN_HEADER_SIZE + wire.MKNOD_IN.size, 1)
        return wire.pack_entry(self._operations.mknod(request, name, mode, device))

    def _mkdir(self, request: Request) -> bytes:
        mode, _ = wire.MKDIR_IN.unpack_from(request.buffer, IN_HEADER_SIZE)
        (name,) = request.names(IN_HEADER_SIZE + wire.MKDIR_IN.size, 1)
        return wire.pack_entry(self._operations.mkdir(request, name, mode))

    def _rename(self, body: struct.Struct, request: Request) -> bytes:
        new_parent_id, *flags = body.unpack_from(request.buffer, IN_HEADER_SIZE)
        name, new_name = request.names(IN_HEADER_SIZE + body.size, 2)
        self._operations.rename(request, name, new_parent_id, new_name, flags[0] if flags else 0)
        return b""

    # -- attributes ------------------------------------------------------------------------------------------------

    def _getattr(self, request: Request) -> bytes:
        flags, _, handle = wire.GETATTR_IN.unpack_from(request.buffer, IN_HEADER_SIZE)
        reply = self._operations.getattr(request, handle if flags & wire.GETATTR_FH else None)
        return wire.pack_attributes(reply)

    def _setattr(self, request: Request) -> bytes:
        fields = wire.SETATTR_IN.unpack_from(request.buffer, IN_HEADER_SIZE)
        valid, _, handle, size, _, atime, mtime, _, atime_nsec, mtime_nsec, _, mode, _, uid, gid, _ = fields
        changes = SetAttributes(
            mode if valid & SetattrField.MODE else None,
            uid if valid & SetattrField.UID else None,
            gid if valid & SetattrField.GID else None,
            size if valid & SetattrField.SIZE else None,
            _time_ns(valid, SetattrField.ATIME, SetattrField.ATIME_NOW, atime, atime_nsec),
            _time_ns(valid, SetattrField.MTIME, SetattrField.MTIME_NOW, mtime, mtime_nsec),
        )
        reply = self._operations.setattr(request, changes, handle if valid & SetattrField.HANDLE else None)
        return wire.pack_attributes(reply)

    def _access(self, request: Request) -> bytes:
        mask, _ = wire.ACCESS_IN.unpack_from(request.buffer, IN_HEADER_SIZE)
        self._operations.access(request, mask & 7)
        return b""

    def _statfs(self, request: Request) -> bytes:
        return wire.pack_statfs(self._operations.statfs(request))

    def _getxattr(self, request: Request) -> bytes:
        size, _ = wire.GETXATTR_IN.unpack_from(request.buffer, IN_HEADER_SIZE)
        (name,) = request.names(IN_HEADER_SIZE + wire.GETXATTR_IN.size, 1)
        if name.startswith(_UNSUPPORTED_XATTR_PREFIXES):
            raise _ReplyErrno(errno.ENOTSUP)
        return _fit_xattr(self._operations.getxattr(request, name), size)

    def _listxattr(self, request: Request) -> bytes:
        size, _ = wire.GETXATTR_IN.unpack_from(request.buffer, IN_HEADER_SIZE)
        return _fit_xattr(b"".join(name + b"\0" for name in self._operations.listxattr(request)), size)

    def _setxattr(self, request: Request) -> bytes:
        size, flags = wire.SETXATTR_IN.unpack_from(request.buffer, IN_HEADER_SIZE)
        start = IN_HEADER_SIZE + wire.SETXATTR_IN.size
        (name,) = request.names(start, 1)
        start += len(name) + 1
        if start + size > request.size:
            raise MalformedRequestError(f"SETXATTR of {size} bytes in {request.size} bytes")
        if name.startswith(_UNSUPPORTED_XATTR_PREFIXES):
            raise _ReplyErrno(errno.ENOTSUP)
        self._operations.setxattr(request, name, bytes(request.buffer[start : start + size]), flags)
        return b""

    # -- files -----------------------------------------------------------------------------------------------------

    def _open(self, request: Request) -> bytes:
        flags, _ = wire.OPEN_IN.unpack_from(request.buffer, IN_HEADER_SIZE)
        reply = self._operations.open(request, flags)
        if reply is None:
            raise _ReplyErrno(errno.ENOSYS)
        return wire.pack_open(reply)

    def _create(self, request: Request) -> bytes:
        flags, mode, _, _ = wire.CREATE_IN.unpack_from(request.buffer, IN_HEADER_SIZE)
        (name,) = request.names(IN_HEADER_SIZE + wire.CREATE_IN.size, 1)
        entry, opened = self._operations.create(request, name, flags, mode)
        return wire.pack_entry(entry) + wire.pack_open(opened)

    def _read(self, request: Request) -> Buffer:
        handle, offset, size = _unpack_read(request.buffer, IN_HEADER_SIZE)
        return self._operations.read(request, handle, offset, size)

    def _write(self, request: Request) -> bytes:
        handle, offset, size, write_flags, _, flags, _ = wire.WRITE_IN.unpack_from(request.buffer, IN_HEADER_SIZE)
        end = _WRITE_DATA_OFFSET + size
        if end > request.size:
            raise MalformedRequestError(f"WRITE of {size} bytes in {request.size} bytes")
        data = request.buffer[_WRITE_DATA_OFFSET:end]
        is_mapped = bool(write_flags & wire.WRITE_CACHE)
        return wire.WRITE_OUT.pack(self._operations.write(request, handle, offset, data, flags, is_mapped), 0)

    # -- directories -----------------------------------------------------------------------------------------------

    def _opendir(self, request: Request) -> bytes:
        flags, _ = wire.OPEN_IN.unpack_from(request.buffer, IN_HEADER_SIZE)
        return wire.pack_open(self._operations.opendir(request, flags))

    def _readdir(self, wants_attributes: bool, request: Request) -> bytes:
        handle, offset, size = _unpack_read(request.buffer, IN_HEADER_SIZE)
        buffer = wire.DirectoryBuffer(size, wants_attributes)
        self._operations.readdir(request, handle, offset, buffer)
        return buffer.to_bytes()

    # -- the connection --------------------------------------------------------------------------------------------

    def _interrupt(self, request: Request) -> None:
        # Only the leader reads, so that request is in its thread by now, or was answered and needs no interrupt.
        (unique,) = wire.INTERRUPT_IN.unpack_from(request.buffer, IN_HEADER_SIZE)
        for other in self.requests:
            if other.unique == unique:
                other.interrupt(unique)


def _errno_from_exception(error: BaseException, operation: str) -> int:
    """Return the positive errno for an exception of an operation.

    It is EIO for an unexpected exception, whose traceback is logged.
    """
    if isinstance(error, RedisFuseError | OSError):
        number = error.errno
        if isinstance(number, int) and 0 < number <= _MAX_ERRNO:
            # After ENOSYS the kernel would never send this request again.
            return number if number != errno.ENOSYS else errno.ENOTSUP
    with contextlib.suppress(BaseException):  # a reply is due even if logging fails
        log.error("%s: unexpected %s", operation, type(error).__name__, exc_info=error)
    return errno.EIO


def _always_reply(number: int) -> _Handler:
    def reply(_request: Request) -> bytes:
        raise _ReplyErrno(number)

    return reply


def _handle_name(operation: Callable[[RequestContext, bytes], None]) -> _Handler:
    def handle(request: Request) -> bytes:
        operation(request, request.names(IN_HEADER_SIZE, 1)[0])
        return b""

    return handle


def _handle_file_handle(operation: Callable[[RequestContext, int], None]) -> _Handler:
    def handle(request: Request) -> bytes:
        operation(request, _unpack_handle(request.buffer, IN_HEADER_SIZE)[0])
        return b""

    return handle


def _handle_sync(operation: Callable[[RequestContext, int, bool], None]) -> _Handler:
    def handle(request: Request) -> bytes:
        handle, flags, _ = wire.FSYNC_IN.unpack_from(request.buffer, IN_HEADER_SIZE)
        operation(request, handle, bool(flags & wire.FSYNC_FDATASYNC))
        return b""

    return handle


def _promote_first(handler: _Handler) -> _Handler:
    def promote_and_handle(request: Request) -> Buffer | None:
        request.prepare_to_block()
        return handler(request)

    return promote_and_handle


def _time_ns(valid: int, given: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    if not valid & given:
        return None
    if valid & now:
        return TIME_NOW
    return (seconds - (seconds >> 63 << 64)) * 1_000_000_000 + nanoseconds  # seconds are signed


def _fit_xattr(value: bytes, size: int) -> bytes:
    """Return the reply to GETXATTR or LISTXATTR for a buffer of `size` bytes.

    Size 0 requests the length alone. Raises ERANGE if the buffer is too small.
    """
    if size == 0:
        return wire.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise _ReplyErrno(errno.ERANGE)
    return value
