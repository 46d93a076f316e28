"""A Gaussian process over policies whose mean is an additive cost, so that a solver can optimise what it believes.

The value of a policy is what is known beforehand plus a residual, a sum of effects: of each group's option, of pairs
of groups, and of all groups that take the same option at once (where a kernel table is wrong about int8, it is wrong
about all of them). Effects in one setting of the graph-wide choices resemble those in another. Rasmussen & Williams,
Gaussian Processes for Machine Learning (2006), section 2.2; additive kernels: D. Duvenaud et al., Additive Gaussian
Processes, NIPS 2011.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from ..solver.additive_cost import AdditiveCost

#: share of an effect's variance that a group has for itself, not in common with others of its option: what is tried
_OWN_SHARES = (0.05, 0.4, 1.0)
#: standard deviation of the effects of pairs, relative to those of the groups in them: what is tried
_PAIR_SCALES = (0.0, 0.3, 1.0)
#: correlation of effects when one graph-wide choice differs: what is tried
_LIKENESSES = (0.6, 0.95)
#: variance of what no effect explains, relative to the mean variance of the residuals: what is tried
_MISFITS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
#: pairs that are not known to be neighbours interact less by this factor of standard deviation
_FAR = 0.3
#: log of how much less probable the outer values of each list are beforehand than the middle ones: with a handful of
#: observations the likelihood alone picks extremes
_OUTER_PENALTY = 0.7


@dataclass(frozen=True)
class Effects:
    """How large the effects may be, relative to each other, and which pairs of groups are neighbours."""

    #: per group, (n_options,) float64 ≥ 0; the first option is the reference: 0
    sizes: tuple[np.ndarray, ...]
    #: pairs of groups in ascending order that share kernels
    neighbours: tuple[tuple[int, int], ...] = ()
    #: per group, (n_options,) int64: equal numbers are the same option in another group
    kinds: tuple[np.ndarray, ...] = ()
    #: standard deviation of the residuals per unit of `sizes`, expected before any observation, and in how many
    #: observations' worth that expectation weighs
    scale: float = 1.0
    weight: float = 2.0


@dataclass(frozen=True)
class Shape:
    """What the likelihood chooses."""

    own: float
    pair: float
    likeness: float
    misfit: float


@dataclass(frozen=True)
class Observations:
    """What was seen of one quantity."""

    #: (n, n_dimensions) int64
    vectors: np.ndarray
    #: (n,) float64: the value less what was known beforehand
    residuals: np.ndarray
    #: (n,) float64 > 0: relative standard deviation of each; 1 for all where they are alike
    noises: np.ndarray

    def with_row(self, vector: np.ndarray, residual: float, noise: float) -> "Observations":
        """Returns the observations and one more."""
        return Observations(
            np.concatenate([self.vectors, vector[None]]),
            np.append(self.residuals, residual),
            np.append(self.noises, noise),
        )


@dataclass(frozen=True)
class AdditiveProcess:
    """The posterior of a residual.

    >>> effects = Effects((np.array([0.0, 1.0]), np.array([0.0, 1.0])))
    >>> seen = Observations(np.array([[0, 0], [1, 0], [0, 1]]), np.array([0.0, -1.0, -2.0]), np.ones(3))
    >>> fitted = fit_process(effects, seen)
    >>> bool(-3.5 < fitted.predict(np.array([[1, 1]]))[0][0] < -2.0)
    True
    """

    effects: Effects
    seen: Observations
    shape: Shape
    #: variance that the kernel's unit stands for
    variance: float
    #: of the observations under shape and scale, up to a constant
    log_likelihood: float = 0.0

    @cached_property
    def _factor(self) -> np.ndarray:
        kernel = self._kernel(self.seen.vectors, self.seen.vectors)
        noise = self.shape.misfit * self._unit * self.seen.noises**2
        factor: np.ndarray = np.linalg.cholesky(kernel + np.diag(noise + 1e-10 * self._unit))
        return factor

    @cached_property
    def _unit(self) -> float:
        return _unit_of(self.effects)

    @cached_property
    def _weights(self) -> np.ndarray:
        """(n,) float64: what each observation adds to the mean of a policy like it."""
        half = np.linalg.solve(self._factor, self.seen.residuals)
        weights: np.ndarray = np.linalg.solve(self._factor.T, half)
        return weights

    @property
    def misfit_variance(self) -> float:
        """The variance of what no effect explains, for an observation with a noise of 1."""
        return self.variance * self.shape.misfit * self._unit

    def predict(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and standard deviation, both (n,) float64, of the residual as observed with a noise of 1.

        Args:
            vectors: (n, n_dimensions) integers.
        """
        cross = self._kernel(vectors, self.seen.vectors)
        prior = self._prior_variances(vectors)
        whitened = np.linalg.solve(self._factor, cross.T)
        left = np.maximum(prior - np.einsum("ij,ij->j", whitened, whitened), 0.0)
        return cross @ self._weights, np.sqrt(self.variance * left + self.misfit_variance)

    def conditioned(self, vector: np.ndarray, residual: float, noise: float = 1.0) -> "AdditiveProcess":
        """Returns the process after one more observation, in the same shape."""
        return replace(self, seen=self.seen.with_row(vector, residual, noise))

    def mean_cost(self, graph: Sequence[int], *, max_pairs: int) -> AdditiveCost:
        """Returns the posterior mean over the groups, in one setting of the graph-wide choices.

        Args:
            graph: entries of the graph-wide choices.
            max_pairs: of pairs that are not neighbours, those that were seen to matter most are in it, so many at most.
        """
        n_groups = len(self.effects.sizes)
        weights = self._weights * _likeness(np.array([graph]), self.seen.vectors[:, n_groups:], self.shape.likeness)[0]
        unary = [sizes**2 * self.shape.own * found for sizes, found in self._sums(weights)]
        for kind, loads in _kind_loads(self.effects, self.seen.vectors).items():
            shared = (1.0 - self.shape.own) * float(weights @ loads)
            for group, kinds in enumerate(self.effects.kinds):
                unary[group] = unary[group] + np.where(kinds == kind, self.effects.sizes[group], 0.0) * shared
        edges = self._pair_tables(weights, max_pairs) if self.shape.pair else {}
        return AdditiveCost(float(weights.sum()) * self._unit, tuple(unary), edges)

    def _sums(self, weights: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields, per group, the sizes of its effects and the summed weights of the observations with each option."""
        for group, sizes in enumerate(self.effects.sizes):
            yield sizes, np.bincount(self.seen.vectors[:, group], weights=weights, minlength=len(sizes))

    def _pair_tables(self, weights: np.ndarray, max_pairs: int) -> dict[tuple[int, ...], np.ndarray]:
        neighbours = set(self.effects.neighbours)
        near: dict[tuple[int, ...], np.ndarray] = {}
        far: list[tuple[float, tuple[int, ...], np.ndarray]] = []
        for pair in _all_pairs(len(self.effects.sizes)) if max_pairs else self.effects.neighbours:
            table = self._pair_table(pair, weights, is_near=pair in neighbours)
            if pair in neighbours:
                near[pair] = table
            else:
                far.append((float(np.abs(table).max()), pair, table))
        far.sort(key=lambda entry: (-entry[0], entry[1]))
        return {**near, **{pair: table for size, pair, table in far[:max_pairs] if size > 0.0}}

    def _pair_table(self, pair: tuple[int, int], weights: np.ndarray, *, is_near: bool) -> np.ndarray:
        first, second = pair
        a, b = self.effects.sizes[first], self.effects.sizes[second]
        codes = self.seen.vectors[:, first] * len(b) + self.seen.vectors[:, second]
        found = np.bincount(codes, weights=weights, minlength=len(a) * len(b)).reshape(len(a), len(b))
        scale = self.shape.pair**2 * (1.0 if is_near else _FAR**2)
        table: np.ndarray = scale * np.outer(a, b) * found
        return table

    def _kernel(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return _Parts.of(self.effects, left, right).kernel(self.shape)

    def _prior_variances(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n,): the diagonal of the kernel."""
        effects, shape = self.effects, self.shape
        chosen = np.array([sizes[vectors[:, g]] for g, sizes in enumerate(effects.sizes)])  # (n_groups, n)
        variances = self._unit + shape.own * (chosen**2).sum(0)
        for loads in _kind_loads(effects, vectors).values():
            variances += (1.0 - shape.own) * loads**2
        far = (chosen.sum(0) ** 2 - (chosen**2).sum(0)) / 2
        near = sum((chosen[g] * chosen[h] for g, h in effects.neighbours), np.zeros(len(vectors)))
        result: np.ndarray = variances + shape.pair**2 * (_FAR**2 * far + (1 - _FAR**2) * near)
        return result


def fit_process(effects: Effects, seen: Observations) -> AdditiveProcess:
    """Chooses shape and scale under which the observations are most probable.

    Type-II maximum likelihood (Rasmussen & Williams, eq. 5.8) with a weak prior on both; one eigendecomposition serves
    every misfit.
    """
    parts = _Parts.of(effects, seen.vectors, seen.vectors)
    n_graph = seen.vectors.shape[1] - len(effects.sizes)
    is_varied = n_graph > 0 and len(np.unique(seen.vectors[:, len(effects.sizes) :], axis=0)) > 1
    found: list[AdditiveProcess] = []
    for own, pair, likeness in product(
        _OWN_SHARES if effects.kinds else (1.0,), _PAIR_SCALES, _LIKENESSES if is_varied else _LIKENESSES[-1:]
    ):
        kernel = parts.kernel(Shape(own, pair, likeness, 0.0))
        for misfit, likelihood, variance in _likelihoods(kernel, effects, seen):
            penalty = _OUTER_PENALTY * ((pair == 1.0) + (own == 1.0) + (misfit in (_MISFITS[0], _MISFITS[-1])))
            shape = Shape(own, pair, likeness, misfit)
            found.append(AdditiveProcess(effects, seen, shape, variance, likelihood - penalty))
    return max(found, key=lambda process: process.log_likelihood)


def _likelihoods(kernel: np.ndarray, effects: Effects, seen: Observations) -> Iterator[tuple[float, float, float]]:
    """Yields (misfit, log likelihood, variance) for each misfit that is tried.

    With K = D^-½ (kernel) D^-½ + ν I and D the noises' variances, the variance that maximises the likelihood is
    (rᵀK⁻¹r + w s²) / (n + w) under a scaled inverse-χ² prior with weight w (Gelman et al., Bayesian Data Analysis,
    2013, section 3.2).
    """
    unit = _unit_of(effects)
    whitened = kernel / np.outer(seen.noises, seen.noises)
    values, vectors = np.linalg.eigh(whitened)
    values = np.maximum(values, 0.0)
    rotated = (vectors.T @ (seen.residuals / seen.noises)) ** 2
    n = len(rotated)
    for misfit in _MISFITS:
        spectrum = values + misfit * unit + 1e-10 * unit
        variance = float((rotated / spectrum).sum() + effects.weight * effects.scale**2) / (n + effects.weight)
        variance = max(variance, 1e-18)
        likelihood = -0.5 * (n + effects.weight) * np.log(variance) - 0.5 * float(np.log(spectrum).sum())
        yield misfit, float(likelihood), variance


@dataclass(frozen=True)
class _Parts:
    """The kernel's parts between two sets of policies, each (n_left, n_right); a shape weighs them."""

    unit: float
    own: np.ndarray
    kinds: np.ndarray
    near: np.ndarray
    far: np.ndarray
    #: number of graph-wide choices that differ
    n_differing: np.ndarray

    @classmethod
    def of(cls, effects: Effects, left: np.ndarray, right: np.ndarray) -> "_Parts":
        shape = (len(left), len(right))
        own, total, near = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        met: dict[int, np.ndarray] = {}
        ends = {group for pair in effects.neighbours for group in pair}
        for group, sizes in enumerate(effects.sizes):
            same = left[:, group, None] == right[None, :, group]
            found = same * sizes[left[:, group]][:, None]
            total += found
            own += found**2
            if group in ends:
                met[group] = found
        for g, h in effects.neighbours:
            near += met[g] * met[h]
        far = (total**2 - own) / 2
        loads = _kind_loads(effects, left), _kind_loads(effects, right)
        kinds = sum((np.outer(loads[0][kind], loads[1][kind]) for kind in loads[0]), np.zeros(shape))
        n_groups = len(effects.sizes)
        differing = (left[:, None, n_groups:] != right[None, :, n_groups:]).sum(2)
        return cls(_unit_of(effects), own, kinds, near, far, differing)

    def kernel(self, shape: Shape) -> np.ndarray:
        pairs = _FAR**2 * self.far + (1 - _FAR**2) * self.near
        total = self.unit + shape.own * self.own + (1 - shape.own) * self.kinds + shape.pair**2 * pairs
        kernel: np.ndarray = total * shape.likeness**self.n_differing
        return kernel


def _unit_of(effects: Effects) -> float:
    """The variance of the constant: as much as that of one policy's effects."""
    return float(sum(float(sizes.max()) ** 2 for sizes in effects.sizes)) or 1.0


def _kind_loads(effects: Effects, vectors: np.ndarray) -> Mapping[int, np.ndarray]:
    """Returns kind → (n,) float64: the summed sizes of the effects of that kind in each policy."""
    names = sorted({int(kind) for kinds in effects.kinds for kind in kinds})
    chosen = [(kinds[vectors[:, g]], effects.sizes[g][vectors[:, g]]) for g, kinds in enumerate(effects.kinds)]
    zero = np.zeros(len(vectors))
    return {name: sum((np.where(kinds == name, sizes, 0.0) for kinds, sizes in chosen), zero) for name in names}


def _likeness(left: np.ndarray, right: np.ndarray, likeness: float) -> np.ndarray:
    differing = (left[:, None, :] != right[None, :, :]).sum(2)
    found: np.ndarray = likeness**differing
    return found


def _all_pairs(n: int) -> Iterator[tuple[int, int]]:
    return ((g, h) for g in range(n) for h in range(g + 1, n))
