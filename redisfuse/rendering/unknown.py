"""A type of a module that is not known here: the file says so, and where its bytes are."""

from redisfuse.text import escape_line


def describe_unknown_type(type: bytes) -> bytes:
    """The content of the file."""
    return b"This key has the module type %b, which has no text form here. NAME%%dump has its bytes.\n" % escape_line(
        type
    )
