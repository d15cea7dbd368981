"""Types of modules that have no renderer.

The file names the type, and the view that has the bytes.
"""

from redisfuse.text import escape_line


def describe_unknown_type(type: bytes) -> bytes:
    """Return the content of the file."""
    return b"This key has the module type %b, which has no text form here. NAME%%dump has its bytes.\n" % escape_line(
        type
    )
