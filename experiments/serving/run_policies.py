"""From a finished run to a set of its policies."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.errors import RunError, SpecError
from ...core.files import read_json
from ...evaluators.accuracy import take_batch
from ...evaluators.measurement import Measurement
from ...search.pareto import pareto_front
from ...search.record import Record, Status
from ..benches import compare_with_yardstick
from ..finish import describe_policy, write_promised
from ..manifest import Promise
from ..preparation import Preparation, prepare
from ..run_folder import RunFolder
from ..spec_file import allow_imports_from, load_spec
from .policy_set import write_policy_set

#: policies that differ by less than this factor in speed are of no use to a service that needs a faster one
_LEAST_GAIN = 1.1


@dataclass(frozen=True)
class SetPolicy:
    """One policy of a set, as it was written."""

    name: str
    trial: int
    promise: Measurement


def make_policy_set(
    run: str | Path, *, out: str | Path, n_policies: int = 3, accuracy_drop: float | None = None
) -> tuple[SetPolicy, ...]:
    """Writes a set of a run's Pareto policies, from the most accurate to the fastest, timed in turns, scored on test.

    Args:
        run: the folder of a finished run.
        out: the folder to write; a set that stands there is replaced.
        n_policies: how many, at most.
        accuracy_drop: the largest that a policy may have on validation; None: what the run's budget says.

    Raises:
        RunError: there is no such run, or it has not finished.
        SpecError: the run has fewer than two policies that differ enough, or model and data cannot be loaded.
        ArtifactError: something else stands at ``out``.
        MeasurementError: the machine is too unquiet.
    """
    folder = RunFolder.open(Path(run))
    preparation = _prepare(folder)
    bound = preparation.spec.budget.accuracy_drop if accuracy_drop is None else accuracy_drop
    chosen = choose_policies(read_pareto(folder), n_policies=n_policies, accuracy_drop=bound)
    promised = _promise_together(preparation, chosen)
    ordered = sorted(zip(chosen, promised, strict=True), key=lambda pair: -_median_s(pair[1]))
    policies = [
        SetPolicy(f"{level}-trial-{record.id}", record.id, promise.measurement)
        for level, (record, promise) in enumerate(ordered)
    ]
    writers = [
        (policy.name, _writer(preparation, record, promise, folder.path.name))
        for policy, (record, promise) in zip(policies, ordered, strict=True)
    ]
    write_policy_set(Path(out), writers)
    return tuple(policies)


def read_pareto(folder: RunFolder) -> list[Record]:
    """Returns the records of pareto.json.

    Raises:
        RunError: the run has not finished, or the file is damaged.
    """
    if not folder.pareto.is_file():
        raise RunError(f"{folder.path} has not finished; go on with: trimtab resume {folder.path}")
    content = read_json(folder.pareto, noun="front of a run", error=RunError)
    try:
        return [Record.from_json(record) for record in content["records"]]
    except (KeyError, TypeError, ValueError, AttributeError, SpecError) as error:
        raise RunError(f"{folder.pareto} is damaged: {error!r}; resume the run") from error


def choose_policies(records: Sequence[Record], *, n_policies: int, accuracy_drop: float | None) -> list[Record]:
    """Returns records from the most accurate to the fastest, about equal factors of speed apart.

    Args:
        records: measured policies.
        n_policies: how many, at most; at least 2.
        accuracy_drop: the largest that is accepted; None accepts all.

    Raises:
        SpecError: there are not two that differ enough.
    """
    if n_policies < 2:
        raise SpecError(f"a set needs at least 2 policies, got {n_policies}")
    kept = [
        (_speed(record), record.measurement.accuracy_drop.mean, record)
        for record in records
        if record.status is Status.COMPLETE
        and record.measurement.latency is not None
        and record.measurement.accuracy_drop is not None
        and (accuracy_drop is None or record.measurement.accuracy_drop.mean <= accuracy_drop)
    ]
    front = sorted((kept[i] for i in pareto_front([(speed, drop) for speed, drop, _ in kept])), key=lambda e: -e[0])
    spread = [front[0]] if front else []
    for entry in front[1:]:
        if spread[-1][0] / entry[0] >= _LEAST_GAIN:
            spread.append(entry)
    if len(spread) < 2:
        bound = "" if accuracy_drop is None else f" with a drop of at most {accuracy_drop:g}"
        raise SpecError(
            f"a set needs policies of different speed, and this run's front{bound} has {len(spread)} that differ by "
            f"{_LEAST_GAIN - 1:.0%} or more; accept a larger drop (--accuracy-drop), or search with more options"
        )
    slowest, fastest = math.log(spread[0][0]), math.log(spread[-1][0])
    n_chosen = min(n_policies, len(spread))
    wanted = [slowest + (fastest - slowest) * k / (n_chosen - 1) for k in range(n_chosen)]
    nearest = {min(range(len(spread)), key=lambda i: abs(math.log(spread[i][0]) - want)) for want in wanted}
    return [spread[i][2] for i in sorted(nearest)]


def _prepare(folder: RunFolder) -> Preparation:
    imports, space = folder.read_import_folder(), folder.read_space()
    if imports is not None:
        allow_imports_from(imports)
    spec = load_spec(folder.spec)
    if spec.unnamed:
        raise RunError(f"{' and '.join(spec.unnamed)} of this run: given as an object, which cannot be had again here; "
                       "search with module:callable")  # fmt: skip
    preparation = prepare(spec)
    return preparation if space is None else preparation.with_space(space)


def _promise_together(preparation: Preparation, records: Sequence[Record]) -> list[Promise]:
    """Times all in one rotation: what the chooser needs is how they compare."""
    device = preparation.device
    artifacts = [preparation.build(record.policy) for record in records]
    executables = [device.load(artifact) for artifact in artifacts]
    batch = take_batch(preparation.dataset.validation, 0, device.target.batch_size)
    together = [device.load(preparation.original), *executables]
    _, *latencies, yardstick = compare_with_yardstick(together, batch, preparation.timing)
    yardstick_s = yardstick.median_s if yardstick.source == "measured" else None
    promises = []
    for record, artifact, executable, latency in zip(records, artifacts, executables, latencies, strict=True):
        score = preparation.test.score(executable)
        measurement = replace(
            record.measurement,
            accuracy=score.accuracy,
            accuracy_drop=score.accuracy_drop,
            latency=latency,
            size_bytes=artifact.size_bytes,
        )
        promises.append(Promise(measurement, "test", yardstick_s))
    return promises


def _writer(preparation: Preparation, record: Record, promise: Promise, run: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        write_promised(preparation, folder, describe_policy(preparation, record.policy, run=run), promise)

    return write


def _speed(record: Record) -> float:
    """Returns the latency over the original's where both are known: trials of different minutes compare by that."""
    latency = record.measurement.latency
    if latency is None:
        return math.inf
    return latency.ratio or latency.median_s


def _median_s(promise: Promise) -> float:
    latency = promise.measurement.latency
    return math.inf if latency is None else latency.median_s
