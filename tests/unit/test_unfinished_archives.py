"""Dumps that are resumed, wherever FILE.part was cut off."""

import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from redisfuse.errors import ExistsError, UsageError
from redisfuse.journal.models import State
from redisfuse.paths.grammar import PathCodec
from redisfuse.transactions import archive_file
from redisfuse.transactions.archive_file import ArchiveReader, ArchiveWriter, create_archive
from redisfuse.transactions.archive_record import ArchivedKey, ArchiveHeader
from redisfuse.transactions.unfinished_archive import KeySet

HEADER = ArchiveHeader("redis 7.0.15", b"a:")
NAMES = ["file", "file.gz", "file.zst"]


def begin(path: Path, *, force: bool = False, resume: bool = False, header: ArchiveHeader = HEADER) -> ArchiveWriter:
    return create_archive(str(path), header, PathCodec(b":"), force=force, resume=resume)


@pytest.fixture(scope="module")
def values() -> dict[bytes, bytes]:
    """Return values of keys, one of which has several lines in an archive."""
    source = random.Random(3)
    values = {b"a:%d\xff" % number: source.randbytes(300) for number in range(60)}
    values[b"a:30\xff"] = source.randbytes((1 << 20) + 300_000)
    return values


@pytest.mark.parametrize("name", NAMES)
def test_every_whole_record_is_kept(
    name: str, values: dict[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a file is cut off or damaged, the resumed archive has each key once, and is complete."""
    monkeypatch.setattr(archive_file, "FRAME_BYTES", 2000)
    path, part = tmp_path / name, tmp_path / f"{name}.part"
    writer = begin(path)
    for key, value in values.items():
        writer.write(ArchivedKey(key, State.from_value(value)))
    writer.close()
    assert writer.unfinished_name == str(part)
    whole = part.read_bytes()
    source = random.Random(4)
    kept = []
    for cut in (0, 1, 20, 200, len(whole) - 1, len(whole), *(source.randrange(len(whole)) for _ in range(8))):
        part.write_bytes(whole[:cut] + (bytes(100) if cut % 2 else b""))  # a crash can leave zeros at the end
        writer = begin(path, force=True, resume=True)
        missing = [key for key in values if not writer.has_key(key)]
        kept.append(len(values) - len(missing))
        for key in missing:
            writer.write(ArchivedKey(key, State.from_value(values[key])))
        writer.finish()
        reader = ArchiveReader(str(path))
        read = [(archived.key, archived.state.content) for archived in reader]
        reader.close()
        assert Counter(key for key, _ in read) == Counter(values.keys())
        assert all(content is not None and content.read() == values[key] for key, content in read)
        assert reader.expected_keys == len(values)
    assert kept[:2] == [0, 0]
    assert kept[5] == len(values)
    assert len(set(kept)) > 2


def test_the_end_is_written_again(tmp_path: Path) -> None:
    """A kill between the end and the renaming leaves a whole archive, which can be resumed."""
    path = tmp_path / "file"
    writer = begin(path)
    writer.write(ArchivedKey(b"a:1", State.from_value(b"x")))
    writer.finish()
    whole = path.read_bytes()
    path.rename(tmp_path / "file.part")
    writer = begin(path, resume=True)
    assert writer.has_key(b"a:1")
    writer.finish()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", NAMES)
def test_unfinished_files_that_can_not_be_resumed(name: str, tmp_path: Path) -> None:
    """One of other keys, one that another dump writes, and one that is no archive are errors, and are kept."""
    path, part = tmp_path / name, tmp_path / f"{name}.part"
    writer = begin(path)
    for resume in (False, True):
        with pytest.raises(ExistsError, match="another dump is writing" if resume else "add --resume"):
            begin(path, resume=resume)
    with pytest.raises(ExistsError, match="another dump is writing"):
        begin(path, force=True)
    writer.write(ArchivedKey(b"a:1", State.from_value(b"x")))
    writer.close()
    with pytest.raises(ExistsError, match="begun with other keys"):
        begin(path, resume=True, header=ArchiveHeader("redis 7.0.15", b"b:"))
    writer = begin(path, resume=True)
    assert writer.has_key(b"a:1")
    writer.close()
    begin(path, force=True).close()
    assert not part.exists()
    part.symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        begin(path, resume=True)
    part.unlink()
    if name == "file":
        part.write_text("notes\n")
        with pytest.raises(ExistsError, match="is not an archive"):
            begin(path, resume=True)
        assert part.read_text() == "notes\n"


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="zstd is in the standard library")
def test_zstd_needs_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the message names the extra, and no file is left."""
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    with pytest.raises(UsageError, match=r"redisfuse\[decode\]"):
        begin(tmp_path / "file.zst")
    assert list(tmp_path.iterdir()) == []


def test_a_set_of_keys() -> None:
    """It has the keys that were added, and no others."""
    keys = KeySet()
    for number in range(0, 20_000, 2):
        keys.add(b"%d" % number)
    assert all((b"%d" % number in keys) == (number % 2 == 0) for number in range(20_000))
