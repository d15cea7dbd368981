"""The common part of programs that add tokens to shared values and record the outcome of each.

A token is unique. `tests/crash/test_histories.py` checks the values against the records.
"""

from __future__ import annotations

import json
import platform
import random
import re
import select
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

_divides_writes = tuple(map(int, re.findall(r"\d+", platform.release())[:2])) < (6, 6)
SLOT_BYTES = 16 if _divides_writes else 13  # longer than a token; 16: no slot crosses a page (docs/kernel-notes.md)
FILLER = b"."

Outcome = Literal["acknowledged", "refused", "unknown"]


@dataclass(frozen=True)
class Target:
    """A value that programs share.

    `slot_count`: slots at its start, each filled by one patch. `is_locked`: programs of one mount take a lock around
    each change, because some of them read and rewrite the value. `max_tokens` of one program; a value stays small.
    """

    key: str
    field: str | None = None
    slot_count: int = 0
    is_locked: bool = False

    @property
    def name(self) -> str:
        """The name of its file."""
        return self.key if self.field is None else f"{self.key}.{self.field}"


TARGETS = (
    Target("appended"),
    Target("patched", slot_count=8 * 1024),
    Target("rewritten", is_locked=True),
    Target("hash", "appended"),
    Target("hash", "rewritten", is_locked=True),
    Target("large", slot_count=96 * 1024),  # 1.5 MiB
)


@dataclass(frozen=True)
class Settings:
    """The settings of a program. `mount` is None for a client of the server."""

    number: int
    program_count: int
    seed: int
    record: str
    locks: str
    mount: str | None
    socket_path: str


@dataclass(frozen=True)
class Attempt:
    """An attempt to add a token.

    `error`: the name of the errno, or of the client's exception.
    """

    token: str
    target: str
    kind: str
    outcome: Outcome
    error: str | None
    time: float


class Program:
    """The part that programs on a mount and clients of the server have in common."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.random = random.Random(f"{settings.seed} {settings.number}")
        self._record = Path(settings.record).open("a", buffering=1)  # noqa: SIM115 - until the process ends
        self._token_count = 0
        self._next_slots = dict.fromkeys(TARGETS, settings.number)

    def run(self) -> None:
        """Add tokens until the standard input ends."""
        while not select.select([sys.stdin], [], [], self.random.uniform(0, 0.02))[0]:
            target = self.random.choice(TARGETS)
            self.attempt(target)

    def attempt(self, target: Target) -> None:
        """Add one token, or a few, to a target."""
        raise NotImplementedError

    def make_token(self) -> bytes:
        """Return a token that no program has made."""
        self._token_count += 1
        return b"[%03d.%06d]" % (self.settings.number, self._token_count)

    def take_slot(self, target: Target) -> int | None:
        """Return the offset of a slot that no program has used."""
        slot = self._next_slots[target]
        if slot >= target.slot_count:
            return None
        self._next_slots[target] += self.settings.program_count
        return slot * SLOT_BYTES

    def record(self, token: bytes, target: Target, kind: str, outcome: Outcome, error: str | None = None) -> None:
        """Record an attempt."""
        attempt = Attempt(token.decode(), target.name, kind, outcome, error, time.time())
        self._record.write(json.dumps(asdict(attempt)) + "\n")
