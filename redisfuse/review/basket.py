"""The changes that the user collects to roll them back together."""

from __future__ import annotations

from redisfuse.errors import UsageError
from redisfuse.journal.change_filter import ChangeFilter, is_id_word, parse_id_words

MAX_WORDS = 500  # operations or changes


class Basket:
    """Operations and changes, as words that commands take: `42` and `42+`.

    Only the thread of the event loop changes it.
    """

    def __init__(self) -> None:
        self.words: tuple[str, ...] = ()

    def add(self, word: str) -> None:
        """Add a word. Raises UsageError."""
        if not is_id_word(word):
            raise UsageError(f"{word!r} names no change")
        if len(self.words) >= MAX_WORDS:
            raise UsageError(f"the basket is full: it has {MAX_WORDS} operations or changes; roll some of them back")
        self.words = tuple(dict.fromkeys((*self.words, word)))

    def remove(self, word: str) -> None:
        """Remove a word."""
        self.words = tuple(other for other in self.words if other != word)

    def clear(self) -> None:
        """Remove all words."""
        self.words = ()

    def build_filter(self) -> ChangeFilter | None:
        """Return the filter of the changes in the basket; None if it is empty."""
        if not self.words:
            return None
        id_ranges, operation_ids = parse_id_words(self.words)
        return ChangeFilter(id_ranges=id_ranges, operation_ids=operation_ids)
