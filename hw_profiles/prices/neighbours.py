"""Nearest neighbours and Gaussian processes: kernels alike take alike shares of their roofline."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...core.errors import SpecError
from ..kernels.kernel import Kernel
from ..kernels.kernel_features import FEATURES, describe_kind, stack_features
from .predictors import SHORTEST_S, check_timings
from .roofline import Roofline

#: what spans the space of shapes, and how much one doubling (or one share of padding, one flag) counts
_AXES = {
    "rows": 0.6, "depth": 1.0, "columns": 1.0, "channels_in": 0.5, "window": 1.0, "groups": 0.3, "shrinkage": 0.7,
    "flops": 0.4, "read": 0.6, "written": 0.6, "constant": 0.4, "is_depthwise": 4.0, "is_relaid": 1.0, "n_inputs": 0.7,
    "inner_in": 0.3, "inner_out": 0.3, "bytes_in": 0.3, "bytes_weight": 0.3, "bytes_out": 0.3, "n_fused": 0.3,
    "depth_16": 1.0, "columns_16": 1.5, "depth_64": 0.7, "columns_64": 0.7,
}  # fmt: skip
_COLUMNS = [FEATURES.index(name) for name in _AXES]
_WEIGHTS = np.array(list(_AXES.values()))
#: squared distance between kernels that differ in layout, dtypes, implementation; other operators are no neighbours
_KIND_GAPS = np.array([1.0, 2.0, 2.0])
#: squared distance within which a neighbour tells half of what it could
_REACH = 2.0


def _place(kernels: Sequence[Kernel]) -> np.ndarray:
    """Returns (n, axes) places, one unit being one doubling of an important side."""
    places: np.ndarray = stack_features(kernels)[:, _COLUMNS] * _WEIGHTS
    return places


def _square_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None] - 2 * left @ right.T
    clipped: np.ndarray = np.maximum(squares, 0.0)
    return clipped


def _encode_kinds(kernels: Sequence[Kernel], codes: dict[str, int]) -> np.ndarray:
    """Returns (n, 3) numbers of layout, dtypes and implementation; new ones get new numbers in ``codes``."""
    kinds = [describe_kind(kernel)[:3] for kernel in kernels]
    return np.array([[codes.setdefault(part, len(codes)) for part in kind] for kind in kinds]).reshape(-1, 3)


def _kind_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    distances: np.ndarray = ((left[:, None, :] != right[None]) * _KIND_GAPS).sum(-1)
    return distances


@dataclass
class _Members:
    """The kernels of one operator."""

    places: np.ndarray
    kinds: np.ndarray
    #: (n,) natural logarithm of time over roofline
    residuals: np.ndarray
    #: what a Gaussian process keeps: the inverse of its lower triangle, weights, and (scale, length, noise)
    whitener: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    weights: np.ndarray = field(default_factory=lambda: np.empty(0))
    settings: tuple[float, float, float] = (1.0, 1.0, 0.1)


@dataclass
class NearestNeighbours:
    """Scales the roofline by what the nearest kernels of the same operator took of theirs."""

    n_neighbours: int = 6
    _roofline: Roofline = field(default_factory=Roofline)
    _members: dict[str, _Members] = field(default_factory=dict)
    _codes: dict[str, int] = field(default_factory=dict)

    def fit(self, kernels: Sequence[Kernel], seconds: np.ndarray) -> None:
        """Keeps all kernels; see `KernelPredictor.fit`."""
        self._roofline, self._codes = Roofline(), {}
        self._members = _gather(kernels, seconds, self._roofline, self._codes)

    def predict(self, kernels: Sequence[Kernel]) -> tuple[np.ndarray, np.ndarray]:
        """Returns medians and errors; see `KernelPredictor.predict`."""
        medians, errors = self._roofline.predict(kernels)
        for op, own, mine in _split(kernels, self._members):
            members = self._members[op]
            squares = _square_distances(_place(own), members.places)
            squares = squares + _kind_distances(_encode_kinds(own, self._codes), members.kinds)
            nearest = np.argsort(squares, axis=1, kind="stable")[:, : self.n_neighbours]
            weights = 1.0 / (_REACH / 4 + np.take_along_axis(squares, nearest, 1))
            doubt = 1.0 / (_REACH / 4 + 4 * _REACH)
            told = weights.sum(1) / (weights.sum(1) + doubt)
            medians[mine] *= np.exp((weights * members.residuals[nearest]).sum(1) / (weights.sum(1) + doubt))
            closest = squares.min(1)
            errors[mine] *= np.sqrt(np.maximum(closest / (closest + _REACH), 0.05)) * np.sqrt(1.05 - 0.5 * told)
        return medians, errors


@dataclass
class GaussianProcess:
    """One Gaussian process per operator on the logarithm of time over roofline, with lengths chosen by likelihood.

    Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006: equations 2.25, 2.26 and 5.8.
    """

    _roofline: Roofline = field(default_factory=Roofline)
    _members: dict[str, _Members] = field(default_factory=dict)
    _codes: dict[str, int] = field(default_factory=dict)

    def fit(self, kernels: Sequence[Kernel], seconds: np.ndarray) -> None:
        """Learns; see `KernelPredictor.fit`."""
        self._roofline, self._codes = Roofline(), {}
        self._members = _gather(kernels, seconds, self._roofline, self._codes)
        for members in self._members.values():
            _condition(members)

    def predict(self, kernels: Sequence[Kernel]) -> tuple[np.ndarray, np.ndarray]:
        """Returns medians and errors; see `KernelPredictor.predict`."""
        medians, errors = self._roofline.predict(kernels)
        for op, own, mine in _split(kernels, self._members):
            members = self._members[op]
            scale, length, noise = members.settings
            squares = _square_distances(_place(own), members.places)
            kinds = _kind_distances(_encode_kinds(own, self._codes), members.kinds)
            likeness = _likeness(squares, kinds, length)
            medians[mine] *= np.exp(likeness @ members.weights)
            told = members.whitener @ likeness.T
            errors[mine] = scale * np.sqrt(np.maximum(1.0 - (told**2).sum(0), 0.0) + noise)
        return medians, errors


#: candidate lengths in doublings, and candidate noise as a share of the variance
_LENGTHS, _NOISES = (1.0, 1.7, 3.0, 5.0), (0.02, 0.08, 0.3)
#: (degrees of freedom, standard deviation) of what is believed of the residuals' spread
_PRIOR_SCALE = (4.0, 0.4)
#: kernels of one operator used to choose the settings
_ENOUGH_TO_CHOOSE = 400


def _likeness(squares: np.ndarray, kinds: np.ndarray, length: float) -> np.ndarray:
    """A Matérn 3/2 covariance in shape (equation 4.17), less for other kinds; 1 for equal kernels."""
    steps = np.sqrt(3.0 * squares) / length
    covariance: np.ndarray = (1.0 + steps) * np.exp(-steps) * np.exp(-kinds / 4.0)
    return covariance


def _condition(members: _Members) -> None:
    """Chooses the settings by marginal likelihood, with the scale in closed form, and solves for the weights."""
    squares = _square_distances(members.places, members.places)
    kinds = _kind_distances(members.kinds, members.kinds)
    some = slice(None, None, -(-len(squares) // _ENOUGH_TO_CHOOSE))
    best = (np.inf, 1.0, 0.1)
    for length in _LENGTHS:
        likeness = _likeness(squares[some, some], kinds[some, some], length)
        for noise in _NOISES:
            best = min(best, (_surprise(likeness, members.residuals[some], noise), length, noise))
    _, length, noise = best
    factor = np.linalg.cholesky(_likeness(squares, kinds, length) + noise * np.eye(len(squares)))
    # inverted once, so that a prediction is two products; the noise keeps it well conditioned
    members.whitener = np.linalg.inv(factor)
    whitened = members.whitener @ members.residuals
    members.weights = members.whitener.T @ whitened
    members.settings = (_scale(whitened), length, noise)


def _scale(whitened: np.ndarray) -> float:
    trust, spread = _PRIOR_SCALE
    return float(np.sqrt((np.sum(whitened**2) + trust * spread**2) / (len(whitened) + trust)))


def _surprise(likeness: np.ndarray, residuals: np.ndarray, noise: float) -> float:
    """Twice the negative logarithm of the marginal likelihood, without constants."""
    factor = np.linalg.cholesky(likeness + noise * np.eye(len(residuals)))
    whitened = np.linalg.solve(factor, residuals)
    trust = _PRIOR_SCALE[0]
    return float(2 * np.log(np.diag(factor)).sum() + (len(residuals) + trust) * 2 * np.log(_scale(whitened)))


def _gather(
    kernels: Sequence[Kernel], seconds: np.ndarray, roofline: Roofline, codes: dict[str, int]
) -> dict[str, _Members]:
    """Fits the roofline and returns operator → its kernels."""
    logs = np.log(np.maximum(check_timings(kernels, seconds), SHORTEST_S))
    roofline.fit(kernels, seconds)
    residuals = logs - np.log(roofline.predict(kernels)[0])
    places, kinds = _place(kernels), _encode_kinds(kernels, codes)
    ops = np.array([describe_kind(kernel)[3] for kernel in kernels])
    return {
        str(op): _Members(places[ops == op], kinds[ops == op], residuals[ops == op]) for op in sorted(set(ops.tolist()))
    }


def _split(kernels: Sequence[Kernel], members: dict[str, _Members]) -> list[tuple[str, list[Kernel], np.ndarray]]:
    """Returns (operator, its kernels, their places in ``kernels``) for each operator that was seen."""
    if not members:
        raise SpecError("a predictor must be fitted before it predicts")
    groups: dict[str, list[int]] = {}
    for index, kernel in enumerate(kernels):
        groups.setdefault(describe_kind(kernel)[3], []).append(index)
    return [(op, [kernels[i] for i in mine], np.array(mine)) for op, mine in groups.items() if op in members]
