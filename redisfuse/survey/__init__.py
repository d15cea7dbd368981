"""Surveys of many keys by commands, without a mount: find, size and search them.

Begin with `scan.py` (keys in pipelines, as records with the properties that are needed), `conditions.py` (filters) and
`naming.py` (the paths that a mount gives to keys). Imports client, paths, rendering and keyspace; only cli imports it.
It reads only: no command is sent that changes a key, and none whose cost depends on the size of a value.

A survey takes an iterable of clients, one for each node that has a part of the keys.

Threads: none of its own; one thread runs a survey. Only `ChangeCounter` is also called by the tracking thread of
`keyspace`.

Lock order: the only lock, of `ChangeCounter`, is a leaf.
"""
