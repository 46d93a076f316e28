"""Whether two models say the same of a sample."""

import numpy as np

#: outputs that are no scores of classes agree where they differ by this share of the largest of them, at most
_CLOSE = 0.05


def compare_outputs(outputs: list[np.ndarray], reference: list[np.ndarray]) -> np.ndarray:
    """Returns (n,) float64 from 0 to 1: the share of each sample in which two models agree, by their first outputs.

    Scores of classes agree where both have their largest in the same place; other outputs where they are close.

    Args:
        outputs: output 0 is (n, …, classes) or (n, …).
        reference: the other model's outputs.
    """
    ours, theirs = outputs[0], reference[0]
    if ours.shape != theirs.shape or ours.ndim == 0:
        return np.zeros(max(1, len(ours)) if ours.ndim else 1)
    if ours.ndim > 1 and ours.shape[-1] > 1 and ours.dtype.kind == "f":
        agrees = ours.argmax(axis=-1) == theirs.argmax(axis=-1)
    else:
        scale = max(float(np.abs(theirs).max(initial=0.0)), 1e-6)
        agrees = np.abs(ours.astype(np.float64) - theirs) <= _CLOSE * scale
    share: np.ndarray = agrees.reshape(len(ours), -1).mean(axis=1, dtype=np.float64)
    return share
