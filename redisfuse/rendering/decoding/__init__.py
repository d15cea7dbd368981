"""Values decoded to text: compression, serialisation, plain text.

`decoder.decode_value` gets bytes and returns text. It peels layers (`layers.py`), recognizes the format below them
(`formats.py`), and writes it with one module a format. Nothing in a value is ever executed, and no decoder allocates
what a value merely declares.

All formats but text and hexadecimal are written in one notation (`notation.py`): JSON, with what JSON lacks as in the
diagnostic notation of CBOR (RFC 8949, section 8). The binary formats are parsed here rather than with the libraries
of their programs, because a library that fails, or that must not allocate more, returns nothing: these parsers write
as they read, so that the text shows everything up to the place where a value is damaged or a limit is reached. The
compressions are those of the standard library, and of `redisfuse[decode]`.

Imported by: the rest of `rendering`, `vfs`, `survey` and `cli`.

Threads: none of its own. Pure.

Lock order: it has no locks.
"""
