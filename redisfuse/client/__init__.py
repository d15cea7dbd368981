"""The Redis client: the only room that imports redis-py and hiredis.

Purpose: a connection sends nothing that its allow-list does not name; a write is never sent twice; every error reply
and socket error becomes one error of `redisfuse.errors`, without secrets.

Modules, from the bottom: `limits`, `stats` and `rate_limit`; `address`; `allowlist`; `capabilities` (what the server
supports); `reply_errors` and `connection_errors`; `reply_bounds` and `scan_guard` (what a server may reply);
`deadline_socket`, `connection_state`, `connection`, `message_reader` and `channel` (one connection); `connector` and
`pool` (several); `client` (`RedisClient`, which the other rooms use); `acl` (`redisfuse doctor`).

Imported by: every room except `paths`, `journal` and `fuse`; `vfs`, `keyspace` and `rendering` only read.

Threads: none of its own. `RedisClient`, `ConnectionPool`, `Connector`, `ClientStats` and `TokenBucket` are thread-safe.
A `Channel` belongs to one thread at a time; only `close()` may be called from another.

Lock order: `RedisClient._lock`, `PoolGroup.condition`, and the locks of `ClientStats` and `TokenBucket` are all leaves:
no thread holds two of them. No lock is held while a thread waits for the server.
"""
