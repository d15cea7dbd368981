"""The machine and software of a run."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from redisfuse.errors import RedisFuseError
from redisfuse.fuse.device import BINDING_NAMES, select_device


def list_bindings() -> list[str]:
    """Return the bindings that work on this machine, the preferred one first."""
    bindings = []
    for name in reversed(BINDING_NAMES):
        try:
            select_device(name)
        except RedisFuseError:
            continue
        bindings.append(name)
    return bindings


def format_load() -> str:
    """Return the load averages of the last 1, 5 and 15 minutes."""
    return " ".join(f"{number:.2f}" for number in os.getloadavg())


def describe_host() -> list[tuple[str, str]]:
    """Return the name and value of each relevant fact."""
    return [
        ("Processor", f"{_processor_model()}, {len(os.sched_getaffinity(0))} cores"),
        ("Memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"),
        ("Kernel", f"{platform.system()} {platform.release()}"),
        ("System", platform.freedesktop_os_release().get("PRETTY_NAME", "")),
        ("Python", f"{sys.version.split()[0]}, redis-py {version('redis')}, hiredis {version('hiredis')}"),
        ("Server", _server_version()),
        ("Bindings", ", ".join(f"{name} on {select_device(name).library}" for name in list_bindings())),
        ("redisfuse", f"{version('redisfuse')}, commit {_git_commit()}"),
    ]


def _processor_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _server_version() -> str:
    program = shutil.which("redis-server") or "redis-server"
    words = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return " ".join([*words[:2], *(word for word in words if word.startswith("v="))]).replace("v=", "")


def _git_commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
