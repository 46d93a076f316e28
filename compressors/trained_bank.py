"""Trained models, and trainings under way, on disk: what took minutes is not done twice, also after a crash."""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
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
    """Exported models and states of trainings by key, each in a file of arrays; damaged ones are made again."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BANK_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def load(self, key: str) -> ModelSource | None:
        """Returns the model that was kept under a key, without its module; None where there is none."""
        arrays = self._read(self._path(key))
        if arrays is None or _MODEL not in arrays:
            return None
        ranges, levels = (
            {name: (float(low), float(high)) for name, (low, high) in _take(arrays, prefix).items()}
            for prefix in ("range", "level")
        )
        return ModelSource(
            arrays[_MODEL].tobytes(),
            _take(arrays, "parameter"),
            _take(arrays, "sample"),
            learned_steps=_take(arrays, "step"),
            learned_ranges=ranges,
            learned_levels=levels,
        )

    def keep(self, key: str, source: ModelSource) -> ModelSource:
        """Writes a model; returns it as `load` will."""
        arrays = {_MODEL: np.frombuffer(source.onnx_bytes, np.uint8)}
        for prefix, entries in (
            ("parameter", source.parameters),
            ("sample", source.sample),
            ("step", source.learned_steps),
            ("range", {name: np.array(edges) for name, edges in source.learned_ranges.items()}),
            ("level", {name: np.array(levels) for name, levels in source.learned_levels.items()}),
        ):
            arrays.update({f"{prefix}:{name}": array for name, array in entries.items()})
        self._write(self._path(key), arrays)
        self.drop_state(key)
        return replace(source, origin=None)

    def load_state(self, key: str) -> dict[str, np.ndarray] | None:
        """Returns how far the training of a model had come when it was last kept; None where there is nothing."""
        return self._read(self._state_path(key))

    def keep_state(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes how far the training of a model has come; `keep` removes it."""
        self._write(self._state_path(key), arrays)

    def drop_state(self, key: str) -> None:
        """Removes what `keep_state` wrote, if it is there."""
        self._state_path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def _state_path(self, key: str) -> Path:
        return self._folder / f"{key}.state.safetensors"

    def _read(self, path: Path) -> dict[str, np.ndarray] | None:
        try:
            arrays: dict[str, np.ndarray] = load(path.read_bytes())
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as error:
            _log.warning("%s cannot be read and is made again: %s", path, error)
            return None
        return arrays

    def _write(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        # not `ascontiguousarray`, which makes (1,) of a scalar
        write_bytes(path, save({name: np.asarray(array, order="C") for name, array in arrays.items()}))
        self._make_room(keep=path)

    def _make_room(self, *, keep: Path) -> None:
        """Removes the least recently used files, among them what a crash left half written."""
        found = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # another process removed it
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._max_bytes or path == keep:
                return
            total -= size
            path.unlink(missing_ok=True)


def _take(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    start = f"{prefix}:"
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
