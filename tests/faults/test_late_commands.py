"""Commands that reach the server after their sender has stopped waiting, and connections left inside MULTI."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.client.connection_id import ConnectionId
from redisfuse.client.limits import Limits
from redisfuse.client.termination import TerminationFilter
from redisfuse.errors import ForbiddenCommandError, OutcomeUnknownError, ReadOnlyError, UnavailableError
from redisfuse.journal.content import Blob
from redisfuse.journal.models import ChangeIntent, State
from redisfuse.paths.grammar import KeyRef
from redisfuse.transactions import recovery
from redisfuse.transactions.precondition import Precondition
from redisfuse.transactions.recovery import recover_pending
from tests.faults.conftest import MakeMount
from tests.support.edit_bench import BenchFactory, EditBench
from tests.support.errno_of import change_states, errno_name
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer

TIMEOUT = 0.5  # seconds
DELAY = 2.5  # seconds until a late command arrives: longer than a write and the search for its outcome take

OLD = Precondition.from_bytes(b"old")


@pytest.fixture
def proxy(own_redis: RedisServer) -> Iterator[Proxy]:
    with Proxy(own_redis.socket_path, tcp=True) as proxy:
        yield proxy


@pytest.fixture
def make_bench(own_redis: RedisServer, proxy: Proxy, tmp_path: Path) -> Iterator[BenchFactory]:
    """Return a function that connects a bench through the proxy, by default as a user that may close connections."""
    opened: list[EditBench] = []
    own_redis.client().set("k", "old")
    own_redis.client().execute_command(
        "ACL", "SETUSER", "writer", "on", "nopass", "~*", "&*", "+@all", "-client|kill", "-client|list"
    )

    def make(*, folder: Path = tmp_path / "state", may_kill: bool = True) -> EditBench:
        url = proxy.url() if may_kill else proxy.url().replace("redis://", "redis://writer:x@")
        bench = EditBench.create(folder, own_redis, url=url, timeout=TIMEOUT)
        opened.append(bench)
        bench.save(b"warm", b"up")
        return bench

    yield make
    for bench in opened:
        bench.close()


def outcomes(bench: EditBench) -> list[str]:
    """Return the outcomes of all changes of the key `k`, oldest first."""
    return [row.outcome for row in bench.changes() if row.key == b"k"]


def count_in_multi(client: redis.Redis) -> int:
    """Return how many connections of the server stay inside MULTI.

    The server notices a moment later that a connection was closed.
    """
    deadline = time.monotonic() + 5
    while count := sum(int(info["multi"]) >= 0 for info in client.client_list()):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return count


# -- late commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["save", "patch", "remove"])
def test_a_late_command_is_never_executed(make_bench: BenchFactory, proxy: Proxy, change: str) -> None:
    """The server is made to close the connection, so the row is failed for certain and the command has no effect."""
    bench = make_bench()
    act = {
        "save": lambda: bench.save(b"k", b"LATE", precondition=OLD),
        "patch": lambda: bench.key_writer.patch(
            KeyRef(b"k"), 1, Blob.from_bytes(b"L"), precondition=Precondition.unconditional(), path=b"k"
        ),
        "remove": lambda: bench.key_writer.remove([KeyRef(b"k")], path=b"k"),
    }[change]
    proxy.inject("late", "EXEC", times=1, seconds=DELAY)
    with pytest.raises(UnavailableError) as caught:
        act()
    assert not isinstance(caught.value, OutcomeUnknownError)
    assert outcomes(bench) == ["failed"]
    bench.save(b"k", b"old", precondition=OLD)  # the same value, which WATCH would not let a late command pass either
    time.sleep(DELAY)
    assert bench.redis.get("k") == b"old"


def test_a_late_command_of_a_user_that_may_not_kill(make_bench: BenchFactory, proxy: Proxy) -> None:
    """The row is pending while the server has the connection; once the command has arrived it can be rolled back."""
    bench = make_bench(may_kill=False)
    proxy.inject("late", "EXEC", times=1, seconds=DELAY)
    with pytest.raises(OutcomeUnknownError):
        bench.save(b"k", b"LATE", precondition=OLD)
    assert outcomes(bench) == ["pending"]
    bench.save(b"other", b"1")  # another key can be changed meanwhile
    assert outcomes(bench) == ["pending"]
    time.sleep(DELAY)
    bench.save(b"other", b"2")
    assert bench.redis.get("k") == b"LATE"
    assert outcomes(bench) == ["applied"]
    [change] = [row for row in bench.changes() if row.key == b"k"]
    bench.roll_back(change.id)
    assert bench.redis.get("k") == b"old"


def test_a_save_again_makes_the_server_discard_the_late_command(make_bench: BenchFactory, proxy: Proxy) -> None:
    """A second save of a key in doubt succeeds; as that breaks the WATCH, the first is failed for certain."""
    bench = make_bench(may_kill=False)
    proxy.inject("late", "EXEC", times=1, seconds=DELAY)
    with pytest.raises(OutcomeUnknownError):
        bench.save(b"k", b"LATE", precondition=OLD)
    bench.save(b"k", b"again", precondition=OLD)
    assert outcomes(bench) == ["failed", "applied"]
    time.sleep(DELAY)
    assert bench.redis.get("k") == b"again"


@pytest.mark.parametrize("may_kill", [True, False])
def test_recovery_of_a_late_command(
    make_bench: BenchFactory, proxy: Proxy, own_redis: RedisServer, may_kill: bool
) -> None:
    """Recovery after a crash records `failed` only if the command can't arrive any more."""
    crashed = make_bench(may_kill=False)
    proxy.inject("late", "EXEC", times=1, seconds=DELAY)
    with pytest.raises(OutcomeUnknownError):
        crashed.save(b"k", b"LATE", precondition=OLD)
    crashed.journal.end_session(crashed.session)
    crashed.journal.close()
    bench = make_bench(may_kill=may_kill)
    resolved = [outcome for change, outcome in recover_pending(bench.journal, bench.server, bench.session)]
    assert resolved == (["failed"] if may_kill else [])
    time.sleep(DELAY)
    assert own_redis.client().get("k") == (b"old" if may_kill else b"LATE")
    resolved += [outcome for change, outcome in recover_pending(bench.journal, bench.server, bench.session)]
    assert resolved == (["failed"] if may_kill else ["applied"])


def test_recovery_leaves_the_connections_of_a_running_session(
    make_bench: BenchFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of a session that still runs is settled only once its connection is gone, which is not closed."""
    running, bench = make_bench(), make_bench()
    monkeypatch.setattr(recovery, "IN_FLIGHT_LIMIT_MS", -1)
    state = State.from_value(b"old")
    intent = ChangeIntent(b"k", "write", b"k", None, state, State.from_value(b"new"))
    with running.server.write_channel() as channel:
        assert channel.connection_id is not None
        running.journal.record_intents(running.session, [intent], connection_id=channel.connection_id.text)
        assert recover_pending(bench.journal, bench.server, bench.session) == []
        assert channel.execute([("PING",)]) == [b"PONG"]
        channel.close()
    deadline = time.monotonic() + 5
    while not (resolved := recover_pending(bench.journal, bench.server, bench.session)):
        assert time.monotonic() < deadline
    assert [outcome for _, outcome in resolved] == ["failed"]


def test_a_restart_ends_all_connections(make_bench: BenchFactory, own_redis: RedisServer) -> None:
    """A connection of an earlier process is gone; the connection that has its number now is left alone."""
    bench = make_bench()
    other = own_redis.client()
    number = other.client_id()
    assert bench.server.terminate_connections([ConnectionId("0" * 40, number)]) == {ConnectionId("0" * 40, number)}
    assert other.client_id() == number


def test_connections_that_the_server_has(make_bench: BenchFactory, own_redis: RedisServer) -> None:
    """A user that may kill ends a connection; one that may not learns which exist, with one ACL LOG entry."""
    bench = make_bench(may_kill=False)
    other = own_redis.client(single_connection_client=True)
    run_id, number = own_redis.client().info("server")["run_id"], other.client_id()
    connections = [ConnectionId(run_id, number), ConnectionId(run_id, 10**9)]
    for _ in range(2):
        assert bench.server.terminate_connections(connections) == {connections[1]}
    assert len(own_redis.client().acl_log()) == 1
    assert other.client_id() == number
    with closing(RedisClient(Address.parse(own_redis.url()), Limits(), writable=True)) as server:
        assert server.terminate_connections(connections) == set(connections)
    with pytest.raises(redis.exceptions.ConnectionError):
        redis.Connection.read_response(other.connection, disconnect_on_error=True)


def test_only_a_writable_client_closes_connections(own_redis: RedisServer) -> None:
    """A read-only client sends no CLIENT KILL."""
    with closing(RedisClient(Address.parse(own_redis.url()))) as server, pytest.raises(ReadOnlyError):
        server.terminate_connections([ConnectionId("", 1)])


@pytest.mark.parametrize(
    "command",
    [
        b"CLIENT KILL TYPE normal",
        b"CLIENT KILL 127.0.0.1:1",
        b"client kill id 1 skipme no",
        b"CLIENT KILL ID x",
        b"CLIENT KILL",
        b"CLIENT LIST",
        b"SET k v",
    ],
)
def test_the_filter_of_a_terminating_connection(command: bytes) -> None:
    """It lets CLIENT KILL ID with one number pass, beside what only reads."""
    TerminationFilter().check([[b"INFO", b"server"], [b"client", b"kill", b"id", b"12"]])
    with pytest.raises(ForbiddenCommandError):
        TerminationFilter().check([command.split()])


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda path: path.write_bytes(b"LATE"), id="save", marks=pytest.mark.expected_log("are kept")),
        pytest.param(Path.unlink, id="remove"),
    ],
)
def test_a_late_command_of_a_mount(
    proxy: Proxy, client: redis.Redis, make_mount: MakeMount, act: Callable[[Path], object]
) -> None:
    """The program gets EIO, the row is failed, and the server never executes the command."""
    mount = make_mount(proxy.url())
    path = mount.path / "k"
    path.write_bytes(b"warm")
    proxy.inject("late", "EXEC", times=1, seconds=4)
    assert errno_name(act, path) == "EIO"
    assert change_states(mount, b"k") == ["applied", "failed"]
    time.sleep(4)
    assert client.get("k") == b"warm"


# -- connections left inside MULTI -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", ["ERR upstream failure", "BUSY try again", "NOPERM no"])
def test_exec_gets_an_error_of_a_proxy(make_bench: BenchFactory, proxy: Proxy, reply: str) -> None:
    """The connection is inside MULTI, so it is closed and its outcome looked up; the next save uses another one."""
    bench = make_bench()
    proxy.inject("error", "EXEC", times=1, text=reply)
    with pytest.raises(UnavailableError):
        bench.save(b"k", b"new", precondition=OLD)
    assert outcomes(bench) == ["failed"]
    bench.save(b"k", b"new", precondition=OLD)
    assert outcomes(bench) == ["failed", "applied"]
    assert count_in_multi(bench.redis) == 0


def test_the_first_exec_of_a_connection_gets_an_error(make_bench: BenchFactory, proxy: Proxy) -> None:
    """The transaction that tries whether MULTI is permitted leaves no connection inside MULTI either."""
    bench = make_bench()
    proxy.disconnect_all()
    proxy.inject("error", "EXEC", times=1)
    with pytest.raises(Exception, match="injected"):
        bench.save(b"k", b"new", precondition=OLD)
    bench.save(b"k", b"new", precondition=OLD)
    assert outcomes(bench) == ["applied"]
    assert count_in_multi(bench.redis) == 0


@pytest.mark.parametrize("end", ["EXEC", "DISCARD", "UNWATCH"])
def test_a_channel_inside_multi_is_not_reused(make_bench: BenchFactory, proxy: Proxy, end: str) -> None:
    """A command that should end MULTI and does not, or a reset that is only queued, closes the channel."""
    bench = make_bench()
    with bench.server.write_channel() as channel:
        channel.execute([("MULTI",)])
        if end == "UNWATCH":
            channel.execute([("WATCH", "k")])  # an error inside MULTI, after which UNWATCH is taken for the reset
        else:
            proxy.inject("error", end, times=1)
            channel.execute([(end,)])
    assert channel.closed
    assert count_in_multi(bench.redis) == 0


def test_a_transaction_that_the_server_discards_keeps_the_channel(make_bench: BenchFactory) -> None:
    """EXECABORT ends MULTI: the channel is reused."""
    bench = make_bench()
    with bench.server.write_channel() as channel:
        replies = channel.execute([("MULTI",), ("SET", "k"), ("EXEC",)])
        assert replies[-1].reply_code == "EXECABORT"
    with bench.server.write_channel() as again:
        assert again is channel
