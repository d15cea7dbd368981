"""A Redis server as the rest of redisfuse sees it: ask, and get an answer or one of errors.py's errors.

Threads: everything here may be called from any thread. Locks are held only for bookkeeping, never while waiting for the
server. Reads are asked once more on a new connection if theirs is lost; writes go over writer() and are never repeated.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, BinaryIO, TypeVar

from redisfuse.client.address import Address
from redisfuse.client.allowlist import READS, SENTINEL, WRITES, Guard
from redisfuse.client.capabilities import Facts, facts_of_hello, facts_of_info
from redisfuse.client.channel import Argument, Command, Dialogue
from redisfuse.client.connection import NAME, open_connection
from redisfuse.client.limits import Limits
from redisfuse.client.pool import Pool, Room
from redisfuse.client.stats import Brake, Counters
from redisfuse.errors import (
    AccessError,
    ConnectionLostError,
    ReadOnlyError,
    RedisFuseError,
    TryAgainError,
    UnavailableError,
)

__all__ = ["Argument", "Command", "Dialogue", "Facts", "Limits", "Server"]

T = TypeVar("T")

_FIRST_PAUSE = 0.02  # seconds before asking again after "not now"; doubled up to the longest
_LONGEST_PAUSE = 0.25


class Server:
    """One server and database. Nothing is connected until connect() or the first question."""

    def __init__(self, address: Address, limits: Limits | None = None, *, writable: bool = False) -> None:
        self.address = address
        self.limits = limits or Limits()
        self.writable = writable
        self.counters = Counters()
        self._brake = Brake(self.limits.rate)
        self._room = Room(self._most_pooled)
        self._readers = Pool(self._room, self._most_readers, lambda seconds: self._open(READS, seconds))
        self._writers = Pool(self._room, self._most_writers, lambda seconds: self._open(WRITES, seconds))
        self._lock = threading.Lock()
        self._facts: Facts | None = None
        self._dialogues: set[Dialogue] = set()
        self._extra = 0  # dialogues open, or being opened
        self._may_set_name = True
        self._closed = False

    # -- what it is ---------------------------------------------------------------------------------------------------

    def connect(self) -> Facts:
        """Make sure that the server is there, lets us in, and is one that can be mounted.

        Raises UnavailableError (down, not Redis, a cluster), AccessError (password), UsageError (no such database).
        """
        self._reading(lambda _dialogue: None)
        assert self._facts is not None  # learnt by the first connection
        return self._facts

    @property
    def facts(self) -> Facts:
        """What the server was when it was first reached; reaches it if it was not yet."""
        return self._facts or self.connect()

    # -- reading ------------------------------------------------------------------------------------------------------

    def ask(self, *command: Argument) -> Any:
        """The answer to one reading command; an error reply raises its error."""

        def work(dialogue: Dialogue) -> Any:
            answer = dialogue.exchange((command,))[0]
            if isinstance(answer, RedisFuseError):
                raise answer
            return answer

        return self._reading(work)

    def ask_many(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to reading commands, in order, asked in batches of `limits.pipeline`.

        An error reply is a RedisFuseError object in the list; only "not now" (LOADING...), which concerns the server
        and not the command, raises TryAgainError when it lasts.
        """
        answers: list[Any] = []
        size = self.limits.batch
        for start in range(0, len(commands), size):
            answers += self._reading(_Batch(commands[start : start + size]))
        return answers

    def fetch_into(self, file: BinaryIO, *command: Argument) -> int:
        """Write the one bulk string that a reading command answers to a seekable file, where it stands, piece by piece.

        Returns its length in bytes. Raises NotFoundError for nil, an error reply's error, or the file's OSError.
        """
        start = file.tell()

        def work(dialogue: Dialogue) -> int:
            file.seek(start)
            file.truncate()
            return dialogue.fetch_into(file, command)

        return self._reading(work)

    def _reading(self, work: Callable[[Dialogue], T]) -> T:
        """Do `work` on a connection; again while the server says "not now", once more if the connection was lost."""
        deadline = time.monotonic() + self.limits.timeout
        pause = _FIRST_PAUSE
        lost = False
        while True:
            left = max(0.001, deadline - time.monotonic())
            try:
                with self._readers.use(left) as dialogue:
                    dialogue.timeout = left
                    return work(dialogue)
            except TryAgainError:
                if time.monotonic() + pause >= deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            except ConnectionLostError:
                self._readers.forget()
                if lost or self._closed or time.monotonic() >= deadline:
                    raise
                lost = True
                self.counters.add(reconnects=1)

    # -- connections of one's own -------------------------------------------------------------------------------------

    @contextmanager
    def dialogue(self, *, resp3: bool = False, guard: Guard = READS) -> Iterator[Dialogue]:
        """A reading connection for the body of `with` alone, for as long as it likes (the scan, the follower).

        It counts among `limits.connections`, so the pool has one less, but at least one. close() ends a wait in it.
        Only permissions.py gives another `guard`.
        """
        with self._lock:
            self._extra += 1
        self._room.shrink()
        dialogue: Dialogue | None = None
        try:
            dialogue = self._open(guard, self.limits.timeout, resp3=resp3)
            with self._lock:
                self._dialogues.add(dialogue)
            if self._closed:
                raise UnavailableError("the connections are closed: the mount is ending")
            yield dialogue
        finally:
            with self._lock:
                self._extra -= 1
                if dialogue is not None:
                    self._dialogues.discard(dialogue)
            if dialogue is not None:
                dialogue.close()

    @contextmanager
    def writer(self) -> Iterator[Dialogue]:
        """A connection that may write, for the body of `with` alone. ReadOnlyError unless the Server is writable."""
        if not self.writable:
            raise ReadOnlyError("this mount is read-only: it was made without --write")
        with self._writers.use(self.limits.timeout, checked=True) as dialogue:
            try:
                yield dialogue
            except ConnectionLostError:
                self._writers.forget()
                raise

    def close(self) -> None:
        """Hang up everywhere; waits in other threads end with UnavailableError."""
        self._closed = True
        self._readers.close()
        self._writers.close()
        with self._lock:
            dialogues = list(self._dialogues)
        for dialogue in dialogues:
            dialogue.close()

    # -- how many -----------------------------------------------------------------------------------------------------

    def _most_pooled(self) -> int:
        """Connections for reading and writing together: what the dialogues leave."""
        return max(2 if self.writable else 1, self.limits.connections - self._extra)

    def _most_writers(self) -> int:
        """Half of all, but at least one stays for reading."""
        return max(1, min(self.limits.connections // 2, self._most_pooled() - 1))

    def _most_readers(self) -> int:
        """All but one, which stays for writing: so one request that hangs does not stop the others."""
        return max(1, self._most_pooled() - (1 if self.writable else 0))

    # -- connecting ---------------------------------------------------------------------------------------------------

    def _open(self, guard: Guard, seconds: float, *, resp3: bool = False) -> Dialogue:
        """A new connection, named, and not disturbing the server's LRU; within `seconds`."""
        address = self._locate(seconds)
        connection = open_connection(
            address, guard, timeout=seconds, counters=self.counters, brake=self._brake, resp3=resp3
        )
        dialogue = Dialogue(connection, address, seconds, resp3=resp3)
        try:
            greeting: list[Command] = [(b"CLIENT", b"SETNAME", NAME)] if self._may_set_name else []
            facts = self._facts
            if facts is None:
                facts = self._learn(dialogue)
            if facts.has_no_touch:
                greeting.append((b"CLIENT", b"NO-TOUCH", b"ON"))
            for command, answer in zip(greeting, dialogue.exchange(greeting) if greeting else (), strict=True):
                if isinstance(answer, AccessError) and command[1] == b"SETNAME":
                    self._may_set_name = False  # a name is a courtesy; asking again would fill the server's ACL LOG
                elif isinstance(answer, TryAgainError):
                    raise answer
        except BaseException:
            dialogue.close()
            raise
        self._facts = facts
        dialogue.timeout = self.limits.timeout
        return dialogue

    def _locate(self, seconds: float) -> Address:
        """The address to connect to: of the master now, where Sentinels know it."""
        address = self.address
        if address.kind == "cluster":
            raise UnavailableError(_NO_CLUSTER.format(place=address.place))
        if address.kind != "sentinel":
            return address
        reasons: list[str] = []
        for host, port in address.nodes:
            node = Address(
                host=host,
                port=port,
                username=address.sentinel_username,
                password=address.sentinel_password,
                tls=address.tls,
            )
            try:
                master = self._ask_sentinel(node, address.service, seconds / len(address.nodes))
            except RedisFuseError as error:
                reasons.append(str(error))
                continue
            if master:
                host, port = master[0].decode(), int(master[1])
                return replace(address, kind="tcp", host=host, port=port, nodes=(), service="")
            reasons.append(f"{node.place} knows no master called {address.service}")
        raise UnavailableError(f"no Sentinel tells the master: {'; '.join(reasons)}")

    def _ask_sentinel(self, node: Address, service: str, seconds: float) -> list[bytes] | None:
        connection = open_connection(node, SENTINEL, timeout=seconds, counters=self.counters, brake=self._brake)
        dialogue = Dialogue(connection, node, seconds)
        try:
            answer = dialogue.exchange([(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service)])[0]
        finally:
            dialogue.close()
        if isinstance(answer, RedisFuseError):
            raise answer
        return answer if isinstance(answer, list) and len(answer) == 2 else None

    def _learn(self, dialogue: Dialogue) -> Facts:
        """What the server is; raises for one that can't be mounted."""
        answer = dialogue.exchange([(b"INFO",)])[0]
        if isinstance(answer, AccessError) and not str(answer).startswith("the server wants a password"):
            hello = dialogue.exchange([(b"HELLO",)])[0]  # which no ACL can forbid
            facts = Facts() if isinstance(hello, RedisFuseError) else facts_of_hello(hello)
        elif isinstance(answer, RedisFuseError):
            raise answer
        else:
            text = answer if isinstance(answer, bytes) else str(answer).encode()
            facts = facts_of_info(text)
        place = self.address.place
        if facts.cluster:
            raise UnavailableError(_NO_CLUSTER.format(place=place))
        if facts.mode == "sentinel":
            raise UnavailableError(f"{place} is a Sentinel, not a server: use redis+sentinel://{place}/SERVICE")
        return facts


_NO_CLUSTER = (
    "{place} belongs to a Redis Cluster, which can't be mounted: one node holds only part of the keys; "
    "mount a server that is not in cluster mode"
)


class _Batch:
    """Commands asked at once; called again, it asks only those again that the server put off."""

    def __init__(self, commands: Sequence[Command]) -> None:
        self._commands = commands
        self._answers: list[Any] = [None] * len(commands)
        self._open: list[int] = list(range(len(commands)))

    def __call__(self, dialogue: Dialogue) -> list[Any]:
        answers = dialogue.exchange([self._commands[index] for index in self._open])
        later: list[int] = []
        for index, answer in zip(self._open, answers, strict=True):
            self._answers[index] = answer
            if isinstance(answer, TryAgainError):
                later.append(index)
        self._open = later
        if later:
            raise self._answers[later[0]]
        return self._answers
