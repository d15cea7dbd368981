"""The number of random examples that a property is tried with. Each run tries others."""

import os


def count_examples(long: int) -> int:
    """Return `long` with REDISFUSE_TEST_LONG=1, otherwise half of it."""
    return long if os.environ.get("REDISFUSE_TEST_LONG") else long // 2
