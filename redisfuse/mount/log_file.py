"""The log of a mount: its file, which is its owner's alone, and its format."""

from __future__ import annotations

import logging
from io import TextIOWrapper
from pathlib import Path

from redisfuse.config import Config
from redisfuse.errors import UntrustedFileError, UsageError
from redisfuse.text import TerminalFormatter
from redisfuse.trusted_files import open_log


class PrivateFileHandler(logging.FileHandler):
    """A handler of a trusted file, which is created with mode 0600."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        return open(open_log_file(Path(self.baseFilename)), "a", encoding=self.encoding)


def open_log_file(path: Path) -> int:
    """Open a log for appending and return its descriptor. Raises UsageError."""
    try:
        return open_log(path)
    except UntrustedFileError as error:
        raise UsageError(f"the log file {error}") from None
    except OSError as error:
        raise UsageError(
            f"the log file {path} can't be opened: {error.strerror}; choose another path with --log-file"
        ) from None


def open_daemon_log(config: Config) -> int:
    """Open the log of a daemon and return its descriptor. Raises UsageError."""
    return open_log_file(config.log_file or default_log_path())


def configure_logging(config: Config) -> None:
    """Log to standard error, or to the file that was chosen.

    Lines are escaped, because messages can contain keys. Raises UsageError for a file that can't be opened.
    """
    to_file = config.log_file is not None and not config.daemon  # a daemon's standard error is its log file
    handler = PrivateFileHandler(config.log_file) if to_file and config.log_file else logging.StreamHandler()
    is_dated = config.daemon or to_file
    handler.setFormatter(
        TerminalFormatter("%(asctime)s %(levelname)s %(message)s" if is_dated else "redisfuse: %(message)s")
    )
    logging.basicConfig(level=logging.DEBUG if config.debug else logging.INFO, handlers=[handler])


def default_log_path() -> Path:
    """Return `redisfuse.log` in the platform's state folder."""
    from platformdirs import user_state_path

    return user_state_path("redisfuse", appauthor=False) / "redisfuse.log"
