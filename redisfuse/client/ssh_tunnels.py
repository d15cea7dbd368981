"""Tunnels to servers through a bastion (`--ssh`), made by the system's ssh.

One ssh process, the master of a ControlMaster socket, carries all of them. For each server, a socket in a private
folder is forwarded to the server's address as the bastion resolves it. So no other user of this machine can use them.
If the process ends, the next connection starts another one. Its errors are shown as they are.

Thread: `redisfuse-ssh` starts the process and waits for its end; the kernel ends the process with that thread.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from redisfuse.client.address import Address, format_host_port
from redisfuse.client.address_map import AddressMap
from redisfuse.errors import UnavailableError, UsageError

log = logging.getLogger(__name__)

ALIVE_SECONDS = 5
"""Between two messages that test whether the bastion answers; after three without an answer, ssh ends."""

_START_SECONDS = 60.0  # for a password or a passphrase to be typed
_POLL_SECONDS = 0.05
_MAX_ERROR_LINES = 3


def check_destination(destination: str) -> None:
    """Raise UsageError if ssh could not be run with this destination."""
    if not destination or destination[0] == "-" or any(character.isspace() for character in destination):
        raise UsageError(f"--ssh {destination!r} is not USER@HOST")
    if shutil.which("ssh") is None:
        raise UsageError("--ssh needs the program ssh (apt install openssh-client)")


def create_address_map(entries: Iterable[str], destination: str | None) -> AddressMap:
    """Return the map for `--cluster-map` and `--ssh`. Raises UsageError.

    It is closed when the process ends, if not before.
    """
    address_map = AddressMap.parse(entries)
    if destination is None:
        return address_map
    tunnels = SshTunnels(destination, address_map)
    atexit.register(tunnels.close)
    return tunnels


class SshTunnels(AddressMap):
    """The addresses of servers, reached through `destination` (USER@HOST)."""

    def __init__(self, destination: str, entries: AddressMap | None = None) -> None:
        """Create the tunnels, which the first connection opens. Raises UsageError."""
        super().__init__()
        check_destination(destination)
        self._destination = destination
        self._entries = entries or AddressMap()
        self._folder = Path(tempfile.mkdtemp(prefix="redisfuse-ssh-"))  # mode 0700
        self._lock = threading.Lock()  # held while a tunnel is opened; guards what is below
        self._sockets: dict[str, Path] = {}  # of the process that runs, by the forwarded address
        self._count = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._started = threading.Event()
        self._is_closed = False
        self._seen_bytes = 0  # of the errors, when the last `apply` began

    def apply(self, address: Address) -> Address:
        """Return the address with the socket of its tunnel in `via`.

        Raises UnavailableError.
        """
        with contextlib.suppress(OSError):
            self._seen_bytes = (self._folder / "errors").stat().st_size
        if address.kind == "unix":
            target = address.unix_path
        else:
            target = format_host_port(*self._entries.translate(address.host, address.port))
        return replace(address, via=str(self._open(target)))

    @property
    def error_text(self) -> str:
        """The last lines that ssh has printed since the last `apply` began."""
        try:
            text = (self._folder / "errors").read_bytes()[self._seen_bytes :].decode("utf-8", "replace")
        except OSError:
            return ""
        return "; ".join([line.strip() for line in text.splitlines() if line.strip()][-_MAX_ERROR_LINES:])

    def close(self) -> None:
        """End ssh, and remove the sockets."""
        with self._lock:
            self._is_closed = True
            process = self._process
        if process is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- under the lock -----------------------------------------------------------------------------------------------

    def _open(self, target: str) -> Path:
        with self._lock:
            if self._is_closed:
                raise UnavailableError("the tunnels are closed: the mount is ending")
            if self._process is None or self._process.poll() is not None:
                self._start()
            if target not in self._sockets:
                self._count += 1
                path = self._folder / str(self._count)
                self._control("forward", "-L", f"{path}:{target}")
                self._sockets[target] = path
            return self._sockets[target]

    def _start(self) -> None:
        self._sockets.clear()
        self._process = None
        self._seen_bytes = 0
        self._started.clear()
        with contextlib.suppress(FileNotFoundError):
            (self._folder / "control").unlink()
        threading.Thread(target=self._run, name="redisfuse-ssh", daemon=True).start()
        self._started.wait()
        deadline = time.monotonic() + _START_SECONDS
        while self._process is not None and self._process.poll() is None:
            if (self._folder / "control").exists():
                return
            if time.monotonic() > deadline:
                self._process.terminate()
                raise UnavailableError(f"ssh {self._destination} is not connected after {_START_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)
        raise UnavailableError(f"ssh {self._destination} failed: {self.error_text or 'it printed no reason'}")

    def _control(self, *words: str) -> None:
        """Send a command to the running ssh."""
        command = ["ssh", "-S", str(self._folder / "control"), "-O", *words, "--", self._destination]
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = " ".join(result.stderr.split()) or "it printed no reason"
            raise UnavailableError(f"ssh {self._destination} can't forward to {words[-1].partition(':')[2]}: {reason}")

    def _run(self) -> None:
        try:
            with open(self._folder / "errors", "wb") as errors:
                self._process = subprocess.Popen(
                    self._command_line(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
                )
        except OSError as error:
            log.warning("ssh can't be started: %s", error)
            return
        finally:
            self._started.set()
        status = self._process.wait()
        if not self._is_closed:
            log.warning("ssh %s ended with status %d: %s", self._destination, status, self.error_text)

    def _command_line(self) -> list[str]:
        options = [
            *("ControlPersist=no", "StreamLocalBindMask=0177", "StreamLocalBindUnlink=yes", "ClearAllForwardings=no"),
            *(f"ServerAliveInterval={ALIVE_SECONDS}", "ServerAliveCountMax=3", "ConnectTimeout=10"),
            *([] if _has_terminal() else ["BatchMode=yes"]),
        ]
        end_with_thread = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        words = [word for option in options for word in ("-o", option)]
        return [
            *end_with_thread,
            "ssh",
            "-N",
            "-M",
            "-S",
            str(self._folder / "control"),
            *words,
            "--",
            self._destination,
        ]


def _has_terminal() -> bool:
    """Return whether ssh could ask for a password."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
