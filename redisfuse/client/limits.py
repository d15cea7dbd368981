"""Bounds on the load that redisfuse puts on a server."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on time, connections, command rate and the size of one request."""

    timeout: float = 5.0
    """Seconds to wait for a connection, a reply or a free pooled connection (`--timeout`)."""

    survey_timeout: float | None = None
    """Seconds to wait for the reply to a read, if no program in a mount waits for it; None: `timeout`."""

    connections: int = 4
    """Most connections at a time (`--connections`); a mount needs 2 (one for tracking), or 3 if it writes."""

    rate: int = 0
    """Most commands a second (`--rate`); 0: unlimited."""

    scan_count: int = 1000
    """COUNT of SCAN, HSCAN and so on: about the number of keys or elements that one command visits."""

    pipeline_size: int = 1000
    """Most commands that are sent before their replies are read."""

    @property
    def reply_timeout(self) -> float:
        """Seconds to wait for the reply to a read."""
        return self.timeout if self.survey_timeout is None else max(self.timeout, self.survey_timeout)

    @property
    def batch_size(self) -> int:
        """The number of commands in one pipeline.

        It is `pipeline_size`, or a tenth of a second's worth if `rate` is set.
        """
        return min(self.pipeline_size, max(1, self.rate // 10)) if self.rate else self.pipeline_size
