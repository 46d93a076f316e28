"""Problems whose every answer is known: a table, and a question about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ...core.errors import MeasurementError, PolicyError, SpecError
from ...core.names import describe_unknown
from ...evaluators.measurement import Measurement
from ...search.baselines import list_baselines
from ...search.budget import Budget
from ...search.objectives import objective_value
from ...search.pareto import pareto_front
from ...search.problem import Problem
from ...search.record import Status
from ...spaces.policy import Policy
from .hypervolume import hypervolume
from .regret import Optimum, regrets
from .table import Table, read_table

#: where the tables are
TABLE_FOLDER = Path(__file__).parent

#: the hypervolume counts drops up to this many times the budget's, and latencies up to the original's
_REACH = 5.0


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a table; bounds are relative to the original, the drop is absolute."""

    table: str
    objective: str
    accuracy_drop: float
    latency: float | None = None
    size: float | None = None

    def budget(self, table: Table) -> Budget:
        """Returns the bounds in seconds and bytes."""
        original = table.original
        return Budget(
            latency_s=None if self.latency is None else self.latency * original.latency_s,
            accuracy_drop=self.accuracy_drop,
            size_bytes=None if self.size is None else self.size * original.size_bytes,
            reference_s=original.latency_s,
        )


@dataclass(frozen=True)
class TabulatedProblem:
    """A problem of which every policy was measured once.

    >>> problem = load_problem("resnet8-onnxruntime")
    >>> problem.regret([problem.optimum.policy])
    0.0
    """

    name: str
    table: Table
    #: space, budget, objective, and what is known beforehand
    problem: Problem

    def measure(self, policy: Policy) -> Measurement:
        """Looks a policy up.

        Raises:
            PolicyError: it is not in the space, or could not be built.
            MeasurementError: the runtime failed on it.
        """
        row = self.row(policy)
        status = self.table.status(row)
        if status is Status.INFEASIBLE:
            raise PolicyError("this policy could not be built when the table was made")
        if status is not Status.COMPLETE:
            raise MeasurementError("the runtime failed on this policy when the table was made")
        return self.table.measurement(row)

    def row(self, policy: Policy) -> int:
        """Returns the row of a policy in the table.

        Raises:
            PolicyError: it is not in the space.
        """
        return self.table.rows[tuple(self.table.space.encode(policy).tolist())]

    @cached_property
    def objectives(self) -> np.ndarray:
        """(n_policies,) float64: what is minimised; infinite where there is no measurement."""
        budget, objective = self.problem.budget, self.problem.objective
        values = [objective_value(objective, measurement, budget) for measurement in self._measurements]
        return np.array([np.inf if value is None else value for value in values])

    @cached_property
    def violations(self) -> np.ndarray:
        """(n_policies,) float64: how far each policy is from the budget; infinite where there is no measurement."""
        budget = self.problem.budget
        found = np.array([budget.violation(measurement) for measurement in self._measurements])
        return np.where(self.table.is_complete, found, np.inf)

    @cached_property
    def optimum(self) -> Optimum:
        """The best policy within the budget."""
        feasible = np.where(self.violations == 0.0, self.objectives, np.inf)
        row = int(feasible.argmin())
        return Optimum(self.table.space.decode(self.table.vectors[row]), float(feasible[row]))

    @cached_property
    def baselines(self) -> tuple[tuple[str, Policy], ...]:
        """(label, policy) of the original and of the uniform policies, as every search tries them."""
        space = self.table.space
        return tuple((label, policy) for label, policy in list_baselines(space) if space.contains(policy))

    def regret(self, policies: Sequence[Policy]) -> float:
        """Returns the regret after evaluating these; see `regrets`."""
        return float(self.regrets(policies)[-1])

    def regrets(self, policies: Sequence[Policy]) -> np.ndarray:
        """Returns (n_policies + 1,) float64: the regret before any evaluation and after each of them."""
        return regrets(self.problem, self.measure, self.optimum, policies)

    def relative_hypervolume(self, policies: Sequence[Policy]) -> float:
        """Returns what these dominate in latency and drop, as a share of what all policies of the table dominate.

        The reference point is the original's latency and five times the drop that the budget allows.
        """
        rows = [row for row in (self.row(policy) for policy in policies) if self.table.is_complete[row]]
        return hypervolume(self.points[rows], self._reference) / self._whole_volume

    @cached_property
    def points(self) -> np.ndarray:
        """(n_policies, 2) float64: latency as a multiple of the original's, and accuracy drop."""
        return np.stack([self.table.columns["ratio"], self.table.columns["drop"]], axis=1).astype(float)

    @cached_property
    def front(self) -> np.ndarray:
        """(n_front,) int: rows of the policies that none beats in both latency and drop."""
        complete = np.flatnonzero(self.table.is_complete)
        return complete[pareto_front(self.points[complete].tolist())]

    @cached_property
    def _measurements(self) -> list[Measurement]:
        return [self.table.measurement(row) for row in range(len(self.table))]

    @cached_property
    def _reference(self) -> np.ndarray:
        return np.array([1.0, _REACH * float(self.problem.budget.accuracy_drop or 0.0)])

    @cached_property
    def _whole_volume(self) -> float:
        return hypervolume(self.points[self.table.is_complete], self._reference)


#: name → question; every table is asked at least one
PROBLEMS: Mapping[str, Question] = {
    "resnet8-onnxruntime": Question("resnet8-onnxruntime", "latency", accuracy_drop=0.01),
    "resnet8-openvino": Question("resnet8-openvino", "latency", accuracy_drop=0.01, size=0.27),
    "resnet8-openvino-size": Question("resnet8-openvino", "size", accuracy_drop=0.01, latency=0.62),
    "vit-onnxruntime": Question("vit-onnxruntime", "latency", accuracy_drop=0.01),
}


def load_problem(name: str) -> TabulatedProblem:
    """Reads the table of a problem, one of `PROBLEMS`.

    Raises:
        SpecError: there is none of this name.
        RunError: its table is missing or damaged.
    """
    if name not in PROBLEMS:
        raise SpecError(describe_unknown("tabulated problem", name, PROBLEMS))
    question = PROBLEMS[name]
    return ask_table(name, question, read_table(TABLE_FOLDER / f"{question.table}.npz"))


def ask_table(name: str, question: Question, table: Table) -> TabulatedProblem:
    """Returns the problem that a question about a table is."""
    problem = Problem(table.space, question.budget(table), question.objective, table.knowledge)
    return TabulatedProblem(name, table, problem)
