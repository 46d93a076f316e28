"""The volume that a set of points dominates, up to a reference point: exact, for two or three axes."""

import numpy as np

from ...core.errors import SpecError


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Returns the volume of all that some point dominates and that dominates the reference; axes are minimised.

    Two axes by one sweep; three by slices between the values of the third (Fonseca, Paquete and López-Ibáñez, An
    improved dimension-sweep algorithm for the hypervolume indicator, CEC 2006, section III). A point that is not
    better than the reference in every axis adds nothing.

    Args:
        points: (n, 2) or (n, 3) float64.
        reference: (2,) or (3,) float64.

    Raises:
        SpecError: there are other numbers of axes.

    >>> hypervolume(np.array([[0.0, 0.5], [0.5, 0.0]]), np.ones(2))
    0.75
    """
    points, reference = np.asarray(points, float), np.asarray(reference, float)
    if points.ndim != 2 or reference.shape != (points.shape[1],) or points.shape[1] not in (2, 3):
        raise SpecError(f"points must be (n, 2) or (n, 3) with a reference of as many axes, got {points.shape} and "
                        f"{reference.shape}")  # fmt: skip
    inside = points[(points < reference).all(axis=1)]
    return _area(inside, reference) if points.shape[1] == 2 else _volume(inside, reference)


def _area(points: np.ndarray, reference: np.ndarray) -> float:
    if not len(points):
        return 0.0
    ordered = points[np.lexsort((points[:, 1], points[:, 0]))]
    lowest = np.minimum.accumulate(ordered[:, 1])
    widths = np.diff(np.append(ordered[:, 0], reference[0]))
    return float((widths * (reference[1] - lowest)).sum())


def _volume(points: np.ndarray, reference: np.ndarray) -> float:
    ordered = points[np.argsort(points[:, 2], kind="stable")]
    heights = np.diff(np.append(ordered[:, 2], reference[2]))
    slices = (height * _area(ordered[: n + 1, :2], reference[:2]) for n, height in enumerate(heights) if height > 0)
    return float(sum(slices))
