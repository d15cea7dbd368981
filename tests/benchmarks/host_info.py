"""What the figures were measured on: without it they mean nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from redisfuse.errors import RedisFuseError
from redisfuse.fuse.backends import BINDING_NAMES, select_binding


def list_bindings() -> list[str]:
    """The bindings that can be used here, the preferred one first."""
    found = []
    for name in reversed(BINDING_NAMES):
        try:
            select_binding(name)
        except RedisFuseError:
            continue
        found.append(name)
    return found


def format_load() -> str:
    """The load averages of the last 1, 5 and 15 minutes."""
    return " ".join(f"{number:.2f}" for number in os.getloadavg())


def describe_host() -> list[tuple[str, str]]:
    """Name and value of all that matters."""
    return [
        ("Processor", f"{_processor_model()}, {len(os.sched_getaffinity(0))} cores"),
        ("Memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"),
        ("Kernel", f"{platform.system()} {platform.release()}"),
        ("System", platform.freedesktop_os_release().get("PRETTY_NAME", "")),
        ("Python", f"{sys.version.split()[0]}, redis-py {version('redis')}, hiredis {version('hiredis')}"),
        ("Server", _server_version()),
        ("Bindings", ", ".join(f"{name} on {select_binding(name).library}" for name in list_bindings())),
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
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or "unknown"
