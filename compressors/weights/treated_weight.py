"""A weight after clustering, binarising or sparsifying: few values, or many zeros, times a scale per output."""

from dataclasses import dataclass

import numpy as np

from ...core.errors import PolicyError
from ..layer_inputs import LayerInputs


@dataclass(frozen=True)
class TreatedWeight:
    """A weight as the techniques before quantisation leave it: weight ≈ values × scale.

    ``values`` holds few different numbers (``coded``) or many zeros (``masked``), so that the file can hold less
    than one float for each.
    """

    #: float32, the shape of the weight
    values: np.ndarray
    #: (n_outputs,) float32, one for each index of ``axis``; None is 1 everywhere
    scale: np.ndarray | None
    #: the axis of the weight's outputs
    axis: int
    #: ``dense``, ``coded`` or ``masked``
    storage: str = "dense"

    @property
    def array(self) -> np.ndarray:
        """The weight itself: float32, same shape."""
        if self.scale is None:
            return self.values
        product: np.ndarray = self.values * along(self.scale, self.values.ndim, self.axis)
        return product


def along(vector: np.ndarray, n_axes: int, axis: int) -> np.ndarray:
    """Returns a vector: (n,) as an array of ``n_axes`` axes that broadcasts along one of them."""
    return np.expand_dims(vector, tuple(i for i in range(n_axes) if i != axis))


def as_rows(weight: np.ndarray, axis: int) -> np.ndarray:
    """Returns the weight as a matrix (n_outputs, K): one row for each output, its inputs in order.

    Args:
        weight: any shape: a convolution's (out, in / group, *kernel), a linear layer's (in, out), a table's
            (rows, width).
        axis: the axis of the outputs: 0, 1 and 0 for these.
    """
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def from_rows(rows: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Undoes `as_rows`.

    Args:
        rows: (n_outputs, K) any dtype.
        shape: the shape of the weight.
        axis: the axis of its outputs.
    """
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, axis))


def input_energy(inputs: LayerInputs | None, n_outputs: int, n_inputs: int) -> np.ndarray:
    """Returns E[x_j²] of what each weight multiplies: (n_outputs, n_inputs) float64; 1 where there are no statistics.

    Args:
        inputs: what enters the layer; None counts every input alike.
        n_outputs: rows of the weight matrix; the outputs of one group follow each other.
        n_inputs: its columns.

    Raises:
        PolicyError: the statistics are those of a layer with another number of inputs or groups.
    """
    if inputs is None:
        return np.ones((n_outputs, n_inputs))
    energy = np.diagonal(inputs.moments, axis1=1, axis2=2)  # (n_groups, K)
    n_groups, n_seen = energy.shape
    if n_seen != n_inputs or n_outputs % n_groups:
        raise PolicyError(
            f"the input statistics must be those of a ({n_outputs}, {n_inputs}) weight matrix, "
            f"got {n_groups} groups of {n_seen} inputs; collect them on this model"
        )
    return np.repeat(energy, n_outputs // n_groups, axis=0)
