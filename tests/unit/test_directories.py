"""Which entries of a long listing have attributes."""

from redisfuse.mount.directories import MAX_UNPROBED_ENTRIES, OpenDirectory
from redisfuse.vfs.directory_handle import DirectoryHandle
from redisfuse.vfs.inodes import InodeTable


def test_a_long_listing_probes_whether_attributes_are_used() -> None:
    """Past the first entries, a portion has attributes only if the kernel looked up the last portion's probe."""
    inodes = InodeTable()
    opened = OpenDirectory(inodes.root, DirectoryHandle([]))
    assert opened.wants_attributes()
    assert not opened.take_probe(b"a")
    opened.entry_count = MAX_UNPROBED_ENTRIES
    assert not opened.wants_attributes()
    assert opened.take_probe(b"b")
    assert not opened.take_probe(b"c")
    assert not opened.wants_attributes()  # b was not looked up
    assert opened.take_probe(b"d")
    inodes.look_up(inodes.root, b"d", is_directory=False)
    assert opened.wants_attributes()
    assert opened.take_probe(b"e")
    assert not opened.wants_attributes()
