"""Changes that arrive while another is on its way to the disk go on together: one reading, one fsync, one transaction.

A connection that watches keys is taken for as long as its fsync lasts, and there are few. So changes wait in one line,
and whoever is at its head does the work of all who have come by then (flat combining). One that comes alone waits for
nobody.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from redisfuse.transactions.mutation import Decide
from redisfuse.transactions.state_reader import Look

MOST = 64  # changes that go together
PATIENCE = 0.0005  # seconds that a leader waits for those who went along last time: about what an fsync takes


def _closed() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True, eq=False)
class Request:
    """One change to be made, and in the end its rows or its error."""

    looks: Sequence[Look]
    decide: Decide
    ids: list[int] | None = None
    error: BaseException | None = None
    recorded: int | None = None  # its newest row, whatever became of it
    told: dict[bytes, bool | None] = field(default_factory=dict)  # for OnApplied: told by the thread that asked
    woken: threading.Lock = field(default_factory=_closed)  # opened once: it has its outcome, or leads
    leads: bool = False

    @property
    def open(self) -> bool:
        """Whether it has no outcome yet."""
        return self.ids is None and self.error is None

    @property
    def keys(self) -> set[bytes]:
        """The keys that it watches."""
        return {look.target.key for look in self.looks}

    def tell(self, changed: Mapping[bytes, bool | None]) -> None:
        """Remember what was changed."""
        self.told.update(changed)


class Line:
    """Where requests wait. `work` settles every request that it is given, and does not raise."""

    def __init__(self, work: Callable[[list[Request]], None]) -> None:
        self._work = work
        self._arrival = threading.Condition()  # its lock is held for a moment only
        self._waiting: list[Request] = []
        self._led = False
        self._usual = 1  # how many went together last time

    def settle(self, request: Request) -> None:
        """Return when the request has its outcome."""
        with self._arrival:
            self._waiting.append(request)
            request.leads = not self._led
            self._led = True
            self._arrival.notify()
        if not request.leads:
            request.woken.acquire()
            if not request.leads:
                return
        company = self._company(request)
        try:
            self._work(company)
        finally:
            self._pass_on()
            for each in company:
                if each is not request:
                    each.woken.release()

    def _company(self, leader: Request) -> list[Request]:
        """The leader and those who wait, in order; of two that concern one key only the first."""
        with self._arrival:
            self._arrival.wait_for(lambda: len(self._waiting) >= self._usual, PATIENCE)
            company, keys = [leader], set(leader.keys)
            for each in self._waiting:
                if each is not leader and len(company) < MOST and not keys & each.keys:
                    company.append(each)
                    keys |= each.keys
            self._waiting = [each for each in self._waiting if each not in company]
            self._usual = len(company)
        return company

    def _pass_on(self) -> None:
        with self._arrival:
            if not self._waiting:
                self._led = False
                return
            self._waiting[0].leads = True
            self._waiting[0].woken.release()
