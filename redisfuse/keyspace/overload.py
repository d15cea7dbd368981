"""Whether the server changes faster than this process can follow.

Pure but for the clock that it is given; one thread at a time judges each thing.
"""

MOST_BEHIND = 500_000  # keys told of and not looked at yet
LONGEST_LAG = 2.0  # seconds between being told of a key and having looked at it
LAG_PATIENCE = 5.0  # seconds for which the lag may be longer
CUT_OFF = 3  # times that a busy connection may be lost
CUT_OFF_WITHIN = 60.0  # seconds in which they count
BUSY = 5_000  # keys told of a second, from which on a lost connection was probably cut off for falling behind
FIRST_BREAK = 60.0  # seconds without following, after giving up; doubled each time
LONGEST_BREAK = 900.0


class Pace:
    """Judges what it is told of; what it answers with True is a reason to give up following for a while."""

    def __init__(self) -> None:
        self._connected_at = 0.0
        self._told = 0
        self._losses: list[float] = []
        self._lag_since: float | None = None
        self._break = FIRST_BREAK

    def connected(self, now: float) -> None:
        """Following began."""
        self._connected_at = now
        self._told = 0
        self._lag_since = None

    def told(self, keys: int, behind: int) -> bool:
        """So many keys were told of, and so many are to be looked at."""
        self._told += keys
        return behind > MOST_BEHIND

    def looked(self, lag: float, now: float) -> bool:
        """Keys were looked at, so many seconds after they were told of."""
        if lag < LONGEST_LAG:
            self._lag_since = None
            return False
        if self._lag_since is None:
            self._lag_since = now
        return now - self._lag_since > LAG_PATIENCE

    def lost(self, now: float) -> bool:
        """The connection was lost."""
        if self._told < BUSY * (now - self._connected_at):
            return False
        self._losses = [moment for moment in self._losses if now - moment < CUT_OFF_WITHIN] + [now]
        return len(self._losses) >= CUT_OFF

    def gave_up(self) -> float:
        """Following was given up; answer for how many seconds."""
        self._losses = []
        self._lag_since = None
        seconds, self._break = self._break, min(2 * self._break, LONGEST_BREAK)
        return seconds
