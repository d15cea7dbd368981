"""The keyspace: which keys exist, kept up to date, and what is known about them.

Purpose: one index of all key names, because Redis has no directories; a cache of metadata and small contents; and the
server's invalidation messages, which keep both coherent. The room reads only: it never writes to Redis.

Modules, from the bottom: `listener` (the protocols by which changes are announced); `index` with its two forms, `trie`
(with `trie_memory`, `packed_directory`, `trie_walk`, `wide_directories` and `long_keys`) and `sqlite_index`, and
`index_backend`, which both share; `own_writes`, `change_times`, `expiry_queue`, `drift`, `overload` and
`interruption_log` (bookkeeping); `scanner`, `exists` and `tracking` with `liveness` and `heartbeat` (the commands);
`reconciler`, `monitor_state`, `verifier`, `index_builder` and `change_follower`, of which `shard_monitor` and `monitor`
(`KeyspaceMonitor`) consist; `cluster_reconciler` and `cluster_monitor`, the same for a cluster; `metadata`
(`MetadataStore`) with `metadata_entry`, `packed_metadata`, `prefetch`, `prefetch_planner`, `entry_table`,
`metadata_cache`, `queries`, `extended`, `small_strings` and `hash_fields`.

Imported by: `transactions`, `survey`, `vfs`, `mount` and `cli`. Imports: `client`, `paths`, `rendering` (its length
commands).

Threads: `redisfuse-follow` (tracking), `redisfuse-look` (verifying), `redisfuse-scan` (scanning), `redisfuse-idle`
(pausing while the mount is not used), `redisfuse-slots` (the owners of a cluster's slots) and, while an index moves to
disk, `redisfuse-move`; monitor.py describes them. `MetadataStore` and all queries run in the caller's thread.

Lock order: `KeyspaceMonitor._pausing` first, which is held while following is paused or resumed: that calls the
`ChangeListener`, and waits for the next scan. `IndexReconciler._lock` before `Index._lock`; `KeyVerifier._condition`
before `ExpiryQueue._lock`. All other locks are leaves: `MonitorState._condition`, `ClusterState._condition`,
`ChangeClock._lock`, `OwnWriteFilter._lock`, `MetadataCache._lock`. No lock but the first is held while a thread waits
for the server or calls a `ChangeListener`.
"""
