"""The grammar of paths: key to path and back, as pure functions.

Imported by every room above it except fuse: keyspace, rendering, transactions, survey, vfs, mount, review and cli.
Imports only errors and text. It has no threads and no locks; its caches are `functools.lru_cache`, which is
thread-safe.
"""
