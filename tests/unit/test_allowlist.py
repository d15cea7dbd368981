"""client/allowlist.py: what is on the lists, and that nothing bypasses the parser."""

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisfuse.client.allowlist import (
    READ_ALLOWLIST,
    SENTINEL_ALLOWLIST,
    WRITE_ALLOWLIST,
    AllowList,
    DiscardedTransactionFilter,
    pack_commands,
    parse_commands,
)
from redisfuse.errors import ForbiddenCommandError

NEVER = [
    *("FLUSHALL", "FLUSHDB", "CONFIG SET a b", "CONFIG GET *", "KEYS *", "DEBUG SLEEP 1", "SHUTDOWN", "MONITOR"),
    *("EVAL x 0", "EVAL_RO x 0", "EVALSHA x 0", "FCALL f 0", "FCALL_RO f 0", "SCRIPT LOAD x", "FUNCTION LOAD x"),
    *("SORT k", "SORT_RO k", "PFCOUNT k", "GETSET k v", "SWAPDB 0 1", "REPLICAOF h 1", "MIGRATE", "CLIENT KILL ID 1"),
    *("CLIENT PAUSE 1", "CLIENT LIST", "ACL SETUSER x", "MODULE LOAD x", "SAVE", "BGSAVE", "PUBLISH c m", "MOVE k 1"),
    *("HGETALL k", "SMEMBERS k", "HKEYS k", "HVALS k", "MEMORY DOCTOR", "OBJECT FREQ k", "XGROUP DESTROY k g"),
    *("SUBSCRIBE other", "PSUBSCRIBE *", "SUBSCRIBE __redis__:invalidate other", "RESET", "QUIT", "COPY a b"),
]
ONLY_WRITER = [
    *("SET k v", "SETRANGE k 0 v", "APPEND k v", "DEL k", "UNLINK k", "HSET k f v", "HDEL k f", "RENAME a b"),
    *("RESTORE k 0 x", "PEXPIREAT k 1", "PERSIST k", "XADD k 1-1 f v", "XGROUP CREATE k g 0", "JSON.SET k . 1"),
]
READ = [
    *("SCAN 0", "TYPE k", "STRLEN k", "GETRANGE k 0 1", "HGET k f", "HSCAN k 0", "LRANGE k 0 1", "XRANGE k - +"),
    *(
        "DUMP k",
        "OBJECT ENCODING k",
        "MEMORY USAGE k",
        "CLIENT SETNAME x",
        "CLIENT NO-TOUCH ON",
        "CLIENT TRACKING ON BCAST",
        "INFO",
    ),
    *("SUBSCRIBE __redis__:invalidate", "WATCH k", "MULTI", "EXEC", "XINFO STREAM k", "HPEXPIRETIME k FIELDS 1 f"),
]


def words(text: str) -> list[bytes]:
    """Return the words of a command."""
    return text.encode().split()


@pytest.mark.parametrize("command", NEVER)
@pytest.mark.parametrize(
    "allow_list", [READ_ALLOWLIST, WRITE_ALLOWLIST, SENTINEL_ALLOWLIST], ids=lambda allow_list: allow_list.name
)
def test_on_no_list(allow_list: AllowList, command: str) -> None:
    """Commands that destroy, configure, run scripts, or are unbounded are on no list, in any spelling."""
    for spelling in (command, command.lower(), command.title()):
        assert not allow_list.allows(words(spelling))
        with pytest.raises(ForbiddenCommandError):
            allow_list.check([words("PING"), words(spelling)])


@pytest.mark.parametrize("command", ONLY_WRITER)
def test_writes_are_only_on_the_write_list(command: str) -> None:
    """A command that writes is on the write list and on no other."""
    assert WRITE_ALLOWLIST.allows(words(command))
    for allow_list in (READ_ALLOWLIST, SENTINEL_ALLOWLIST):
        assert not allow_list.allows(words(command))


@pytest.mark.parametrize("command", READ)
def test_reads(command: str) -> None:
    """Every read command is on the read list, in upper and lower case."""
    assert READ_ALLOWLIST.allows(words(command))
    READ_ALLOWLIST.check([words(command)])
    assert READ_ALLOWLIST.allows([words(command)[0].lower(), *words(command)[1:]])


@pytest.mark.parametrize("command", [*NEVER, *ONLY_WRITER, "EXEC", "exec"])
def test_writes_are_sent_only_inside_a_discarded_transaction(command: str) -> None:
    """Before MULTI is accepted, after DISCARD, and in one buffer with DISCARD, no write is sent; EXEC never is."""
    command_filter = DiscardedTransactionFilter()
    for begun in (False, True):
        for commands in ([words(command)], [words("DISCARD"), words(command)], [words("MULTI"), words(command)]):
            if begun:
                command_filter.begin_transaction()
                command_filter.check([words("discard")])
            with pytest.raises(ForbiddenCommandError):
                command_filter.check(commands)
    command_filter.begin_transaction()
    if command in ONLY_WRITER:
        command_filter.check([words(command), words("DISCARD")])
    with pytest.raises(ForbiddenCommandError):
        command_filter.check([words("EXEC")])


def test_container_commands_need_a_subcommand() -> None:
    """A container command alone, or an empty command, is refused."""
    for command in ([], [b""], [b"CLIENT"], [b"OBJECT"], [b"XINFO"], [b"CLIENT|SETNAME", b"x"], [b"SUBSCRIBE"]):
        with pytest.raises(ForbiddenCommandError):
            READ_ALLOWLIST.check([command])


def test_the_message_shows_the_command_and_no_argument() -> None:
    """The message names the command, but no value, and no control characters."""
    with pytest.raises(ForbiddenCommandError) as caught:
        READ_ALLOWLIST.check([[b"SET", b"key", b"secret value"]])
    assert "SET" in str(caught.value)
    assert "key" not in str(caught.value)
    with pytest.raises(ForbiddenCommandError) as caught:
        READ_ALLOWLIST.check([[b"\x1b[2J\xff"]])
    assert "\x1b" not in str(caught.value)


FLUSH = b"*1\r\n$8\r\nFLUSHALL\r\n"
PING = b"*1\r\n$4\r\nPING\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"FLUSHALL\r\n",  # inline
        b"PING\r\nFLUSHALL\r\n",
        PING + b"FLUSHALL\r\n",
        PING + b"\r\n" + FLUSH,
        b"*1\r\n$4\r\nPING\r\nX",
        b"*1\r\n$4\r\nPING",  # cut
        b"*2\r\n$4\r\nPING\r\n",
        b"*1\r\n$4\r\n",
        b">2\r\n$4\r\nTYPE\r\n$8\r\nFLUSHALL\r\n",  # a push; the server reads inline commands there
        b"~2\r\n$4\r\nTYPE\r\n$8\r\nFLUSHALL\r\n",
        b"*2\r\n+TYPE\r\n$8\r\nFLUSHALL\r\n",
        b"*2\r\n$4\r\nTYPE\r\n:1\r\n",
        b"*1\r\n*1\r\n$4\r\nPING\r\n",
        b"*-1\r\n" + FLUSH,
        b"*01\r\n$4\r\nPING\r\n",
        b"*1\r\n$04\r\nPING\r\n",
        b"*1\r\n$4\r\nPING\n\n",
        b"+OK\r\n",
        b"-ERR x\r\n",
        b"$4\r\nPING\r\n",
        b"_\r\n",
        b"#t\r\n",
        b"=15\r\ntxt:Some string\r\n",
    ],
)
def test_noncanonical_bytes_are_refused(data: bytes) -> None:
    """Bytes that are not whole commands in canonical form are refused, whatever a server might make of them."""
    with pytest.raises(ForbiddenCommandError):
        parse_commands(data)


def test_empty_commands_are_parsed_and_then_refused() -> None:
    """An empty array is on no list."""
    with pytest.raises(ForbiddenCommandError):
        READ_ALLOWLIST.check(parse_commands(b"*0\r\n" + FLUSH))


@given(st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=6), max_size=8))
def test_packed_commands_are_parsed_back(commands: list[list[bytes]]) -> None:
    """Parsing returns exactly the words that were packed, whatever bytes they contain."""
    assert parse_commands(pack_commands(map(tuple, commands))) == commands


@given(st.lists(st.lists(st.binary(max_size=12), min_size=1, max_size=3), max_size=4), st.data())
def test_a_changed_byte_is_never_misread(commands: list[list[bytes]], data: st.DataObject) -> None:
    """With any byte changed, the bytes are refused, or are the canonical form of the parsed commands."""
    packed = bytearray(pack_commands(map(tuple, commands)))
    if packed:
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        parsed = parse_commands(bytes(packed))
    except ForbiddenCommandError:
        return
    assert b"".join(hiredis.pack_command(tuple(command)) for command in parsed) == bytes(packed)
