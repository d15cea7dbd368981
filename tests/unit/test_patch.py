"""Patches are taken by the real `git apply` and `patch`, forwards and backwards."""

from __future__ import annotations

import os
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from redisfuse.journal import line_matching
from redisfuse.journal.change_filter import ChangeFilter, IdRange
from redisfuse.journal.journal import Journal
from redisfuse.journal.line_matching import MAX_COMPARED_LINES, match_lines
from redisfuse.journal.models import ABSENT, Change, ChangeIntent, ServerIdentity, SessionMetadata, State
from redisfuse.journal.net_change import join_changes
from redisfuse.journal.patch import FileChange, iter_patch

TEXTS: list[bytes | None] = [
    None,
    b"",
    b"a",
    b"a\n",
    b"a\nb\nc",
    b"a\nb\nc\n",
    b"\n",
    b"--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n",
    b"diff --git a/x b/x\n",
    b"caf\xe9 \xff\r\nend\r\n",
    b"\x1b[31m\x07\t\n" + b"line\n" * 30,
    b"\\ No newline at end of file",
]
PATHS = [b"plain", b"dir/with blank", "ü/é".encode(), b'q"uo\\te', b"tab\tnew\nline", b"-dash", b"\xff"]


def write_file(root: bytes, path: bytes, content: bytes | None) -> None:
    full = os.path.join(root, path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    if content is None:
        if os.path.exists(full):
            os.unlink(full)
        return
    with open(full, "wb") as file:
        file.write(content)


def read_tree(root: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            full = os.path.join(folder, name)
            with open(full, "rb") as file:
                found[os.path.relpath(full, root)] = file.read()
    return found


def render(*changes: FileChange, full: bool = True) -> bytes:
    return b"".join(
        b"change 1: title\n" + b"".join(line.data + b"\n" for line in iter_patch(each, full=full)) for each in changes
    )


def apply_patch(tool: str, root: bytes, patch: bytes, *, reverse: bool = False) -> None:
    words = ["git", "apply", "--whitespace=nowarn"] if tool == "git" else ["patch", "-p1", "--binary", "-s", "-E"]
    done = subprocess.run(
        [*words, *(["-R"] if reverse else [])], cwd=root, input=patch, capture_output=True, timeout=30
    )
    assert done.returncode == 0, (done.stdout + done.stderr, patch)


@pytest.mark.parametrize("tool", ["git", "patch"])
def test_texts(tool: str, tmp_path: Path) -> None:
    """The patch of every pair of texts leads from one to the other, and back."""
    root = os.fsencode(tmp_path)
    for prior in TEXTS:
        for new in TEXTS:
            # GNU patch takes an empty file for an absent one.
            if prior == new or (tool == "patch" and {prior, new} == {None, b""}):
                continue
            write_file(root, b"x", prior)
            patch = render(FileChange(b"x", b"x", prior, new))
            apply_patch(tool, root, patch)
            expected = {} if new is None else {b"x": new}
            assert read_tree(root) == expected or (tool == "patch" and new == b""), (prior, new)
            write_file(root, b"x", new)
            apply_patch(tool, root, patch, reverse=True)
            assert read_tree(root) == ({} if prior is None else {b"x": prior}) or (tool == "patch" and prior == b"")
            write_file(root, b"x", None)


@pytest.mark.parametrize("tool", ["git", "patch"])
@pytest.mark.parametrize("path", PATHS)
def test_names(tool: str, path: bytes, tmp_path: Path) -> None:
    """A name with special bytes is quoted so that both programs read it."""
    if tool == "patch" and b"\n" in path:
        pytest.skip("GNU patch refuses a name with a newline")
    root = os.fsencode(tmp_path)
    write_file(root, path, b"a\n")
    apply_patch(tool, root, render(FileChange(path, path, b"a\n", b"b\n")))
    assert read_tree(root) == {path: b"b\n"}
    apply_patch(tool, root, render(FileChange(path, b"renamed " + path, b"b\n", b"b\n")))
    assert read_tree(root) == {b"renamed " + path: b"b\n"}


@pytest.mark.parametrize("seed", range(8))
def test_random_texts(seed: int, tmp_path: Path) -> None:
    """Random edits of several files, one of them long, are one patch."""
    rng = random.Random(seed)
    root = os.fsencode(tmp_path)
    changes: list[FileChange] = []
    for number, length in enumerate((5, 40, 400, 2 * MAX_COMPARED_LINES)):
        lines = [b"%d\n" % rng.randrange(8) for _ in range(length)]
        edited = [line for line in lines if rng.random() > 0.1]
        for _ in range(length // 5):
            edited.insert(rng.randrange(len(edited) + 1), b"new %d\n" % rng.randrange(3))
        prior, new = b"".join(lines), b"".join(edited)[: -(number % 2) or None]
        write_file(root, b"f%d" % number, prior)
        changes.append(FileChange(b"f%d" % number, b"f%d" % number, prior, new))
    for tool in ("git", "patch"):
        apply_patch(tool, root, render(*changes))
        assert read_tree(root) == {change.new_path: change.new for change in changes}
        apply_patch(tool, root, render(*changes), reverse=True)
        assert read_tree(root) == {change.new_path: change.prior for change in changes}


def test_few_changes_of_a_long_text() -> None:
    """Lines that occur once divide a text that is too long to be compared at once."""
    before = [b"line %d\n" % number for number in range(50_000)]
    after = [b"new\n" if number % 12_000 == 7 else line for number, line in enumerate(before)]
    patch = render(FileChange(b"f", b"f", b"".join(before), b"".join(after)))
    assert [line for line in patch.split(b"\n") if line == b"+new"] == [b"+new"] * 5
    assert len(patch) < 2000


@pytest.mark.parametrize("seed", range(20))
def test_matched_lines(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranges cover both texts in order, and those that are equal are; also if a stretch is too long for difflib."""
    monkeypatch.setattr(line_matching, "MAX_COMPARED_LINES", 10)
    rng = random.Random(seed)
    before, after = ([b"%d" % rng.randrange(3 << seed % 7) for _ in range(rng.randrange(120))] for _ in range(2))
    if seed % 2:
        after = [line for line in before if rng.random() > 0.1]
        after[5:5] = [b"new", b"0"]
    i = j = 0
    for tag, i1, i2, j1, j2 in match_lines(before, after):
        assert (i1, j1) == (i, j)
        assert (tag == "equal") == (before[i1:i2] == after[j1:j2])
        assert {"delete": i1 < i2 and j1 == j2, "insert": i1 == i2 and j1 < j2}.get(tag, i1 < i2 and j1 < j2)
        i, j = i2, j2
    assert (i, j) == (len(before), len(after))


def test_binary_contents(tmp_path: Path) -> None:
    """A binary content is named, or written whole as git does, which git takes in both directions."""
    root = os.fsencode(tmp_path)
    rng = random.Random(1)
    contents = [
        None,
        b"\0",
        b"\0" + rng.randbytes(25),
        b"\0" + rng.randbytes(26),
        b"\0" + rng.randbytes(100_000),
        b"text\n",
    ]
    for prior in contents:
        for new in contents:
            if prior == new or b"\0" not in (prior or b"") + (new or b""):
                continue
            write_file(root, b"bin", prior)
            patch = render(FileChange(b"bin", b"bin", prior, new))
            apply_patch("git", root, patch)
            assert read_tree(root) == ({} if new is None else {b"bin": new})
            apply_patch("git", root, patch, reverse=True)
            assert read_tree(root) == ({} if prior is None else {b"bin": prior})
    named = render(FileChange(b"b", b"b", b"\0", None), full=False)
    names = b"index f76dd238ade08917e6712764a16a22005a50573d.." + b"0" * 40  # git's names of NUL and of nothing
    assert named.endswith(b"deleted file mode 100644\n" + names + b"\nBinary files a/b and /dev/null differ\n")


@pytest.mark.parametrize("is_first", [True, False])
def test_a_binary_value_that_is_only_named(is_first: bool, tmp_path: Path) -> None:
    """git refuses such a patch as a whole, wherever the value is in it; nothing is skipped silently."""
    root = os.fsencode(tmp_path)
    write_file(root, b"bin", b"\0" + b"1")
    write_file(root, b"text", b"a\n")
    before = read_tree(root)
    changes = [FileChange(b"bin", b"bin", b"\0" + b"1", b"\0" + b"2"), FileChange(b"text", b"text", b"a\n", b"b\n")]
    patch = render(*(changes if is_first else changes[::-1]), full=False)
    done = subprocess.run(["git", "apply"], cwd=root, input=patch, capture_output=True, timeout=30)
    assert done.returncode
    assert b"missing binary patch data for 'bin'" in done.stderr
    assert read_tree(root) == before


def make_change(id: int, prior: State, new: State, outcome: str = "applied", key: bytes = b"k") -> Change:
    return Change(id, 1, id, 0, b"p", "write", key, None, prior, new, outcome, None, None, None, None, None, "s")  # type: ignore[arg-type]


def test_net_changes_of_a_long_journal(tmp_path: Path) -> None:
    """Read page by page, the net changes are those of all changes at once; each is found by its first change."""
    rng = random.Random(3)
    texts = [ABSENT, *(State.from_value(text) for text in (b"a", b"b", b"c"))]
    tmp_path.chmod(0o700)
    with Journal.open(tmp_path / "journal.db", create=True) as journal:
        session = journal.begin_session(SessionMetadata(ServerIdentity(host="127.0.0.1", port=6379)))
        for outcome in ("applied", "failed", "applied"):
            intents = []
            for _ in range(700):
                key, field = b"%d" % rng.randrange(400), rng.choice([None, b"f"])
                prior, new = rng.sample(texts, 2)
                intents.append(ChangeIntent(key, rng.choice(["write", "rename"]), key, field, prior, new))
            ids = journal.record_intents(session, intents, grouping=False)
            journal.record_outcome(ids, outcome)  # type: ignore[arg-type]
        for selection in (
            ChangeFilter(),
            ChangeFilter(outcomes=("applied",), before_id=1900),
            ChangeFilter(limit=77),
            ChangeFilter(key_glob=b"1*", limit=50),
            ChangeFilter(key_glob=b"?", id_ranges=(IdRange(100, 300), IdRange(400, 1800)), ops=("rename",)),
            ChangeFilter(path=b"7", since=0),
        ):
            expected = [
                (net.first.id, net.last.id, net.count)
                for net in join_changes(journal.find_changes(replace(selection, oldest_first=True)))
            ]
            net_changes = journal.find_net_changes(selection)
            last_first = expected[-1][0]
            found = net_changes.find_beginning_with(last_first)
            assert found is not None
            assert (found.first.id, found.last.id, found.count) == expected[-1]
            assert net_changes.find_beginning_with(5000) is None
            ids = {change.id for change in journal.find_changes(selection)}
            assert net_changes.find_beginning_with(next(id for id in range(1, 5000) if id not in ids)) is None
            assert [(net.first.id, net.last.id, net.count) for net in net_changes] == expected
            assert net_changes.find_beginning_with(last_first) is None


def test_net_changes() -> None:
    """Successive changes join if each finds what the one before it left; others, and unwritten ones, do not."""
    a, b, c = (State.from_value(text) for text in (b"a", b"b", b"c"))
    changes = [
        make_change(1, ABSENT, a),
        make_change(2, ABSENT, b, key=b"other"),
        make_change(3, a, b),
        make_change(4, b, c, "refused"),
        make_change(5, b, ABSENT),
        make_change(6, c, a),
        make_change(7, a, State.from_slice(b"x", 5, 9)),
        make_change(8, State.from_slice(b"x", 5, 9), a),
    ]
    joined = [(net.first.id, net.last.id, net.count) for net in join_changes(changes)]
    assert joined == [(1, 5, 3), (2, 2, 1), (4, 4, 1), (6, 7, 2), (8, 8, 1)]
