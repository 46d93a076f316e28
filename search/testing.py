"""Deterministic stand-ins for model, data and device, with failures on request; ships with the package.

The contracts that every searcher and every pool must keep stand in `searcher_contract` and `pool_contract`.
"""

import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..compressors.artifact import Artifact
from ..core.errors import DeviceLostError, MeasurementError, PolicyError, SpecError, TransientError
from ..core.seeds import derive_rng
from ..evaluators.measurement import Estimate, Measurement
from ..hw_profiles.energy.energy import Energy
from ..hw_profiles.latency import Latency
from ..spaces.layer import Group
from ..spaces.policy import Policy
from ..spaces.space import GraphOptions, Space
from ..spaces.treatment import QUANTIZE_OPTIONS
from .budget import Budget
from .goal import Goal
from .knowledge import Knowledge
from .problem import Problem
from .solver.additive_cost import AdditiveCost
from .worker_pool import Progress

#: latency of the untouched model in the synthetic problem
REFERENCE_S = 0.010

#: what `FakeBenchFactory.script` may ask for; the suffix ``_once`` limits it to the first attempt, the prefix
#: ``device_`` puts it into the measurement, ``training_`` into the second half of a training, ``rest_`` into the
#: scoring of the samples that are left
BEHAVIOURS = (
    "infeasible", "transient", "lost", "unstable", "bug", "crash", "hang", "hog", "device_crash", "device_refuses",
)  # fmt: skip

#: samples that the fakes score, and the first part of them
N_SAMPLES, N_FIRST = 1000, 125
#: how far beyond its bound a drop is clear to the fakes, whose scores have no noise
CLEARLY = 0.005

_MIB = 1 << 20


def small_space(n_groups: int = 4, n_options: int = 4) -> Space:
    """Returns a space without graph-wide choices: n_options ** n_groups policies."""
    options = tuple(list(QUANTIZE_OPTIONS.values())[:n_options])
    groups = tuple(Group(f"layer{i}", (f"layer{i}",)) for i in range(n_groups))
    return Space(groups, (options,) * n_groups, GraphOptions())


def synthetic_problem(space: Space) -> Problem:
    """Returns the synthetic problem on a space: about half of the random policies keep its budget."""
    return Problem(space, Budget(accuracy_drop=0.022, reference_s=REFERENCE_S))


def small_problem(n_groups: int = 4, n_options: int = 4) -> Problem:
    """Returns the synthetic problem on `small_space`."""
    return synthetic_problem(small_space(n_groups, n_options))


def informed_problem(n_groups: int = 4, n_options: int = 4) -> Problem:
    """Returns `small_problem` with the truth about it as knowledge."""
    return with_truth(small_problem(n_groups, n_options))


def with_truth(problem: Problem) -> Problem:
    """Returns the synthetic problem with the truth about it as knowledge: latency, size, influence, all additive."""
    n_groups = len(problem.space.groups)
    savings, drops = (table / n_groups for table in _synthetic_tables(problem.space))
    graph = tuple(0 for _ in range(len(problem.space.dimensions) - n_groups))
    # the square of the saving is a sum over pairs: Σ s² + 2 Σ s t
    pairs: dict[tuple[int, ...], np.ndarray] = {}
    for edge in itertools.combinations(range(n_groups), 2):
        pairs[edge] = -2e6 * np.outer(*savings[list(edge)])
    knowledge = Knowledge(
        latency={graph: AdditiveCost(1.0, tuple(-savings))},
        influence=tuple(drops),
        size_bytes=AdditiveCost(1e6, tuple(-1e6 * savings**2), pairs),
    )
    return replace(problem, knowledge=knowledge)


def policy_of(space: Space, choices: Sequence[int]) -> Policy:
    """Returns the policy with these choices for the first groups, and the first alternative of everything else."""
    return space.decode([*choices, *[0] * (len(space.dimensions) - len(choices))])


def fake_measurement(space: Space, policy: Policy) -> Measurement:
    """Measures a policy in a synthetic separable problem: a pure function of space and policy.

    Each option of each group saves its own share of latency and size, and costs its own share of accuracy; what
    saves much costs much, with noise, so that the trade-off is neither trivial nor flat.
    """
    savings, drops = _synthetic_tables(space)
    vector = space.encode(policy)[: len(space.groups)]
    rows = np.arange(len(vector))
    saved = float(savings[rows, vector].mean())
    drop = float(drops[rows, vector].mean())
    latency_s = REFERENCE_S * (1.0 - saved)
    return Measurement(
        accuracy=Estimate(0.9 - drop, 0.001, 1000),
        accuracy_drop=Estimate(drop, 0.0, 1000),
        latency=Latency(latency_s, latency_s / 100, 50, reference_s=REFERENCE_S),
        size_bytes=int(1_000_000 * (1.0 - saved**2)),
        peak_memory_bytes=int(2_000_000 * (1.0 - saved / 2)),
        energy=Energy(1e-3 * (1.0 - saved / 3), 0.0, 0, "table: synthetic"),
    )


@dataclass(frozen=True)
class FakeBenchFactory:
    """Benches over the synthetic problem that fail as scripted.

    >>> space = small_space()
    >>> bench = FakeBenchFactory(space).workbench()
    >>> bench.compress_and_score(Policy({}), seed=0)[1].measurement.accuracy_drop.mean
    0.0
    """

    space: Space
    #: policy id → one of `BEHAVIOURS`, with or without ``_once``
    script: Mapping[str, str] = field(default_factory=dict)
    #: folder for the marks of attempts and for the log of intervals; needed for ``_once`` and `intervals`
    scratch: str | None = None
    #: raised when a bench is set up; empty means no failure
    setup_error: str = ""
    #: policy id → scores of its training after each quarter; other policies do not train
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def workbench(self) -> "FakeWorkbench":
        """Makes a workbench in the calling process."""
        if self.setup_error:
            raise SpecError(self.setup_error)
        return FakeWorkbench(self)

    def device_bench(self) -> "FakeDeviceBench":
        """Makes the device bench in the calling process."""
        return FakeDeviceBench(self)

    def behaviour(self, policy: Policy) -> str:
        """Returns what to do with this policy now; empty means to measure it."""
        behaviour = self.script.get(policy.id, "")
        if not behaviour.endswith("_once"):
            return behaviour
        mark = self._folder() / f"{policy.id}.attempted"
        if mark.exists():
            return ""
        mark.touch()
        return behaviour.removesuffix("_once")

    @contextmanager
    def logged(self, phase: str) -> Iterator[None]:
        """Notes when a phase began and ended, in seconds of the machine's monotonic clock."""
        start_s = time.monotonic()
        yield
        if self.scratch is not None:
            line = json.dumps([phase, start_s, time.monotonic()]) + "\n"
            with (self._folder() / "intervals").open("a") as file:
                file.write(line)

    def intervals(self) -> list[tuple[str, float, float]]:
        """Returns (phase, start, end) of everything that ran to its end, over all processes."""
        path = self._folder() / "intervals"
        if not path.exists():
            return []
        return [(phase, start_s, end_s) for phase, start_s, end_s in map(json.loads, path.read_text().splitlines())]

    def note_steps(self, policy: Policy, first: int, last: int) -> None:
        """Notes which steps of a training were made."""
        with (self._folder() / "steps").open("a") as file:
            file.write(json.dumps([policy.id, first, last]) + "\n")

    def steps(self, policy: Policy) -> list[tuple[int, int]]:
        """Returns (first, last) of the pieces in which a policy was trained, over all processes."""
        path = self._folder() / "steps"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(first, last) for name, first, last in map(json.loads, lines) if name == policy.id]

    def trained_mark(self, policy: Policy) -> Path:
        """Returns the file that is there once the policy's model is trained."""
        return self._folder() / f"{policy.id}.trained"

    def _folder(self) -> Path:
        if self.scratch is None:
            raise SpecError("FakeBenchFactory needs a scratch folder for this")
        return Path(self.scratch)


class FakeWorkbench:
    """Returns the policy itself as the model's bytes."""

    def __init__(self, factory: FakeBenchFactory) -> None:
        self._factory = factory

    def compress_and_score(
        self,
        policy: Policy,
        *,
        seed: int,  # noqa: ARG002
        goal: Goal | None = None,
    ) -> tuple[Artifact, Progress]:
        """Behaves as scripted, then looks the policy up."""
        with self._factory.logged("score"):
            if not self._factory.script.get(policy.id, "").startswith(("device_", "training_", "rest_")):
                _misbehave(self._factory.behaviour(policy))
            artifact = Artifact(json.dumps(policy.to_json()).encode())
            return artifact, self._look_up(policy, N_SAMPLES if goal is None else N_FIRST, goal)

    def score_rest(self, artifact: Artifact, scores: np.ndarray, *, goal: Goal) -> Progress:
        """Behaves as scripted, then looks the policy up."""
        if len(scores) != N_FIRST:
            raise ValueError(f"the first {N_FIRST} scores must come back, got {len(scores)}")
        with self._factory.logged("score"):
            policy = Policy.from_json(json.loads(artifact.model))
            if self._factory.script.get(policy.id, "").startswith("rest_"):
                _misbehave(self._factory.behaviour(policy).removeprefix("rest_"))
            return self._look_up(policy, N_SAMPLES, goal)

    def _look_up(self, policy: Policy, n_samples: int, goal: Goal | None) -> Progress:
        whole = fake_measurement(self._factory.space, policy)
        accuracy, drop = (
            estimate and replace(estimate, n=n_samples) for estimate in (whole.accuracy, whole.accuracy_drop)
        )
        measurement = Measurement(accuracy, drop, size_bytes=whole.size_bytes)
        if n_samples == N_SAMPLES:
            return Progress(measurement)
        bound = None if goal is None else goal.budget.accuracy_drop
        if bound is not None and drop is not None and drop.mean > bound + CLEARLY:
            return Progress(measurement, stopped=f"the fake's drop is clearly above {bound:g}")
        return Progress(measurement, np.zeros(n_samples))

    def open_training(self, policy: Policy) -> "FakeTraining | None":
        """Returns the training that the script has a curve for, until it is finished."""
        curve = self._factory.curves.get(policy.id)
        if curve is None or self._factory.trained_mark(policy).exists():
            return None
        return FakeTraining(self._factory, policy, curve)


class FakeTraining:
    """Scores as scripted, and notes its steps."""

    n_steps = 8

    def __init__(self, factory: FakeBenchFactory, policy: Policy, curve: Sequence[float]) -> None:
        self._factory, self._policy, self._curve = factory, policy, curve
        self.n_done = 0

    def advance(self, n_steps: int) -> None:
        """Behaves as scripted in the second half."""
        n_after = min(self.n_done + n_steps, self.n_steps)
        script = self._factory.script.get(self._policy.id, "")
        if script.startswith("training_") and n_after > self.n_steps // 2:
            _misbehave(self._factory.behaviour(self._policy).removeprefix("training_"))
        self._factory.note_steps(self._policy, self.n_done, n_after)
        self.n_done = n_after

    def score(self) -> float:
        """Looks the score up."""
        return self._curve[4 * self.n_done // self.n_steps - 1]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Returns the step."""
        return {"step": np.array(self.n_done)}

    def load_state_dict(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from a step."""
        self.n_done = int(arrays["step"])

    def finish(self) -> None:
        """Leaves a mark."""
        self._factory.trained_mark(self._policy).touch()


class FakeDeviceBench:
    """Looks up the latency of the policy in the artifact."""

    def __init__(self, factory: FakeBenchFactory) -> None:
        self._factory = factory

    def compare(self, artifacts: Sequence[Artifact]) -> list[Latency]:
        """States the latencies one by one; original and yardstick are those of the first artifact."""
        measured = [self.measure(artifact).latency for artifact in artifacts]
        latencies = [latency for latency in measured if latency] or [Latency(1.0, 0.0, 1, "model", 1.0)]
        return [latencies[0], *latencies, latencies[0]]

    def measure(self, artifact: Artifact) -> Measurement:
        """Behaves as scripted, then looks the policy up."""
        with self._factory.logged("measure"):
            policy = Policy.from_json(json.loads(artifact.model))
            if self._factory.script.get(policy.id, "").startswith("device_"):
                _misbehave(self._factory.behaviour(policy).removeprefix("device_"))
            whole = fake_measurement(self._factory.space, policy)
            return replace(whole, accuracy=None, accuracy_drop=None, size_bytes=None)


def _misbehave(behaviour: str) -> None:
    if behaviour == "infeasible":
        raise PolicyError("the fake cannot build this policy")
    if behaviour == "lost":
        raise DeviceLostError("the fake's device is gone")
    if behaviour == "transient":
        raise TransientError("the fake lost its connection")
    if behaviour in ("unstable", "refuses"):
        raise MeasurementError("the fake's numbers stay unstable")
    if behaviour == "bug":
        raise ZeroDivisionError("the fake has a bug")
    if behaviour == "crash":
        os._exit(13)
    if behaviour == "hang":
        time.sleep(3600)
    if behaviour == "hog":
        ballast = np.ones(512 * _MIB, dtype=np.uint8)
        time.sleep(3600)
        del ballast


def _synthetic_tables(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """Returns savings and drops, both (n_groups, n_options) in [0, 1); option 0 changes nothing."""
    shape = (len(space.groups), max(len(options) for options in space.options))
    rng = derive_rng("synthetic problem", *shape)
    savings = rng.uniform(0.1, 0.9, shape)
    drops = 0.1 * savings**2 * rng.uniform(0.2, 1.8, shape)
    savings[:, 0] = drops[:, 0] = 0.0
    return savings, drops
