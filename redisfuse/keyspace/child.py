"""One entry of a directory of the index."""

from typing import NamedTuple


class Child(NamedTuple):
    """What one component is in its directory: a key, a directory, or both."""

    component: bytes
    is_key: bool
    is_directory: bool
