"""A slow disk, simulated with LD_PRELOAD: each fsync(2) and fdatasync(2) of a program sleeps first."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

_SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
#define LATER(name) int name(int file) { \\
    static int (*next)(int); if (!next) next = dlsym(RTLD_NEXT, #name); usleep(MICROSECONDS); return next(file); }
LATER(fsync)
LATER(fdatasync)
"""


@contextlib.contextmanager
def slow_disk(folder: Path, milliseconds: int) -> Iterator[bool]:
    """Delay the fsyncs of programs that are started in the body of `with`; yield False without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        yield False
        return
    library = folder / f"slow{milliseconds}.so"
    words = [
        compiler,
        "-shared",
        "-fPIC",
        f"-DMICROSECONDS={milliseconds * 1000}",
        "-x",
        "c",
        "-",
        "-o",
        library,
        "-ldl",
    ]
    subprocess.run(words, input=_SOURCE, text=True, check=True)
    os.environ["LD_PRELOAD"] = str(library)
    try:
        yield True
    finally:
        del os.environ["LD_PRELOAD"]
