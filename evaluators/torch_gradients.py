"""Gradients of a model's outputs with respect to values inside its graph, through PyTorch."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch

from ..core.errors import MeasurementError
from .torch_graph import translate

#: the input that is added to every watched value: 0, and what the gradients are led through
_ZERO = "trimtab_zero"


class OutputGradients:
    """A float graph that is run forward once and backward as often as there are directions.

    >>> from .testing import example_artifact
    >>> model = ir.from_proto(__import__("onnx").load_from_string(example_artifact().model))
    >>> gradients = OutputGradients(model, ["r"])
    >>> u = np.array([[1, 0, 0]], np.float32)
    >>> found = gradients({"x": np.ones((1, 8), np.float32)}, [[u]])
    >>> found[0]["r"].shape
    (1, 16)
    """

    def __init__(self, model: ir.Model, values: Sequence[str]) -> None:
        """Translates the graph.

        Args:
            model: in floating point; it is left alone.
            values: names of values that are computed in it.

        Raises:
            MeasurementError: an operator is not translated, a value is missing, or an output is no floating point.
        """
        self._values = tuple(values)
        self._n_outputs = len(model.graph.outputs)
        if any(value.dtype not in (ir.DataType.FLOAT, None) for value in model.graph.outputs):
            raise MeasurementError("gradients need a model whose outputs are float32 throughout")
        content = ir.to_proto(_watch(model.clone(), self._values)).SerializeToString()
        self._model = translate(content)

    def __call__(
        self, inputs: Mapping[str, np.ndarray], directions: Sequence[Sequence[np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        """Returns per direction: value name → gradient of Σ_outputs u·z, in the value's shape.

        Args:
            inputs: input name → (batch, …) array.
            directions: per direction, an array in the shape of each output.

        Raises:
            MeasurementError: PyTorch fails; the message carries its words.
        """
        zero = torch.zeros((), requires_grad=True)
        arguments = [zero if one.name == _ZERO else torch.tensor(inputs[one.name]) for one in self._model.inputs]
        try:
            results = self._model.module(*arguments)
            outputs, watched = results[: self._n_outputs], results[self._n_outputs :]
            return [self._pull(outputs, watched, direction) for direction in directions]
        except RuntimeError as error:
            raise MeasurementError(f"torch cannot differentiate the model: {error}") from error

    def _pull(
        self, outputs: Sequence[torch.Tensor], watched: Sequence[torch.Tensor], direction: Sequence[np.ndarray]
    ) -> dict[str, np.ndarray]:
        pairs = [(z, torch.from_numpy(u)) for z, u in zip(outputs, direction, strict=True) if z.requires_grad]
        found = torch.autograd.grad(
            [z for z, _ in pairs], watched, grad_outputs=[u for _, u in pairs], retain_graph=True, allow_unused=True
        )
        return {
            name: np.zeros(tuple(value.shape), np.float32) if gradient is None else gradient.numpy()
            for name, value, gradient in zip(self._values, watched, found, strict=True)
        }


def _watch(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Adds a zero behind each of the named values, which makes the sum an output of the model, too."""
    graph = model.graph
    zero = ir.Value(name=_ZERO, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(zero)
    known = {str(value.name): value for node in graph for value in node.outputs}
    for name in names:
        value = known.get(name)
        producer = None if value is None else value.producer()
        if value is None or producer is None:
            raise MeasurementError(f"the graph computes no value '{name}'")
        add = ir.node("Add", [value, zero], name=f"{name}/trimtab_watch")
        twin = add.outputs[0]
        twin.name, twin.shape, twin.type = f"{name}/trimtab_watched", value.shape, ir.TensorType(ir.DataType.FLOAT)
        ir.convenience.replace_all_uses_with(value, twin, replace_graph_outputs=True)
        graph.insert_after(producer, add)
        add.replace_input_with(0, value)
        graph.outputs.append(twin)
    return model
