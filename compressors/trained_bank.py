"""Trained models on disk: what took minutes is not done twice, also after a crash."""

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..core.files import write_bytes
from .source import ModelSource

_log = logging.getLogger(__name__)

#: the least recently used models go when all together take more than this
MAX_BANK_BYTES = 4 * 1024**3
_MODEL = "onnx"


class TrainedBank:
    """Exported models by key, each in a file of arrays; damaged ones are made again."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BANK_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def load(self, key: str) -> ModelSource | None:
        """Returns the model that was kept under a key, without its module; None where there is none."""
        path = self._path(key)
        try:
            arrays = load(path.read_bytes())
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as error:
            _log.warning("the trained model %s cannot be read and is made again: %s", path, error)
            return None
        if _MODEL not in arrays:
            return None
        ranges = {name: (float(low), float(high)) for name, (low, high) in _take(arrays, "range").items()}
        return ModelSource(
            arrays[_MODEL].tobytes(),
            _take(arrays, "parameter"),
            _take(arrays, "sample"),
            learned_steps=_take(arrays, "step"),
            learned_ranges=ranges,
        )

    def keep(self, key: str, source: ModelSource) -> ModelSource:
        """Writes a model; returns it as `load` will."""
        arrays = {_MODEL: np.frombuffer(source.onnx_bytes, np.uint8)}
        for prefix, entries in (
            ("parameter", source.parameters),
            ("sample", source.sample),
            ("step", source.learned_steps),
            ("range", {name: np.array(edges) for name, edges in source.learned_ranges.items()}),
        ):
            arrays.update({f"{prefix}:{name}": np.ascontiguousarray(array) for name, array in entries.items()})
        write_bytes(self._path(key), save(arrays))
        self._make_room(keep=self._path(key))
        return replace(source, origin=None)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def _make_room(self, *, keep: Path) -> None:
        files = sorted(self._folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in files)
        for path in files:
            if total <= self._max_bytes or path == keep:
                return
            total -= path.stat().st_size
            path.unlink(missing_ok=True)


def _take(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    start = f"{prefix}:"
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
