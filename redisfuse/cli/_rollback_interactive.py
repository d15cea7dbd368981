"""Choosing what to roll back, place by place, as `git add -p` does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from redisfuse.cli._output import LinePrinter, escape_text
from redisfuse.journal.descriptions import format_change
from redisfuse.text import for_terminal

if TYPE_CHECKING:
    from redisfuse.journal.journal import Journal
    from redisfuse.journal.models import Change
    from redisfuse.transactions.combined_change import ChangeGroup
    from redisfuse.transactions.executor import TransactionExecutor

HELP = """y - roll this back
n - do not roll this back
a - roll this and the rest of this key back
d - roll back neither this nor the rest of this key
q - end the questions; roll back what was chosen until now
? - print this help"""
MAX_TEXT_BYTES = 4 << 20  # of a text that is shown place by place
STYLES = {"hunk": "cyan", "-": "red", "+": "green", " ": "", "note": "", "header": "bold"}


@dataclass(frozen=True, slots=True)
class ChosenPlaces:
    """The text of one file, of which only some places are restored."""

    change: Change
    found: bytes
    wanted: bytes


class InteractiveChoice:
    """The user's choice among groups, newest first."""

    def __init__(self, journal: Journal, groups: Iterable[ChangeGroup]) -> None:
        self._journal = journal
        self._all_groups = groups
        self._printer = LinePrinter()
        self.groups: list[ChangeGroup] = []  # to be rolled back whole
        self.places: list[ChosenPlaces] = []
        self.count = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was chosen."""
        return not self.groups and not self.places

    def ask(self) -> None:
        """Ask for each net change, until the user has had enough."""
        for group in self._all_groups:
            change = group[0]
            content = _read_texts(change) if len(group) == 1 else None
            answer = self._ask_group(group) if content is None else self._ask_places(change, *content)
            if answer == "q":
                return

    def write_places(self, executor: TransactionExecutor) -> int:
        """Write the texts of which only some places were chosen.

        Returns how many were written.
        """
        from redisfuse.errors import RedisFuseError
        from redisfuse.journal.content import Blob
        from redisfuse.paths.grammar import KeyRef
        from redisfuse.transactions.combined_change import get_reverted_range
        from redisfuse.transactions.content_operations import SaveWhole
        from redisfuse.transactions.precondition import Precondition

        written = 0
        for place in self.places:
            change = place.change
            target = KeyRef(change.key, change.field)
            precondition = Precondition.from_bytes(place.found)
            operation = SaveWhole(
                target,
                Blob.from_bytes(place.wanted),
                precondition,
                change.path,
                op="rollback",
                reverts_part=get_reverted_range(change),
            )
            try:
                executor.run(operation)
            except RedisFuseError as error:
                self._printer.print(f"{format_change(change)}: {escape_text(str(error).encode())}", "red")
            else:
                written += 1
        return written

    def _choose(self, group: ChangeGroup) -> None:
        """Choose a group."""
        from redisfuse.transactions.combined_change import count_changes

        self.count += count_changes(group)
        self.groups.append(group)

    def _ask_group(self, group: ChangeGroup) -> str:
        from redisfuse.journal.diff import diff_change

        for change in group:
            self._printer.print(format_change(change), "bold")
            for line in diff_change(change):
                prefix = line.marker if line.marker in "-+ " else ""
                self._printer.print(f"  {prefix}{line.text}", STYLES.get(line.marker, "cyan"))
        answer = _ask("Roll back this change")
        if answer in "ya":
            self._choose(group)
        return answer

    def _ask_places(self, change: Change, prior: bytes, new: bytes) -> str:
        """Ask for each place of a text; the lines are shown as the rollback changes them."""
        from redisfuse.journal.patch import FileChange, group_opcodes, iter_hunks, split_text

        before, after = split_text(new), split_text(prior)
        places = list(group_opcodes(before, after))
        if not places:
            return self._ask_group((change,))
        self._printer.print(format_change(change), "bold")
        shown = _split_hunks([(line.marker, line.data) for line in iter_hunks(FileChange(b"", b"", new, prior))])
        chosen: list[bool] = []
        answer = ""
        for number, lines in enumerate(shown, 1):
            if answer not in ("a", "d", "q"):
                for marker, data in lines:
                    self._printer.print("\t".join(map(for_terminal, data.split(b"\t"))), STYLES[marker])
                answer = _ask(f"({number}/{len(places)}) Roll back this place")
            chosen.append(answer in ("y", "a"))
        if all(chosen):
            self._choose((change,))
        elif any(chosen):
            self.count += 1
            wanted = _apply_places(before, after, [place for place, yes in zip(places, chosen, strict=True) if yes])
            self.places.append(ChosenPlaces(change, new, wanted))
        return answer


def _read_texts(change: Change) -> tuple[bytes, bytes] | None:
    """Return the contents before and after a change.

    None if its places can't be chosen.
    """
    if change.prior.kind != "value" or change.new.kind != "value":
        return None
    prior, new = change.prior.content, change.new.content
    if prior is None or new is None or max(prior.size, new.size) > MAX_TEXT_BYTES:
        return None
    contents = prior.read(), new.read()
    return None if any(b"\0" in content for content in contents) else contents


def _split_hunks(lines: list[tuple[str, bytes]]) -> list[list[tuple[str, bytes]]]:
    hunks: list[list[tuple[str, bytes]]] = []
    for marker, data in lines:
        if marker == "hunk":
            hunks.append([])
        hunks[-1].append((marker, data))
    return hunks


def _apply_places(before: list[bytes], after: list[bytes], places: list[list[tuple[str, int, int, int, int]]]) -> bytes:
    """Return the text `before` in which some places are as in `after`."""
    result: list[bytes] = []
    position = 0
    for tag, i1, i2, j1, j2 in (opcode for place in places for opcode in place):
        if tag != "equal":
            result += before[position:i1] + after[j1:j2]
            position = i2
    return b"".join(result + before[position:])


def _ask(question: str) -> str:
    """Return the answer: y, n, a, d or q. The end of the input is q."""
    while True:
        try:
            answer = click.prompt(f"{question} [y,n,q,a,d,?]", prompt_suffix="? ", default="", show_default=False)
        except click.Abort:
            return "q"
        answer = answer.strip().lower()[:1]
        if answer and answer in "ynqad":
            return answer
        click.echo(HELP)
