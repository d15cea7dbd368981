"""Mount a Redis server as a folder: read-only by default, every write journaled and reversible."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("redisfuse")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
