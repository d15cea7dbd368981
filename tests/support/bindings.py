"""Which of the two FUSE bindings a test runs with.

The bindings only mount and unmount: the protocol is the same code with both. So a test of both runs with one of them,
half of the tests with each; with REDISFUSE_TEST_LONG=1 each runs with both.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict

import pytest

BINDINGS = ("fusepy", "mfusepy")
_BINDING = re.compile(r"(?<=[\[-])m?fusepy(?=[]-])")


def deselect_other_binding(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave one of the two items that differ in nothing but the binding; names decide which one."""
    pairs: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        pairs[_BINDING.sub("", item.nodeid)].append(item)
    chosen = {id(pair[zlib.crc32(name.encode()) % len(pair)]) for name, pair in pairs.items()}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
    items[:] = [item for item in items if id(item) in chosen]
