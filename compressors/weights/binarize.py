"""Binary and ternary weights: ±1, or −1, 0 and 1, times a scale for each output channel."""

import numpy as np

from .treated_weight import TreatedWeight, as_rows, from_rows

#: the threshold of ternary weights as a share of mean |w|: Li et al., Ternary Weight Networks (2016), eq. 6
TERNARY_THRESHOLD = 0.7


def binarize_weight(weight: np.ndarray, form: str, *, axis: int) -> TreatedWeight:
    """Returns the weight in few signs; one that has this form already comes back as it is, however it was scaled.

    Args:
        weight: any shape, float32.
        form: ``binary`` or ``ternary``.
        axis: the axis of the outputs; each has a scale of its own.

    Binary: sign(w) × mean |w|, which is the closest; Rastegari et al., XNOR-Net (2016), eq. 6, with sign(0) = 1.
    Ternary: sign(w) where |w| > 0.7 mean |w|, times the mean of these |w|; Li et al. (2016), eq. 5 and 6.
    """
    rows = as_rows(weight, axis).astype(np.float64)  # the mean of equal float32 numbers is then exact
    size = np.abs(rows)
    if form == "binary":
        signs, scale = np.where(rows < 0, -1.0, 1.0), size.mean(1)
    else:
        is_large = size > TERNARY_THRESHOLD * size.mean(1, keepdims=True)
        signs = np.where(is_large, np.sign(rows), 0.0)
        scale = (size * is_large).sum(1) / np.maximum(is_large.sum(1), 1)
    return TreatedWeight(
        from_rows(signs.astype(np.float32), weight.shape, axis), scale.astype(np.float32), axis, "coded"
    )
