"""A training whose state is kept on disk as it goes, so that after a crash it goes on and does not begin again."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import RunError
from .trained_bank import TrainedBank

if TYPE_CHECKING:
    from .recovery.train import Recovered, RecoverySession

_log = logging.getLogger(__name__)

#: steps between two looks at the clock
_PIECE = 8
#: seconds of training between two states, and how many times longer than the writing of one they must be
SAVE_EVERY_S, _MIN_SHARE = 15.0, 20.0


class KeptSession:
    """A `RecoverySession` that begins where an earlier one, of the same key, was interrupted."""

    def __init__(
        self,
        make: Callable[[], "RecoverySession"],
        bank: TrainedBank | None,
        key: str,
        *,
        save_every_s: float = SAVE_EVERY_S,
    ) -> None:
        """Makes the session, and goes on from its kept state where there is one.

        Args:
            make: makes the session, nothing of it trained yet.
            bank: where states are kept; None keeps none.
            key: what the training depends on, as the bank names its models.
            save_every_s: seconds of training between two states.
        """
        self._bank, self._key, self._save_every_s = bank, key, save_every_s
        self._session = make()
        self._saved_s = time.monotonic()
        arrays = None if bank is None else bank.load_state(key)
        if bank is None or arrays is None:
            return
        try:
            self.load_state_dict(arrays)
            _log.info("the training %s goes on from step %d of %d", key, self.n_done, self.n_steps)
        except RunError as error:
            _log.warning("the training %s begins again: %s", key, error)
            bank.drop_state(key)
            self._session = make()

    @property
    def n_steps(self) -> int:
        """All steps of the training."""
        return self._session.n_steps

    @property
    def n_done(self) -> int:
        """Steps that have been made."""
        return self._session.n_done

    def advance(self, n_steps: int) -> None:
        """Makes so many steps, or those that are left, and keeps the state now and then.

        Raises:
            PolicyError: the training diverged.
        """
        n_left = min(n_steps, self.n_steps - self.n_done)
        while n_left > 0:
            n = min(n_left, _PIECE)
            self._session.advance(n)
            n_left -= n
            if time.monotonic() - self._saved_s >= self._save_every_s:
                self.save()

    def save(self) -> None:
        """Keeps the state now."""
        if self._bank is None:
            return
        start_s = time.monotonic()
        self._bank.keep_state(self._key, self._session.state_dict())
        self._saved_s = time.monotonic()
        self._save_every_s = max(self._save_every_s, _MIN_SHARE * (self._saved_s - start_s))

    def snapshot(self) -> "Recovered":
        """Returns the model as it is now; training can go on."""
        return self._session.snapshot()

    def finish(self) -> "Recovered":
        """Returns the trained model.

        Raises:
            RunError: steps are left.
        """
        return self._session.finish()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Returns name → array of everything that going on needs."""
        return self._session.state_dict()

    def load_state_dict(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from what `state_dict` gave.

        Raises:
            RunError: the state is that of another training.
        """
        self._session.load_state_dict(arrays)
