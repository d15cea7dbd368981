"""The output of `redisfuse demo`, and the pictures in the README that are taken from it.

A block of code after the line `<!-- demo -->` is a picture: some of the demo's commands, with their output.
"""

import re
import subprocess
import sys

LIMIT = 120.0  # seconds for the whole demo

_PICTURE = re.compile(r"(?<=<!-- demo -->\n```console\n)(.*?)(?=^```$)", re.DOTALL | re.MULTILINE)


def pictures(text: str) -> list[str]:
    """Return the pictures in a page."""
    return [match[1] for match in _PICTURE.finditer(text)]


def normal(text: str) -> str:
    """Return the demo's output with fixed values for what differs between runs: folders, times, processes."""
    text = re.sub(r"(/[\w.-]+)+/redisfuse-demo-\w+", "/tmp/demo", text)
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+Z)?", "2026-06-01 10:00:00", text)
    text = re.sub(r"\b(\w+)\[\d+\](?=\)$)", r"\1[4711]", text, flags=re.MULTILINE)
    return re.sub(r'(user\.redis\.ttl)="\d+"', r'\1="…"', text)


def parts(text: str) -> list[str]:
    """Return a session as its remarks (each after a blank line) and its commands, each with its output."""
    return [part.strip("\n") for part in re.split(r"\n(?:\n(?=# )|(?=\$ ))", text) if part.strip("\n")]


def rewritten(text: str) -> str:
    """Return a page with its pictures replaced from a run of the demo."""
    if not pictures(text):
        return text
    command = [sys.executable, "-m", "redisfuse.cli.main", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True)
    shown = {part.partition("\n")[0]: part for part in parts(normal(done.stdout))}
    return _PICTURE.sub(
        lambda match: "".join(f"{shown[part.partition(chr(10))[0]]}\n" for part in parts(match[1])), text
    )
