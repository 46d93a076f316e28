"""What enters each layer, collected when something is first asked for: it runs the calibration data."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import onnx_ir as ir

from .layer_inputs import LayerInputs, collect_layer_inputs
from .prepared import PreparedModel, one_by_one


class LazyInputs(Mapping[str, LayerInputs]):
    """Layer → statistics, for all layers of a model in one pass over its calibration data."""

    def __init__(self, prepared: PreparedModel, model: Callable[[], ir.Model] | None = None) -> None:
        self._prepared = prepared
        self._model = model or (lambda: prepared.base.model)

    @cached_property
    def _found(self) -> dict[str, LayerInputs]:
        names = [layer.name for layer in self._prepared.layers if layer.kind != "embedding"]
        return collect_layer_inputs(self._model(), names, one_by_one(self._prepared.calibration))

    def __getitem__(self, name: str) -> LayerInputs:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
