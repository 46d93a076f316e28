"""The trials of a run as an Optuna study, which optuna-dashboard opens."""

import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import RunError, SpecError
from ...search.budget import BOUNDS, Budget
from ...search.objectives import TRADE_OFF, objective_value
from ...search.record import Record, Status
from ...spaces.policy import Policy
from ...spaces.space import Space
from .reading import Reading, read_run
from .wording import QUANTITIES, write_origin

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

#: a file that ends so becomes an SQLite database, any other a journal of Optuna's
_SQLITE = (".db", ".sqlite", ".sqlite3")
_GRAPH_FIELDS = ("fusion", "calibration", "quantized_ops", "precision", "rounding", "equalization", "correction")


@dataclass(frozen=True, slots=True)
class ExportedStudy:
    """What was written."""

    path: Path
    name: str
    n_trials: int

    @property
    def storage(self) -> str:
        """What optuna-dashboard is given."""
        return f"sqlite:///{self.path}" if self.path.suffix in _SQLITE else str(self.path)


def export_study(run: str | Path, out: str | Path) -> ExportedStudy:
    """Writes a study of all trials: values, constraints, a distribution for each group, and what else is known.

    Values are latency, drop and size (and the objective, where it is another), all minimised, in ms, points and MB. A
    constraint is a bound's relative excess: at most 0 where it is kept. What failed or could not be built is FAIL.

    Args:
        run: the run's folder.
        out: a new file; ``.db``, ``.sqlite`` or ``.sqlite3`` becomes a database, any other a journal.

    Raises:
        SpecError: (or RunError) the file exists already, or there is nothing to export.
    """
    reading, path = read_run(Path(run)), Path(str(out).removeprefix("sqlite:///"))
    if path.exists():
        raise SpecError(f"{path} exists already; choose another name, or remove it")
    if reading.budget is None or reading.space is None or not reading.records:
        raise RunError(f"{run} has measured nothing yet; let the search go on")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Optuna writes line by line: what is half written never stands under the name
    staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        _write(reading, reading.budget, reading.space, staging / path.name)
        (staging / path.name).replace(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return ExportedStudy(path, reading.folder.path.name, len(reading.records))


def _write(reading: Reading, budget: Budget, space: Space, path: Path) -> None:
    import optuna

    axes = _find_axes(reading.records, budget, reading.spec.objective)
    choices = _list_choices(space, [record.policy for record in reading.records])
    storage = _open_storage(path)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            storage=storage, study_name=reading.folder.path.name, directions=["minimize"] * len(axes)
        )
        with warnings.catch_warnings():  # the names of values are marked experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([f"{QUANTITIES[axis].label}, {QUANTITIES[axis].unit}" for axis in axes])
        for name, value in _describe_study(reading).items():
            study.set_user_attr(name, value)
        study.add_trials([_trial(record, budget, axes, choices) for record in reading.records])
    finally:
        optuna.logging.set_verbosity(verbosity)
        if (engine := getattr(storage, "engine", None)) is not None:
            storage.remove_session()
            engine.dispose()


def _open_storage(path: Path) -> "BaseStorage":
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if path.suffix in _SQLITE:
        return RDBStorage(f"sqlite:///{path}")
    return JournalStorage(JournalFileBackend(str(path)))


def _find_axes(records: Sequence[Record], budget: Budget, objective: str) -> list[str]:
    """Returns the objective and the axes of the trade-off that every complete trial has a number for.

    Raises:
        RunError: there is no such axis.
    """
    complete = [record.measurement for record in records if record.status is Status.COMPLETE]
    names = dict.fromkeys((objective, *TRADE_OFF))
    axes = [
        name for name in names if complete and all(objective_value(name, m, budget) is not None for m in complete)
    ]  # fmt: skip
    if not axes:
        raise RunError("no trial is complete; let the search go on")
    return axes


def _list_choices(space: Space, policies: Sequence[Policy]) -> dict[str, tuple[str, ...]]:
    """Returns the name of each choice that is one → its alternatives."""
    offered = {
        group.name: [o.label for o in options] for group, options in zip(space.groups, space.options, strict=True)
    }
    offered |= {f"graph: {name}": [_say(value) for value in getattr(space.graph, name)] for name in _GRAPH_FIELDS}
    offered["recovery"] = [recovery.label for recovery in space.graph.recovery]
    for policy in policies:
        for name, value in _read_choices(policy, offered).items():
            offered[name].append(value)
    found = {name: tuple(dict.fromkeys(values)) for name, values in offered.items()}
    return {name: values for name, values in found.items() if len(values) > 1}


def _read_choices(policy: Policy, names: Mapping[str, object]) -> dict[str, str]:
    found = {name: policy[name].label for name in names if not name.startswith("graph: ") and name != "recovery"}
    found |= {f"graph: {name}": _say(getattr(policy.graph, name)) for name in _GRAPH_FIELDS}
    found["recovery"] = policy.recovery.label
    return {name: value for name, value in found.items() if name in names}


def _trial(
    record: Record, budget: Budget, axes: Sequence[str], choices: Mapping[str, tuple[str, ...]]
) -> "FrozenTrial":
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import TrialState, create_trial

    states = {Status.COMPLETE: TrialState.COMPLETE, Status.PRUNED: TrialState.PRUNED}
    state, measurement = states.get(record.status, TrialState.FAIL), record.measurement
    values = [objective_value(axis, measurement, budget) for axis in axes]
    is_complete = state is TrialState.COMPLETE
    return create_trial(
        state=state,
        values=[float(v) * QUANTITIES[a].factor for a, v in zip(axes, values, strict=True) if v is not None]
        if is_complete
        else None,
        params=_read_choices(record.policy, choices),
        distributions={name: CategoricalDistribution(values) for name, values in choices.items()},
        user_attrs=_describe_trial(record, budget),
        # the key under which Optuna and its dashboard look for them
        system_attrs={"constraints": _constraints(record, budget)} if is_complete else {},
    )


def _constraints(record: Record, budget: Budget) -> list[float]:
    """Returns (value − bound) / bound for each bound that is set, in the order of `BOUNDS`."""
    found = []
    for name, *_ in BOUNDS:
        bound = getattr(budget, name)
        if bound is None:
            continue
        value = budget.value_of(name, record.measurement)
        found.append(1.0 if value is None else (value - bound) / (bound or 1.0))
    return found


def _describe_trial(record: Record, budget: Budget) -> dict[str, Any]:
    measurement, latency = record.measurement, record.measurement.latency
    found: dict[str, Any] = {
        "trial": record.id,
        "policy": record.policy.id,
        "origin": write_origin(record),
        "status": record.status.value,
        "error": record.error,
        "seed": str(record.seed),
        "cost, s": record.cost_s,
        "keeps the budget": record.status is Status.COMPLETE and budget.violation(measurement) == 0.0,
    }
    for name in ("accuracy", "accuracy_drop"):
        estimate = getattr(measurement, name)
        if estimate is not None:
            found[f"{name}: mean"], found[f"{name}: standard error"] = estimate.mean, estimate.standard_error
    if latency is not None:
        found["latency as timed, ms"], found["latency: interquartile range, ms"] = (
            1e3 * latency.median_s, 1e3 * latency.iqr_s,
        )  # fmt: skip
    return found


def _describe_study(reading: Reading) -> dict[str, Any]:
    budget = reading.budget or Budget()
    return {
        "run": reading.folder.path.name,
        "objective": reading.spec.objective,
        "target": reading.spec.target.to_target().name,
        "budget": {name: getattr(budget, name) for name, *_ in BOUNDS if getattr(budget, name) is not None},
        "constraints": [label for name, label, *_ in BOUNDS if getattr(budget, name) is not None],
        "winner": None if reading.winner is None else reading.winner.id,
        "fingerprints": dict(reading.fingerprints),
    }


def _say(value: object) -> str:
    return ("+".join(value) or "none") if isinstance(value, tuple) else str(value)
