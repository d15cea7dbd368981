"""The search of `redisfuse grep`: patterns, lines, and the commands that are sent."""

import re
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from redisfuse.client.address import Address
from redisfuse.client.client import RedisClient
from redisfuse.errors import UsageError
from redisfuse.survey import lines
from redisfuse.survey.conditions import NameFilter, parse_types
from redisfuse.survey.contents import ContentReader
from redisfuse.survey.lines import LineSearch
from redisfuse.survey.patterns import compile_pattern
from redisfuse.survey.scan import KeySurvey, Scope
from redisfuse.survey.search import ContentSearch
from tests.support.examples import count_examples
from tests.support.redis_server import RedisServer
from tests.unit.test_survey import sent_commands

MIB = 1 << 20


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[RedisClient]:
    """Connect a client to the shared, empty server."""
    client = RedisClient(Address.parse(redis_server.url()))
    client.connect()
    yield client
    client.close()


# -- patterns --------------------------------------------------------------------------------------------------------


@settings(max_examples=count_examples(100), deadline=None)
@given(
    pattern=st.text(alphabet="ab*.^$|()[]{}\\+?,1-:", max_size=7),
    extended=st.booleans(),
    text=st.lists(st.text(alphabet="ab*.^$|()[]{}\\+?1", max_size=6), min_size=1, max_size=8),
)
def test_patterns_select_what_grep_selects(pattern: str, extended: bool, text: list[str]) -> None:
    """Any pattern that grep(1) accepts selects the same lines, basic or extended."""
    assume(not re.search(r"\$[)|]", pattern))  # GNU reads it as an anchor in basic expressions, too
    content = "\n".join(text) + "\n"
    done = subprocess.run(
        ["grep", "-nE" if extended else "-n", "-e", pattern],
        input=content.encode(),
        capture_output=True,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        check=False,
    )
    if done.returncode == 2 or b"warning" in done.stderr:  # invalid, or unspecified by POSIX
        return
    search = LineSearch(compile_pattern(pattern, extended=extended))
    selected = [f"{line.number}:{line.text}" for line in search.search([content.encode()])]
    assert selected == done.stdout.decode().split("\n")[:-1]


@pytest.mark.parametrize("pattern", [r"\(a", "[a", "[[:what:]]", r"a\{2", r"a\{3,1\}", "a\\", "[b-a]", r"\1"])
def test_invalid_patterns(pattern: str) -> None:
    """An invalid pattern is a usage error that names -F."""
    with pytest.raises(UsageError, match=r"is invalid: .*; -F"):
        compile_pattern(pattern)


# -- lines -----------------------------------------------------------------------------------------------------------


def select(pattern: str, *chunks: bytes) -> list[tuple[int, str]]:
    """Return number and text of the lines that match."""
    return [(line.number, line.text) for line in LineSearch(re.compile(pattern, re.MULTILINE)).search(chunks)]


@given(st.lists(st.binary(max_size=5), max_size=8))
def test_chunks_are_no_borders(chunks: list[bytes]) -> None:
    """However a content is cut, its lines are the same, also within a character."""
    data = b"".join(chunks) + "é\nfoé".encode()
    pieces = [data[position : position + 1] for position in range(len(data))]
    assert select(".", *pieces) == select(".", data)


def test_a_long_line_is_searched_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A match across the border of two windows is found; anchors match at the ends of the line only."""
    monkeypatch.setattr(lines, "MAX_LINE_CHARACTERS", 100)
    monkeypatch.setattr(lines, "OVERLAP_CHARACTERS", 20)
    chunks = [b"first\n", b"a" * 98 + b"need", b"le" + b"b" * 200, b"c" * 150 + b"end\nlast needle\n"]
    assert select("needle", *chunks) == [(2, "a" * 98 + "ne"), (3, "last needle")]
    assert select("end$", *chunks) == [(2, "a" * 98 + "ne")]
    assert select("need$|b$|^l?e|^b", *chunks) == []
    assert [number for number, _ in select("^first|^last", *chunks)] == [1, 3]


# -- contents --------------------------------------------------------------------------------------------------------


def search(client: RedisClient, pattern: str, *types: str) -> dict[bytes, list[int]]:
    """Return the numbers of the selected lines of each key, or of `key.field`."""
    survey = KeySurvey([client], Scope(), NameFilter(b":"))
    conditions = survey.scan_only([parse_types(types)] if types else [])
    found: dict[bytes, list[int]] = {}
    content_search = ContentSearch(compile_pattern(pattern))
    for _, contents in content_search.iter_candidates(survey, conditions):
        for content in contents:
            numbers = [line.number for line in content_search.search(content)[1]]
            if numbers:
                record = content.record
                found[record.key if record.field is None else record.key + b"." + record.field] = numbers
    return found


def test_a_small_key_costs_two_commands(redis_server: RedisServer, client: RedisClient) -> None:
    """TYPE and one command for the content; with --type of one type, only the latter."""
    writer = redis_server.client()
    for number in range(50):
        writer.set(f"s:{number}", f"value {number}")
        writer.rpush(f"l:{number}", "a", f"value {number}")
        writer.hset(f"h:{number}", mapping={"a": "x", "b": f"value {number}"})
    writer.config_resetstat()
    assert search(client, "value 7$") == {b"s:7": [1], b"l:7": [2], b"h:7.b": [1]}
    assert sent_commands(redis_server) == {"scan": 1, "type": 150, "getrange": 50, "lrange": 50, "hscan": 50}
    writer.config_resetstat()
    assert search(client, "value 7$", "string") == {b"s:7": [1]}
    assert sent_commands(redis_server) == {"scan": 1, "getrange": 50}


def test_large_values_are_read_in_bounded_pieces(redis_server: RedisServer, client: RedisClient) -> None:
    """No command requests more than 1 MiB of a string or 1000 elements, and the last element is found."""
    writer = redis_server.client()
    writer.set("string", b"x" * (3 * MIB + 5) + b"\nneedle")
    writer.rpush("list", *range(10_000), "needle")
    writer.hset("hash", mapping={**{f"f{number}": "v" * 70 for number in range(3000)}, "last": "needle"})
    writer.config_resetstat()
    found = search(client, "^needle$")
    assert found == {b"string": [2], b"list": [10_001], b"hash.last": [1]}
    commands = sent_commands(redis_server)
    assert commands["getrange"] == 4  # 16 KiB, and three pieces of 1 MiB
    assert 10 <= commands["lrange"] <= 15
    assert commands["hscan"] <= 15


def test_large_elements_do_not_exceed_the_bound(redis_server: RedisServer, client: RedisClient) -> None:
    """A list whose first elements together exceed the bound of a reply is read with fewer elements a command."""
    writer = redis_server.client()
    writer.rpush("list", *[b"%d" % number + b"x" * (2 * MIB) for number in range(80)], b"needle")
    writer.set("other", "needle")
    assert search(client, "needle") == {b"list": [81], b"other": [1]}


def test_a_key_that_changes_its_type_is_skipped(redis_server: RedisServer, client: RedisClient) -> None:
    """Between TYPE and the content, a key can vanish or become another: the search continues."""
    writer = redis_server.client()
    writer.mset({"a": "needle", "b": "needle"})
    survey = KeySurvey([client], Scope(), NameFilter(b":"))
    [(_, records)] = survey.iter_batches((), ["type"])
    writer.delete("a")
    writer.lpush("a", "needle")
    reader = ContentReader(client, survey.unreadable, hashes_as_files=False, max_sorted=0)
    assert [content.record.key for contents in reader.iter_contents(records) for content in contents] == [b"b"]
