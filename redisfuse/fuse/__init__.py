"""The kernel's FUSE protocol, spoken directly on the descriptor of /dev/fuse, by node id.

May be imported by `mount/` alone. A `FuseSession` mounts with libfuse 2 or 3 (`device`), negotiates (`init`) and runs
a `LeaderFollowerPool` of threads, each of which reads a request into a buffer of its own, lets the `Dispatcher` call
the `FuseOperations` and writes the reply. `KernelNotifier` has a thread of its own.

Locks: the pool's and the notifier's are leaves: nothing is called while either is held.
"""
