"""The kernel's FUSE protocol on the descriptor of /dev/fuse, by node id.

Purpose: read the kernel's requests, call the operations of a filesystem, and write replies and notifications. libfuse 2
or 3 only mounts and unmounts. Every request gets exactly one reply, whatever it contains and whatever the operation
raises.

Modules, from the bottom: `interface` (`FuseOperations`, which `mount/adapter.py` implements, and its replies); `wire`
(structures, opcodes and flags); `worker_pool` (which thread reads); `request` and `dispatch` (from bytes to a call and
back); `init` (negotiation); `notify` (the kernel's caches); `signals`; `mountpoint` (listing and
unmounting); `device` (libfuse) with `capture_stderr`; `session` (`FuseSession`, one mount).

Imported by: `mount`; `cli` imports `mountpoint` and `device` only. Imports: `errors`.

Threads: the main thread (`FuseSession.run`) mounts, replies to INIT, waits for signals and unmounts. Workers `fuse-0`
to `fuse-63` (`worker_pool`) serve requests; one of them, the leader, reads. `fuse-notifier` (`notify`) writes
notifications.

Lock order: the locks of `LeaderFollowerPool` and `KernelNotifier` are leaves. No thread holds both, and none is held
while an operation runs or the device is read or written.
"""
