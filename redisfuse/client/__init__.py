"""The Redis client: the only room that imports redis-py and hiredis.

Purpose: a connection sends nothing that its allow-list does not name; a write is never sent twice; every error reply
and socket error becomes one error of `redisfuse.errors`, without secrets.

Modules, from the bottom: `limits`, `stats`, `rate_limit` and `wakeup`; `address`, `address_map`, `ssh_tunnels` and
`password_file` (where a server is reached); `allowlist`; `info` and `capabilities` (what the server supports);
`message_reader`, `reply_errors` and `connection_errors`; `reply_bounds` and `scan_guard` (what a server may reply);
`deadline_socket`, `connection_state`, `connection_id`, `connection` and `channel` (one connection); `sentinel_report`
and `sentinel` (which server is the master); `connector` and `pool` (several connections); `replication` (the age of a
replica's values); `replica_acknowledgement` and `termination` (what a write may need); `client` (`RedisClient`, which
the other rooms use); `acl` (`redisfuse doctor`). For a cluster: `slot_map` and `command_keys` (which node has a key),
`key_transit` and `replica_choice` (where replicas are read), `cluster_node`, `cluster_topology` (the nodes),
`cluster_errors`, `cluster_reading`, `cluster_writing` and `cluster_client` (`ClusterClient`, a `RedisClient` of all
nodes); `opening` connects to what an address needs.

Imported by: every room except `paths`, `journal` and `fuse`; `vfs`, `keyspace` and `rendering` only read.

Threads: `redisfuse-sentinel` (`sentinel`), one for each Sentinel, and `redisfuse-ssh` (`ssh_tunnels`); without
Sentinels and `--ssh`, none of its own. `RedisClient`, `ConnectionPool`, `Connector`, `ClientStats` and `TokenBucket`
are thread-safe. A `Channel` belongs to one thread at a time; only `close()` may be called from another.

Lock order: two locks are held while a thread waits. `ClusterTopology._refreshing` is held while one thread queries the
nodes for their slots, for at most a second each; no other thread waits for it. `SshTunnels._lock` is held while a
tunnel is opened. All others are leaves, of which no thread holds two, nor any while it waits for the server:
`ClusterTopology._lock`, `RedisClient._lock`, `PoolGroup.condition`, `SentinelWatcher._condition`, and the locks of
`KeyTransit`, `LagGuard`, `ClientStats` and `TokenBucket`.
"""
