"""The command line: one module a command. Nothing here but asking, calling and telling.

`main.py` finds the command modules by themselves: any module of this package whose name has no underscore in front is
a command, and has a `command` (a click command) and a docstring whose first line is its line in `redisfuse --help`.
"""
