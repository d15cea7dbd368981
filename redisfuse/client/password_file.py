"""The file that contains the password of a server."""

from pathlib import Path

from redisfuse.errors import UntrustedFileError, UsageError
from redisfuse.trusted_files import open_trusted


def read_password(path: Path) -> str:
    """Return the first line of a file that only its owner can read.

    Raises UsageError, also for a file that another user could have written.
    """
    try:
        with open_trusted(path, private=True) as file:
            return file.readline().rstrip(b"\r\n").decode("utf-8", "surrogateescape")
    except UntrustedFileError as error:
        raise UsageError(f"the password file {error}") from None
    except OSError as error:
        raise UsageError(f"{path}: can't read the password file: {error.strerror}") from error
