"""The second read-only barrier (DESIGN.md §6): what a read-only mount holds in the place of Edits."""

from typing import NoReturn

from redisfuse.errors import ReadOnlyError
from redisfuse.journal.directories import Directory


class NoEdits:
    """The face of Edits; whatever would change something raises ReadOnlyError."""

    def _refuse(self, *_arguments: object, **_options: object) -> NoReturn:
        raise ReadOnlyError("this mount is read-only: it was made without --write")

    save = patch = keep_refused = remove = remove_each = rename = expire = _refuse
    make_directory = remove_directory = rename_directories = check_allowed = made = _refuse

    def directories(self) -> set[Directory]:
        """None: empty directories live in a journal, and there is none here."""
        return set()

    def settle(self) -> None:
        """There is nothing to settle."""
