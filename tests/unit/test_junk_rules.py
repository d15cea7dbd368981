"""Junk and data are distinguished by name, by the keys beside them, and by the flags of the creation."""

import fnmatch
import timeit
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pathspec import GitIgnoreSpec

from redisfuse.cli.main import group
from redisfuse.errors import UsageError
from redisfuse.vfs.junk_rules import (
    CreateContext,
    JunkDecision,
    JunkKind,
    JunkRule,
    JunkRules,
    _RuleMatcher,
    load_default_rules,
    parse_rules,
)

junk = JunkRules.load()


def decide(
    name: str,
    *beside: str,
    parent: str = "directory",
    exclusive: bool = False,
    mode: int = 0o644,
    directory: bool = False,
    patterns: JunkRules = junk,
) -> JunkDecision:
    """Decide about a name with these keys beside it."""
    keys = {key.encode() for key in beside}
    context = CreateContext(exclusive, mode, directory, keys)
    return patterns.decide(parent.encode(), name.encode(), context)


SAFE = """
.fuse_hidden0000000a00000001 .nfs000000000000000a0000001b .k.swp .k.swo .k.swx .k.swpx .k.un~ .#-emacsAbC123
.k.kate-swp .~lock.k# .goutputstream-AB12CD k___jb_tmp___ k___jb_old___ settings.vsctmp k.crswap k.XXXXab12CD
k.sb-1a2b3c4d-AbCdEf .DS_Store .AppleDouble .localized Icon%0D Thumbs.db desktop.ini Desktop.ini .Trash-1000
~WRL0001.tmp k.~undo-tree~
""".split()  # noqa: SIM905 - names are easier to read without quotes

DATA = """
HEAD.lock config.lock 4913 4914 sed sedAbCd sedAbC12 sed123456x ~ # ## ._ .# a.tmp a.bak a.orig a.rej 1A2B3C4D
k-wal k-shm k-journal .git .gitignore tags dump.rdb lost+decision nohup.out .user.active tmpdata12 k.abcdef ~$notes.txt
.directory Session.vim k.old .DS_Store2 x.DS_Store .Trashes .fseventsd .sw
""".split()  # noqa: SIM905 - likewise


@pytest.mark.parametrize("name", SAFE)
def test_safe_names(name: str) -> None:
    """A name that only junk has is junk in every directory and with any flags, and hidden from listings."""
    for parent in ("", "a", "a/b"):
        decision = decide(name, parent=parent)
        assert decision.is_junk
        assert decision.rule is not None
        assert decision.rule.kind is JunkKind.SAFE
    assert junk.is_hidden(name.encode())
    assert decide("x", parent=name).is_junk


@pytest.mark.parametrize("name", DATA)
def test_data(name: str) -> None:
    """A name that data may have is data if it is created with ordinary flags, and is listed."""
    decision = decide(name)
    assert not decision.is_junk
    assert not decision.is_held
    assert not junk.is_hidden(name.encode())


@pytest.mark.parametrize("name", [*SAFE, "k~", "#k#", "4913", ".#k", "._k", ".sws"])
def test_a_key_is_data(name: str) -> None:
    """A key in Redis is data, whatever its name."""
    decision = decide(name, name, "k", exclusive=True, mode=0o600)
    assert not decision.is_junk
    assert not decision.is_held


@pytest.mark.parametrize("name", ["k~", "#k#", ".#k", "._k"])
def test_companions(name: str) -> None:
    """A backup, lock or auto-save is junk beside the key it belongs to and data elsewhere; it is never hidden."""
    decision = decide(name, "k")
    assert decision.is_junk
    assert decision.rule is not None
    assert decision.rule.kind is JunkKind.COMPANION
    assert not decide(name).is_junk
    assert not decide(name, "other").is_junk
    assert not junk.is_hidden(name.encode())


def test_companion_of_a_field() -> None:
    """The backup of a hash field's file belongs to that field."""
    assert decide("user.name~", "user.name").is_junk


@pytest.mark.parametrize("number", ["4913", "5036", "5159"])
def test_probes(number: str) -> None:
    """The probe of vim is held back only if it is created exclusively, so that data written to it is not lost."""
    decision = decide(number, "1", "2", exclusive=True)
    assert decision.is_held
    assert not decision.is_junk
    assert not decide(number, "1", "2").is_held


@pytest.mark.parametrize(
    "name",
    [
        *(
            "sedAbC123",
            "sedabcdef",
            "XXab12CD",
            "XXabcdef",
            "tmpab12cd34",
            "tmpabcdefgh",
            ".tmpAbC123",
            "tmp.AbC123defg",
            ".k.AbC123",
            ".k.abcdef",
        ),
        *("k.Cqaoyu", "lu12.tmp", "ziAbC123", "a.part"),
    ],
)
def test_behaviour(name: str) -> None:
    """A temporary file's name is held back if it is created with O_EXCL and mode 0600; neither alone has an effect."""
    assert decide(name, exclusive=True, mode=0o600).is_held
    assert decide(name, exclusive=True, mode=0o100600).is_held
    assert decide(name, exclusive=True, mode=0o700).is_held
    assert not decide(name, exclusive=True, mode=0o600).is_junk
    assert not decide(name, exclusive=True, mode=0o644).is_held
    assert not decide(name, mode=0o600).is_held
    assert not decide(name, exclusive=True, mode=0o600, directory=True).is_held


@pytest.mark.parametrize(
    "name",
    [
        *("x", "id_rsa", "a.config", "a.123456", "user.backup", ".userconfig", "sediment", "zipcodes"),
        *("tmpdirectory", "k.Cqaoyu1", "k-AbC12", "other-AbC123", "k-abcdef", "k-123456"),
    ],
)
def test_ordinary_names(name: str) -> None:
    """Any other name is data at once, as `cp -p` and `install` create with these flags, too."""
    decision = decide(name, "k.f", exclusive=True, mode=0o600)
    assert not decision.is_held
    assert not decision.is_junk


@pytest.mark.parametrize("name", ["k-AbC123", "k_AbC1234", "k.abcd1234", ".k.abcd1234", "kAbC12345", "k~1bcdef"])
def test_random_characters_after_a_siblings_name(name: str) -> None:
    """The name of a key with random characters is a temporary file's, beside that key only."""
    assert decide(name, "k", exclusive=True, mode=0o600).is_held
    assert not decide(name, "j", exclusive=True, mode=0o600).is_held
    assert not decide(name, "k", mode=0o600).is_held


@pytest.mark.parametrize("name", ["index.lock", "tmp_obj_AbC123", "k-journal"])
def test_never_junk(name: str) -> None:
    """Locks and objects of git and journals of SQLite are data at once, with any flags."""
    decision = decide(name, exclusive=True, mode=0o600)
    assert not decision.is_junk
    assert not decision.is_held
    assert decision.rule is not None
    assert decision.rule.kind is JunkKind.KEEP


@pytest.mark.parametrize("name", [".Trashes", ".Spotlight-V100", "System Volume Information", "$RECYCLE.BIN"])
def test_roots_of_volumes(name: str) -> None:
    """Files that systems create in the root of a volume are junk only there, with everything below."""
    assert decide(name, parent="").is_junk
    assert not decide(name, parent="a").is_junk
    assert decide("x", parent=name).is_junk
    assert junk.is_hidden(name.encode(), in_root=True)
    assert not junk.is_hidden(name.encode())


def test_directories() -> None:
    """A pattern ending in / matches directories and their contents; a new file in a junk directory is junk."""
    assert decide(".~tmp~", directory=True).is_junk
    assert not decide(".~tmp~").is_junk
    assert decide("k", parent="a/.~tmp~").is_junk
    assert not junk.is_hidden(b".~tmp~")
    assert junk.decide(b"a", b"data", CreateContext(in_memory_fs=True)).is_junk


def test_encoded_names() -> None:
    """Control characters in a name, the file marker and escaped dots do not disguise junk."""
    assert decide("Icon\r").is_junk
    assert junk.is_hidden(b"Icon%0D")
    assert junk.is_hidden(b".DS_Store%")
    assert junk.is_hidden(b".k%2Eswp")
    assert not junk.decide(b"\xff", b"\xff\xfe", CreateContext()).is_junk
    assert junk.decide(b"\xff", b".\xff.swp", CreateContext()).is_junk


def test_configured_patterns() -> None:
    """Patterns can be added, excepted and switched off."""
    more = JunkRules.load(extra_patterns=["*.bak", "/top"], keep_patterns=[".DS_Store"])
    assert decide("a.bak", patterns=more).is_junk
    assert more.is_hidden(b"a.bak")
    assert decide("top", parent="", patterns=more).is_junk
    assert not decide("top", patterns=more).is_junk
    assert not decide(".DS_Store", patterns=more).is_junk
    assert not more.is_hidden(b".DS_Store")
    assert decide(".k.swp", patterns=more).is_junk
    off = JunkRules.load(enabled=False)
    assert not decide(".DS_Store", patterns=off).is_junk
    assert not decide("tmpab12cd34", exclusive=True, mode=0o600, patterns=off).is_held
    assert not off.is_hidden(b".DS_Store")


def test_patterns_file(tmp_path: Path) -> None:
    """A file in plain gitignore syntax lists safe patterns; the headings of the built-in file work in it, too."""
    file = tmp_path / "patterns"
    file.write_text("# mine\n*.foo\n!a.foo\n\n## me (companion)\n*.copy\n## Something else\n*.bar\r\n")
    mine = JunkRules.load(file)
    assert decide("b.foo", patterns=mine).is_junk
    assert not decide("a.foo", patterns=mine).is_junk
    assert decide("k.copy", "k", patterns=mine).is_junk
    assert not decide("k.copy", patterns=mine).is_junk
    assert decide("b.bar", patterns=mine).is_junk
    assert not decide(".DS_Store", patterns=mine).is_junk
    with pytest.raises(UsageError, match="can't be read"):
        JunkRules.load(tmp_path / "nothing")
    for invalid in ("## x (companion)\na*b*c", "## x (companion)\n*", "!", "/"):
        with pytest.raises(UsageError, match="pattern"):
            JunkRules(parse_rules(invalid, "x"))


def test_no_patterns() -> None:
    """An empty list of patterns hides nothing, and holds back only temporary files that are named after a key."""
    none = JunkRules([])
    assert not none.is_hidden(b".DS_Store")
    assert not none.is_hidden(b"")
    assert not decide("tmpab12cd34", exclusive=True, mode=0o600, patterns=none).is_held
    assert decide("k.ab12cd34", "k", exclusive=True, mode=0o600, patterns=none).is_held


def test_is_hidden_agrees_with_the_patterns() -> None:
    """The combined expression for listings hides exactly the names that single safe patterns match."""
    names = [*SAFE, *DATA, "k~", "#k#", ".Trashes", "a", "", "user:1", "a.b.c", "._x"]
    safe = [rule.pattern for rule in load_default_rules() if rule.kind is JunkKind.SAFE]
    for name in names:
        expected = any(fnmatch.fnmatchcase(name, pattern) for pattern in safe)
        assert junk.is_hidden(name.encode()) == expected, name
        hiding = junk.find_hiding_rule(name.encode())
        assert (hiding is not None and hiding.kind is JunkKind.SAFE) == expected, name


def test_find_hiding_rule_in_the_root() -> None:
    """A pattern for the root hides a name only there; --keep and a disabled filter show it."""
    hiding = junk.find_hiding_rule(b".Trashes", in_root=True)
    assert hiding is not None
    assert hiding.pattern == "/.Trashes"
    assert junk.find_hiding_rule(b".Trashes") is None
    assert JunkRules.load(keep_patterns=["*.swp"]).find_hiding_rule(b".k.swp") is None
    assert JunkRules.load(enabled=False).find_hiding_rule(b".k.swp") is None


_PIECES = st.sampled_from(
    [
        *SAFE,
        *DATA,
        "4913",
        "5036",
        ".sw",
        "swp",
        "~",
        "#",
        ".#",
        "._",
        "lock",
        "Icon\r",
        "a",
        "x",
        "é",
        "\n",
        " ",
        "*",
        "%2E",
    ]
)


def _build_matcher(*kinds: JunkKind) -> tuple[list[JunkRule], GitIgnoreSpec, _RuleMatcher]:
    all_rules = [*load_default_rules(), *parse_rules("x/\n/a/**/x\n!a", "test")]
    rules = [rule for rule in all_rules if rule.kind in kinds]
    return rules, GitIgnoreSpec.from_lines([rule.pattern for rule in rules]), _RuleMatcher(rules, *kinds)


_MATCHERS = [
    _build_matcher(JunkKind.KEEP),
    _build_matcher(JunkKind.SAFE, JunkKind.NEW),
    _build_matcher(JunkKind.PROBE),
    _build_matcher(JunkKind.BEHAVIOUR),
    _build_matcher(*JunkKind),
]


@settings(deadline=None)
@given(st.lists(st.lists(_PIECES, min_size=1, max_size=3).map("".join), min_size=1, max_size=3), st.booleans())
def test_the_shortcut_agrees_with_gitignore(names: list[str], directory: bool) -> None:
    """The combined expression rules out most names; the result is always that of pathspec."""
    path = "/".join(names).lstrip("/")
    for rules, spec, matcher in _MATCHERS:
        index = spec.check_file(path + "/" if directory else path).index
        assert matcher.find_rule(path, directory) == (None if index is None else rules[index])


def test_is_hidden_is_fast() -> None:
    """Checking a million names of a listing takes at most seconds."""
    count = 10_000
    assert min(timeit.repeat(lambda: junk.is_hidden(b"user1001.name"), number=count, repeat=5)) / count < 20e-6


def test_list_and_check() -> None:
    """`junk list` prints every pattern, `junk check` the matching one and its meaning."""
    run = CliRunner().invoke
    listed = run(group, ["junk", "list"])
    assert listed.exit_code == 0
    assert len(listed.output.splitlines()) == len(junk.rules)
    assert "safe\t.DS_Store\tmacOS: Finder\tbuilt-in:" in listed.output
    checked = run(group, ["junk", "check", "a/.k.swp", "k~", "a.tmp", "HEAD.lock", ".~tmp~/", "e\x1b[31m~"])
    assert checked.exit_code == 0
    lines = [line.split("\t") for line in checked.output.splitlines()]
    assert lines[0] == ["a/.k.swp", "safe", "junk", ".*.sw[a-px]", "vim, nano: swap files"]
    assert [line[1] for line in lines] == ["safe", "companion", "", "keep", "new", "companion"]
    assert lines[2][2] == "data"
    assert "\x1b" not in checked.output
    assert '"class": "safe"' in run(group, ["junk", "check", "--json", "x.mine", "--junk", "*.mine"]).output
