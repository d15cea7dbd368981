"""The release: a wheel that runs in a clean environment, and an sdist from which the same wheel can be built."""

import contextlib
import sqlite3
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD_LIMIT = 120.0  # seconds
INSTALL_LIMIT = 300.0  # seconds; the dependencies come from the network


def build(source: Path, target: Path, *formats: str) -> None:
    """Build with this environment's hatchling."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), *formats, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the wheel and the sdist of this tree."""
    target = tmp_path_factory.mktemp("dist")
    build(ROOT, target, "--wheel", "--sdist")
    (wheel,) = target.glob("*.whl")
    (sdist,) = target.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(released: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel in a clean environment and return its `bin`."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", str(released[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "bin"


def run(folder: Path, *command: str) -> str:
    """Return the output of a program that runs outside this tree."""
    done = subprocess.run(
        list(command),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def contents(wheel: Path) -> dict[str, bytes]:
    """Return the files of a wheel except the list of their digests."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}


def test_the_package_index_accepts_them(released: tuple[Path, Path]) -> None:
    """The metadata is valid, and the description is rendered."""
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, released)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_everything(released: tuple[Path, Path]) -> None:
    """Every module and data file of the package and every migration is in the wheel, and no test."""
    names = contents(released[0]).keys()
    files = [path.relative_to(ROOT) for path in (ROOT / "redisfuse").rglob("*") if path.is_file()]
    package = [path for path in files if not any(part.startswith((".", "__pycache__")) for part in path.parts)]
    assert {str(path) for path in package} <= names
    migrations = [path.name for path in (ROOT / "migrations").glob("*.py")]
    assert migrations
    assert {f"redisfuse/migrations/{name}" for name in migrations} <= names
    assert not [name for name in names if name.startswith("tests/") or "__pycache__" in name]


def test_the_wheel_holds_the_documents(released: tuple[Path, Path]) -> None:
    """The pages of `redisfuse help` are in the package, and the manual pages where man(1) finds them."""
    files = contents(released[0])
    pages = [page.name for page in (ROOT / "redisfuse" / "docs").glob("*.md")]
    assert "undo.md" in pages
    assert {f"redisfuse/docs/{name}" for name in pages} <= files.keys()
    assert files["redisfuse/docs/security.md"] == (ROOT / "SECURITY.md").read_bytes()
    manuals = {Path(name).name: text for name, text in files.items() if ".data/data/share/man/man1/" in name}
    assert {"redisfuse.1", "redisfuse-mount.1", "redisfuse-junk-scan.1"} <= manuals.keys()
    assert manuals == {page.name: page.read_bytes() for page in (ROOT / "redisfuse" / "docs" / "man").iterdir()}


def test_the_sdist_builds_the_same_wheel(released: tuple[Path, Path], tmp_path: Path) -> None:
    """Unpacked, the sdist holds all that a build and the tests need, and builds the same wheel."""
    with tarfile.open(released[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    for name in ("Makefile", ".ci/run", ".ci/setup", "LICENSE", "README.md", "migrations", "tests/conftest.py"):
        assert (source / name).exists(), name
    build(source, tmp_path / "dist", "--wheel")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert contents(wheel) == contents(released[0])


@pytest.mark.timeout(INSTALL_LIMIT + BUILD_LIMIT)
def test_the_installed_program_runs(installed: Path, tmp_path: Path) -> None:
    """In a clean environment the installed commands start and print their name and version."""
    import redisfuse

    assert run(tmp_path, str(installed / "redisfuse"), "--version") == f"redisfuse {redisfuse.__version__}\n"
    assert "MOUNTPOINT" in run(tmp_path, str(installed / "redisfuse"), "--help")
    assert "--write" in run(tmp_path, str(installed / "redisfuse"), "mount", "--help")
    assert run(tmp_path, str(installed / "redisfuse"), "help", "names").startswith("# Names\n")
    assert (installed.parent / "share" / "man" / "man1" / "redisfuse.1").exists()
    run(tmp_path, str(installed / "mount.fuse.redisfuse"), "redis://h", str(tmp_path), "-f")


@pytest.mark.timeout(INSTALL_LIMIT + BUILD_LIMIT)
def test_the_installed_journal_has_its_migrations(installed: Path, tmp_path: Path) -> None:
    """The migrations of an installed copy are found and make a journal."""
    script = (
        "import pathlib, redisfuse.journal.journal as journal\n"
        "folder = pathlib.Path(journal.__file__).parents[1] / 'migrations'\n"
        "assert (folder / 'migrations.py').exists()\n"
        "journal.Journal.open(pathlib.Path('private/journal.db').absolute(), create=True).close()\n"
    )
    run(tmp_path, str(installed / "python"), "-I", "-c", script)
    with contextlib.closing(sqlite3.connect(tmp_path / "private" / "journal.db")) as database:
        assert database.execute("SELECT count(*) FROM history").fetchone() == (0,)
