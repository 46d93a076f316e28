"""A weight after clustering, binarising or sparsifying: few values, or many zeros, times a scale per output."""

from dataclasses import dataclass

import numpy as np


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
        others = tuple(i for i in range(self.values.ndim) if i != self.axis)
        product: np.ndarray = self.values * np.expand_dims(self.scale, others)
        return product
