"""Scores of sensitivity kept between runs: a JSON file for each model, data and way of measuring."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..core.cache import cache_folder
from ..core.errors import SpecError
from ..core.files import read_json, short_digest, write_bytes

_log = logging.getLogger(__name__)

#: a score, or why there is none
Outcome = float | str

#: characters of a reason that are kept
_MAX_REASON = 500


class SensitivityStore:
    """What was scored before under the same circumstances; any number of processes may add to it.

    >>> import tempfile
    >>> store = SensitivityStore({"model": "m"}, folder=Path(tempfile.mkdtemp()))
    >>> store.add({"fc int8": 0.25})
    >>> store.read()
    {'fc int8': 0.25}
    """

    def __init__(self, circumstances: Mapping[str, Any], *, folder: Path | None = None) -> None:
        """Finds the file; it need not exist.

        Args:
            circumstances: JSON values on which every score depends.
            folder: where the files are; None is the cache.
        """
        self._circumstances = dict(circumstances)
        folder = cache_folder() / "sensitivity" if folder is None else folder
        self.path = folder / f"{short_digest(self._circumstances)}.json"

    def read(self) -> dict[str, Outcome]:
        """Returns key → score or reason; what is damaged or of other circumstances is not there."""
        if not self.path.exists():
            return {}
        try:
            content = read_json(self.path, noun="scores of sensitivity")
        except SpecError as error:
            _log.info("%s; they are measured anew", error)
            return {}
        if not isinstance(content, dict) or content.get("circumstances") != self._circumstances:
            _log.info("%s holds no scores of this model; they are measured anew", self.path)
            return {}
        scores = content.get("scores")
        found = scores.items() if isinstance(scores, dict) else ()
        return {key: outcome for key, outcome in found if _is_outcome(outcome)}

    def add(self, outcomes: Mapping[str, Outcome]) -> None:
        """Adds scores to those that are there by now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = {key: o[:_MAX_REASON] if isinstance(o, str) else float(o) for key, o in outcomes.items()}
        with FileLock(f"{self.path}.lock"):
            content = {"circumstances": self._circumstances, "scores": {**self.read(), **kept}}
            text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
            write_bytes(self.path, text.encode())


def _is_outcome(value: object) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, float) and math.isfinite(value) and value >= 0
