"""`redisfuse demo`: a private Redis with a sample data set, mounted, and a session that is really run.

`data` is what the server holds, `server` starts and ends it, `session` mounts it and runs the commands that are shown.
"""
