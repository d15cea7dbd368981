"""Create keys from an archive of `redisfuse dump`, journaled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from redisfuse.cli._interrupts import INTERRUPTED_STATUS, deferred_interrupt
from redisfuse.cli._journal_options import journal_option
from redisfuse.cli._named_servers import complete_where
from redisfuse.cli._options import WAIT_REPLICAS_HELP, SectionCommand
from redisfuse.cli._output import LinePrinter, escape_text, format_count, json_option, print_json, progress_bar
from redisfuse.cli._params import BYTES
from redisfuse.cli._terminal import print_err
from redisfuse.cli._where import WHERE_HELP, Where, resolve_where, where_options
from redisfuse.config import DEFAULTS
from redisfuse.errors import UsageError

if TYPE_CHECKING:
    from redisfuse.transactions.archive_file import ArchiveReader
    from redisfuse.transactions.archive_record import ArchivedKey
    from redisfuse.transactions.load import ExistingKeys, KeyLoader, LoadPreview, LoadReport


@click.command(cls=SectionCommand, epilog=WHERE_HELP)
@click.argument("words", nargs=-1, metavar="(FILE|DIR) [WHERE]", shell_complete=complete_where)
@click.option(
    "--rename",
    "renames",
    metavar="OLD=NEW",
    multiple=True,
    type=BYTES,
    help="Replace the prefix OLD of keys by NEW; may be repeated, the first that matches counts.",
)
@click.option("--skip", "existing", flag_value="skip", help="Leave keys that exist as they are.")
@click.option("--replace", "existing", flag_value="replace", help="Overwrite keys that exist; this is journaled, too.")
@click.option("-n", "--dry-run", is_flag=True, help="Print what would be done; change nothing.")
@click.option(
    "--wait-replicas",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    show_default="that of the mount, if WHERE is in one; else 0",
    help=WAIT_REPLICAS_HELP,
)
@json_option
@journal_option
@where_options
@click.pass_context
def command(
    context: click.Context,
    /,
    words: Sequence[str],
    renames: tuple[bytes, ...],
    existing: ExistingKeys | None,
    dry_run: bool,
    as_json: bool,
    **_options: Any,
) -> int:
    """Create keys from an archive of `redisfuse dump`, journaled.

    A key that exists with another value or expiry is a conflict: it is left as it is, and the exit status is 1. A key
    that has the archived value already needs nothing, so the same command finishes what was interrupted. Keys that have
    expired meanwhile are left out. `redisfuse rollback` undoes the load.

    \b
    redisfuse load users.jsonl.gz redis://staging/0 --dry-run
    redisfuse load users.jsonl.gz redis://staging/0 --rename user:=copy:user:
    zcat all.jsonl.gz | redisfuse load - ~/staging --replace
    """  # noqa: D301 - click reads the control character \b
    from redisfuse.transactions.archive_file import ArchiveReader

    if not words:
        raise UsageError("no archive given: name a file or directory that `redisfuse dump` wrote, or -")
    place = resolve_where(context, words[1:])
    _check_place(place)
    archive = ArchiveReader(words[0])
    try:
        renamer = PrefixRenamer(renames)
        renamer.check(archive.header.prefix, place.scope.prefix)
        existing = existing or "refuse"
        if dry_run:
            from redisfuse.transactions.load import LoadPreview

            with place.connect_client() as client:
                preview = LoadPreview(client, existing=existing)
                interrupted = _load_all(archive, preview, renamer, place.scope.prefix)
                report = preview.report
        else:
            with _key_loader(place, context.params["journal_file"], existing) as loader:
                interrupted = _load_all(archive, loader, renamer, place.scope.prefix)
                report = loader.report
    finally:
        archive.close()
    _print_report(report, None if interrupted else archive.key_count, dry_run=dry_run, as_json=as_json)
    is_complete = interrupted or _check_end(archive, words[0])
    if interrupted:
        print_err("interrupted; the same command finishes the load")
        return INTERRUPTED_STATUS
    return 0 if report.is_clean and is_complete else 1


def _check_place(place: Where) -> None:
    if place.scope.target is not None:
        raise UsageError("WHERE is a key; give a folder, whose keys the archive may have, or a server")
    if place.replicas:
        raise UsageError("WHERE is read from replicas only, which accept no writes; give the master's URL")
    if not place.is_writable:
        raise UsageError("the mount is read-only; mount it with --write, or give the server's URL")


class PrefixRenamer:
    """Replaces prefixes of keys."""

    def __init__(self, renames: Sequence[bytes]) -> None:
        """Parse OLD=NEW of each `--rename`. Raises UsageError."""
        self._pairs: list[tuple[bytes, bytes]] = []
        for text in renames:
            old, equals, new = text.partition(b"=")
            if not equals:
                raise UsageError(f"--rename is OLD=NEW, not {escape_text(text)}")
            self._pairs.append((old, new))

    def rename(self, key: bytes) -> bytes:
        """Return the new name of a key."""
        for old, new in self._pairs:
            if key.startswith(old):
                return new + key[len(old) :]
        return key

    def check(self, archived_prefix: bytes, prefix: bytes) -> None:
        """Raise UsageError if all keys of the archive would be outside of WHERE."""
        renamed = self.rename(archived_prefix)
        if not renamed.startswith(prefix) and not prefix.startswith(renamed) and not self._pairs:
            old, new = escape_text(archived_prefix), escape_text(prefix)
            raise UsageError(
                f"the keys of the archive begin with {old}, those of WHERE with {new}; give --rename {old}={new}"
            )


def _load_all(archive: ArchiveReader, loader: KeyLoader | LoadPreview, renamer: PrefixRenamer, prefix: bytes) -> bool:
    """Load the archive batch by batch; return whether Ctrl-C ended it."""
    from redisfuse.transactions.load import batch_keys

    title = "loading the keys"
    with deferred_interrupt() as interrupt, progress_bar(title, archive.total_bytes) as bar:
        start = end = 0  # bytes of the archive, before and after the keys that are sorted together
        for batch, share in batch_keys(_iter_renamed(archive, renamer, prefix)):
            if archive.position != end:
                start, end = end, archive.position
            loader.load(batch)
            bar.advance(round((end - start) * share))
            if interrupt.is_set:
                return True
    return False


def _iter_renamed(archive: ArchiveReader, renamer: PrefixRenamer, prefix: bytes) -> Iterator[ArchivedKey]:
    from dataclasses import replace

    for archived in archive:
        key = renamer.rename(archived.key)
        if not key.startswith(prefix):
            raise UsageError(
                f"the key {escape_text(key)} is outside of WHERE, whose keys begin with {escape_text(prefix)}; "
                "give --rename OLD=NEW, or the server as WHERE"
            )
        yield archived if key == archived.key else replace(archived, key=key)


@contextmanager
def _key_loader(place: Where, journal_file: Path | None, existing: ExistingKeys) -> Iterator[KeyLoader]:
    """Connect, writable, and begin a session of the journal."""
    from redisfuse.journal.journal import Journal
    from redisfuse.journal.writer import BULK_CHECKPOINT_BYTES
    from redisfuse.keyspace.listener import NullListener
    from redisfuse.mount.write_mode import build_session_info
    from redisfuse.transactions.callers import ThisProcess
    from redisfuse.transactions.executor import TransactionExecutor
    from redisfuse.transactions.load import KeyLoader
    from redisfuse.transactions.session_start import start_session

    with (
        place.connect_client(writable=True) as client,
        Journal.open(
            journal_file or place.journal_file,
            create=True,
            operation_idle_ms=None,
            checkpoint_bytes=BULK_CHECKPOINT_BYTES,
        ) as journal,
    ):
        session = start_session(journal, client, build_session_info(client, None, {}), prefix=place.scope.prefix)
        try:
            executor = TransactionExecutor(
                client,
                journal,
                session,
                dump_limit=DEFAULTS["dump_limit"],
                listener=NullListener(),
                caller=ThisProcess(),
            )
            yield KeyLoader(executor, place.codec, existing=existing, allow=place.allow)
        finally:
            journal.end_session(session)


def _print_report(report: LoadReport, key_count: int | None, *, dry_run: bool, as_json: bool) -> None:
    """Print what was done.

    `key_count`: the keys of the archive; None: those that were reached.
    """
    counts = {
        "created": report.count("create"),
        "replaced": report.count("replace"),
        "unchanged": report.count("unchanged"),
        "skipped": report.count("skipped"),
        "expired": report.count("expired"),
        "conflicts": report.count("conflict"),
        "failed": report.failure_count,
    }
    key_count = sum(counts.values()) if key_count is None else key_count
    if as_json:
        print_json({"keys": key_count, **counts, "dry_run": dry_run, "notes": report.notes})
    for key, reason in report.conflicts:
        print_err(f"{escape_text(key)}: conflict: {reason}")
    if report.count("conflict") > len(report.conflicts):
        print_err(f"… and {format_count(report.count('conflict') - len(report.conflicts), 'more conflict')}")
    for key, error in report.failures:
        print_err(f"{escape_text(key)}: not written: {escape_text(str(error).encode())}")
    for note, count in report.notes.items():
        print_err(f"{format_count(count, 'key')}: {escape_text(note.encode())}")
    if as_json:
        return
    words = [f"{count:,} {name}" for name, count in counts.items() if count or name == "created"]
    text = ", ".join("1 conflict" if word == "1 conflicts" else word for word in words)
    printer = LinePrinter()
    printer.print(f"{format_count(key_count, 'key')}: {text}{' (dry run)' if dry_run else ''}")
    if counts["conflicts"]:
        printer.print("--replace overwrites the keys in conflict, --skip leaves them without an error")


def _check_end(archive: ArchiveReader, name: str) -> bool:
    """Print whether the archive is incomplete; return whether it is complete."""
    if archive.expected_keys is None:
        print_err(f"{name} has no end: `redisfuse dump` was interrupted, and keys are missing")
    elif archive.expected_keys != archive.key_count:
        print_err(f"{name} has {archive.key_count:,} keys, its end says {archive.expected_keys:,}")
    return archive.expected_keys == archive.key_count
