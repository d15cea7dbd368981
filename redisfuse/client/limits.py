"""How much redisfuse takes of a server: a guest's manners, as numbers."""

from dataclasses import dataclass

from redisfuse.batching import CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on time, connections, speed and the size of one request."""

    timeout: float = 5.0
    """Seconds to wait for a connection, an answer or a free connection of the pool (`--timeout`)."""

    connections: int = 4
    """Connections at one time (`--connections`); a mount needs at least 2 (one to follow), 3 if it writes."""

    rate: int = 0
    """Commands a second (`--rate`); 0 is without a limit."""

    scan_count: int = 1000
    """COUNT of SCAN and its kin: about the keys or elements that one command walks over."""

    pipeline_size: int = 1000
    """Commands sent before their answers are read."""

    chunk_bytes: int = CHUNK_BYTES
    """Bytes of a big value that one command asks for."""

    @property
    def batch_size(self) -> int:
        """Commands to send at once: `pipeline_size`, or about a tenth of a second's worth where `rate` is set."""
        return min(self.pipeline_size, max(1, self.rate // 10)) if self.rate else self.pipeline_size
