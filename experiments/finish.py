"""The end of a search: finalists timed together, scored on the test split, the winner written down."""

import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..compressors.artifact import Artifact
from ..compressors.quantization.calibration import Range
from ..evaluators.accuracy import take_batch
from ..evaluators.device import describe_origin
from ..evaluators.measurement import Estimate, Measurement
from ..hw_profiles.latency import Latency
from ..search.answer import find_best, rank_records
from ..search.budget import Budget
from ..search.knowledge import Knowledge
from ..search.record import Record, Status
from ..spaces.policy import GraphTreatment, Policy
from .artifact_folder import N_PROBES, record_probe, write_artifact
from .manifest import Manifest, Promise
from .policy_file import PolicyFile
from .preparation import Preparation
from .reapply.evidence import Evidence
from .reapply.range_order import order_ranges
from .result_file import ResultFile, ResultRow
from .run_folder import RunFolder
from .serving.record import record_expectation

#: searched candidates that are timed together at the end
_N_FINALISTS = 4

#: records with their final measurements, budget and objective → the one that counts; None where none does
Choose = Callable[[Sequence[Record], Budget, str], Record | None]

#: artifacts → their latencies and, last, the yardstick's; all timed in one rotation
Compare = Callable[[Sequence[Artifact]], list[Latency]]


@dataclass(frozen=True)
class Row:
    """One line of the final table."""

    #: ``original``, ``runtime default``, ``best uniform`` or ``best policy``
    label: str
    record: Record
    #: timed together with the other rows; accuracy on validation
    final: Measurement
    #: accuracy and drop on the test split
    test: Measurement
    is_feasible: bool

    def as_stored(self) -> ResultRow:
        """Returns the row as it is written down."""
        return ResultRow(self.label, self.record.id, self.record.origin, self.is_feasible, self.final, self.test)


@dataclass(frozen=True)
class Final:
    """The final table and the winner."""

    rows: tuple[Row, ...]
    #: the winner's record; None when nothing keeps the budget
    winner: Record | None
    #: the winner is the best uniform policy, or as fast as it within the spread
    equals_uniform: bool
    #: trial → its measurement with the final timing
    measurements: Mapping[int, Measurement]
    yardstick_s: float | None


def finish_search(preparation: Preparation, records: Sequence[Record], budget: Budget, compare: Compare) -> Final:
    """Times the finalists together and scores the rows of the final table on the test split.

    The search compares trials across minutes; the order at the very top is decided here, in one rotation. What the
    search scored on a part of the validation split only is scored on all of it before it may win.
    """
    objective = preparation.spec.objective
    contenders = _contenders(records, budget, objective)
    labels = _special_rows(preparation, records, budget)
    every = {record.id: record for record in (*labels.values(), *contenders)}
    artifacts = {key: preparation.build(record.policy) for key, record in every.items()}
    original_id = labels["original"].id if "original" in labels else None
    rivals = [key for key in artifacts if key != original_id]
    original, *timings, yardstick = compare([artifacts[key] for key in rivals])
    timed_by_id = {
        **dict(zip(rivals, timings, strict=True)),
        **({} if original_id is None else {original_id: original}),
    }
    finals = {key: replace(record.measurement, latency=timed_by_id[key]) for key, record in every.items()}

    def settle(records: Sequence[Record], choose: Choose) -> Record | None:
        """Chooses until the one that is chosen is scored on all samples."""
        while True:
            found = choose([replace(record, measurement=finals[record.id]) for record in records], budget, objective)
            if found is None:
                return None
            finals[found.id] = _score_in_full(preparation, found.measurement, artifacts[found.id])
            if finals[found.id] == found.measurement:
                return found

    winner, uniform = settle(contenders, find_best), settle(list(every.values()), _find_uniform)
    for label, record in (("best uniform", uniform), ("best policy", winner)):
        if record is not None:
            labels[label] = record
    for record in labels.values():
        finals[record.id] = _score_in_full(preparation, finals[record.id], artifacts[record.id])
    tested = {
        key: _score_on_test(preparation, artifacts[key]) for key in {r.id for r in labels.values()} - {original_id}
    }
    if original_id is not None:
        tested[original_id] = _score_original(preparation)
    rows = tuple(
        Row(label, record, finals[record.id], tested[record.id], budget.violation(finals[record.id]) == 0.0)
        for label, record in labels.items()
    )
    is_rival = uniform is not None and budget.violation(finals[uniform.id]) == 0.0
    equals = _equals_uniform(winner, uniform if is_rival else None, finals)
    return Final(rows, winner, equals, finals, yardstick.median_s if yardstick.source == "measured" else None)


def _contenders(records: Sequence[Record], budget: Budget, objective: str) -> list[Record]:
    """Returns the best feasible records of the search and of the baselines."""
    ranked = [r for r in rank_records(records, budget, objective) if budget.violation(r.measurement) == 0.0]
    uniform = [r for r in ranked if r.origin.startswith("baseline:") and not r.origin.startswith("baseline:hybrid")]
    searched = [r for r in ranked if r not in uniform]
    return [*searched[:_N_FINALISTS], *uniform[:2]]


def _special_rows(preparation: Preparation, records: Sequence[Record], budget: Budget) -> dict[str, Record]:
    complete = [r for r in records if r.status is Status.COMPLETE]
    default = Policy({}, GraphTreatment(precision=preparation.device.capabilities.default_precision))
    by_policy = {record.policy: record for record in complete}
    found: dict[str, Record] = {}
    if Policy({}) in by_policy:
        found["original"] = by_policy[Policy({})]
    if default in by_policy and default != Policy({}):
        found["runtime default"] = by_policy[default]
    uniform = _find_uniform(records, budget, preparation.spec.objective)
    return found if uniform is None else {**found, "best uniform": uniform}


def _find_uniform(records: Sequence[Record], budget: Budget, objective: str) -> Record | None:
    uniform = [r for r in records if r.origin.startswith("baseline:uniform")]
    ranked = rank_records(uniform, budget, objective)
    # where all of them lose so much that the search stopped them early, the table shows what the least bad one loses
    stopped = [r for r in uniform if r.status is Status.PRUNED and r.measurement.accuracy_drop is not None]
    return ranked[0] if ranked else min(stopped, key=_drop, default=None)


def _drop(record: Record) -> float:
    drop = record.measurement.accuracy_drop
    return math.inf if drop is None else drop.mean


def _equals_uniform(winner: Record | None, uniform: Record | None, finals: dict[int, Measurement]) -> bool:
    if winner is None or uniform is None:
        return False
    if winner.id == uniform.id:
        return True
    a, b = finals[winner.id].latency, finals[uniform.id].latency
    if a is None or b is None:
        return False
    if a.source != "measured":
        # prices of one table share most of their error, and repeat themselves to the last digit
        return a.median_s == b.median_s
    return bool(abs(a.median_s - b.median_s) <= 2 * (a.error_s**2 + b.error_s**2) ** 0.5)


def _score_in_full(preparation: Preparation, known: Measurement, artifact: Artifact) -> Measurement:
    evaluator = preparation.validation
    if known.is_scored_on(len(evaluator.split)):
        return known
    score = evaluator.score(preparation.device.load(artifact))
    return replace(known, accuracy=score.accuracy, accuracy_drop=score.accuracy_drop)


def _score_on_test(preparation: Preparation, artifact: Artifact) -> Measurement:
    score = preparation.test.score(preparation.device.load(artifact))
    return Measurement(score.accuracy, score.accuracy_drop)


def _score_original(preparation: Preparation) -> Measurement:
    """Returns the score that the evaluator was made with; the original differs from itself by nothing."""
    original = preparation.test.original
    return Measurement(original, Estimate(0.0, 0.0, original.n))


def write_outcome(preparation: Preparation, run: RunFolder, final: Final, pareto: Sequence[Record]) -> None:
    """Writes result.json, pareto.json and, where there is a winner, policy.json and artifact/."""
    run.write_json(run.pareto, {"records": [record.to_json() for record in pareto]})
    winner = None if final.winner is None else final.winner.id
    run.write_result(ResultFile(tuple(row.as_stored() for row in final.rows), winner, final.equals_uniform))
    if final.winner is None:
        return
    row = next(row for row in final.rows if row.label == "best policy")
    described = describe_policy(preparation, final.winner.policy, run=run.path.name)
    knowledge = run.read_knowledge() or Knowledge()
    policy = replace(described, evidence=_gather_evidence(preparation, final.winner.policy, row, knowledge))
    policy.save(run.policy)
    write_promised(preparation, run.artifact, policy, Promise(_promise(row), "test", final.yardstick_s))


def write_promised(preparation: Preparation, folder: Path, policy: PolicyFile, promise: Promise) -> None:
    """Builds a policy's artifact and writes its folder, with what its service is to be compared with.

    Raises:
        PolicyError: it cannot be built.
        MeasurementError: the runtime fails.
    """
    artifact, device, split = preparation.build(policy.policy), preparation.device, preparation.dataset.validation
    executable, batch_size = device.load(artifact), device.target.batch_size
    n_batches = min(N_PROBES, max(1, len(split) // batch_size))
    batches = [take_batch(split, i * batch_size, batch_size) for i in range(n_batches)]
    expected = record_expectation(executable, preparation.validation.reference, split, batch_size=batch_size)
    manifest = Manifest(
        target=device.target,
        precision=artifact.precision,
        dynamic_activations=artifact.dynamic_activations,
        promise=promise,
        profile=describe_origin(device),
        input_statistics=expected.input_statistics,
        agreement=expected.agreement,
    )
    write_artifact(folder, artifact, policy, manifest, record_probe(executable, batches))


def _gather_evidence(preparation: Preparation, policy: Policy, row: Row, knowledge: Knowledge) -> Evidence:
    """Returns what the search knows of its policy: when that is applied again, it is compared with."""
    space, bounds = preparation.space, preparation.spec.budget
    chosen = zip(space.groups, space.encode(policy), knowledge.influence, strict=False)  # empty where it is not known
    scores = {group.name: float(influence[option]) for group, option, influence in chosen}
    return Evidence(
        sensitivity={name: scores[name] for name, _ in policy.groups if name in scores},
        calibration=space.default_graph.calibration,
        rounding=space.default_graph.rounding,
        accuracy_drop=row.final.accuracy_drop,
        allowed_drop=bounds.accuracy_drop,
        confidence=bounds.confidence,
    )


def _promise(row: Row) -> Measurement:
    return replace(row.final, accuracy=row.test.accuracy, accuracy_drop=row.test.accuracy_drop)


def describe_policy(preparation: Preparation, policy: Policy, *, run: str) -> PolicyFile:
    """Returns the policy with the layers, the ranges and the origin that its file holds."""
    space, spec = preparation.space, preparation.spec
    treated = {name for name, _ in policy.groups}
    ranges: Mapping[str, Range] = {}
    range_order: tuple[tuple[str, str], ...] = ()
    if any(treatment.is_static for _, treatment in policy.groups):
        shape = preparation.pipeline.shape_of(space.layer_treatments(policy), policy.recovery)
        stage = preparation.pipeline.stage_of(shape)
        ranges, range_order = stage.ranges(policy.graph), order_ranges(stage, policy.graph)
    return PolicyFile(
        policy=policy,
        groups=tuple(group for group in space.groups if group.name in treated),
        layers=preparation.model.layers,
        target=preparation.device.target,
        ranges=ranges,
        origin={
            "run": run,
            "model": spec.to_json()["model"],
            "data": spec.to_json()["data"],
            "seed": spec.search.seed,
            "trimtab": importlib.metadata.version("trimtab"),
        },
        range_order=range_order,
    )
