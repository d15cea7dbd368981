"""The Redis client: the only room that imports redis-py and hiredis.

Purpose: a connection sends nothing that its allow-list does not name; a write is never sent twice; every error reply
and socket error becomes one error of `redisfuse.errors`, without secrets.

Modules, from the bottom: `limits`, `stats` and `rate_limit`; `address`; `allowlist`; `info` and `capabilities` (what
the server supports); `reply_errors` and `connection_errors`; `reply_bounds` and `scan_guard` (what a server may reply);
`deadline_socket`, `connection_state`, `connection`, `message_reader` and `channel` (one connection); `connector` and
`pool` (several), with `wakeup`; `client` (`RedisClient`, which the other rooms use), with `connection_id`,
`termination` and `replica_acknowledgement` (which writes can't arrive any more, and which are on replicas); `acl`
(`redisfuse doctor`). The route to a server: `password_file`, `address_map`, `ssh_tunnels`, `sentinel` with
`sentinel_report`, and `replication` (the age of a replica's values). For a cluster: `slot_map` and `command_keys`
(which node has a key), `replica_choice`, `key_transit`, `cluster_node`, `cluster_topology` (the nodes),
`cluster_errors`, `cluster_writing` and `cluster_client` (`ClusterClient`, a `RedisClient` of all nodes). `opening`
connects to what an address needs.

Imported by: every room except `paths`, `journal` and `fuse`; `vfs`, `keyspace` and `rendering` only read.

Threads: `redisfuse-sentinel` polls a Sentinel, `redisfuse-ssh` starts and watches ssh; other work is done in the
caller's thread. `RedisClient`, `ConnectionPool`, `Connector`, `ClientStats` and `TokenBucket` are thread-safe. A
`Channel` belongs to one thread at a time; only `close()` may be called from another.

Lock order: `ClusterTopology._refreshing` first, which one thread holds while it queries the nodes for their slots, for
at most a second each; no other thread waits for it. `SshTunnels._lock` is held while a tunnel is opened.
`ClusterTopology._lock`, `RedisClient._lock`, `PoolGroup.condition`, and the locks of `SentinelWatcher`, `LagGuard`,
`KeyTransit`, `ClientStats` and `TokenBucket` are all leaves: no thread holds two of them, or one while it waits for the
server.
"""
