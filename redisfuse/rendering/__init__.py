"""How each Redis type reads as a file: one small module a type, the registry of types, JSON documents and dumps.

`registry.render_text` is the text of a key's file, `json_document.render_json_document` that of `NAME%json`, and
`dump.fetch_dump` the bytes of `NAME%dump`. Everything streams: a generator holds one batch of elements at a time.

Imported by vfs and, for the length commands of the types, by keyspace. Imports client, errors, text and batching.
It has no threads and no locks: a generator belongs to the thread that iterates it.
"""
