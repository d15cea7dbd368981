"""Mount a Redis server as a folder: read-only by default, every write journaled and reversible."""

__version__ = "0.1.0"
