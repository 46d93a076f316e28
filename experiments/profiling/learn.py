"""What a profile of a model is made of: designed policies measured into a kernel table, mixed ones to test it."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...core.errors import MeasurementError, PolicyError
from ...evaluators.latency import TimingSettings
from ...evaluators.quietness import Quietness
from ...hw_profiles.kernels.kernel import Kernel
from ...hw_profiles.kernels.kernel_table import GraphObservation, KernelTable
from ...hw_profiles.prices.price_list import build_pricer
from ...hw_profiles.surrogate.surrogate_terms import Edges
from ...spaces.policy import Policy
from .collect import DEFAULT_TIMING, Collector, PolicyRun
from .design import draw_mixed, list_candidates

_log = logging.getLogger(__name__)

#: policies that are measured before any choice, so that the choice knows what kernels cost
_N_FIRST = 4


@dataclass(frozen=True, slots=True)
class LearningPlan:
    """How much to measure."""

    #: measured whole and kernel by kernel; what the table is made of
    n_designed: int = 24
    #: measured whole, never fitted on
    n_test: int = 16
    #: policies beside the uniform ones that the designed ones are chosen from
    n_candidates: int = 96
    #: seconds for lowering candidates; when they are over, the choice is among those lowered so far
    max_lowering_s: float = 20.0
    #: seconds for the prices of lowered policies that the surrogate is fitted to
    max_surrogate_s: float = 45.0
    #: small random networks measured kernel by kernel, so that models never seen are priced better
    n_networks: int = 0
    seed: int = 0
    #: how unquiet the machine may be
    quietness: Quietness = field(default_factory=Quietness)
    #: how long a whole policy is timed
    timing: TimingSettings = DEFAULT_TIMING


#: told after every measured policy: (done, of how many)
Report = Callable[[int, int], None]


def _stay_silent(done: int, of: int) -> None:
    """Reports nothing."""


def _forget(run: PolicyRun, position: int) -> None:
    """Keeps nothing."""


@dataclass
class Learner:
    """Measures one model on one device."""

    collector: Collector
    #: groups that share kernels
    edges: Edges
    #: names the model in tables
    model: str
    plan: LearningPlan = field(default_factory=LearningPlan)
    #: told every designed policy as soon as it is measured, with its number
    keep: Callable[[PolicyRun, int], None] = _forget

    def measure_designed(self, table: KernelTable, *, report: Report = _stay_silent) -> list[PolicyRun]:
        """Measures the designed policies; each goes into a copy of the table at once, so that the next are chosen well.

        Args:
            table: what is known already; it is not changed.
            report: told after every policy.
        """
        listed = list_candidates(
            self.collector.space, self.edges, n_policies=self.plan.n_candidates, seed=self.plan.seed
        )
        candidates = self._lower(listed)
        policies, graphs = [policy for policy, _ in candidates], [counts for _, counts in candidates]
        known = KernelTable(table.identity)
        known.merge(table)
        runs: list[PolicyRun] = []
        pending = list(range(min(_N_FIRST, len(policies))))
        while pending and len(runs) < self.plan.n_designed:
            run = self._measure(policies[pending.pop(0)], with_kernels=True)
            if run is not None:
                self.keep(run, len(runs))
                runs.append(run)
                add_run(known, run, model=self.model, source=f"design {len(runs)}")
                report(len(runs), self.plan.n_designed)
            if not pending:
                left = self.plan.n_designed - len(runs)
                done = {run.policy for run in runs}
                order = build_pricer(known, model=self.model, predicts=False).choose(
                    graphs, len(graphs), model=self.model
                )
                pending = [i for i in order if policies[i] not in done][: max(1, left // 3)] if left else []
        return runs

    def measure_test(self, designed: Sequence[PolicyRun], *, report: Report = _stay_silent) -> list[PolicyRun]:
        """Measures mixed policies as wholes; none of them lowers to the same graph as another or as a designed one.

        Args:
            designed: what was measured to learn from.
            report: told after every policy.
        """
        rng = np.random.default_rng([self.plan.seed, 1])
        seen = {graph_key(run.counts) for run in designed}
        runs: list[PolicyRun] = []
        for _ in range(4 * self.plan.n_test):
            if len(runs) == self.plan.n_test:
                break
            run = self._measure(draw_mixed(self.collector.space, rng), with_kernels=False)
            if run is not None and graph_key(run.counts) not in seen:
                seen.add(graph_key(run.counts))
                runs.append(run)
                report(len(runs), self.plan.n_test)
        return runs

    def _lower(self, policies: Sequence[Policy]) -> list[tuple[Policy, dict[Kernel, int]]]:
        lowered: list[tuple[Policy, dict[Kernel, int]]] = []
        deadline_s = time.monotonic() + self.plan.max_lowering_s
        for policy in policies:
            if time.monotonic() > deadline_s and len(lowered) > 2 * self.plan.n_designed:
                break
            try:
                lowered.append((policy, self.collector.lower(policy).counts))
            except (PolicyError, MeasurementError) as error:
                _log.info("a designed policy was left out: %s", error)
        return lowered

    def _measure(self, policy: Policy, *, with_kernels: bool) -> PolicyRun | None:
        try:
            return self.collector.measure_kernels(policy) if with_kernels else self.collector.measure(policy)
        except (PolicyError, MeasurementError) as error:
            _log.warning("a policy could not be measured and is left out: %s", error)
            return None


def graph_key(counts: Mapping[Kernel, int]) -> tuple[tuple[str, int], ...]:
    """Returns what two graphs must share to cost the same; as in `GraphObservation.counts`."""
    return tuple(sorted((kernel.id, n) for kernel, n in counts.items()))


def add_run(table: KernelTable, run: PolicyRun, *, model: str, source: str) -> None:
    """Adds what a run says of its kernels and of its whole to a table."""
    table.add(run.timings, source)
    observation = GraphObservation.of(run.counts, run.latency, model=model, source=source)
    table.add_graph(observation, run.counts)
