"""The journal as web pages on loopback: `redisfuse review`.

Reads the journal through a connection that can't write, and changes keys only through `transactions`. Starlette and
uvicorn are imported here alone, and only by that command.

Begin with `app.py` (all pages, behind the guard in `access.py`), `journal_pages.py`, `rollback_pages.py` and
`server_plans.py` (rollbacks). Imported by: `cli` only. Threads: uvicorn's event loop in the main thread; Starlette's
pool of threads serves the pages; a rollback has a thread of its own (`rollback_run.py`). It has no locks.
"""
