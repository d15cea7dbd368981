"""The tree of a mounted database: paths, listings, contents and edits, without FUSE.

Purpose: everything that a filesystem on Redis is, apart from the kernel's protocol. `resolver` turns a path into one of
the `nodes`; `filesystem` lists and describes nodes; `content` opens them for reading, and `content_types` has a class
for each way to fetch bytes. In write mode `open_files` buffers edits, `namespace` creates, removes and renames, and
`overlay` shows what is not in Redis: junk (`memory_fs`), edits and pending removals (`staged_replace`). `coherence`
passes each change on to everything that caches.

Imported by: `mount`, and `cli` for `redisfuse junk`. `fuse` and `vfs` don't import each other: `mount/adapter.py`
connects them.

Threads: every public method may be called from any thread. Those of its own: one for each read-ahead of a long string,
and the timers of `inode_content`.

Lock order: a `DirectoryHandle`'s lock comes first, as it is held while its listing fetches from the server; so are the
locks of contents (`content_types`, `growing_content`). A claim in `PendingRemovals` comes before `OpenFile.lock`, which
is held through a commit and comes before the lock of the table of open files and before all locks of the rooms below.
All other locks of this room are leaves: nothing is called while one is held, except that `inode_content` and
`dentry_tracker` query `keyspace` under theirs (the version of a key, the index).
"""
