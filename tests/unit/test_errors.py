"""The hierarchy of errors is drawn in the docstring of redisfuse/errors.py."""

import errno

from redisfuse import errors
from redisfuse.errors import RedisFuseError


def test_docstring_shows_each_class_with_parent_errno_and_exit_status() -> None:
    """The tree in the docstring is the hierarchy of the module."""
    drawn: dict[str, tuple[str | None, int, int]] = {}
    parents: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("│", " ").replace("├─", " ").replace("└─", " ").split()
        if len(words) != 3 or not words[0].endswith("Error"):
            continue
        depth = (line.index(words[0]) - 4) // 4
        parents[depth:] = [words[0]]
        drawn[words[0]] = (parents[depth - 1] if depth else None, getattr(errno, words[1]), int(words[2]))
    classes = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, RedisFuseError)]
    actual = {
        item.__name__: (item.__base__.__name__ if item is not RedisFuseError else None, item.errno, item.exit_status)
        for item in classes
        if item.__base__ is not None
    }
    assert drawn == actual
