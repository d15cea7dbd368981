"""The one room that imports fuse or mfusepy.

`face` says what passes between the kernel's side and `operations`; `choice` finds the libraries that can be used here;
`fusepy` and `mfusepy` drive libfuse 2 and libfuse 3; `mountpoint` mounts' surroundings; `notifier` pushes changes into
the kernel's caches. Importing this package imports neither library.
"""
