"""The error of a model's outputs in relation to the outputs themselves, and the directions in which it is looked at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core.errors import ModelError

#: outputs with at most this many elements in all are looked at one element after the other: nothing is left to chance
MAX_EXACT = 16
#: random directions for each sample, where there are more
N_DIRECTIONS = 4


def relative_error(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> float:
    """Returns E|Δz|² / E|z|², the mean over the outputs of a model; infinite or NaN where an output is.

    Args:
        reference: per output of the original an (n_samples, …) array; outputs that are 0 throughout do not count.
        outputs: the same of the compressed model.

    Raises:
        ModelError: the original gives nothing but 0, or what is not finite.
    """
    energies = output_energies([[array] for array in reference])
    with np.errstate(all="ignore"):  # what is not finite is the caller's to judge
        errors = [
            np.square(after.astype(np.float64) - before).sum() / energy
            for before, after, energy in zip(reference, outputs, energies, strict=True)
            if energy > 0
        ]
    return float(np.mean(errors))


def output_energies(outputs: Sequence[Sequence[np.ndarray]]) -> list[float]:
    """Returns the mean over the samples of |z|² for each output.

    Args:
        outputs: per output of the model, what it gave sample by sample.

    Raises:
        ModelError: all are 0, or one is not finite.
    """
    energies = [float(np.mean([np.square(z, dtype=np.float64).sum() for z in arrays])) for arrays in outputs]
    for position, energy in enumerate(energies):
        if not np.isfinite(energy):
            raise ModelError(f"output {position} of the model is not finite on the calibration data")
    if not any(energies):
        raise ModelError("the model's outputs are 0 on all calibration samples; nothing can be told from them")
    return energies


@dataclass(frozen=True)
class Directions:
    """Vectors u for one sample, such that ``weight`` · Σ (u·Δz)² is the relative error, or is so on average.

    >>> drawn = draw_directions([np.ones((1, 2))], [4.0], np.random.default_rng(0))
    >>> [vector[0].tolist() for vector in drawn.vectors], drawn.weight
    ([[[0.5, 0.0]], [[0.0, 0.5]]], 1.0)
    """

    #: per direction, an array in the shape of each output
    vectors: tuple[tuple[np.ndarray, ...], ...]
    weight: float


def draw_directions(outputs: Sequence[np.ndarray], energies: Sequence[float], rng: np.random.Generator) -> Directions:
    """Returns the axes of the outputs where these are few, else random signs: E (u·Δz)² = |Δz|².

    Args:
        outputs: of one sample, an array each.
        energies: the mean of |z|² of each output, by which its error is divided; outputs with 0 do not count.
        rng: draws the signs.
    """
    n_seen = sum(energy > 0 for energy in energies)
    scales = [(energy * n_seen) ** -0.5 if energy > 0 else 0.0 for energy in energies]
    sizes = [array.size for array in outputs]
    is_exact = sum(sizes) <= MAX_EXACT
    rows = np.eye(sum(sizes)) if is_exact else rng.choice([-1.0, 1.0], (N_DIRECTIONS, sum(sizes)))
    vectors = []
    for row in rows:
        parts = np.split(row, np.cumsum(sizes)[:-1])
        shaped = zip(parts, outputs, scales, strict=True)
        vectors.append(tuple((part * scale).reshape(z.shape).astype(np.float32) for part, z, scale in shaped))
    return Directions(tuple(vectors), 1.0 if is_exact else 1.0 / len(rows))
