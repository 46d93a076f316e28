"""What is believed of all quantities of a problem: how much a policy may gain, how surely it keeps the budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_ndtr

from ...evaluators.measurement import Measurement
from ..problem import Problem
from ..solver.additive_cost import AdditiveCost, weighted_sum
from ..solver.program import largest
from .additive_process import AdditiveProcess, Observations, fit_process
from .quantity import Quantity, bounded_quantities, failure_quantity, objective_quantity

#: pairs of groups that are no neighbours and yet are given to the solver, where they were seen to matter most
_MAX_PAIRS = 24
#: below this many standard deviations the logarithm of the expected improvement is taken from its asymptote
_FAR_BELOW = -6.0


@dataclass(frozen=True)
class Trial:
    """What is known of one policy: a measurement, or that there is none because it failed."""

    #: (n_dimensions,) int64
    vector: np.ndarray
    #: None: it could not be built or measured
    measurement: Measurement | None


@dataclass(frozen=True)
class Believed:
    """One quantity and the process that was fitted to its residuals."""

    quantity: Quantity
    process: AdditiveProcess

    def predict(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and standard deviation, both (n,) float64, of the quantity as it would be measured."""
        known = _known(self.quantity, vectors, len(self.process.effects.sizes))
        residual, deviation = self.process.predict(vectors)
        noise = np.array([self.quantity.noise(value) for value in known + residual])  # 1 or more
        return known + residual, np.sqrt(deviation**2 + self.process.misfit_variance * (noise**2 - 1.0))

    def mean_costs(self, graph: tuple[int, ...]) -> tuple[AdditiveCost, ...]:
        """Returns what is expected over the groups in one setting of the graph-wide choices: the largest of these."""
        residual = self.process.mean_cost(graph, max_pairs=_MAX_PAIRS)
        return tuple(weighted_sum([(known, 1.0), (residual, 1.0)]) for known in self.quantity.prior.mean(graph))


@dataclass(frozen=True)
class Beliefs:
    """The objective and every bound, after some trials.

    >>> from trimtab.search.testing import fake_measurement, small_problem, policy_of
    >>> problem = small_problem()
    >>> policies = [policy_of(problem.space, [choice] * 4) for choice in range(4)]
    >>> trials = [Trial(problem.space.encode(p), fake_measurement(problem.space, p)) for p in policies]
    >>> beliefs = fit_beliefs(problem, trials)
    >>> [believed.quantity.name for believed in beliefs.bounds]
    ['accuracy_drop']
    """

    objective: Believed
    bounds: tuple[Believed, ...]
    #: the smallest objective that was measured within the budget; None where none was
    best: float | None

    @property
    def bounded(self) -> tuple[Believed, ...]:
        """What has a limit, the objective too where it has one."""
        return tuple(b for b in (self.objective, *self.bounds) if math.isfinite(b.quantity.limit))

    def score(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n,) float64: the logarithm of what each policy may be expected to gain.

        The expected improvement on the best, times the probability that the budget is kept (M. Schonlau et al., Global
        versus local search in constrained optimization of computer models, 1998). While nothing keeps the budget: that
        probability alone, the objective deciding between equals.
        """
        mean, deviation = self.objective.predict(vectors)
        log_kept = self.log_probability(vectors, objective=(mean, deviation))
        if self.best is None:
            spread = float(np.std(mean)) or 1.0
            found: np.ndarray = log_kept - 0.1 * (mean - float(mean.min(initial=0.0))) / spread
            return found
        gain: np.ndarray = log_kept + _log_expected_improvement(self.best - mean, deviation)
        return gain

    def log_probability(
        self, vectors: np.ndarray, *, objective: tuple[np.ndarray, np.ndarray] | None = None
    ) -> np.ndarray:
        """Returns (n,) float64: the logarithm of the probability that each policy keeps the budget.

        Args:
            vectors: (n, n_dimensions) integers.
            objective: mean and deviation of the objective, where they are at hand.
        """
        found = np.zeros(len(vectors))
        for believed in self.bounded:
            limit = believed.quantity.limit
            is_objective = believed is self.objective and objective is not None
            mean, deviation = objective if is_objective and objective is not None else believed.predict(vectors)
            found += log_ndtr((limit - mean) / np.maximum(deviation, 1e-12))
        return found

    def conditioned(self, vector: np.ndarray) -> "Beliefs":
        """Returns the beliefs as if the policy had been measured and everything had come out as expected."""

        def condition(believed: Believed) -> Believed:
            mean = float(believed.predict(vector[None])[0][0])
            known = float(_known(believed.quantity, vector[None], len(believed.process.effects.sizes))[0])
            process = believed.process.conditioned(vector, mean - known, believed.quantity.noise(mean))
            return replace(believed, process=process)

        return Beliefs(condition(self.objective), tuple(map(condition, self.bounds)), self.best)


def fit_beliefs(problem: Problem, trials: Sequence[Trial]) -> Beliefs:
    """Fits every quantity of a problem to the trials so far; those that failed teach only that they did.

    Args:
        problem: what is asked, and what is known beforehand.
        trials: at least one with a measurement.
    """
    measured = [trial.measurement for trial in trials if trial.measurement is not None]
    objective = _fit(objective_quantity(problem, measured), trials)
    quantities = bounded_quantities(problem, measured)
    bounds = [_fit(quantity, trials) for quantity in quantities]
    if len(measured) < len(trials):
        outcomes = [float(trial.measurement is None) for trial in trials]
        vectors = np.array([trial.vector for trial in trials])
        bounds.append(_fit_values(failure_quantity(problem), vectors, np.array(outcomes)))
    kept = [measurement for measurement in measured if problem.budget.violation(measurement) == 0.0]
    values = [value for m in kept if (value := objective.quantity.observe(m)) is not None]
    return Beliefs(objective, tuple(bounds), min(values, default=None))


def _fit(quantity: Quantity, trials: Sequence[Trial]) -> Believed:
    seen = [
        (trial.vector, value)
        for trial in trials
        if trial.measurement is not None and (value := quantity.observe(trial.measurement)) is not None
    ]
    width = len(trials[0].vector)
    vectors = np.array([vector for vector, _ in seen], np.int64).reshape(len(seen), width)
    return _fit_values(quantity, vectors, np.array([value for _, value in seen], float))


def _fit_values(quantity: Quantity, vectors: np.ndarray, values: np.ndarray) -> Believed:
    alternatives = quantity.prior.effects
    residuals = values - _known(quantity, vectors, len(alternatives[0].sizes))
    noises = np.array([quantity.noise(value) for value in values])
    seen = Observations(vectors, residuals, noises)
    fitted = [fit_process(effects, seen) for effects in alternatives]
    likelihoods = [process.log_likelihood for process in fitted]
    return Believed(quantity, fitted[int(np.argmax(likelihoods))])


def _known(quantity: Quantity, vectors: np.ndarray, n_groups: int) -> np.ndarray:
    """Returns (n,) float64: the value that was expected before any trial."""
    found = np.zeros(len(vectors))
    graphs, rows = np.unique(vectors[:, n_groups:], axis=0, return_inverse=True)
    for number, graph in enumerate(graphs):
        mine = np.flatnonzero(rows.ravel() == number)
        found[mine] = largest(quantity.prior.mean(tuple(map(int, graph))), vectors[mine])
    return found


def _log_expected_improvement(gain: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Returns log(s (z Φ(z) + φ(z))) with z = gain / s (D. Jones et al., 1998, eq. 15), stable far below 0.

    For z → -∞ it approaches log(s φ(z) / z²) (S. Ament et al., Unexpected Improvements to Expected Improvement, 2023).
    """
    deviation = np.maximum(deviation, 1e-12)
    z = gain / deviation
    log_density = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    near = np.maximum(z, _FAR_BELOW)
    inner = near * np.exp(log_ndtr(near)) + np.exp(-0.5 * near**2) / math.sqrt(2 * math.pi)
    far = log_density - 2 * np.log(np.maximum(-z, 1.0))
    found: np.ndarray = np.log(deviation) + np.where(z > _FAR_BELOW, np.log(np.maximum(inner, 1e-300)), far)
    return found
