"""The limits of decoding, the budget of one value, and the errors that end it.

Pure.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from redisfuse.config import DEFAULTS, Config, format_size


class DecodingError(Exception):
    """Decoding ends here; the message says why. What was written so far is valid."""


class MalformedValueError(DecodingError):
    """The bytes are not of this format."""


class TruncatedValueError(DecodingError):
    """The bytes end too early."""


class DecodingLimitError(DecodingError):
    """A limit is reached."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """How much of one value is decoded; the options `--decode-…` of a mount."""

    input_bytes: int = DEFAULTS["decode_input"]  # of the value
    output_bytes: int = DEFAULTS["decode_output"]  # of the text, and of each decompressed layer
    depth: int = DEFAULTS["decode_depth"]  # layers, and values within values
    seconds: float = DEFAULTS["decode_seconds"]  # of processor time

    @classmethod
    def from_settings(cls, config: Config) -> DecodeLimits:
        """Return the limits of a mount."""
        return cls(config.decode_input, config.decode_output, config.decode_depth, config.decode_seconds)


@dataclass(slots=True)
class DecodeBudget:
    """The rest of the limits while one value is decoded."""

    limits: DecodeLimits
    text_bytes: int = 0  # written so far, of all sections
    _deadline: float = field(init=False)
    _is_text_full: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._deadline = time.thread_time() + self.limits.seconds

    def check_time(self) -> None:
        """Raise DecodingLimitError if the processor time is used up."""
        if time.thread_time() > self._deadline:
            raise DecodingLimitError(f"it takes more than {self.limits.seconds:g} s (--decode-seconds)")

    def check_depth(self, depth: int) -> None:
        """Raise DecodingLimitError beyond the depth."""
        if depth > self.limits.depth:
            raise DecodingLimitError(f"it is nested in more than {self.limits.depth} levels (--decode-depth)")

    def add_text(self, size: int) -> None:
        """Count bytes of text.

        Raises DecodingLimitError, and doesn't count them, if they are too many.
        """
        if self.text_bytes + size > self.limits.output_bytes:
            raise self.text_error()
        self.text_bytes += size

    def check_text(self) -> None:
        """Raise DecodingLimitError if a part of the text did not fit."""
        if self._is_text_full:
            raise self.text_error()

    def text_error(self) -> DecodingLimitError:
        """Return the error for a text that is too long, and remember it."""
        self._is_text_full = True
        return self.output_error("the text")

    def output_error(self, subject: str) -> DecodingLimitError:
        """Return the error for an output that is too long."""
        return DecodingLimitError(f"{subject} has more than {format_size(self.limits.output_bytes)} (--decode-output)")
