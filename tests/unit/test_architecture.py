"""docs/architecture.md agrees with the code: modules, layers, threads, locks, names and figures."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from redisfuse.config import KIB
from redisfuse.fuse.interface import FuseSessionOptions
from redisfuse.journal import models, writer
from redisfuse.keyspace import liveness, metadata, verifier
from redisfuse.mount import write_mode
from redisfuse.transactions import content_operations, executor, group_commit, rollback, selection
from redisfuse.vfs import coherence, pinned_contents

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "redisfuse"
PAGE = (PROGRAM / "docs" / "architecture.md").read_text()
TREES = {path.relative_to(PROGRAM).as_posix(): ast.parse(path.read_text()) for path in PROGRAM.rglob("*.py")}
"""The syntax trees of the program, by module as the page names it."""

FIGURES = (
    f"`fuse-0` to `fuse-{FuseSessionOptions(ROOT).threads - 1}`",
    f"{coherence.COHERENT_SECONDS:g} s while every change",
    f"else {coherence.INCOHERENT_SECONDS:g} s",
    f"first {metadata.HEAD_BYTES // KIB} KiB",
    f"{pinned_contents.STREAM_CHUNK_BYTES // KIB} KiB more",
    f"Those of up to {content_operations.MAX_GROUP_COMMIT_BYTES // KIB} KiB queue",
    f"commits up to {group_commit.MAX_REQUESTS_PER_BATCH} of them",
    f"up to {executor.MAX_ATTEMPTS} times",
    f"after {writer.MAX_PIGGYBACK_DELAY_SECONDS:g} s",
    f"for {verifier._COALESCE_SECONDS * 1000:g} ms ({verifier._COALESCE_BUSY_SECONDS * 1000:g} ms under load)",
    f"silent for {liveness.MAX_SILENCE_SECONDS:g} s",
    f"up to {selection.SETTLE_TIMEOUT_SECONDS:g} s for outcomes",
    f"at most {rollback.MAX_CHANGES_PER_BATCH} changes",
    f"every {write_mode.JOURNAL_POLL_SECONDS:g} s",
)
"""The phrases of the page that contain a constant."""


def section(title: str) -> str:
    """Return a section of the page without its heading."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def code_spans(text: str) -> set[str]:
    """Return what is between backticks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))


def called_name(node: ast.AST) -> str:
    """Return the last part of the name that a call calls; empty if the node is no such call."""
    return ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""


def started_threads(tree: ast.AST) -> Iterator[str]:
    """Yield a regular expression for the name of each thread that a module starts; empty for one without a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called_name(node) in ("Thread", "Timer"):
            name = next((keyword.value for keyword in node.keywords if keyword.arg == "name"), None)
            if isinstance(name, ast.Name):  # a variable of the module
                name = next(
                    other.value
                    for other in ast.walk(tree)
                    if isinstance(other, ast.Assign) and ast.unparse(other.targets[0]) == name.id
                )
            parts = name.values if isinstance(name, ast.JoinedStr) else [name]
            yield "".join(
                re.escape(str(part.value)) if isinstance(part, ast.Constant) else r"\w+" for part in parts if part
            )


def creates_lock(definition: ast.ClassDef) -> bool:
    """Return whether the objects of a class have a lock of their own."""
    return any(
        called_name(node) in ("Lock", "RLock", "Condition")
        or (isinstance(node, ast.keyword) and ast.unparse(node.value) in ("threading.Lock", "threading.RLock"))
        for node in ast.walk(definition)
    )


def defined_classes() -> dict[str, list[ast.ClassDef]]:
    """Return the classes of the program by name."""
    classes: dict[str, list[ast.ClassDef]] = {}
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(node)
    return classes


def defined_attributes(definition: ast.ClassDef) -> set[str]:
    """Return the methods, fields and attributes that a class defines."""
    names = set()
    for node in ast.walk(definition):
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_each_module_on_the_page_exists() -> None:
    """Every file that the page names is in the program."""
    named = {span for span in code_spans(PAGE) if span.endswith(".py")}
    assert len(named) > 80
    assert named <= TREES.keys(), named - TREES.keys()


def test_each_room_and_each_module_beside_them_is_on_the_page() -> None:
    """The section "Rooms" has every package, and every module that is in none of them."""
    packages = {f"{Path(module).parent.as_posix()}/" for module in TREES if module.endswith("/__init__.py")}
    beside = {module for module in TREES if "/" not in module and not module.startswith("__")}
    assert {"vfs/", "cli/_demo/"} <= packages
    missing = (packages | beside) - code_spans(section("Rooms"))
    assert missing == set()


def test_the_layers_are_those_of_the_contract() -> None:
    """The page shows the layers that import-linter enforces."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert section("Rooms").partition("```text\n")[2].partition("\n```")[0].splitlines() == layers


def test_each_thread_is_on_the_page() -> None:
    """The table of threads has each thread with the module that starts it, and no other; and each fork is named."""
    text = section("Threads")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    names_by_module: dict[str, set[str]] = {}
    for name, module, _work in rows[1:]:
        names_by_module.setdefault(module.strip("`"), set()).update(code_spans(name) - {"redisfuse status"})
    for module, tree in TREES.items():
        expressions = list(started_threads(tree))
        if expressions:
            assert module in names_by_module, module
        for expression in filter(None, expressions):
            assert any(re.fullmatch(expression, name) for name in names_by_module[module]), (module, expression)
        if any(called_name(node) == "fork" for node in ast.walk(tree)):
            assert f"`{module}`" in text, module
    for module, names in names_by_module.items():
        for name in names:
            assert any(re.fullmatch(expression, name) for expression in started_threads(TREES[module])), name


def test_each_lock_is_on_the_page() -> None:
    """The lock order has each class that creates a lock."""
    with_lock = {
        name for name, definitions in defined_classes().items() if any(creates_lock(each) for each in definitions)
    }
    assert {"EditedFile", "PinnedContent", "Index"} <= with_lock
    missing = with_lock - code_spans(section("Lock order"))
    assert missing == set()


def test_each_class_on_the_page_exists() -> None:
    """Every class that the page names exists, and has the method or attribute that is named with it."""
    classes = defined_classes()
    named = [span for span in code_spans(PAGE) if re.fullmatch(r"_?[A-Z][A-Za-z]*[a-z][A-Za-z]*(\.\w+)?", span)]
    assert len(named) > 40
    for span in named:
        name, _, attribute = span.partition(".")
        assert name in classes, span
        if attribute:
            assert any(attribute in defined_attributes(definition) for definition in classes[name]), span


def test_each_state_of_a_change_is_in_the_glossary() -> None:
    """The glossary has every outcome that the journal can record."""
    missing = set(get_args(models.Outcome)) - code_spans(section("Glossary"))
    assert missing == set()


def test_the_figures_on_the_page_are_the_constants() -> None:
    """Every figure of the page that is a constant of the program has its value."""
    text = " ".join(PAGE.split())
    for phrase in FIGURES:
        assert phrase in text, phrase


def test_the_page_is_short() -> None:
    """The page has at most 290 lines."""
    assert len(PAGE.splitlines()) <= 290
