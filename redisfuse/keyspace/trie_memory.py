"""The parts of the memory estimate of a trie, in bytes. Pure.

They are those of CPython's objects and their headers.
"""

import sys
from collections.abc import Iterable

DICT_SLOT_BYTES = 46  # 33 to 60 a key, depending on the load
DICT_OVERHEAD_BYTES = 120
OBJECT_OVERHEAD_BYTES = 33
PACKED_OVERHEAD_BYTES = 24  # of a packed directory: 41, or nothing where equal ones are shared

MIN_MEASURED_ENTRIES = 10_000  # entries of a dict whose memory is measured instead of estimated


def bytes_object_size(length: int) -> int:
    """Return the memory of a bytes object of that length, in bytes.

    CPython rounds up to 16.
    """
    return (OBJECT_OVERHEAD_BYTES + length + 15) & ~15


def measure_dicts(nodes: Iterable[object]) -> int:
    """Return by how many bytes the largest dicts exceed their estimate."""
    large = (node for node in nodes if type(node) is dict and len(node) >= MIN_MEASURED_ENTRIES)
    return sum(sys.getsizeof(node) - DICT_SLOT_BYTES * len(node) for node in large)
