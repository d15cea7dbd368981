"""`redisfuse demo`: a sample session in a mount of a private Redis server.

`data` generates the server's data, `server` starts and stops it, `session` mounts it and runs the commands.
Only `cli/demo.py` imports this package. It has no threads and no locks.
"""
