"""The command line: one module for each command.

The topmost room: it may import all others, and no room imports it. It parses arguments, calls the room that does the
work, and prints the result. Its threads are that of `status`, which bounds the wait for a mount, and the timer of a
progress bar. It has no locks.

`main.py` finds the commands: each module of this package whose name has no leading underscore, except `main`, is one.
It has a click command named `command`, and a docstring whose first line describes it in `redisfuse --help`.
"""
