"""The rule of trusted files: real files with owners and modes that another user could have prepared."""

import os
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from redisfuse.errors import UntrustedFileError
from redisfuse.trusted_files import check_location, create_folder, open_log, open_trusted
from tests.support.other_users import needs_open_checkout

OTHER_UID = 65534

ACL = struct.pack("<I" + "HHi" * 5, 2, *(1, 6, -1), *(2, 6, OTHER_UID), *(4, 4, -1), *(16, 6, -1), *(32, 4, -1))
"""An ACL (version 2, linux/posix_acl_xattr.h): the owner, another user, the group, the mask and all others."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="files of another user need root")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Create a file that only this user can read and write, in such a folder."""
    folder = tmp_path / "folder"
    folder.mkdir(0o700)
    path = folder / "file"
    path.write_text("content")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400, 0o640])
def test_a_file_that_others_can_read_is_trusted(file: Path, mode: int) -> None:
    """Reading permissions don't matter, unless the file has to be private."""
    file.chmod(mode)
    with open_trusted(file) as opened:
        assert opened.read() == b"content"
    if mode & 0o077:
        with pytest.raises(UntrustedFileError, match=f"chmod 600 {file}"):
            open_trusted(file, private=True)


@pytest.mark.parametrize("mode", [0o602, 0o666, 0o622])
def test_a_file_that_others_can_write(file: Path, mode: int) -> None:
    """Writing permissions of others are refused, with the command that removes them."""
    file.chmod(mode)
    with pytest.raises(UntrustedFileError, match=f"chmod go-w {file}$"):
        open_trusted(file)
    with pytest.raises(UntrustedFileError, match="other users can write to it"):
        open_log(file)


@needs_root
def test_the_file_of_another_user(file: Path) -> None:
    """A file of another user is refused, whatever its mode."""
    os.chown(file, OTHER_UID, -1)
    for function in (open_trusted, open_log):
        with pytest.raises(UntrustedFileError, match="it belongs to another user"):
            function(file)


@needs_root
def test_a_file_of_root_is_trusted_by_other_users() -> None:
    """An ordinary user trusts what root prepared, and what belongs to it; nothing of a third user."""
    script = (
        "import os, sys; from pathlib import Path; from redisfuse.trusted_files import open_trusted\n"
        "from redisfuse.errors import UntrustedFileError\n"
        "os.setresuid(12345, 12345, 12345)\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(open_trusted(Path(name)).read().decode())\n"
        "    except UntrustedFileError as error: print('refused')\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's folders can be entered by root only
        os.chmod(folder, 0o755)
        names = []
        for uid in (0, 12345, OTHER_UID):
            path = Path(folder, str(uid))
            path.write_text(f"of {uid}")
            os.chown(path, uid, -1)
            names.append(str(path))
        done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["of 0", "of 12345", "refused", ""]


@pytest.mark.parametrize(
    ("mode", "remedy"), [(0o777, "chmod go-w"), (0o770, "chmod go-w"), (0o1777, "folder that only")]
)
def test_a_folder_in_which_others_can_create_files(file: Path, mode: int, remedy: str) -> None:
    """The folder of a file must be closed to others; the sticky bit does not help."""
    file.parent.chmod(mode)
    for function in (open_trusted, check_location, open_log):
        with pytest.raises(UntrustedFileError, match=remedy):
            function(file)
    file.unlink()
    for function in (check_location, open_log):
        with pytest.raises(UntrustedFileError, match=remedy):
            function(file)
    assert os.listdir(file.parent) == []
    with pytest.raises(FileNotFoundError):
        open_trusted(file)


@pytest.mark.parametrize(("mode", "is_trusted"), [(0o777, False), (0o775, False), (0o1777, True), (0o755, True)])
def test_folders_on_the_way(file: Path, mode: int, is_trusted: bool) -> None:
    """Others must not be able to replace a folder on the way; in a sticky folder they can't."""
    file.parent.parent.chmod(mode)
    if is_trusted:
        open_trusted(file).close()
    else:
        with pytest.raises(UntrustedFileError, match="other users can write to"):
            open_trusted(file)


@needs_root
def test_a_folder_of_another_user(file: Path) -> None:
    """The owner of a folder can replace everything in it."""
    os.chown(file.parent, OTHER_UID, -1)
    with pytest.raises(UntrustedFileError, match=f"{file.parent} belongs to another user"):
        open_trusted(file)


def test_symbolic_links_are_followed_and_checked(file: Path, tmp_path: Path) -> None:
    """A link is as trusted as its own folder and all that it leads through."""
    absolute, relative = tmp_path / "absolute", tmp_path / "relative"
    absolute.symlink_to(file)
    relative.symlink_to(Path("folder", "..", "folder"))
    for path in (absolute, relative / "file"):
        with open_trusted(path) as opened:
            assert opened.read() == b"content"
    open_place = tmp_path / "open"
    open_place.mkdir()
    (open_place / "link").symlink_to(file)
    (open_place / "folder").symlink_to(file.parent)
    open_place.chmod(0o777)
    for path in (open_place / "link", open_place / "folder" / "file"):
        with pytest.raises(UntrustedFileError, match="other users can write to"):
            open_trusted(path)
    open_place.chmod(0o755)
    file.parent.chmod(0o1777)
    for path in (absolute, relative / "file", open_place / "link"):
        with pytest.raises(UntrustedFileError, match="all users can create files"):
            open_trusted(path)


@needs_root
def test_the_symbolic_link_of_another_user(file: Path, tmp_path: Path) -> None:
    """A link of another user is refused, even in a sticky folder and to a trusted file."""
    place = tmp_path / "sticky"
    place.mkdir()
    (place / "folder").symlink_to(file.parent)
    place.chmod(0o1777)
    open_trusted(place / "folder" / "file").close()
    os.lchown(place / "folder", OTHER_UID, -1)
    with pytest.raises(UntrustedFileError, match="belongs to another user"):
        open_trusted(place / "folder" / "file")


def test_a_loop_of_links(tmp_path: Path) -> None:
    """Links in a circle are an error of the system."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        check_location(tmp_path / "a" / "file")


def test_a_pipe_of_the_shell() -> None:
    """`<(command)` of a shell is a link to a pipe, which no other user can have prepared."""
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"secret\n")
    os.close(write_fd)
    try:
        with open_trusted(Path(f"/dev/fd/{read_fd}"), private=True) as opened:
            assert opened.read() == b"secret\n"
    finally:
        os.close(read_fd)


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Set a umask that removes no permission."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_a_new_log_is_private(tmp_path: Path) -> None:
    """A log and its missing folders are created for their owner alone; a second open appends."""
    path = tmp_path / "a" / "b" / "log"
    for text in (b"one", b"two"):
        descriptor = open_log(path)
        os.write(descriptor, text)
        os.close(descriptor)
    assert path.read_bytes() == b"onetwo"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (tmp_path / "a", tmp_path / "a" / "b")} == {0o700}
    create_folder(tmp_path / "a")


def test_a_log_that_is_no_file() -> None:
    """A device keeps nothing that others could read."""
    os.close(open_log(Path("/dev/null")))


def test_an_empty_configuration() -> None:
    """/dev/null is read as an empty file, as the demo does, though all users can write to it."""
    with open_trusted(Path("/dev/null")) as file:
        assert file.read() == b""
    with pytest.raises(UntrustedFileError):
        open_trusted(Path("/dev/zero"))


@needs_open_checkout
@pytest.mark.parametrize(("members", "acl"), [("", False), ("other", False), ("", True)])
def test_a_private_group(members: str, acl: bool) -> None:
    """A user's own group, as umask 0002 needs it, is no other user, unless it has other members or there is an ACL."""
    script = """
set -e
cp /etc/passwd /etc/group "$1/"
echo 'someone:x:12345:12345::/:/bin/sh' >> "$1/passwd"
echo "someone:x:12345:$2" >> "$1/group"
mount --bind "$1/passwd" /etc/passwd; mount --bind "$1/group" /etc/group
mkdir "$1/home"; chmod 775 "$1/home"; chown 12345:12345 "$1/home"
echo content > "$1/home/file"; chmod 664 "$1/home/file"; chown 12345:12345 "$1/home/file"
test -z "$4" || "$3" -c '
import os, sys
os.setxattr(sys.argv[1], "system.posix_acl_access", bytes.fromhex(sys.argv[2]))' "$1/home/file" "$4"
exec setpriv --reuid 12345 --regid 12345 --clear-groups "$3" -c '
import sys
from pathlib import Path
from redisfuse.trusted_files import open_trusted
print(open_trusted(Path(sys.argv[1])).read().decode())' "$1/home/file"
"""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        words = [
            "unshare",
            "-m",
            "sh",
            "-c",
            script,
            "sh",
            folder,
            members,
            sys.executable,
            *([ACL.hex()] if acl else []),
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if members or acl:
        assert "UntrustedFileError" in done.stderr
    else:
        assert (done.stdout, done.stderr) == ("content\n\n", "")
