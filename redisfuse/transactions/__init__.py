"""Changes Redis, forwards and backwards: watch, journal, execute.

No other room does. A caller creates an operation, a value (`operation.py`): SaveWhole, PatchRange, RemoveTogether,
RemoveEach, Rename, SetExpiry, Apply, Revert, LoadKeys. The executor (`executor.py`) reads the operation's targets under
WATCH, lets the operation plan its mutations from their states, journals them with their prior states (one fsync), then
runs them in MULTI and EXEC. If a reply is lost, the outcome is read from the keys (`in_doubt.py`), after a crash by
recovery (`recovery.py`); a write is never sent twice. The promise and its steps are in docs/undo.md and
docs/architecture.md.

In a cluster, a transaction is of one slot: `chunked.py` runs an operation with several in several transactions.

`key_writer.py` is the interface for the tree of files; `write_session.py`, `selection.py`, `rollback_plan.py`,
`rollback.py`, `apply.py`, `recovery.py`, `archive_file.py` and `load.py` are the interface for commands.

Importers: `vfs`, `mount`, `review` and `cli`. This room imports `journal`, `client`, `paths`, `keyspace` (its
protocols) and the modules beside the rooms.

Threads: the room starts none. Operations run in the caller's thread; with group commit, small ones run in the thread
of the leader, which commits those of other threads along with its own (`group_commit.py`).

Lock order: `InDoubtResolver._resolving` first, which is held while the server is queried about lost replies. The
condition of CommitQueue and `InDoubtResolver._lock` are leaves, each held for a few assignments only. A leader holds no
lock while it commits; what excludes a second leader is `CommitQueue._has_leader`. The journal's and the client's locks
are taken below, never while a leaf is held.
"""
