"""How each Redis type reads as a file.

One small module per type, the registry of types, JSON documents and dumps. `registry.render_text` yields the
text of a key's file, `json_document.render_json_document` that of `NAME%json`, and `dump.fetch_dump` returns the bytes
of `NAME%dump`. Texts stream: a generator holds one batch of elements at a time.

Imported by: `survey`, `vfs` and `cli`, `keyspace` for the length commands of the types, and `mount` for the limits of
decoding.

Threads: none of its own; a generator belongs to the thread that iterates over it.

Lock order: it has no locks.
"""
