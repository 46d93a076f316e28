"""What recovery learns from, in which order."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from ...core.errors import DataError
from ...core.seeds import derive_rng


@dataclass(frozen=True)
class TrainingData:
    """Samples, what is true of them, and how wrong an output is.

    Args:
        inputs: argument of the model's ``forward`` → (n_samples, …) array, in the dtype that the model takes.
        labels: (n_samples, …) array; None where only a teacher is listened to.
        loss: ``cross_entropy``, ``mse``, ``binary_cross_entropy``, ``module:callable`` or the callable itself,
            which is given (list of output tensors, label tensor) and returns a scalar tensor; None picks by the labels.

    Raises:
        DataError: the arrays have different lengths, or fewer than two samples.

    >>> len(TrainingData({"x": np.zeros((4, 2), np.float32)}, np.zeros(4, np.int64)))
    4
    """

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | None = None
    loss: object = None

    def __post_init__(self) -> None:
        arrays = dict(self.inputs) if self.labels is None else {**self.inputs, "labels": self.labels}
        lengths = {name: len(array) for name, array in arrays.items()}
        if not self.inputs or len(set(lengths.values())) != 1 or min(lengths.values()) < 2:
            raise DataError(f"training data need inputs and labels of one length, at least 2, got {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True)
class Order:
    """Which samples each step takes: every epoch in an order of its own, which depends on the seed alone.

    Batches are all full; the samples that are left at the end of an epoch have their turn in another.

    >>> Order(10, 4, seed=0).n_steps(1.5)
    3
    """

    n_samples: int
    batch_size: int
    seed: int

    @property
    def batches_per_epoch(self) -> int:
        """How many batches an epoch has, at least one."""
        return max(1, self.n_samples // self.batch_size)

    def n_steps(self, epochs: float) -> int:
        """Returns how many steps so many epochs take, at least one."""
        return max(1, round(epochs * self.batches_per_epoch))

    def indices(self, step: int) -> np.ndarray:
        """Returns the samples of a step: (batch,) int64."""
        epoch, place = divmod(step, self.batches_per_epoch)
        order = _order_of(self.seed, epoch, self.n_samples)
        return order[place * self.batch_size : (place + 1) * self.batch_size].copy()


@lru_cache(maxsize=2)  # one in use, and the first epoch's, from which input statistics come
def _order_of(seed: int, epoch: int, n_samples: int) -> np.ndarray:
    order = derive_rng(seed, "recovery", "epoch", epoch).permutation(n_samples)
    order.setflags(write=False)  # all steps of the epoch share it
    return order


@dataclass(frozen=True)
class Batch:
    """The samples of one step on the model's device."""

    #: argument of the model's ``forward`` → (batch, …) tensor
    inputs: Mapping[str, torch.Tensor]
    #: (batch, …); None without labels
    labels: torch.Tensor | None


def take_batch(data: TrainingData, indices: np.ndarray, *, device: torch.device) -> Batch:
    """Returns the samples at ``indices``: (batch,) int array."""
    inputs = {name: to_input(array[indices], device=device) for name, array in data.inputs.items()}
    labels = None if data.labels is None else to_labels(data.labels[indices], device=device)
    return Batch(inputs, labels)


def to_input(array: np.ndarray, *, device: torch.device) -> torch.Tensor:
    """Returns (batch, …) as a tensor; images as channels last, in which x86 and tensor cores convolve faster.

    The layout then goes from layer to layer. It is asked for in full, for an image of one channel would count as laid
    out either way, and convolutions then choose the slow one (1.2 times slower for a ResNet-20).
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if tensor.ndim != 4:
        return tensor.to(device)
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device, memory_format=torch.channels_last)
    return empty.copy_(tensor)


def to_labels(array: np.ndarray, *, device: torch.device) -> torch.Tensor:
    """Returns (batch, …) whole numbers as int64 and others as float32."""
    is_real = np.issubdtype(array.dtype, np.floating)
    return torch.from_numpy(array.astype(np.float32 if is_real else np.int64)).to(device)
