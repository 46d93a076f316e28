"""The data that a search is given, in numpy, split by purpose."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..core.errors import DataError


@dataclass(frozen=True)
class Split:
    """Samples for one purpose.

    Args:
        inputs: model input name → (n_samples, …) array, in the dtype that the model takes.
        labels: (n_samples, …) array that the metric is given; None where the metric needs none.

    Raises:
        DataError: something is not a numpy array, or the arrays have different lengths or are empty.

    >>> len(Split({"x": np.zeros((4, 2), np.float32)}))
    4
    """

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        arrays = {f"input '{name}'": array for name, array in self.inputs.items()}
        if self.labels is not None:
            arrays["labels"] = self.labels
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray) or array.ndim == 0:
                raise DataError(f"{name} must be a numpy array with the samples first, got {type(array).__name__}")
        lengths = {name: len(array) for name, array in arrays.items()}
        if not self.inputs or len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise DataError(f"a split needs inputs and labels of one length, at least 1, got {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, indices: np.ndarray | slice) -> "Split":
        """Returns the samples at ``indices``: (k,) int array or a slice."""
        labels = None if self.labels is None else self.labels[indices]
        return Split({name: array[indices] for name, array in self.inputs.items()}, labels)


@dataclass(frozen=True)
class Dataset:
    """What ``data:`` of a spec returns.

    The search sees ``calibration`` and ``validation`` only; ``test`` scores the answer once.
    """

    calibration: Split
    validation: Split
    test: Split
    #: only recovery needs it
    train: Split | None = None
    #: a name known to `trimtab.evaluators.metrics`, ``module:callable``, or the callable itself
    metric: object = "accuracy"
    #: what recovery minimises: ``cross_entropy``, ``mse``, ``binary_cross_entropy``, ``module:callable``, or a
    #: callable (list of output tensors, label tensor) → scalar tensor; None picks by the labels
    loss: object = None
