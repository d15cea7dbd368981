"""Mount Redis as a folder: read-only by default, writes journaled and reversible."""

__version__ = "0.1.0"
