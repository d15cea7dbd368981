"""The journal: every change, recorded before it reaches Redis.

It is an SQLite database with everything that undoing a change needs. Its schema is specified in docs/journal-format.md
and created by the files in migrations/. Nothing in this package uses Redis.

`journal.Journal` is the way in. `models` has its data; `change_rows`, `directory_rows`, `sessions` and `blobs` each
read and write one table; `fingerprint_rows` has the evidence by which a session's server is recognized. `writer` and
`reader` own the connections; `database` and `files` open and check the file; `file_guard` notices its truncation or
removal in use; `portable` is the format of an object's copy. `processes` and `operations` group changes by program;
`change_filter` selects changes, `key_history` those of one key through its renames, and `reversals` those that were
rolled back. `diff`, `net_change`, `patch`, `word_diff` and `blame` compare contents, and `descriptions` has the texts
that commands print; `check` and `prune` work on a whole journal.

Importers: `transactions` and the layers above it (pyproject.toml, [tool.importlinter]).

Threads. A journal opened for writing has one thread of its own, "journal" (writer.JournalWriter), which runs all its
writing transactions. Callers on any thread hand it work and block until the commit; they share its fsyncs. Queries run
on the caller's thread, on one read-only connection. Migrations and `prune` run on the caller's thread, on connections
of their own; SQLite's locks order them, and other processes, with the writer. A thread does not survive a fork, so a
journal is opened after daemonizing.

Locks. `JournalReader._lock` is held for one query and is innermost: no other lock is taken while it is held. The
writer uses a queue and no lock. `JournalWriter.submit` blocks for an fsync, so no caller may hold the reader's lock
there, or any lock that the writer's thread takes (it takes none outside this package).
"""
