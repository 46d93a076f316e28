"""Arrays that are dear to make and kept between runs: trained weights, tokenised text."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors.numpy import load_file, save

from ..core.cache import cache_folder as cache_folder  # what uses this cache finds its folder here too
from ..core.files import short_digest, write_bytes

_log = logging.getLogger(__name__)


def cached_arrays(
    name: str, *, recipe: Mapping[str, Any], build: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns what ``build`` makes, from the cache where it was made before.

    Args:
        name: the start of the file's name, for people.
        recipe: JSON values on which the result depends; a changed recipe is built anew.
        build: makes name → array; called by one process at a time.
    """
    path = cache_folder() / "arrays" / f"{name}-{short_digest(dict(recipe))}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                _build_file(path, name, build)
    return load_file(path)


def _build_file(path: Path, name: str, build: Callable[[], Mapping[str, np.ndarray]]) -> None:
    _log.info("making %s once; it is kept in %s", name, path.parent)
    start = time.perf_counter()
    arrays = {key: np.ascontiguousarray(array) for key, array in build().items()}
    write_bytes(path, save(arrays))
    _log.info("made %s in %.0f s", name, time.perf_counter() - start)
