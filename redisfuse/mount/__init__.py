"""One mount: its objects, and their life from start to unmount.

Purpose: build the objects of the lower rooms from the configuration, connect them and serve until unmounted.

Modules: `run` is the composition root and `context` has the objects of one mount (`control` is its protocol);
`write_mode` has those of `--write`. `adapter` serves the kernel's requests and is the place where `fuse` and `vfs`
meet, with `attributes`, `directories`, `opening`, `open_handles`, `closing`, `unopened_files`, `setattr_requests` and
`xattr_requests`. `procfs` has facts about the programs that use the mount. `preflight` checks the mount point;
`daemonize`, `log_file`, `progress` and `status` are the background process, its log and its reports; `service_manager`
notifies systemd; `abort_watchdog` is a process that ends a killed mount.

Imported by: `cli` only.

Threads: the workers of the FUSE session call `adapter`; `write_mode` has one timer thread; `progress` has one while the
first scan runs. Everything is created in the process that serves the mount, after the last fork.

Lock order: `OpenHandles._lock` and `OpenDirectories._lock` are leaves, held to read or change a table. `adapter` has
no lock.
"""
