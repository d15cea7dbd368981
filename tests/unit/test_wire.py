"""The protocol's structures, INIT, and the dispatcher of requests, without a mount."""

from __future__ import annotations

import errno
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from redisfuse.errors import MountError
from redisfuse.fuse import wire
from redisfuse.fuse.dispatch import Dispatcher
from redisfuse.fuse.init import negotiate
from redisfuse.fuse.interface import FuseSessionOptions
from redisfuse.fuse.request import Request
from redisfuse.fuse.wire import Opcode
from redisfuse.fuse.worker_pool import LeaderFollowerPool
from tests.support.kernel_tree import InMemoryOperations, Inode, populate

STRUCTURE_SIZES = {  # sizeof of each, compiled from include/uapi/linux/fuse.h
    "OUT_HEADER": 16,
    "ATTR_OUT": 104,
    "ENTRY_OUT": 128,
    "OPEN_OUT": 16,
    "WRITE_OUT": 8,
    "GETXATTR_OUT": 8,
    "STATFS_OUT": 80,
    "INIT_OUT": 64,
    "DIRENT": 24,
    "GETATTR_IN": 16,
    "SETATTR_IN": 88,
    "MKNOD_IN": 16,
    "MKDIR_IN": 8,
    "ACCESS_IN": 8,
    "RENAME_IN": 8,
    "RENAME2_IN": 16,
    "OPEN_IN": 8,
    "CREATE_IN": 16,
    "READ_IN": 40,
    "WRITE_IN": 40,
    "RELEASE_IN": 24,
    "FLUSH_IN": 24,
    "FSYNC_IN": 16,
    "GETXATTR_IN": 8,
    "SETXATTR_IN": 8,  # without SETXATTR_EXT
    "FORGET_ONE": 16,
    "BATCH_FORGET_IN": 8,
    "INTERRUPT_IN": 8,
}


def test_structures_have_the_sizes_of_the_kernel() -> None:
    """Each structure is as long as in the kernel's header."""
    assert {name: getattr(wire, name).size for name in STRUCTURE_SIZES} == STRUCTURE_SIZES
    assert wire.IN_HEADER_SIZE == wire.IN_HEADER.size + wire.IN_CALLER.size + 4 == 40
    assert len(wire.pack_inval_inode(1)) == 16 + 24
    assert len(wire.pack_inval_entry(1, b"name")) == 16 + 16 + 5
    assert len(wire.pack_store(1, 0, b"data")) == 16 + 24 + 4


def build_init(major: int, minor: int, flags: int, flags2: int = 0) -> memoryview:
    body = struct.pack("=IIIII", major, minor, 131072, flags, flags2) + bytes(44)
    return memoryview(struct.pack("=IIQQIIII", 40 + len(body), Opcode.INIT, 1, 0, 0, 0, 0, 0) + body)


def test_negotiating_versions() -> None:
    """An older minor version is taken, a newer major answered with ours, and what is too old refused."""
    options = FuseSessionOptions(Path("/"))
    every = 0xFFFFFFFF
    reply, connection = negotiate(build_init(7, 31, every & ~wire.InitFlag.INIT_EXT), options)
    assert connection is not None
    assert (connection.minor, connection.has_inc_epoch) == (31, False)
    assert wire.INIT_OUT.unpack(reply)[:3] == (7, 31, 131072)
    assert connection.flags & wire.InitFlag.DO_READDIRPLUS
    assert not connection.flags & wire.InitFlag.READDIRPLUS_AUTO
    _, connection = negotiate(build_init(7, 99, every, every), options)
    assert connection is not None
    assert connection.minor == wire.KERNEL_MINOR_MAX
    assert connection.flags & wire.InitFlag.HAS_EXPIRE_ONLY
    reply, connection = negotiate(build_init(8, 0, every), options)
    assert connection is None
    assert wire.INIT_OUT.unpack(reply)[0] == 7
    with pytest.raises(MountError, match=r"7\.31"):
        negotiate(build_init(7, 30, every), options)


class BoundedOperations(InMemoryOperations):
    """Refuses what would take much memory."""

    def _resize(self, inode: Inode, size: int) -> None:
        if size > 1 << 20:
            raise OSError(errno.EFBIG, "too long")
        super()._resize(inode, size)

    def write(self, context: Any, handle: int, offset: int, data: memoryview, flags: int, is_mapped: bool) -> int:
        if offset > 1 << 20:
            raise OSError(errno.EFBIG, "too long")
        return super().write(context, handle, offset, data, flags, is_mapped)


class DirectKernel:
    """Feeds a dispatcher with requests, and checks that each gets the one reply that the kernel would accept."""

    def __init__(self) -> None:
        self.operations = BoundedOperations()
        populate(self.operations, {"d": 10})
        self.dispatcher = Dispatcher(self.operations, read_only=False)
        self.request = Request(LeaderFollowerPool(lambda _: None, 1, lambda: None))  # type: ignore[arg-type, return-value]
        self.dispatcher.requests.append(self.request)
        self.unique = 0

    def send(self, opcode: int, node_id: int, body: bytes, cut: int | None = None) -> tuple[int, bytes]:
        """Return errno and payload."""
        self.unique += 2
        packet = struct.pack("=IIQQIIII", 40 + len(body), opcode, self.unique, node_id, 1, 2, 3, 0) + body
        packet = packet[:cut]
        self.request.buffer[:8192] = b"\xff" * 8192  # bytes of an earlier request
        self.request.buffer[: len(packet)] = packet
        reply = self.dispatcher.process(self.request, len(packet))
        if reply is None:
            assert len(packet) < 40 or opcode in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT)
            return 0, b""
        joined = reply if isinstance(reply, bytes) else b"".join(reply)
        length, error, unique = wire.OUT_HEADER.unpack_from(joined)
        assert (length, unique) == (len(joined), self.unique)
        assert -4096 < error <= 0
        assert not error or length == 16
        return -error, joined[16:]


def test_requests_cut_short_are_invalid(caplog: pytest.LogCaptureFixture) -> None:
    """Every request that lacks its last bytes is answered EINVAL, and nothing is done."""
    requests = {
        Opcode.LOOKUP: b"d\0",
        Opcode.GETATTR: bytes(16),
        Opcode.SETATTR: bytes(88),
        Opcode.MKNOD: bytes(16) + b"new\0",
        Opcode.MKDIR: bytes(8) + b"new\0",
        Opcode.UNLINK: b"d\0",
        Opcode.RMDIR: b"d\0",
        Opcode.RENAME: struct.pack("=Q", 1) + b"d\0e\0",
        Opcode.RENAME2: struct.pack("=QII", 1, 0, 0) + b"d\0e\0",
        Opcode.OPEN: bytes(8),
        Opcode.READ: bytes(40),
        Opcode.WRITE: struct.pack("=QQIIQII", 0, 0, 4, 0, 0, 0, 0) + b"data",
        Opcode.RELEASE: bytes(24),
        Opcode.FSYNC: bytes(16),
        Opcode.SETXATTR: struct.pack("=II", 5, 0) + b"user.a\0value",
        Opcode.GETXATTR: bytes(8) + b"user.a\0",
        Opcode.LISTXATTR: bytes(8),
        Opcode.REMOVEXATTR: b"user.a\0",
        Opcode.FLUSH: bytes(24),
        Opcode.OPENDIR: bytes(8),
        Opcode.READDIR: bytes(40),
        Opcode.READDIRPLUS: bytes(40),
        Opcode.RELEASEDIR: bytes(24),
        Opcode.FSYNCDIR: bytes(16),
        Opcode.CREATE: bytes(16) + b"new\0",
        Opcode.BATCH_FORGET: struct.pack("=IIQQ", 1, 0, 2, 1),
        Opcode.FORGET: bytes(8),
        Opcode.INTERRUPT: bytes(8),
    }
    kernel = DirectKernel()
    for opcode, body in requests.items():
        for cut in range(40 + len(body)):
            number, _ = kernel.send(opcode, 1, body, cut)
            if cut >= 40 and opcode not in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT):
                assert number == errno.EINVAL, (opcode, cut)
    assert set(kernel.operations.root.children) == {b"d"}
    assert not kernel.operations.counts
    assert "malformed request" in caplog.text


def test_nonsense_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    """A hundred thousand requests of random bytes each get one reply that the kernel accepts, or rightly none."""
    caplog.set_level(100)
    kernel, source = DirectKernel(), random.Random(14)
    for _ in range(100_000):
        opcode = source.choice([source.randrange(64), source.randrange(64), source.getrandbits(32)])
        body = source.randbytes(source.choice([0, 1, 8, 16, 24, 40, 88, 200]))
        if source.random() < 0.5:
            body = body.replace(body[:1], b"\0") + source.choice([b"d\0f000001\0", b"f000002\0", b"d\0"])
        kernel.send(opcode, source.choice([0, 1, 2, 3, source.getrandbits(64)]), body)
    assert kernel.send(Opcode.GETATTR, 1, bytes(16))[0] == 0


def test_unknown_opcodes_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """They are answered ENOSYS, below and above the known ones; what is known not to be implemented is not logged."""
    kernel = DirectKernel()
    for _ in range(3):
        assert [kernel.send(opcode, 1, b"")[0] for opcode in (0, 7, 99, 1 << 31)] == [errno.ENOSYS] * 4
        assert kernel.send(Opcode.POLL, 1, bytes(24))[0] == errno.ENOSYS
        assert kernel.send(Opcode.FALLOCATE, 1, bytes(32))[0] == errno.EOPNOTSUPP
    assert caplog.text.count("not implemented") == 4
