"""One mount: its objects, and their life from start to unmount.

It has the composition, the kernel's requests, the write half, the background process and the status.

Purpose: build the objects of the lower rooms from the configuration, wire them and serve until unmounted. `run` is the
composition root; `context` holds the objects of one mount; `adapter` is the only place where `fuse` and `vfs` meet.

Imported by: `cli` only.

Threads: the FUSE session's workers call `adapter`; `write_mode` has one timer thread; `progress` has one while the
first scan runs. Everything is created in the process that serves the mount, after the last fork.

Lock order: `adapter` holds its lock only to read or change its table of handles, and calls nothing meanwhile.
"""
