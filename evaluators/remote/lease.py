"""The sole use of an agent's machine: one holder at a time, who loses it by silence."""

import time
from collections.abc import Callable

#: a holder that says nothing for so long is taken for dead, in seconds
LEASE_S = 30.0


class LeaseDesk:
    """Hands out the one lease of a machine; ids are the clients' own, so that asking twice is asking once.

    >>> desk = LeaseDesk()
    >>> desk.take("a"), desk.take("b"), desk.take("a")
    (True, False, True)
    >>> desk.give_back("a")
    >>> desk.take("b")
    True
    """

    def __init__(self, *, lease_s: float = LEASE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.lease_s = lease_s
        self._clock = clock
        self._holder: str | None = None
        self._expires_s = 0.0

    def take(self, lease_id: str) -> bool:
        """Gives or renews the lease; False while somebody else has it."""
        if not self.is_free_for(lease_id):
            return False
        self._holder, self._expires_s = lease_id, self._clock() + self.lease_s
        return True

    def renew(self, lease_id: str | None) -> bool:
        """Renews the lease of its holder; False for everybody else."""
        return lease_id is not None and self.holds(lease_id) and self.take(lease_id)

    def holds(self, lease_id: str | None) -> bool:
        """Whether this is the lease that is out."""
        return lease_id is not None and lease_id == self._current()

    def is_free_for(self, lease_id: str | None) -> bool:
        """Whether nobody else has the lease."""
        return self._current() in (None, lease_id)

    def give_back(self, lease_id: str) -> None:
        """Ends the lease; somebody else's goes on."""
        if self.holds(lease_id):
            self._holder = None

    def _current(self) -> str | None:
        return None if self._clock() >= self._expires_s else self._holder
