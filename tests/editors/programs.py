"""How programs save a file: each function replaces OLD by NEW in the file at a path, as its program does.

The sequences in Python are those of programs that can't run here, from their sources or from traces of them.
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
PROGRAM_TIMEOUT_SECONDS = 30

Save = Callable[[Path, Path], None]  # (the file on the mount, a directory outside of the mount)


@dataclass(frozen=True)
class Program:
    """One way to save a file."""

    name: str
    save: Save
    leaves: tuple[str, ...] = ()  # names that may remain beside the file; {} is its name
    quick: bool = False  # fast enough to run several times in one test
    consumes: bool = False  # it renames another key, FILE.other, which holds NEW


def run(words: list[str], path: Path) -> None:
    """Run a program in the directory of the file."""
    process = subprocess.run(
        words, cwd=path.parent, capture_output=True, stdin=subprocess.DEVNULL, timeout=PROGRAM_TIMEOUT_SECONDS
    )
    assert process.returncode == 0, (words, process.stdout, process.stderr)


def terminal(words: list[str], path: Path) -> pexpect.spawn:
    """Start a program in the directory of the file, on its own terminal."""
    environment = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    return pexpect.spawn(
        words[0],
        words[1:],
        cwd=path.parent,
        env=environment,
        timeout=PROGRAM_TIMEOUT_SECONDS,
        dimensions=(24, 80),
        echo=False,
    )


def wait_for_exit(child: pexpect.spawn) -> None:
    """Wait until a program on a terminal exits with status 0."""
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0, child.before


# -- real programs -----------------------------------------------------------------------------------------------------


# By default vim makes no backups in /tmp, where the tests run, and neovim has its swap files and backups elsewhere.
SWAPS_AND_BACKUPS = "set directory=. backupdir=. backupskip="


def vim(*settings: str, program: str = "vim") -> Save:
    """Return a save with vim on a terminal, with its swap file beside the file."""

    def save(path: Path, outside: Path) -> None:
        lines = [SWAPS_AND_BACKUPS, f"set viewdir={outside}", *(f"set {setting}" for setting in settings)]
        commands = [word for line in lines for word in ("--cmd", line)]
        wait_for_exit(
            terminal(
                [program, "-N", "-u", "NONE", "-i", "NONE", *commands, "-c", "%s/old/new/", "-c", "wq", path.name], path
            )
        )

    return save


def vim_typed(path: Path, _outside: Path) -> None:
    """Type into vim, so that it creates a swap file, then :w, then :q."""
    child = terminal(
        ["vim", "-N", "-u", "NONE", "-i", "NONE", "--cmd", SWAPS_AND_BACKUPS, "--cmd", "set updatecount=1", path.name],
        path,
    )
    child.expect("old text")
    child.send("cwnew\x1b")
    child.send(":w\r")
    child.expect("written")
    child.send(":q\r")
    wait_for_exit(child)


def vim_twice(path: Path) -> None:
    """Save twice in one session of vim."""
    child = terminal(["vim", "-N", "-u", "NONE", "-i", "NONE", "--cmd", SWAPS_AND_BACKUPS, path.name], path)
    child.expect("old text")
    for word in ("new", "newer"):
        child.send(f"0cw{word}\x1b:w\r")
        child.expect("written")
    child.send(":q\r")
    wait_for_exit(child)


def vim_new(program: str) -> Save:
    """Return a save of a new file with vim."""

    def save(path: Path, _outside: Path) -> None:
        words = [program, "-N", "-u", "NONE", "-i", "NONE", "--cmd", SWAPS_AND_BACKUPS]
        wait_for_exit(terminal([*words, "-c", "normal inew text", "-c", "wq", path.name], path))

    return save


# By default emacs makes no backups in /tmp, where the tests run.
BACKUPS = "(setq backup-enable-predicate (lambda (_) t))"
EMACS = """(progn (setq auto-save-default t create-lockfiles t) (find-file (getenv "FILE"))
 (goto-char (point-min)) (delete-char 3) (insert "new") (do-auto-save) (save-buffer) (kill-emacs))"""


def emacs_batch(path: Path, _outside: Path) -> None:
    """Save once with emacs in batch mode."""
    run(["env", f"FILE={path.name}", "emacs", "-Q", "--batch", "--eval", BACKUPS, "--eval", EMACS], path)


def emacs_typed(path: Path, _outside: Path) -> None:
    """Type into emacs on a terminal, and save with C-x C-s."""
    child = terminal(["emacs", "-nw", "-Q", "--eval", BACKUPS, path.name], path)
    child.expect("old text")
    child.send("\x1bdnew")  # M-d: kill the word
    child.send("\x18\x13")  # C-x C-s
    child.expect("Wrote")
    child.send("\x18\x03")  # C-x C-c
    wait_for_exit(child)


def emacs_twice(path: Path) -> None:
    """Save twice in one session of emacs: only the first save makes a backup."""
    child = terminal(["emacs", "-nw", "-Q", "--eval", BACKUPS, path.name], path)
    child.expect("old text")
    for word in ("new", "newer"):
        child.send(f"\x01\x1bd{word}")  # C-a M-d
        child.send("\x18\x13")
        child.expect("Wrote")
    child.send("\x18\x03")
    wait_for_exit(child)


def nano(*options: str) -> Save:
    """Return a save with nano: typing, Ctrl-O and Ctrl-X."""

    def save(path: Path, _outside: Path) -> None:
        child = terminal(["nano", "--ignorercfiles", *options, path.name], path)
        child.expect("old text")
        child.send("\x0bnew text")  # ^K cuts the line
        child.send("\x0f")
        child.expect("Name to Write|to File")  # of nano 7 and 8
        child.send("\r")
        child.expect("Wrote")
        child.send("\x18")
        wait_for_exit(child)

    return save


def command(*words: str) -> Save:
    """Return a save by a command; {} is the name of the file, {new} a file elsewhere that holds NEW."""

    def save(path: Path, outside: Path) -> None:
        source = outside / "new"
        source.write_bytes(NEW)
        run([word.format(path.name, new=source) for word in words], path)

    return save


def gio(*options: str) -> Save:
    """Return a save by g_file_replace, as GNOME programs do, through `gio save`."""

    def save(path: Path, outside: Path) -> None:
        source = outside / "new"
        source.write_bytes(NEW)
        with source.open("rb") as file:
            subprocess.run(
                ["gio", "save", *options, path.name],
                cwd=path.parent,
                stdin=file,
                check=True,
                timeout=PROGRAM_TIMEOUT_SECONDS,
            )

    return save


# -- sequences ---------------------------------------------------------------------------------------------------------


def write_new(path: Path, flags: int, mode: int = 0o644, *, sync: bool = True) -> None:
    """Open a file, write NEW, fsync and close."""
    descriptor = os.open(path, os.O_WRONLY | flags, mode)
    try:
        os.write(descriptor, NEW)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def python_replace(path: Path, _outside: Path) -> None:
    """Save as Python programs usually do: mkstemp beside the file, fsync, os.replace."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(NEW)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def vs_code(path: Path, _outside: Path) -> None:
    """Save as VS Code does: truncate, write, fdatasync, close (microsoft/vscode, diskFileSystemProvider)."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CREAT, 0o666)
    os.write(descriptor, NEW)
    os.fdatasync(descriptor)
    os.close(descriptor)


def jetbrains(path: Path, _outside: Path) -> None:
    """Save as JetBrains does: write K___jb_tmp___, rename the old file away, the new one in, and remove the old."""
    new, old = path.with_name(path.name + "___jb_tmp___"), path.with_name(path.name + "___jb_old___")
    write_new(new, os.O_CREAT | os.O_EXCL)
    os.rename(path, old)
    os.rename(new, path)
    os.unlink(old)


def libreoffice(path: Path, _outside: Path) -> None:
    """Save as LibreOffice does: a lock file, a probe, a private temporary file that is renamed over the document."""
    lock = path.with_name(f".~lock.{path.name}#")
    lock.write_text(",me,here,;")
    os.close(os.open(path, os.O_RDWR))
    new = path.with_name("lu325942pejo.tmp")
    write_new(new, os.O_CREAT | os.O_EXCL, 0o600)
    os.rename(new, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    lock.unlink()


def q_save_file(path: Path, _outside: Path) -> None:
    """Save as QSaveFile (Kate, KDE) does: create K.XXXXXX with mode 0600, fsync, chmod, rename over the file."""
    lock = path.with_name(f".{path.name}.kate-swp")
    lock.write_bytes(b"swap")
    new = path.with_name(path.name + ".Cqaoyu")
    write_new(new, os.O_CREAT | os.O_EXCL, 0o600)
    os.chmod(new, 0o644)
    os.rename(new, path)
    lock.unlink()


def macos_safe_save(path: Path, _outside: Path) -> None:
    """Save as macOS does: create the new file in its own directory and rename it over the old one."""
    directory = path.with_name(path.name + ".sb-1a2b3c4d-AbCdEf")
    directory.mkdir()
    write_new(directory / path.name, os.O_CREAT | os.O_EXCL)
    os.rename(directory / path.name, path)
    directory.rmdir()


def while_read(path: Path, _outside: Path) -> None:
    """Save by a rename while a reader still has the old file open."""
    with path.open("rb") as reader:
        new = path.with_name("tmpab12cd34")
        write_new(new, os.O_CREAT | os.O_EXCL, 0o600)
        os.rename(new, path)
        assert reader.read() == OLD


def slow_backup(path: Path, _outside: Path) -> None:
    """Rename the file to a backup, pause, and create a new file without fsync."""
    backup = path.with_name(path.name + "~")
    os.rename(path, backup)
    time.sleep(0.3)
    write_new(path, os.O_CREAT, sync=False)


def in_place(path: Path, _outside: Path) -> None:
    """Write in place, without truncating first."""
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
