"""The arithmetic of low rank: the closest factors of a weight, in the weight itself or in what it gives.

An error counts as E‖(W − W')x‖² = ‖(W − W')L‖² with L·Lᵀ the second moments of x, or as ‖W − W'‖², where L is 1.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

#: what is added to the diagonal of the moments, as a share of its mean: directions that the calibration data
#: hardly show still count a little
_DAMPING = 1e-4
#: sweeps of higher-order orthogonal iteration behind the higher-order SVD
_N_SWEEPS = 3


def damp(moments: np.ndarray) -> np.ndarray:
    """Returns the moments with a little on the diagonal, so that they are positive definite.

    Args:
        moments: (K, K) float64; all zeros give the identity.
    """
    mean = float(np.trace(moments)) / len(moments)
    return moments + _DAMPING * mean * np.eye(len(moments)) if mean > 0 else np.eye(len(moments))


@dataclass(frozen=True)
class Spectrum:
    """The singular value decomposition of matrix · L, from which the best factors of every rank follow.

    The best approximation of rank r is UᵣUᵣᵀ · matrix, with Uᵣ the first left singular vectors of matrix · L; equally
    it is matrix · L · VᵣVᵣᵀ · L⁻¹ (Chen et al. 2021, "DRONE", theorem 1; L by Cholesky as in Wang et al. 2024,
    "SVD-LLM"; without moments Eckart and Young 1936). The smaller of the two is computed.
    """

    #: (m, K) float64
    matrix: np.ndarray
    #: (K, K) float64, positive definite; None is the identity
    moments: np.ndarray | None = None

    @property
    def energies(self) -> np.ndarray:
        """Squared singular values of matrix · L: (min(m, K),) float64, descending."""
        return self._eigen[0]

    @cached_property
    def _eigen(self) -> tuple[np.ndarray, np.ndarray]:
        """Squared singular values, and the singular vectors of the shorter side."""
        if self._is_wide:
            seen = self.matrix.T if self.moments is None else self.moments @ self.matrix.T
            gram = self.matrix @ seen
        else:
            gram = self._weighted.T @ self._weighted
        values, vectors = np.linalg.eigh(gram)
        return np.maximum(values[::-1], 0.0), vectors[:, ::-1]

    @property
    def _is_wide(self) -> bool:
        return bool(self.matrix.shape[0] <= self.matrix.shape[1])

    @cached_property
    def _root(self) -> np.ndarray | None:
        return None if self.moments is None else np.linalg.cholesky(self.moments)

    @cached_property
    def _weighted(self) -> np.ndarray:
        return self.matrix if self._root is None else self.matrix @ self._root

    def truncate(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the factors (m, rank) and (rank, K) float64; their columns and rows have equal norms."""
        kept = self._eigen[1][:, :rank]
        if self._is_wide:
            return _balance(kept, kept.T @ self.matrix)
        right = kept if self._root is None else np.linalg.solve(self._root.T, kept)
        return _balance(self._weighted @ kept, right.T)


def _balance(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moves scales between the factors until both are equally large in every direction."""
    sizes = np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1)
    scale = np.sqrt(np.divide(sizes[1], sizes[0], out=np.ones_like(sizes[0]), where=(sizes[0] > 0) & (sizes[1] > 0)))
    return left * scale, right / scale[:, None]


def error_of(difference: np.ndarray, moments: np.ndarray | None) -> float:
    """Returns ‖difference · L‖² for a (n_outputs, K) difference."""
    weighted = difference if moments is None else difference @ moments
    return float((weighted * difference).sum())


def inner_moments(moments: np.ndarray | None, n_inner: int) -> np.ndarray | None:
    """Averages moments over the trailing part of K.

    Args:
        moments: (K, K) with K = leading × n_inner.
        n_inner: the length of the trailing part.

    Returns:
        (leading, leading): the mean moments of x[:, t] over t.
    """
    if moments is None or n_inner == 1:
        return moments
    n_outer = len(moments) // n_inner
    mean: np.ndarray = np.einsum("atbt->ab", moments.reshape(n_outer, n_inner, n_outer, n_inner)) / n_inner
    return mean


def refit(matrix: np.ndarray, projection: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best weight behind a projection of the inputs, by the normal equations of least squares.

    With z = (projection ⊗ 1) · x it minimises E‖matrix · x − fitted · z‖².

    Args:
        matrix: (n_outputs, n_outer × n_inner) float64.
        projection: (rank, n_outer) float64; acts on the leading part of K.
        moments: (K, K) float64, positive definite.

    Returns:
        The fitted weight (n_outputs, rank × n_inner) and the moments of z.
    """
    rank, n_outer = projection.shape
    n_inner = len(moments) // n_outer
    by_inner = moments.reshape(-1, n_outer, n_inner).swapaxes(1, 2) @ projection.T  # (K, n_inner, rank)
    crossed = by_inner.swapaxes(1, 2).reshape(len(moments), rank * n_inner)
    seen = (projection @ crossed.reshape(n_outer, -1)).reshape(rank * n_inner, -1)
    fitted = np.linalg.solve(seen, (matrix @ crossed).T).T
    return fitted, seen


def fit_spatial(spectrum: Spectrum, weight: np.ndarray, rank: int, moments: np.ndarray | None) -> list[np.ndarray]:
    """Returns k×1 and 1×k kernels: (rank, in, kh, 1) and (out, rank, 1, kw).

    Jaderberg et al. 2014, "Speeding up convolutional neural networks with low rank expansions", section 2.2. On
    moments the second kernel is fitted anew behind the first; of two first kernels the one with less error wins.

    Args:
        spectrum: of `spatial_matrix`, with the moments of one column of the patch.
        weight: (out, in, kh, kw) float64.
        rank: channels between the two.
        moments: (K, K) of the patches, positive definite.
    """
    n_out, n_in, height, width = weight.shape
    left, right = spectrum.truncate(rank)
    if moments is None:
        second = left.reshape(n_out, width, rank).transpose(0, 2, 1)
        return [right.reshape(rank, n_in, height, 1), second[:, :, None, :]]
    matrix = weight.reshape(n_out, -1)
    found = []
    for projection in (right, Spectrum(spectrum.matrix).truncate(rank)[1]):
        fitted, _ = refit(matrix, projection, moments)
        whole = (fitted.reshape(n_out, rank, width).transpose(0, 2, 1) @ projection).transpose(0, 2, 1)
        error = error_of(matrix - whole.reshape(n_out, -1), moments)
        found.append((error, projection, fitted))
    _, projection, fitted = min(found, key=lambda entry: entry[0])
    return [projection.reshape(rank, n_in, height, 1), fitted.reshape(n_out, rank, 1, width)]


def spatial_matrix(weight: np.ndarray) -> np.ndarray:
    """Returns (out × kw, in × kh) of a weight (out, in, kh, kw)."""
    n_out, n_in, height, width = weight.shape
    return weight.transpose(0, 3, 1, 2).reshape(n_out * width, n_in * height)


def input_matrix(weight: np.ndarray) -> np.ndarray:
    """Returns (out × kernel elements, in) of a weight (out, in, *kernel)."""
    return np.moveaxis(weight, 1, -1).reshape(-1, weight.shape[1])


def fit_tucker(weight: np.ndarray, ranks: tuple[int, int], moments: np.ndarray | None) -> list[np.ndarray]:
    """Returns 1×1, k×k and 1×1 kernels: (r, in, 1, 1), (s, r, kh, kw) and (out, s, 1, 1).

    Tucker-2 by higher-order SVD (Kim et al. 2016, "Compression of deep convolutional neural networks for fast and low
    power mobile applications", section 3.1), improved by higher-order orthogonal iteration (De Lathauwer et al. 2000).
    On moments the core and the last kernel are fitted anew behind the first (reduced-rank regression, Izenman 1975);
    of two first kernels the one with less error wins.

    Args:
        weight: (out, in, kh, kw) float64.
        ranks: channels in front of and behind the middle kernel.
        moments: (K, K) of the patches, positive definite.
    """
    n_out, _, *kernel = weight.shape
    before, behind = ranks
    inner, outer = _iterate(weight, ranks)
    matrix, n_elements = weight.reshape(n_out, -1), int(np.prod(kernel))
    if moments is None:
        core = np.einsum("oikl,ir,os->srkl", weight, inner, outer, optimize=True)
        return [inner.T[:, :, None, None], core, outer[:, :, None, None]]
    found = []
    aware = Spectrum(input_matrix(weight), inner_moments(moments, n_elements)).truncate(before)[1]
    for projection in (aware, inner.T):
        fitted, seen = refit(matrix, projection, moments)
        last, core = Spectrum(fitted, damp_lightly(seen)).truncate(behind)
        whole = np.einsum("os,srt,ri->oit", last, core.reshape(behind, before, -1), projection, optimize=True)
        error = error_of(matrix - whole.reshape(n_out, -1), moments)
        found.append((error, projection, core, last))
    _, projection, core, last = min(found, key=lambda entry: entry[0])
    return [projection[:, :, None, None], core.reshape(behind, before, *kernel), last[:, :, None, None]]


def damp_lightly(moments: np.ndarray) -> np.ndarray:
    """Returns moments that are symmetric and positive definite in float64 although they were computed."""
    symmetric = (moments + moments.T) / 2
    return np.asarray(symmetric + np.finfo(np.float64).eps * np.trace(symmetric) * np.eye(len(symmetric)))


def _iterate(weight: np.ndarray, ranks: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns orthonormal bases (in, r) and (out, s)."""
    inner = _basis(np.moveaxis(weight, 1, 0), ranks[0])
    outer = _basis(weight, ranks[1])
    for _ in range(_N_SWEEPS):
        inner = _basis(np.einsum("oikl,os->iskl", weight, outer, optimize=True), ranks[0])
        outer = _basis(np.einsum("oikl,ir->orkl", weight, inner, optimize=True), ranks[1])
    return inner, outer


def _basis(tensor: np.ndarray, rank: int) -> np.ndarray:
    """Returns the leading left singular vectors of the unfolding along the first axis."""
    unfolded = tensor.reshape(len(tensor), -1)
    basis: np.ndarray = np.linalg.eigh(unfolded @ unfolded.T)[1][:, ::-1][:, :rank]
    return basis
