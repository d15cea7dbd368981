"""Opcodes, structures and flags of the FUSE protocol, and their packing.

Protocol 7.31 and later, from include/uapi/linux/fuse.h. Every structure is in the byte order of the machine, without
padding beyond the fields of that header.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from functools import lru_cache

from redisfuse.fuse.interface import AttributesReply, EntryReply, FileAttributes, OpenReply, StatfsReply

KERNEL_MAJOR = 7
KERNEL_MINOR_MIN, KERNEL_MINOR_MAX = 31, 45  # Linux 5.4; Linux 6.18
MAX_WRITE_BYTES = 1 << 20  # bytes of one WRITE, unless the administrator allows more
MAX_REQUEST_BYTES = MAX_WRITE_BYTES + 4096  # bytes of a request, with its headers
_BLOCK_SIZE = 4096


class Opcode(IntEnum):
    """enum fuse_opcode."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class InitFlag:
    """INIT flags; those from bit 32 on are in the second word (FUSE_INIT_EXT)."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36


class SetattrField:
    """FATTR flags: which fields of a SETATTR request are valid."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    HANDLE = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


# -- requests ----------------------------------------------------------------------------------------------------------

IN_HEADER_SIZE = 40  # struct fuse_in_header
IN_HEADER = struct.Struct("=IIQQ")  # its first fields: len, opcode, unique, nodeid
IN_CALLER = struct.Struct("=III")  # uid, gid, pid
IN_CALLER_OFFSET = 24
OPCODE_OFFSET, UNIQUE_OFFSET = 4, 8

INIT_IN = struct.Struct("=IIII")  # major, minor, max_readahead, flags; flags2 follows if INIT_EXT is set
UINT32 = struct.Struct("=I")
UINT64 = struct.Struct("=Q")
FORGET_ONE = struct.Struct("=QQ")  # nodeid, nlookup
BATCH_FORGET_IN = struct.Struct("=II")  # count, dummy
GETATTR_IN = struct.Struct("=IIQ")  # getattr_flags, dummy, fh
GETATTR_FH = 1  # FUSE_GETATTR_FH
SETATTR_IN = struct.Struct("=IIQQQQQQIIIIIIII")
MKNOD_IN = struct.Struct("=IIII")  # mode, rdev, umask, padding
MKDIR_IN = struct.Struct("=II")  # mode, umask
ACCESS_IN = struct.Struct("=II")  # mask, padding
RENAME_IN = struct.Struct("=Q")  # newdir
RENAME2_IN = struct.Struct("=QII")  # newdir, flags, padding
OPEN_IN = struct.Struct("=II")  # flags, open_flags
CREATE_IN = struct.Struct("=IIII")  # flags, mode, umask, open_flags
READ_IN = struct.Struct("=QQIIQII")  # fh, offset, size, read_flags, lock_owner, flags, padding
READ_IN_HEAD = struct.Struct("=QQI")  # its first fields
WRITE_IN = struct.Struct("=QQIIQII")  # fh, offset, size, write_flags, lock_owner, flags, padding
WRITE_CACHE = 1  # FUSE_WRITE_CACHE
RELEASE_IN = struct.Struct("=QIIQ")  # fh, flags, release_flags, lock_owner
FLUSH_IN = struct.Struct("=QIIQ")  # fh, unused, padding, lock_owner
FSYNC_IN = struct.Struct("=QII")  # fh, fsync_flags, padding
FSYNC_FDATASYNC = 1
SETXATTR_IN = struct.Struct("=II")  # size, flags (SETXATTR_EXT is not negotiated)
GETXATTR_IN = struct.Struct("=II")  # size, padding
INTERRUPT_IN = UINT64

# -- replies -----------------------------------------------------------------------------------------------------------

OUT_HEADER = struct.Struct("=IiQ")  # len, -errno, unique
OUT_HEADER_SIZE = OUT_HEADER.size
_ATTR = "QQQQQQIIIIIIIIII"  # struct fuse_attr
ATTR_OUT = struct.Struct("=QII" + _ATTR)
ENTRY_OUT = struct.Struct("=QQQQII" + _ATTR)
OPEN_OUT = struct.Struct("=QII")  # fh, open_flags, padding
WRITE_OUT = struct.Struct("=II")  # size, padding
GETXATTR_OUT = struct.Struct("=II")  # size, padding
STATFS_OUT = struct.Struct("=QQQQQIIII6I")  # struct fuse_kstatfs
INIT_OUT = struct.Struct("=IIIIHHIIHHI7I")
# ino, off, namelen, type; the name follows, padded to 8 bytes. READDIRPLUS has an ENTRY_OUT before each.
DIRENT = struct.Struct("=QQII")
_NO_ENTRY = bytes(ENTRY_OUT.size)  # an entry with node id 0 is not a lookup
_ENTRY_DIRENT = struct.Struct(ENTRY_OUT.format + DIRENT.format.removeprefix("="))
_PADDING = tuple(bytes(-length % 8) for length in range(8))


@lru_cache(maxsize=256)
def _split_seconds(seconds: float) -> tuple[int, int]:
    whole = int(seconds)
    return whole, int((seconds - whole) * 1e9)


def _attr_fields(attributes: FileAttributes) -> tuple[int, ...]:
    inode, mode, nlink, size, mtime_ns, ctime_ns, uid, gid, allocated = attributes
    mtime, mtime_nsec = divmod(mtime_ns, 1_000_000_000)
    ctime, ctime_nsec = (mtime, mtime_nsec) if ctime_ns == mtime_ns else divmod(ctime_ns, 1_000_000_000)
    blocks = ((size if allocated is None else allocated) + 511) >> 9
    mtime &= 0xFFFFFFFFFFFFFFFF  # a time before 1970 is negative, sent as an unsigned number
    ctime &= 0xFFFFFFFFFFFFFFFF
    return (
        *(inode, size, blocks, mtime, mtime, ctime, mtime_nsec, mtime_nsec, ctime_nsec),
        *(mode, nlink, uid, gid, 0, _BLOCK_SIZE, 0),
    )


def pack_attributes(reply: AttributesReply) -> bytes:
    """Pack struct fuse_attr_out."""
    seconds, nanoseconds = _split_seconds(reply[1])
    return ATTR_OUT.pack(seconds, nanoseconds, 0, *_attr_fields(reply[0]))


def pack_entry(reply: EntryReply) -> bytes:
    """Pack struct fuse_entry_out."""
    node_id, generation, attributes, entry_valid, attr_valid = reply
    entry, entry_nsec = _split_seconds(entry_valid)
    attr, attr_nsec = _split_seconds(attr_valid)
    return ENTRY_OUT.pack(node_id, generation, entry, attr, entry_nsec, attr_nsec, *_attr_fields(attributes))


def pack_negative_entry(entry_valid: float) -> bytes:
    """Pack an entry without node: the kernel caches the name as absent."""
    entry, entry_nsec = _split_seconds(entry_valid)
    return ENTRY_OUT.pack(0, 0, entry, 0, entry_nsec, *[0] * 17)


def pack_open(reply: OpenReply) -> bytes:
    """Pack struct fuse_open_out."""
    return OPEN_OUT.pack(reply[0], reply[1], 0)


def pack_statfs(reply: StatfsReply) -> bytes:
    """Pack struct fuse_statfs_out."""
    return STATFS_OUT.pack(*reply, reply.block_size, *[0] * 7)


class DirectoryBuffer:
    """The reply to a READDIR or READDIRPLUS.

    Entries are added until a method returns False. The next request continues at the `next_offset` of the last one, any
    positive number below 2**63.
    """

    __slots__ = ("_chunks", "_room", "wants_attributes")

    def __init__(self, size: int, wants_attributes: bool) -> None:
        self.wants_attributes = wants_attributes  # READDIRPLUS: `add_entry` may be used
        self._chunks: list[bytes] = []
        self._room = size

    def add_name(self, name: bytes, mode: int, inode: int, next_offset: int) -> bool:
        """Add a name with its type; False if it does not fit.

        The lookup count of its node is unchanged.
        """
        head = DIRENT.pack(inode, next_offset, len(name), (mode >> 12) & 15)
        return self._append(_NO_ENTRY + head if self.wants_attributes else head, name)

    def add_entry(
        self, name: bytes, node_id: int, attributes: FileAttributes, valid_seconds: float, next_offset: int
    ) -> bool:
        """Add a name with its attributes; False if it does not fit.

        Otherwise the lookup count of its node grows by 1. The kernel may cache both for `valid_seconds`.
        """
        seconds, nanoseconds = _split_seconds(valid_seconds)
        fields = _attr_fields(attributes)
        dirent = (attributes[0], next_offset, len(name), (attributes[1] >> 12) & 15)
        head = _ENTRY_DIRENT.pack(node_id, 0, seconds, seconds, nanoseconds, nanoseconds, *fields, *dirent)
        return self._append(head, name)

    def _append(self, head: bytes, name: bytes) -> bool:
        chunk = head + name + _PADDING[len(name) & 7]
        room = self._room - len(chunk)
        if room < 0:
            return False
        self._room = room
        self._chunks.append(chunk)
        return True

    def to_bytes(self) -> bytes:
        """Return the packed entries."""
        return b"".join(self._chunks)


# -- notifications -----------------------------------------------------------------------------------------------------


class NotifyCode(IntEnum):
    """enum fuse_notify_code."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    INC_EPOCH = 8  # Linux 6.16


EXPIRE_ONLY = 1  # FUSE_EXPIRE_ONLY, Linux 6.2: the name is looked up again, the dentry stays hashed


def _pack_notification(code: int, *payload: bytes) -> bytes:
    body = b"".join(payload)
    return OUT_HEADER.pack(OUT_HEADER_SIZE + len(body), code, 0) + body


def pack_inval_inode(node_id: int, *, keep_pages: bool = False) -> bytes:
    """Pack INVAL_INODE: attributes and all pages, or attributes alone."""
    return _pack_notification(NotifyCode.INVAL_INODE, struct.pack("=Qqq", node_id, -1 if keep_pages else 0, 0))


def pack_inval_entry(parent_id: int, name: bytes, flags: int = 0) -> bytes:
    """Pack INVAL_ENTRY: a name, present or absent; `flags` is 0 or EXPIRE_ONLY."""
    return _pack_notification(NotifyCode.INVAL_ENTRY, struct.pack("=QII", parent_id, len(name), flags), name, b"\0")


def pack_store(node_id: int, offset: int, data: bytes) -> bytes:
    """Pack STORE: bytes for the page cache of a node, which grows to hold them."""
    return _pack_notification(NotifyCode.STORE, struct.pack("=QQII", node_id, offset, len(data), 0), data)


def pack_inc_epoch() -> bytes:
    """Pack INC_EPOCH: every dentry of the mount expires."""
    return _pack_notification(NotifyCode.INC_EPOCH)
