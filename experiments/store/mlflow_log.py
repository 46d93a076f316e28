"""Logs a run to MLflow: what was asked as parameters, every trial as metrics, what was found as artifacts."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import SpecError
from ...evaluators.measurement import Measurement
from ...search.journal import read_records
from ...search.record import Record
from ..run_folder import RunFolder
from ..spec_file import read_spec

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: mlflow.utils.validation: metrics, parameters or tags in one request
_MAX_METRICS, _MAX_TEXTS = 1000, 100


def log_run(run: str | Path, tracking_uri: str, experiment: str, *, tags: Mapping[str, str] | None = None) -> str:
    """Logs a run's folder as one MLflow run and returns that run's id.

    Each trial's numbers are metrics whose step is the trial's id; those of the final table are ``final.*`` (as the
    answer was timed at the end), ``test.*`` (on the test split) and ``original.*``. The policy, the artifact and the
    files that say how they were found are MLflow artifacts.

    Args:
        run: the run's folder.
        tracking_uri: of an MLflow server, or such as ``sqlite:///mlflow.db``.
        experiment: MLflow's experiment; it is made where there is none.
        tags: MLflow tags.

    Raises:
        SpecError: MLflow is not installed, or cannot log there.
        RunError: the run cannot be read.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise SpecError("mlflow is not installed; pip install 'trimtab[mlflow]'") from error
    folder = RunFolder.open(Path(run))
    parameters = dict(_flatten(read_spec(folder.spec).to_json()))
    metrics = [*_describe_trials(read_records(folder.journal)), *_describe_finals(folder)]
    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        found = client.get_experiment_by_name(experiment)
        experiment_id = client.create_experiment(experiment) if found is None else found.experiment_id
        mlflow_run = client.create_run(experiment_id, run_name=folder.path.name, tags=dict(tags or {}))
        run_id = str(mlflow_run.info.run_id)
        _log_numbers(client, run_id, parameters, metrics)
        _log_files(client, run_id, folder)
        client.set_terminated(run_id)
    except (MlflowException, OSError) as error:
        raise SpecError(f"run {folder.path} cannot be logged to MLflow at {tracking_uri}: {error}") from error
    return run_id


def _log_numbers(
    client: "MlflowClient", run_id: str, parameters: Mapping[str, str], metrics: Sequence[tuple[str, float, int]]
) -> None:
    from mlflow.entities import Metric, Param

    now_ms = int(time.time() * 1000)
    texts = [Param(name, text) for name, text in parameters.items()]
    for start in range(0, len(texts), _MAX_TEXTS):
        client.log_batch(run_id, params=texts[start : start + _MAX_TEXTS])
    numbers = [Metric(name, value, now_ms, step) for name, value, step in metrics]
    for start in range(0, len(numbers), _MAX_METRICS):
        client.log_batch(run_id, metrics=numbers[start : start + _MAX_METRICS])


def _log_files(client: "MlflowClient", run_id: str, folder: RunFolder) -> None:
    for path in (folder.spec, folder.policy, folder.pareto, folder.result):
        if path.is_file():
            client.log_artifact(run_id, str(path))
    if folder.artifact.is_dir():
        client.log_artifacts(run_id, str(folder.artifact), "artifact")


def _describe_trials(records: Sequence[Record]) -> Iterator[tuple[str, float, int]]:
    """Yields metric, value and step."""
    for record in records:
        yield "cost_s", record.cost_s, record.id
        yield from ((name, value, record.id) for name, value in _numbers(record.measurement))


def _describe_finals(folder: RunFolder) -> Iterator[tuple[str, float, int]]:
    result = folder.read_result()
    if result is None:
        return
    parts = []
    if (original := result.row("original")) is not None:
        parts.append(("original", original.final))
    if (best := result.row("best policy")) is not None:
        parts += [("final", best.final), ("test", best.test)]
    for prefix, measurement in parts:
        yield from ((f"{prefix}.{name}", value, 0) for name, value in _numbers(measurement))


def _numbers(measurement: Measurement) -> Iterator[tuple[str, float]]:
    accuracy, drop, latency = measurement.accuracy, measurement.accuracy_drop, measurement.latency
    found = {
        "accuracy": None if accuracy is None else accuracy.mean,
        "accuracy_drop": None if drop is None else drop.mean,
        "latency_s": None if latency is None else latency.median_s,
        "latency_ratio": None if latency is None else latency.ratio,
        "size_bytes": measurement.size_bytes,
        "peak_memory_bytes": measurement.peak_memory_bytes,
        "peak_activation_bytes": measurement.peak_activation_bytes,
        "energy_j": measurement.energy_j,
    }
    return ((name, float(value)) for name, value in found.items() if value is not None)


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _flatten(part, f"{prefix}.{name}" if prefix else str(name))
    elif value is not None:
        yield prefix, value if isinstance(value, str) else json.dumps(value)
