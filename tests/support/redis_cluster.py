"""A private Redis Cluster for tests: real servers on free loopback ports."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from binascii import crc_hqx
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.redis_server import RedisServer

NODE_TIMEOUT_MS = 2000
PORTS = range(15_000, 21_999)
"""The bus listens on the port + 10 000, which must be below the range of outgoing connections (32 768)."""

SLOT_COUNT = 16_384
START_SECONDS = 60.0
REPAIR_SECONDS = 20.0
FAIL_OVER_SECONDS = 6.0
"""More than the 5 seconds after which a node gives a planned fail-over up."""
_START_ATTEMPTS = 3


def find_cluster_port(taken: Sequence[int]) -> int:
    """Return a port that is free, and so is its bus port."""
    while True:
        port = random.choice(PORTS)
        if port in taken:
            continue
        with contextlib.ExitStack() as stack:
            try:
                for number in (port, port + 10_000):
                    probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                    probe.bind(("127.0.0.1", number))
            except OSError:
                continue
            return port


def slot_of(key: bytes) -> int:
    """Return the slot of a key without braces."""
    return crc_hqx(key, 0) % SLOT_COUNT


def wait_for(condition: Callable[[], Any], seconds: float = START_SECONDS) -> Any:
    """Wait until `condition()` is true; connection errors count as false."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            result = condition()
            if result:
                return result
        assert time.monotonic() < deadline, f"the condition is not true after {seconds} s"
        time.sleep(0.02)


def tls_arguments(certificate: Path, port: int, tls_port: int) -> list[str]:
    """Return the arguments of a node whose bus and second port use TLS."""
    files = [f"--tls-{kind}-file {certificate}/{name}.pem" for kind, name in (("cert", "cert"), ("key", "key"))]
    options = [*files, f"--tls-ca-cert-file {certificate}/cert.pem", "--tls-auth-clients no", "--tls-cluster yes"]
    options += [f"--tls-port {tls_port}", f"--cluster-port {port + 10_000}"]
    return [word for option in options for word in option.split(" ")]


class ClusterServer(RedisServer):
    """One node."""

    def __init__(self, port: int, arguments: Sequence[str], program: Path | None) -> None:
        super().__init__(
            arguments=[
                *("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
                *("--cluster-config-file", "nodes.conf", "--repl-diskless-sync-delay", "0"),
                *("--repl-ping-replica-period", "1", "--cluster-allow-replica-migration", "no"),
                *arguments,
            ],
            program=program,
        )
        self.port = port
        self.tls_port = 0
        self._own_client: redis.Redis | None = None

    @property
    def id(self) -> str:
        """The id of the node."""
        return str(self.call("CLUSTER", "MYID").decode())

    def call(self, *words: Any) -> Any:
        """Execute a command on this node, and return the reply as it is."""
        return self._call([words])

    def open_slots(self, direction: str) -> set[int]:
        """Return the slots that are moving: with `->-` away from this node, with `-<-` to it."""
        (line,) = [line for line in self.call("CLUSTER", "NODES").decode().splitlines() if "myself" in line]
        return {int(word[1:].partition("-")[0]) for word in line.split() if word[0] == "[" and direction in word}

    def call_asking(self, *words: Any) -> Any:
        """Execute a command about a slot that the node is about to get."""
        return self._call([("ASKING",), words])

    def _call(self, commands: Sequence[tuple[Any, ...]]) -> Any:
        connection = self._pool().get_connection()
        reply = None
        try:
            for words in commands:
                connection.send_command(*words)
                reply = connection.read_response()
        except (redis.ConnectionError, redis.TimeoutError):
            connection.disconnect()
            raise
        finally:
            self._pool().release(connection)
        return reply

    def _pool(self) -> redis.ConnectionPool:
        if self._own_client is None:
            self._own_client = self.client(socket_timeout=1.5, retry=Retry(NoBackoff(), 0))
        return self._own_client.connection_pool


class RedisCluster:
    """A cluster of `primaries` primaries and as many replicas each as `replicas` says."""

    def __init__(
        self,
        primaries: int = 3,
        replicas: int = 1,
        *,
        program: Path | None = None,
        arguments: Sequence[str] = (),
        certificate: Path | None = None,
    ) -> None:
        """Create a cluster; `certificate`: a folder with cert.pem and key.pem, with which each node serves TLS, too."""
        self.program = program
        self.arguments = list(arguments)
        self._certificate = certificate
        self.nodes: list[ClusterServer] = []
        self._primary_count, self._replica_count = primaries, replicas
        self._own_router: ClusterRouter | None = None

    # -- start and end ------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start the servers and form the cluster; begin again if a port has been taken meanwhile."""
        for _ in range(_START_ATTEMPTS - 1):
            try:
                return self._start()
            except (AssertionError, redis.RedisError, OSError):
                self.close()
        return self._start()

    def _start(self) -> Self:
        count = self._primary_count
        for _ in range(count * (1 + self._replica_count)):
            self.add_server(wait=False)
        for node in self.nodes:
            node.wait_until_answering()
        primaries = self.nodes[:count]
        for index, node in enumerate(primaries):
            node.call("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            start, end = SLOT_COUNT * index // count, SLOT_COUNT * (index + 1) // count - 1
            node.call("CLUSTER", "ADDSLOTS", *range(start, end + 1))
        for node in self.nodes[1:]:
            self.meet(node)
        wait_for(lambda: all(len(self.known_nodes(node)) == len(self.nodes) for node in self.nodes))
        for index, replica in enumerate(self.nodes[count:]):
            replica.call("CLUSTER", "REPLICATE", primaries[index % count].id)
        self.wait_ok()
        return self

    def add_server(self, *, wait: bool = True) -> ClusterServer:
        """Start one more server, which knows no other."""
        taken = [port for each in self.nodes for port in (each.port, each.tls_port)]
        port = find_cluster_port(taken)
        tls_port = 0 if self._certificate is None else find_cluster_port([*taken, port])
        arguments = [] if self._certificate is None else tls_arguments(self._certificate, port, tls_port)
        node = ClusterServer(port, [*self.arguments, *arguments], self.program)
        node.tls_port = tls_port
        self.nodes.append(node)
        node.start(wait=wait)
        return node

    def remove(self, node: ClusterServer) -> None:
        """End a node without slots, and make all others forget it."""
        id = node.id
        self.nodes.remove(node)
        node.close()
        for other in self.nodes:
            other.call("CLUSTER", "FORGET", id)

    def meet(self, node: ClusterServer) -> None:
        """Introduce a node to the first one."""
        node.call("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)

    def known_nodes(self, node: ClusterServer) -> list[str]:
        """Return the lines of CLUSTER NODES."""
        return [line for line in node.call("CLUSTER", "NODES").decode().splitlines() if "handshake" not in line]

    def wait_ok(self, nodes: Sequence[ClusterServer] | None = None, seconds: float = START_SECONDS) -> None:
        """Wait until all nodes agree on the slots, and all replicas are linked and announced."""
        running = nodes or [node for node in self.nodes if node.process is not None]

        def is_ok() -> bool:
            infos = [node.call("CLUSTER", "INFO") for node in running]
            if not all(b"cluster_state:ok" in info for info in infos):
                return False
            maps = [sorted((row[0], row[1], row[2][2]) for row in node.call("CLUSTER", "SLOTS")) for node in running]
            if any(each != maps[0] for each in maps):
                return False
            links = [node.call("INFO", "replication") for node in running]
            if not all(b"role:master" in link or b"master_link_status:up" in link for link in links):
                return False
            replica_count = sum(b"role:slave" in link for link in links)
            rows_by_node = [{row[2][2]: len(row) - 3 for row in node.call("CLUSTER", "SLOTS")} for node in running]
            return all(sum(counts.values()) >= replica_count for counts in rows_by_node)

        wait_for(is_ok, seconds)

    def repair(self) -> None:
        """Start, resume and link all nodes again.

        Fails unless the slots are spread over the primaries, each of which has its replicas.
        """
        for node in self.nodes:
            if node.process is None:
                node.start()
            else:
                node.resume()
        for node in self.nodes:
            for slot in node.open_slots("-"):
                node.call("CLUSTER", "SETSLOT", slot, "STABLE")
        self.wait_ok(seconds=REPAIR_SECONDS)
        slots: dict[bytes, int] = {}
        for start, end, primary, *_ in self.nodes[0].call("CLUSTER", "SLOTS"):
            slots[primary[2]] = slots.get(primary[2], 0) + end + 1 - start
        assert len(slots) == self._primary_count, f"the slots have moved to {len(slots)} primaries"
        assert min(slots.values()) > SLOT_COUNT // (2 * self._primary_count), "one primary has lost its slots"
        wait_for(lambda: all(len(row) > self._replica_count + 2 for row in self.nodes[0].call("CLUSTER", "SLOTS")))

    def close(self) -> None:
        """End all servers."""
        for node in self.nodes:
            node.close()
        self.nodes.clear()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- addresses ----------------------------------------------------------------------------------------------------

    def url(self) -> str:
        """Return the URL of the cluster: all nodes are seeds."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    # -- topology -----------------------------------------------------------------------------------------------------

    def _a_running_node(self) -> ClusterServer:
        return next(node for node in self.nodes if node.process is not None)

    def node_with_id(self, id: bytes | str) -> ClusterServer:
        """Return the node with this id."""
        text = id.decode() if isinstance(id, bytes) else id
        return next(node for node in self.nodes if node.process is not None and node.id == text)

    def owner(self, slot: int, *, ask: ClusterServer | None = None) -> ClusterServer:
        """Return the primary that owns a slot."""
        rows = (ask or self._a_running_node()).call("CLUSTER", "SLOTS")
        ports = next(row[2][1] for row in rows if row[0] <= slot <= row[1])
        return next(node for node in self.nodes if node.port == ports)

    def owner_of_key(self, key: bytes) -> ClusterServer:
        """Return the primary that owns a key's slot."""
        return self.owner(slot_of(key))

    def primaries(self, *, ask: ClusterServer | None = None) -> list[ClusterServer]:
        """Return the primaries that own slots."""
        ports = {row[2][1] for row in (ask or self._a_running_node()).call("CLUSTER", "SLOTS")}
        return [node for node in self.nodes if node.port in ports]

    def replicas_of(self, primary: ClusterServer, *, ask: ClusterServer | None = None) -> list[ClusterServer]:
        """Return the replicas of a primary."""
        rows = (ask or self._a_running_node()).call("CLUSTER", "SLOTS")
        ports = {replica[1] for row in rows if row[2][1] == primary.port for replica in row[3:]}
        return [node for node in self.nodes if node.port in ports]

    def other_primary(self, node: ClusterServer) -> ClusterServer:
        """Return a primary that is another node."""
        return next(each for each in self.primaries() if each is not node)

    @contextlib.contextmanager
    def without_full_coverage(self) -> Iterator[None]:
        """Let the nodes that are up serve their keys while another one is down, in place of CLUSTERDOWN."""
        for node in self.nodes:
            node.call("CONFIG", "SET", "cluster-require-full-coverage", "no")
        try:
            yield
        finally:
            for node in self.nodes:
                if node.process is not None:
                    node.call("CONFIG", "SET", "cluster-require-full-coverage", "yes")

    @contextlib.contextmanager
    def without_fail_over(self) -> Iterator[None]:
        """Keep the replicas from being promoted when their primary is down."""
        nodes = [node for node in self.nodes if node.process is not None]
        for node in nodes:
            node.call("CONFIG", "SET", "cluster-replica-no-failover", "yes")
        try:
            yield
        finally:
            for node in nodes:
                if node.process is not None:
                    node.call("CONFIG", "SET", "cluster-replica-no-failover", "no")

    def fail_over(self, primary: ClusterServer) -> ClusterServer:
        """Make a replica take over from a primary, as planned; return the new primary once all nodes agree on it.

        An election that gets the epoch of a slot that has just been moved is undone by the nodes, so all must know of
        each other's epochs before. It is repeated if it fails: no node votes for a replica of the same primary twice
        within two node time-outs.
        """
        wait_for(self._epochs_are_known)
        replica = self.replicas_of(primary)[0]
        running = [node for node in self.nodes if node.process is not None]
        begun_at = -FAIL_OVER_SECONDS

        def is_replaced() -> bool:
            nonlocal begun_at
            if time.monotonic() - begun_at > FAIL_OVER_SECONDS:
                begun_at = time.monotonic()
                replica.call("CLUSTER", "FAILOVER")
            return all(primary not in self.primaries(ask=node) for node in running)

        wait_for(is_replaced)
        return replica

    def _epochs_are_known(self) -> bool:
        """Whether all nodes report the same owners of slots with the same epochs, each another one."""
        running = [node for node in self.nodes if node.process is not None]
        views = set()
        for node in running:
            fields = [line.split() for line in node.call("CLUSTER", "NODES").decode().splitlines()]
            own = {
                (words[0], words[6], *(slots for slots in words[8:] if slots[0] != "["))
                for words in fields
                if words[8:]
            }
            current = next(line for line in node.call("CLUSTER", "INFO").split() if b"current_epoch" in line)
            views.add((frozenset(own), current))
            if len({words[1] for words in own}) < len(own):
                return False
        return len(views) == 1

    def move_slot(self, slot: int, target: ClusterServer, *, keys: bool = True) -> None:
        """Move a slot with MIGRATE and SETSLOT; with `keys` false, leave its keys behind."""
        source = self.owner(slot)
        self.begin_move(slot, source, target)
        if keys:
            self.move_keys(slot, source, target)
        self.finish_move(slot, source, target)

    def begin_move(self, slot: int, source: ClusterServer, target: ClusterServer) -> None:
        """Put a slot into the state between two nodes."""
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)

    def move_keys(self, slot: int, source: ClusterServer, target: ClusterServer) -> None:
        """Migrate all keys of a slot."""
        while found := source.call("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *found)

    def finish_move(self, slot: int, source: ClusterServer, target: ClusterServer) -> None:
        """Give the slot to the target.

        Successive moves must have the same target: two nodes that get slots within the same second choose the same
        epoch, and lose slots.
        """
        for node in (target, source, *self.primaries(ask=source)):
            with contextlib.suppress(redis.ResponseError):
                node.call("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    # -- keys ---------------------------------------------------------------------------------------------------------

    def call(self, key: bytes, *words: Any) -> Any:
        """Execute a command on the owner of a key, following MOVED and ASK.

        Right after a fail-over, a node may not know who serves a slot. It executes nothing then, and is asked again.
        """
        deadline = time.monotonic() + FAIL_OVER_SECONDS
        while True:
            try:
                return self._router().call(key, *words)
            except redis.exceptions.ClusterDownError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.05)

    def _router(self) -> ClusterRouter:
        if self._own_router is None:
            self._own_router = ClusterRouter(self)
        return self._own_router

    def at_port(self, port: int) -> ClusterServer:
        """Return the node that listens on a port."""
        return next(node for node in self.nodes if node.port == port)

    def set(self, key: bytes, value: bytes) -> None:
        """Set a key."""
        self.call(key, "SET", key, value)

    def fill(self, count: int, prefix: bytes = b"key:", value: bytes = b"value") -> list[bytes]:
        """Set many keys, quickly; return their names."""
        keys = [b"%b%d" % (prefix, number) for number in range(count)]
        by_node: dict[int, list[bytes]] = {}
        owners: list[int] = [0] * SLOT_COUNT
        for start, end, primary, *_ in self._a_running_node().call("CLUSTER", "SLOTS"):
            owners[start : end + 1] = [primary[1]] * (end + 1 - start)
        for key in keys:
            by_node.setdefault(owners[slot_of(key)], []).append(key)
        for port, own in by_node.items():
            pipeline = self.at_port(port).client().pipeline(transaction=False)
            for key in own:
                pipeline.set(key, value)
            pipeline.execute()
        return keys

    def iter_keys(self) -> Iterator[bytes]:
        """Yield the keys that exist: those that each primary has in the slots that it owns or is about to get."""
        rows = self._a_running_node().call("CLUSTER", "SLOTS")
        for node in self.primaries():
            own = [(row[0], row[1]) for row in rows if row[2][1] == node.port]
            importing = node.open_slots("-<-")
            for key in node.client().scan_iter(count=10_000):
                slot = slot_of(key)
                if slot in importing or any(start <= slot <= end for start, end in own):
                    yield key

    def flush(self) -> None:
        """Remove all keys."""
        for node in self.primaries():
            node.call("FLUSHALL")


class ClusterRouter:
    """Sends commands to the owners of keys; for one thread. Nothing is sent again after a lost connection."""

    def __init__(self, cluster: RedisCluster) -> None:
        self._cluster = cluster
        self._ports: list[int] = []

    def call(self, key: bytes, *words: Any) -> Any:
        """Execute a command on the owner of a key, following MOVED and ASK."""
        if not self._ports:
            self._load()
        port, asking = self._ports[slot_of(key)], False
        for _ in range(20):
            try:
                return self._execute(port, words, asking=asking)
            except redis.exceptions.AskError as error:
                port, asking = error.port, True
            except redis.exceptions.MovedError as error:
                port, asking = error.port, False
                self._ports[slot_of(key)] = port
            except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.ClusterDownError):
                self._ports = []
                raise
        raise AssertionError("too many redirections")

    def _load(self) -> None:
        ports = [0] * SLOT_COUNT
        for node in self._cluster.nodes:
            with contextlib.suppress(redis.RedisError, OSError):
                for start, end, primary, *_ in node.call("CLUSTER", "SLOTS"):
                    ports[start : end + 1] = [primary[1]] * (end + 1 - start)
                self._ports = ports
                return
        raise redis.ConnectionError("no node answers")

    def _execute(self, port: int, words: tuple[Any, ...], *, asking: bool) -> Any:
        node = self._cluster.at_port(port)
        return node.call_asking(*words) if asking else node.call(*words)


class ClusterWriter:
    """A thread that sets and removes keys at about `rate` a second, whatever happens to the cluster."""

    def __init__(self, cluster: RedisCluster, *, rate: int = 1000, prefix: bytes = b"w:") -> None:
        self._router = ClusterRouter(cluster)
        self._rate = rate
        self._prefix = prefix
        self._random = random.Random(7)
        self._ending = threading.Event()
        self._paused = threading.Event()
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.writes = 0

    def _run(self) -> None:
        for number in count():
            if self._paused.is_set():
                self._idle.set()
                time.sleep(0.005)
            elif not number % max(1, self._rate // 200):
                time.sleep(0.005)
            if self._ending.is_set():
                return
            if self._paused.is_set():
                continue
            key = b"%b%d" % (self._prefix, self._random.randrange(3000))
            # The errors of the router are those of a cluster that does not agree on its slots yet.
            with contextlib.suppress(redis.RedisError, OSError, AssertionError, StopIteration):
                if self._random.random() < 0.6:
                    self._router.call(key, "SET", key, b"%d" % number)
                else:
                    self._router.call(key, "UNLINK", key)
                self.writes += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Write nothing in the body of `with`."""
        self._idle.clear()
        self._paused.set()
        assert self._idle.wait(2 * START_SECONDS)
        try:
            yield
        finally:
            self._paused.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(START_SECONDS)
