"""Searching the contents of many keys for a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from redisfuse.client.client import RedisClient
from redisfuse.rendering.decoding.limits import DecodeLimits
from redisfuse.survey.conditions import Condition
from redisfuse.survey.contents import Content, ContentReader
from redisfuse.survey.lines import Line, LineSearch
from redisfuse.survey.records import KeyRecord
from redisfuse.survey.scan import KeySurvey


@dataclass(frozen=True, slots=True)
class ContentSearch:
    """A search for lines."""

    pattern: re.Pattern[str]
    invert: bool = False  # select the lines that don't match
    as_text: bool = False  # NUL bytes are part of lines
    in_names: bool = False  # search the names of keys and fields, too
    hashes_as_files: bool = False
    max_sorted: int = 0  # elements of a set that is sorted, as in a mount (`--render-limit`)
    decode_limits: DecodeLimits | None = None  # search `NAME%text`, within these limits

    def iter_candidates(
        self, survey: KeySurvey, conditions: Sequence[Condition] = ()
    ) -> Iterator[tuple[RedisClient, list[Content]]]:
        """Yield the contents that may have a selected line, in lists.

        One TYPE for each key, unless the survey scans one type only, and the commands of `ContentReader`.
        """
        readers: dict[RedisClient, ContentReader] = {}
        for client, records in survey.iter_batches(conditions, ["type"]):
            reader = readers.setdefault(
                client,
                ContentReader(
                    client,
                    survey.unreadable,
                    hashes_as_files=self.hashes_as_files,
                    max_sorted=self.max_sorted,
                    decode_limits=self.decode_limits,
                ),
            )
            for contents in reader.iter_contents(records):
                if candidates := self._select_candidates(contents):
                    yield client, candidates

    def _select_candidates(self, contents: list[Content]) -> list[Content]:
        if self.invert:
            return contents
        # The usual case, without a call for each content: none of them has a match.
        joined = b"\n".join([content.data for content in contents if content.data is not None])
        may_match = self._may_match(joined)
        return [
            content
            for content in contents
            if content.data is None
            or (may_match and self._may_match(content.data))
            or (self.in_names and self.matches_name(content.record))
        ]

    def _may_match(self, data: bytes) -> bool:
        """Return whether a line of the content may match.

        True also for a match that spans lines.
        """
        if not self.as_text:
            data = data.replace(b"\0", b"\n")
        return self.pattern.search(data.decode("utf-8", "surrogateescape")) is not None

    def matches_name(self, record: KeyRecord) -> bool:
        """Return whether the name of the key, or of the field, matches."""
        names = [record.key] if record.field is None else [record.field, record.key]
        return any(self.pattern.search(name.decode("utf-8", "surrogateescape")) for name in names)

    def search(self, content: Content, *, all_lines: bool = False) -> tuple[LineSearch, Iterator[Line]]:
        """Return a pass over a content, and its selected lines or all lines."""
        line_search = LineSearch(self.pattern, self.invert, self.as_text, all_lines)
        return line_search, line_search.search(content.chunks)
