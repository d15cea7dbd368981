"""How programs save a file: each function here makes the file at a path hold NEW instead of OLD, in its program's way.

The sequences that are done in Python are those of programs that can't run here, from their sources or traces of them.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pexpect

OLD = b"old text\n"
NEW = b"new text\n"
PATIENCE = 30  # seconds for a program to do anything

Save = Callable[[Path, Path], None]  # (the file on the mount, a folder outside of it)


@dataclass(frozen=True)
class Program:
    """One way to save."""

    name: str
    save: Save
    leaves: tuple[str, ...] = ()  # names beside the file that may be in the mount afterwards; {} is the file's name
    quick: bool = False  # done several times over in one test
    consumes: bool = False  # another key, FILE.other, that holds NEW, is used up


def run(words: list[str], path: Path) -> None:
    """Run a program in the file's folder."""
    done = subprocess.run(words, cwd=path.parent, capture_output=True, stdin=subprocess.DEVNULL, timeout=PATIENCE)
    assert done.returncode == 0, (words, done.stdout, done.stderr)


def terminal(words: list[str], path: Path) -> pexpect.spawn:
    """Start a program in the file's folder on a terminal of its own."""
    environment = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    return pexpect.spawn(
        words[0], words[1:], cwd=path.parent, env=environment, timeout=PATIENCE, dimensions=(24, 80), echo=False
    )


def ends(child: pexpect.spawn) -> None:
    """Wait for a program on a terminal to end well."""
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0, child.before


# -- real programs -----------------------------------------------------------------------------------------------------


# By itself vim makes no backups in /tmp, where tests are; neovim has swap files and backups in a folder of its own.
SWAPS_AND_BACKUPS = "set directory=. backupdir=. backupskip="


def vim(*settings: str, program: str = "vim") -> Save:
    """Change and save with vim on a terminal, with its swap file beside the file."""

    def save(path: Path, scratch: Path) -> None:
        own = [SWAPS_AND_BACKUPS, f"set viewdir={scratch}", *(f"set {each}" for each in settings)]
        commands = [word for each in own for word in ("--cmd", each)]
        ends(
            terminal(
                [program, "-N", "-u", "NONE", "-i", "NONE", *commands, "-c", "%s/old/new/", "-c", "wq", path.name], path
            )
        )

    return save


def vim_typed(path: Path, _scratch: Path) -> None:
    """Type into vim: a swap file appears while the buffer is changed, then :w, then :q."""
    child = terminal(
        ["vim", "-N", "-u", "NONE", "-i", "NONE", "--cmd", SWAPS_AND_BACKUPS, "--cmd", "set updatecount=1", path.name],
        path,
    )
    child.expect("old text")
    child.send("cwnew\x1b")
    child.send(":w\r")
    child.expect("written")
    child.send(":q\r")
    ends(child)


def vim_twice(path: Path) -> None:
    """Save twice in one session of vim."""
    child = terminal(["vim", "-N", "-u", "NONE", "-i", "NONE", "--cmd", SWAPS_AND_BACKUPS, path.name], path)
    child.expect("old text")
    for word in ("new", "newer"):
        child.send(f"0cw{word}\x1b:w\r")
        child.expect("written")
    child.send(":q\r")
    ends(child)


def vim_new(program: str) -> Save:
    """Make a file with vim."""

    def save(path: Path, _scratch: Path) -> None:
        words = [program, "-N", "-u", "NONE", "-i", "NONE", "--cmd", SWAPS_AND_BACKUPS]
        ends(terminal([*words, "-c", "normal inew text", "-c", "wq", path.name], path))

    return save


# By itself emacs makes no backups in /tmp, where tests are.
BACKUPS = "(setq backup-enable-predicate (lambda (_) t))"
EMACS = """(progn (setq auto-save-default t create-lockfiles t) (find-file (getenv "FILE"))
 (goto-char (point-min)) (delete-char 3) (insert "new") (do-auto-save) (save-buffer) (kill-emacs))"""


def emacs_batch(path: Path, _scratch: Path) -> None:
    """Save once with emacs, without a terminal."""
    run(["env", f"FILE={path.name}", "emacs", "-Q", "--batch", "--eval", BACKUPS, "--eval", EMACS], path)


def emacs_typed(path: Path, _scratch: Path) -> None:
    """Type into emacs on a terminal, and save with C-x C-s."""
    child = terminal(["emacs", "-nw", "-Q", "--eval", BACKUPS, path.name], path)
    child.expect("old text")
    child.send("\x1bdnew")  # M-d: kill the word
    child.send("\x18\x13")  # C-x C-s
    child.expect("Wrote")
    child.send("\x18\x03")  # C-x C-c
    ends(child)


def emacs_twice(path: Path) -> None:
    """Save twice in one session of emacs: the first makes a backup, the second does not."""
    child = terminal(["emacs", "-nw", "-Q", "--eval", BACKUPS, path.name], path)
    child.expect("old text")
    for word in ("new", "newer"):
        child.send(f"\x01\x1bd{word}")  # C-a M-d
        child.send("\x18\x13")
        child.expect("Wrote")
    child.send("\x18\x03")
    ends(child)


def nano(*options: str) -> Save:
    """Type into nano, save with Ctrl-O and leave with Ctrl-X."""

    def save(path: Path, _scratch: Path) -> None:
        child = terminal(["nano", "--ignorercfiles", *options, path.name], path)
        child.expect("old text")
        child.send("\x0bnew text")  # ^K cuts the line
        child.send("\x0f")
        child.expect("Name to Write")
        child.send("\r")
        child.expect("Wrote")
        child.send("\x18")
        ends(child)

    return save


def command(*words: str) -> Save:
    """Run a command; {} is the file's name, {new} a file elsewhere that holds NEW."""

    def save(path: Path, scratch: Path) -> None:
        source = scratch / "new"
        source.write_bytes(NEW)
        run([word.format(path.name, new=source) for word in words], path)

    return save


def gio(*options: str) -> Save:
    """Save as GNOME programs do: g_file_replace, through `gio save`."""

    def save(path: Path, scratch: Path) -> None:
        source = scratch / "new"
        source.write_bytes(NEW)
        with source.open("rb") as file:
            subprocess.run(
                ["gio", "save", *options, path.name], cwd=path.parent, stdin=file, check=True, timeout=PATIENCE
            )

    return save


# -- sequences ---------------------------------------------------------------------------------------------------------


def put(path: Path, flags: int, mode: int = 0o644, *, sync: bool = True) -> None:
    """open, write NEW, fsync, close."""
    descriptor = os.open(path, os.O_WRONLY | flags, mode)
    try:
        os.write(descriptor, NEW)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def python_replace(path: Path, _scratch: Path) -> None:
    """Python's usual atomic write: mkstemp beside it, fsync, os.replace."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(NEW)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def vs_code(path: Path, _scratch: Path) -> None:
    """VS Code: truncate, write, fdatasync, close (microsoft/vscode, diskFileSystemProvider)."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CREAT, 0o666)
    os.write(descriptor, NEW)
    os.fdatasync(descriptor)
    os.close(descriptor)


def jetbrains(path: Path, _scratch: Path) -> None:
    """JetBrains' safe write: write K___jb_tmp___, rename the old one away, the new one in, and remove the old."""
    new, old = path.with_name(path.name + "___jb_tmp___"), path.with_name(path.name + "___jb_old___")
    put(new, os.O_CREAT | os.O_EXCL)
    os.rename(path, old)
    os.rename(new, path)
    os.unlink(old)


def libreoffice(path: Path, _scratch: Path) -> None:
    """LibreOffice: a lock file, a probe, a private temporary file that is renamed over the document."""
    lock = path.with_name(f".~lock.{path.name}#")
    lock.write_text(",me,here,;")
    os.close(os.open(path, os.O_RDWR))
    new = path.with_name("lu325942pejo.tmp")
    put(new, os.O_CREAT | os.O_EXCL, 0o600)
    os.rename(new, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    lock.unlink()


def q_save_file(path: Path, _scratch: Path) -> None:
    """QSaveFile (Kate, KDE): K.XXXXXX made private, synced, made like the old one, renamed over it."""
    lock = path.with_name(f".{path.name}.kate-swp")
    lock.write_bytes(b"swap")
    new = path.with_name(path.name + ".Cqaoyu")
    put(new, os.O_CREAT | os.O_EXCL, 0o600)
    os.chmod(new, 0o644)
    os.rename(new, path)
    lock.unlink()


def macos_safe_save(path: Path, _scratch: Path) -> None:
    """macOS: a folder of its own for the new file, which is then renamed over the old one."""
    folder = path.with_name(path.name + ".sb-1a2b3c4d-AbCdEf")
    folder.mkdir()
    put(folder / path.name, os.O_CREAT | os.O_EXCL)
    os.rename(folder / path.name, path)
    folder.rmdir()


def while_read(path: Path, _scratch: Path) -> None:
    """An atomic save beside a reader that still has the old file open."""
    with path.open("rb") as reader:
        new = path.with_name("tmpab12cd34")
        put(new, os.O_CREAT | os.O_EXCL, 0o600)
        os.rename(new, path)
        assert reader.read() == OLD


def slow_backup(path: Path, _scratch: Path) -> None:
    """A backup by rename, a while of nothing, a new file without any fsync."""
    backup = path.with_name(path.name + "~")
    os.rename(path, backup)
    time.sleep(0.3)
    put(path, os.O_CREAT, sync=False)


def in_place(path: Path, _scratch: Path) -> None:
    """In place, without truncating first."""
    with path.open("r+b") as file:
        file.write(NEW)
        file.truncate()


PROGRAMS = [
    Program("vim", vim()),
    Program("vim-typed", vim_typed),
    Program("vim-backupcopy=yes", vim("backupcopy=yes")),
    Program("vim-backupcopy=no", vim("backupcopy=no")),
    Program("vim-backup", vim("backup"), leaves=("{}~",)),
    Program("vim-writebackup", vim("nobackup", "writebackup")),
    Program("vim-nowritebackup", vim("nobackup", "nowritebackup")),
    Program("vim-undofile", vim("undofile", "undodir=."), leaves=(".{}.un~",)),
    Program("vim-compatible", vim("compatible")),
    Program("neovim", vim("undofile", "undodir=.", program="nvim"), leaves=(".{}.un~",)),
    Program("neovim-backup", vim("backup", program="nvim"), leaves=("{}~",)),
    Program("emacs-batch", emacs_batch, leaves=("{}~",)),
    Program("emacs-typed", emacs_typed, leaves=("{}~",)),
    Program("nano", nano()),
    Program("nano-B", nano("--backup"), leaves=("{}~",)),
    Program("nano-G", nano("--locking")),
    Program("sed-i", command("sed", "-i", "s/old/new/", "{}"), quick=True),
    Program("perl-i", command("perl", "-i", "-pe", "s/old/new/", "{}"), quick=True),
    Program("perl-i~", command("perl", "-i~", "-pe", "s/old/new/", "{}"), leaves=("{}~",), quick=True),
    Program("python-replace", python_replace, quick=True),
    Program("rsync", command("rsync", "--ignore-times", "{new}", "{}"), quick=True),
    Program("rsync-inplace", command("rsync", "--ignore-times", "--inplace", "{new}", "{}")),
    Program("rsync-delay", command("rsync", "-I", "--delay-updates", "{new}", "{}")),
    Program("rsync-backup", command("rsync", "-I", "-b", "{new}", "{}"), leaves=("{}~",)),
    Program("cp", command("cp", "{new}", "{}"), quick=True),
    Program("cp-backup", command("cp", "--backup=simple", "{new}", "{}"), leaves=("{}~",), quick=True),
    Program("dd", command("dd", "if={new}", "of={}")),
    Program("mv-of-another-key", command("mv", "-f", "{}.other", "{}"), consumes=True),
    Program("gio-save", gio(), quick=True),
    Program("gio-save-backup", gio("--backup"), leaves=("{}~",), quick=True),
    Program("vs-code", vs_code, quick=True),
    Program("jetbrains", jetbrains, quick=True),
    Program("libreoffice", libreoffice, quick=True),
    Program("kate", q_save_file, quick=True),
    Program("macos", macos_safe_save, quick=True),
    Program("while-it-is-read", while_read, quick=True),
    Program("slow", slow_backup, leaves=("{}~",)),
    Program("in-place", in_place, quick=True),
]
