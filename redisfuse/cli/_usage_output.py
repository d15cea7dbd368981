"""The sizes that `redisfuse top` shows: of folders, and of the biggest keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli._output import (
    LinePrinter,
    TableColumn,
    TablePrinter,
    bytes_to_json,
    format_bytes,
    format_count,
    print_json,
)
from redisfuse.cli._record_output import format_length, format_ttl, record_to_json
from redisfuse.survey.usage import EXPIRY_NAMES, FolderUsage, UsageReport
from redisfuse.text import escape_text, for_terminal

if TYPE_CHECKING:
    from redisfuse.cli._where import Where


class UsagePrinter:
    """Prints one report."""

    def __init__(self, where: Where, report: UsageReport, *, root: bytes, limit: int) -> None:
        self._where = where
        self._report = report
        self._root = root
        self._limit = limit
        self._is_size = report.measure in ("memory", "bytes")
        self._total = report.folders[root]
        self._children = self._build_children()
        # A terminal shows no column without a key; the others leave room for the names.
        self._shown_expiries = [index for index, keys in enumerate(self._total.expiries) if round(keys)]

    # -- folders ------------------------------------------------------------------------------------------------------

    def _iter_folders(self, prefix: bytes, level: int) -> Iterator[tuple[bytes, int, FolderUsage]]:
        """Yield the folders below one with their levels, each followed by its own."""
        for child in self._children.get(prefix, [])[: self._limit or None]:
            yield child, level, self._report.folders[child]
            yield from self._iter_folders(child, level + 1)

    def _build_children(self) -> dict[bytes, list[bytes]]:
        """Return the folders in each folder, biggest first; both as prefixes of keys."""
        separator, folders = self._where.codec.separator, self._report.folders
        children: dict[bytes, list[bytes]] = {}
        for prefix in sorted(folders, key=lambda one: (-folders[one].amount, -folders[one].keys, one)):
            if prefix != self._root:
                parent_end = prefix.rfind(separator, 0, len(prefix) - len(separator))
                parent = prefix[: parent_end + len(separator)] if parent_end >= 0 else b""
                children.setdefault(max(parent, self._root, key=len), []).append(prefix)
        return children

    def _folder_path(self, prefix: bytes) -> bytes:
        codec = self._where.codec
        path = codec.directory_path(codec.split_key(prefix)[:-1])
        return self._where.display_path(path, None) + b"/"

    # -- output -------------------------------------------------------------------------------------------------------

    def print_json(self, paths: Sequence[bytes]) -> None:
        """Print an object for the total, each folder, and each of the biggest keys."""
        print_json({"total": True, **self._usage_to_json(self._total)})
        for prefix, level, usage in self._iter_folders(self._root, 1):
            folder = {"folder": bytes_to_json(self._folder_path(prefix)), "prefix": bytes_to_json(prefix)}
            print_json({**folder, "depth": level, **self._usage_to_json(usage)})
        for (_, record), path in zip(self._report.biggest, paths, strict=True):
            print_json(record_to_json(record, self._where.display_path(path, record.target)))

    def _usage_to_json(self, usage: FolderUsage) -> dict[str, Any]:
        row: dict[str, Any] = {"keys": round(usage.keys), self._report.measure: round(usage.amount)}
        if self._report.measure == "keys":
            del row["keys"]
            row = {"keys": round(usage.keys)}
        if self._report.sampled_keys is not None:
            row |= {"error": round(usage.error), "sampled_keys": self._report.sampled_keys}
        if self._report.has_expiries:
            row["expires"] = dict(zip(EXPIRY_NAMES, map(round, usage.expiries), strict=True))
        return row

    def print_table(self, paths: Sequence[bytes]) -> None:
        """Print the folders, and the biggest keys."""
        is_estimate = self._report.sampled_keys is not None
        columns = [TableColumn(self._report.measure.upper(), 10, align_right=True)]
        columns += [TableColumn("±", 10, align_right=True)] if is_estimate else []
        columns += [TableColumn("SHARE", 6, align_right=True)]
        columns += [TableColumn("KEYS", 9, align_right=True)] if self._report.measure != "keys" else []
        columns += [TableColumn(EXPIRY_NAMES[index].upper(), 6, align_right=True) for index in self._shown_expiries]
        table = TablePrinter([*columns, TableColumn("FOLDER", 0)])
        self._print_row(table, "total", self._total, is_estimate)
        for prefix, level, usage in self._iter_folders(self._root, 0):
            self._print_row(table, "  " * level + for_terminal(self._folder_path(prefix)), usage, is_estimate)
        if self._report.biggest:
            self._print_biggest(paths)
        if is_estimate:
            sampled, total = self._report.sampled_keys or 0, self._report.total_keys
            click.echo(
                f"estimated from {format_count(sampled, 'key')} of {total:,}; the true sums are within ± with 95 % "
                f"confidence, and the biggest keys are those of the sample",
                err=True,
            )

    def _print_row(self, table: TablePrinter, name: str, usage: FolderUsage, is_estimate: bool) -> None:
        share = usage.amount / self._total.amount if self._total.amount else 0.0
        shown = [self._format_amount(usage.amount)]
        raw: list[str | int] = [round(usage.amount)]
        if is_estimate:
            shown.append(self._format_amount(usage.error))
            raw.append(round(usage.error))
        shown.append(f"{share:.1%}")
        raw.append(f"{share:.4f}")
        if self._report.measure != "keys":
            shown.append(f"{usage.keys:,.0f}")
            raw.append(round(usage.keys))
        shown += [_format_short(usage.expiries[index]) for index in self._shown_expiries]
        raw += map(round, usage.expiries if self._report.has_expiries else ())
        table.print_row([*shown, name], [*raw, name.strip()])

    def _format_amount(self, amount: float) -> str:
        return format_bytes(round(amount)) if self._is_size else f"{amount:,.0f}"

    def _print_biggest(self, paths: Sequence[bytes]) -> None:
        LinePrinter().print()
        table = TablePrinter(
            [
                TableColumn(self._report.measure.upper(), 10, align_right=True),
                TableColumn("TYPE", 6),
                TableColumn("LENGTH", 10, align_right=True),
                TableColumn("EXPIRES", 7, align_right=True),
                TableColumn("KEY", 0),
            ]
        )
        for (_, record), path in zip(self._report.biggest, paths, strict=True):
            amount = {"memory": record.memory, "bytes": record.size, "elements": record.elements}[self._report.measure]
            name = for_terminal(self._where.display_path(path, record.target))
            type_name = escape_text(record.type or b"")
            shown = [
                self._format_amount(amount or 0),
                type_name,
                format_length(record),
                format_ttl(record.ttl_ms),
                name,
            ]
            table.print_row(shown, [amount, type_name, record.length, record.ttl_ms, name])


def _format_short(count: float) -> str:
    """Return a count in few characters: `950`, `12.3k`, `4.5M`; a dash for none."""
    number = round(count)
    if number < 10_000:
        return str(number) if number else "-"
    return f"{number / 1000:.1f}k" if number < 1_000_000 else f"{number / 1_000_000:.1f}M"
