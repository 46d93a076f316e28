"""What enters each layer on the calibration data: the second moments that decide which errors reach the output."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LayerInputs:
    """Statistics of the inputs of one layer, as the rows that its weight matrix multiplies.

    A linear layer sees rows of K inputs. A convolution sees patches: K = channels of one group × kernel elements, in
    the order of its weight (in / group, *kernel).
    """

    #: (n_groups, K, K) float64: the mean of x · xᵀ over samples and positions
    moments: np.ndarray
    #: (n_groups, K) float64: the mean of x
    mean: np.ndarray
    #: (n_groups, K) float64: the largest |x| that was seen
    peak: np.ndarray
