"""A proxy in front of a real redis-server that makes the faults of a network, one command at a time.

It understands RESP just enough to know where a command and an answer begin and end, so that a fault can hit one command
by its name: be delayed, dropped before it is sent on, answered by silence, or have its answer lost *after* it ran.

Threads: one that accepts, and one for each connection; `inject` and `clear` may be called at any time from the test's.
"""

import contextlib
import selectors
import shutil
import socket
import struct
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

FaultKind = Literal[
    "delay",  # wait `seconds`, or until `released`, then send it on as usual
    "drop",  # hang up; the server never sees the command
    "reset",  # the same, with a TCP reset
    "hang",  # the server never sees it, and this connection gets no further replies
    "late",  # send it on after `seconds`, whether the client is still there or not; pass back no further replies
    "error",  # the server never sees it; reply with the error `text`
    "garbage",  # it runs; reply with bytes that are no RESP
    "lost_reply",  # it runs; hang up in place of replying
    "lost_reset",  # the same, with a TCP reset
    "partial",  # it runs; send half of the reply, then hang up
    "hang_reply",  # it runs; and this connection gets no further replies
]

_BLOCKING_KINDS = {"drop", "reset", "hang", "late", "error"}
_RECV_BYTES = 262144


@dataclass
class Fault:
    """A fault of commands named `command` (None: of all): after the first `skip`, of the next `times` (None: all)."""

    kind: FaultKind
    command: str | None = None
    skip: int = 0
    times: int | None = None
    seconds: float = 0.0
    text: str = "ERR injected"
    hits: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    def take_hit(self, name: str) -> bool:
        """Return whether this command is hit, and count it."""
        if self.command is not None and self.command.upper() != name:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True


class Proxy:
    """A proxy on a Unix socket of its own (`socket_path`), or with `tcp=True` on a loopback port (`port`)."""

    def __init__(self, upstream: str, *, tcp: bool = False) -> None:
        self._upstream = upstream
        self._directory = Path(tempfile.mkdtemp(prefix="redisfuse-proxy-"))
        self.socket_path = str(self._directory / "proxy.sock")
        self._listener = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(("127.0.0.1", 0) if tcp else self.socket_path)
        self._listener.listen(64)
        self.port: int = self._listener.getsockname()[1] if tcp else 0
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._connections: set[_ProxyConnection] = set()
        self._stopping = threading.Event()
        self._flowing = threading.Event()
        self._flowing.set()
        self.is_refusing = False
        self.commands: list[str] = []
        self._thread = threading.Thread(target=self._accept_connections, name="proxy", daemon=True)

    def url(self, db: int = 0) -> str:
        """Return the URL of the server through this proxy."""
        return f"redis://127.0.0.1:{self.port}/{db}" if self.port else f"unix://{self.socket_path}?db={db}"

    # -- faults -------------------------------------------------------------------------------------------------------

    def inject(self, kind: FaultKind, command: str | None = None, **details: object) -> Fault:
        """Begin a fault; it lasts until `times` are used up, or clear()."""
        fault = Fault(kind, command, **details)  # type: ignore[arg-type]
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """End all faults. A connection that hangs keeps hanging."""
        with self._lock:
            self._faults.clear()
        self.is_refusing = False

    def freeze(self) -> None:
        """Pass nothing on, in either direction, as a network that loses all packets, until thaw()."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Pass on what has arrived since freeze(), and what follows."""
        self._flowing.set()

    def refuse_connections(self) -> None:
        """Hang up on new connections at once, until clear()."""
        self.is_refusing = True

    def disconnect_all(self) -> None:
        """Hang up on every current connection."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.disconnect()

    def _take_fault(self, name: str) -> Fault | None:
        with self._lock:
            self.commands.append(name)
            return next((fault for fault in self._faults if fault.take_hit(name)), None)

    # -- start and end -------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start to listen."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Hang up on all clients, and wait for the threads to end."""
        self._stopping.set()
        self.thaw()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        self.disconnect_all()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.join(5)
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept_connections(self) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                if self.is_refusing:
                    raise ConnectionRefusedError
                server.connect(self._upstream)
            except OSError:
                client.close()
                server.close()
                continue
            connection = _ProxyConnection(self, client, server)
            with self._lock:
                self._connections.add(connection)
            connection.start()

    def _remove_connection(self, connection: "_ProxyConnection") -> None:
        with self._lock:
            self._connections.discard(connection)


class _HangUpError(Exception):
    """The end of this connection."""

    def __init__(self, *, reset: bool = False) -> None:
        super().__init__()
        self.reset = reset


class _ProxyConnection(threading.Thread):
    """One client: its commands are sent on one by one, and their replies passed back."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        super().__init__(name="proxy connection", daemon=True)
        self._proxy = proxy
        self._client = client
        self._server = server
        self._request_buffer = bytearray()  # from the client, not yet a whole command
        self._reply_buffer = bytearray()  # from the server, not yet a whole reply
        self._client_output = bytearray()
        self._server_output = bytearray()
        self._pending_commands: list[tuple[str, Fault | None]] = []  # sent, without a reply yet
        self._is_hung = False

    def disconnect(self) -> None:
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        reset = False
        try:
            self._relay()
        except _HangUpError as error:
            reset = error.reset
        except OSError:
            pass
        finally:
            if reset:  # https://man7.org/linux/man-pages/man7/socket.7.html: lingering for 0 s makes close a reset
                self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._client.close()
            self._server.close()
            self._proxy._remove_connection(self)

    def _relay(self) -> None:
        self._client.setblocking(False)
        self._server.setblocking(False)
        with selectors.DefaultSelector() as selector:
            for end in (self._client, self._server):
                selector.register(end, selectors.EVENT_READ)
            while True:
                self._proxy._flowing.wait()
                for end, out in ((self._client, self._client_output), (self._server, self._server_output)):
                    selector.modify(end, selectors.EVENT_READ | (selectors.EVENT_WRITE if out else 0))
                for key, events in selector.select(1.0):
                    if not self._proxy._flowing.is_set():
                        break
                    if events & selectors.EVENT_WRITE:
                        out = self._client_output if key.fileobj is self._client else self._server_output
                        with contextlib.suppress(BlockingIOError):
                            del out[: key.fileobj.send(out)]  # type: ignore[union-attr]
                    if events & selectors.EVENT_READ:
                        self._receive(key.fileobj)  # type: ignore[arg-type]

    def _receive(self, end: socket.socket) -> None:
        try:
            data = end.recv(_RECV_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise _HangUpError
        if self._is_hung:
            return
        if end is self._client:
            self._request_buffer += data
            for command in _take_complete_values(self._request_buffer):
                self._handle_command(command)
        else:
            self._reply_buffer += data
            for answer in _take_complete_values(self._reply_buffer):
                self._handle_reply(answer)

    def _handle_command(self, packed: bytes) -> None:
        name = _command_name(packed)
        fault = self._proxy._take_fault(name)
        if self._is_hung:
            return
        if fault is not None:
            if fault.kind == "delay":
                deadline = time.monotonic() + fault.seconds
                while not self._proxy._stopping.is_set() and (remaining := deadline - time.monotonic()) > 0:
                    if fault.released.wait(min(remaining, 0.02)):
                        break
                fault = None
            elif fault.kind in _BLOCKING_KINDS:
                self._apply_fault(fault, packed)
                return
        self._pending_commands.append((name, fault))
        self._server_output += packed

    def _apply_fault(self, fault: Fault, packed: bytes) -> None:
        if fault.kind == "hang":
            self._is_hung = True
        elif fault.kind == "late":
            self._drain_server()
            self._proxy._stopping.wait(fault.seconds)
            self._server.setblocking(True)
            self._server.sendall(packed)
            self._server.recv(_RECV_BYTES)
            raise _HangUpError
        elif fault.kind == "error":
            if self._pending_commands:  # the replies to earlier commands come first
                self._drain_server()
            self._client_output += b"-" + fault.text.encode() + b"\r\n"
        else:
            raise _HangUpError(reset=fault.kind == "reset")

    def _drain_server(self) -> None:
        """Send all pending commands, and pass back all their replies."""
        self._server.setblocking(True)
        self._server.settimeout(10)
        self._server.sendall(self._server_output)
        self._server_output.clear()
        while self._pending_commands and not self._is_hung:
            self._receive(self._server)
        self._server.setblocking(False)

    def _handle_reply(self, reply: bytes) -> None:
        if self._is_hung:
            return
        if reply[:1] == b">" and not (self._pending_commands and self._pending_commands[0][0] == "SUBSCRIBE"):
            self._client_output += reply  # a push belongs to no command
            return
        _, fault = self._pending_commands.pop(0) if self._pending_commands else ("", None)
        if fault is None:
            self._client_output += reply
        elif fault.kind == "hang_reply":
            self._is_hung = True
        elif fault.kind == "garbage":
            self._client_output += b"\x00\xfe what is this?\r\n"
        elif fault.kind == "partial":
            self._send_now(bytes(self._client_output) + reply[: max(1, len(reply) // 2)])
            raise _HangUpError
        else:
            self._send_now(bytes(self._client_output))
            raise _HangUpError(reset=fault.kind == "lost_reset")

    def _send_now(self, data: bytes) -> None:
        self._client.setblocking(True)
        self._client.settimeout(5)
        self._client.sendall(data)
        time.sleep(0.01)  # let the client read it before a reset discards it


def _command_name(packed: bytes) -> str:
    """Return the command's first word, in capitals."""
    if packed[:1] != b"*":
        return packed.split()[0].decode("ascii", "replace").upper() if packed.strip() else ""
    _, size, rest = packed.split(b"\r\n", 2)
    return rest[: int(size[1:])].decode("ascii", "replace").upper()


def _take_complete_values(buffer: bytearray) -> list[bytes]:
    """Remove every whole RESP value from the front of the buffer and return them."""
    values: list[bytes] = []
    start = 0
    while (end := _find_value_end(buffer, start)) is not None:
        values.append(bytes(memoryview(buffer)[start:end]))
        start = end
    del buffer[:start]
    return values


def _find_value_end(buffer: bytearray, start: int) -> int | None:
    """Return the end of the RESP2 or RESP3 value (or line) that begins at `start`; None if it is incomplete."""
    open_values = 1
    while open_values:
        line_end = buffer.find(b"\r\n", start)
        if line_end < 0:
            return None
        kind, count = bytes(buffer[start : start + 1]), bytes(buffer[start + 1 : line_end])
        start = line_end + 2
        open_values -= 1
        if kind in (b"$", b"=", b"!") and count != b"-1":
            start += int(count) + 2
            if start > len(buffer):
                return None
        elif kind in (b"*", b">", b"~") and count != b"-1":
            open_values += int(count)
        elif kind in (b"%", b"|"):
            open_values += 2 * int(count) + (kind == b"|")
    return start
