"""The tree of a mounted database without FUSE: paths, listings, contents, edits.

Purpose: everything that a filesystem on Redis is, apart from the kernel's protocol.

- Reading: `resolver` turns a path into one of the `nodes`; `filesystem` lists and describes nodes; `content` opens
  them, and `content_types` has a class for each way to fetch bytes; `handles` and `directory_handle` serve open files
  and directories, `pinned_contents` reads without an open.
- Writing: an `open_file` buffers the edits of a key or field (`write_buffer`) and commits them (`write_back`); all of
  them are in the `open_file_table`. `namespace` creates, removes and, through `namespace_rename`, renames.
  `name_placement` decides where a new name goes: to a key, a field, or as junk (`junk_rules`) to the `memory_fs`.
  `staged_replace` delays removals that may be half of a save, `delayed_changes` commits them. `overlay` shows all that
  is not in Redis.
- `inodes` has the files and directories that the kernel knows, with their lookup counts, parents and names.
- `coherence` passes each change on to everything that caches; `dentry_tracker` finds the paths of a changed key, and
  `kernel_cache` the node ids of a path.

Imported by: `mount`, and `cli` for `redisfuse junk`. `fuse` and `vfs` don't import each other: `mount/adapter.py`
connects them.

Threads: every public method may be called from any thread, unless its module restricts that. Threads of its own: one
for each read-ahead of a long string, and the timer of `pinned_contents`. `mount/write_mode.py` runs the timer of the
delayed changes.

Lock order, outermost first:

1. the lock of a `DirectoryHandle`, held while its listing fetches from the server;
2. a claim in `PendingRemovals`: not a lock, but it blocks removals of its targets, as they block it;
3. `OpenFile.lock`, held through a commit;
4. the locks of contents: `PinnedContent.stream_lock`, `GrowingContent`, then those of `content_types`, held while the
   server is queried;
5. leaves, held for a few operations on a table: `OpenFileTable`, `PendingRemovals`, `EmptyDirectories`,
   `MemoryInodes.lock`, `HashLayouts`, `ReaddirCache`, `RenderingCache`, `RecentRemovals`, `KnownVersions`,
   `StatfsProvider`, `InodeTable`; and `DentryTracker` and `PinnedContents`, which read the index or the version of a
   key from `keyspace` under their own.

The locks of `transactions`, `keyspace` and the rooms below come after 1 to 4. No thread holds two locks of one class,
and none of 5 while it blocks.
"""
