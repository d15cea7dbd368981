"""Reads a collection into its portable copy, and rebuilds the key from it.

*SCAN may repeat elements and returns them in no order. They are sorted and deduplicated, on disk if they are many, so
that equal values have equal copies. (The DUMPs of two equal hashes can differ.)
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

from redisfuse.client.capabilities import ServerInfo
from redisfuse.journal import portable
from redisfuse.journal.content import Blob
from redisfuse.transactions.portable_types import PORTABLE_TYPES, DecodedCopy, ElementScan
from redisfuse.transactions.spool import RecordSpool
from redisfuse.transactions.write_command import PipelinedCommands, WriteCommand, unwrap_reply


def read_portable_copy(
    key_type: bytes, key: bytes, element_count: int, server_info: ServerInfo
) -> Generator[PipelinedCommands, list[Any], tuple[Blob, str | None]]:
    """Read all elements; return the copy and a note on what it lacks, or None."""
    portable_type = PORTABLE_TYPES[key_type]
    header: dict[str, Any] = {"type": key_type.decode("ascii", "replace"), "elements": element_count}
    note = None
    if key_type == b"stream":
        note = yield from _read_stream_header(key, header)
    spool = RecordSpool(needs_sorting=portable_type.needs_sorting)
    yield from portable_type.scan(ElementScan(key, server_info, spool))
    return spool.to_blob(portable.encode_header(header)), note


def _read_stream_header(key: bytes, header: dict[str, Any]) -> Generator[PipelinedCommands, list[Any], str | None]:
    stream, groups = yield [("XINFO", "STREAM", key), ("XINFO", "GROUPS", key)]
    header["last_id"] = _pairs_to_dict(unwrap_reply(stream))[b"last-generated-id"].decode()
    infos = [_pairs_to_dict(group) for group in unwrap_reply(groups)]
    header["groups"] = {info[b"name"].hex(): info[b"last-delivered-id"].decode() for info in infos}
    pending = sum(int(info[b"pending"]) for info in infos)
    if not pending:
        return None
    return f"the portable copy has the groups of this stream, but not their {pending} pending entries"


def _pairs_to_dict(flat: Any) -> dict[bytes, Any]:
    return dict(flat) if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))


def can_rebuild(key_type: bytes) -> bool:
    """Whether a key of this type can be rebuilt from a portable copy."""
    return key_type in PORTABLE_TYPES


@dataclass(frozen=True, slots=True)
class Rebuild:
    """The series of commands that creates an absent key from its portable copy.

    Each command has at most 1 MiB or 1000 elements. Expiries of fields are left out where the server has none.
    """

    key: bytes
    portable_copy: Blob
    server_info: ServerInfo

    def generate(self) -> Iterator[WriteCommand]:
        """Yield the commands, in order."""
        header, records = portable.decode_copy(self.portable_copy.iter_chunks())
        key_type = header["type"].encode()
        if key_type == b"hash" and not self.server_info.has_hash_field_ttl:
            records = (record[:2] for record in records)
        yield from PORTABLE_TYPES[key_type].rebuild(DecodedCopy(self.key, header, records))
