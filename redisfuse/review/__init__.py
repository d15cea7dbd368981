"""The journal as web pages on loopback: `redisfuse review`.

Reads the journal through a connection that can't write, and changes keys only through `transactions`. Starlette and
uvicorn are imported here alone, and only by that command.
"""
