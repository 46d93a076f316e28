"""``make bench-nncf``: `auto` beside NNCF's quantize_with_accuracy_control, at the same drop of accuracy.

Both get the same ONNX model, the same calibration samples, the same validation split and one point of accuracy to
lose, one after the other in one process. In the end original and both winners are timed in one rotation, one thread
each, and scored on the test split. Wall time is all that a user waits for, from the loaded model and data to the
model that may be deployed; an evaluation is the whole validation split run once, parts of it count as such.

NNCF is needed by this benchmark alone (2 MB, with ninja, pydot and tabulate): ``pip install nncf``.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from ...compressors.artifact import Artifact
from ...evaluators.accuracy import AccuracyEvaluator, run_split, take_batch
from ...evaluators.dataset import Split
from ...evaluators.latency import TimingSettings, measure_together
from ...evaluators.measurement import Estimate
from ...evaluators.metrics import paired_drop
from ..finish import describe_policy
from ..launch import SearchResult, search
from ..preparation import Preparation, prepare
from ..spec import Spec
from ..spec_file import list_recipes, load_spec

#: recipe → what is asked of it; trials are those of `auto`
CASES = (
    "fashion", "fashion-openvino", "minilm-spam", "minilm-spam-openvino", "resnet8", "resnet8-openvino",
    "stubborn", "stubborn-openvino",
)  # fmt: skip
_MAX_DROP = 0.01
#: samples of the test split that the search itself scores
_N_TEST = 64
_TIMING = TimingSettings(min_runs=100, max_runs=2000, min_time_s=6.0)


@dataclass(frozen=True)
class Found:
    """What one of the two tools found."""

    #: runs like an artifact on its device
    executable: Any
    wall_s: float
    #: runs over the whole validation split
    n_evaluations: float
    note: str


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--trials", type=int, default=24)
    arguments = parser.parse_args()
    logging.getLogger("nncf").setLevel(logging.ERROR)
    table = Table(title=f"a drop of {_MAX_DROP:.0%} at most; times in turns, one thread", title_justify="left")
    for heading in ("case", "tool", "ratio to float32", "test drop", "wall s", "evaluations", "note"):
        table.add_column(heading, justify="left" if heading in ("case", "tool", "note") else "right")
    for case in arguments.cases:
        for row in compare(case, n_trials=arguments.trials):
            table.add_row(*row)
        Console(width=160).print(table)


def compare(case: str, *, n_trials: int) -> Iterator[list[str]]:
    """Yields a row of the table for each tool."""
    spec = _spec_of(case, n_trials)
    preparation = prepare(spec)
    device, batch = preparation.device, take_batch(preparation.dataset.validation, 0, 1)
    found = {"NNCF": quantize_by_nncf(preparation), "Trimtab": search_by_trimtab(preparation, spec)}
    original = device.load(preparation.original)
    latencies = measure_together([original, *(f.executable for f in found.values())], batch, _TIMING)
    test = preparation.test
    for (tool, one), latency in zip(found.items(), latencies[1:], strict=True):
        drop = _test_drop(test, one.executable)
        ratio = f"{latency.ratio:.3f} (iqr {latency.iqr_s / latency.median_s:.0%})"
        lost = f"{100 * drop.mean:+.2f} ± {100 * drop.standard_error:.2f}"
        yield [case, tool, ratio, lost, f"{one.wall_s:.0f}", f"{one.n_evaluations:.1f}", one.note]


def _spec_of(case: str, n_trials: int) -> Spec:
    """Returns a recipe without its bound on latency, or a search of the digits.

    The search's own test split is cut short: NNCF scores none, and both are scored on the whole of it in the end.
    """
    if case in list_recipes():
        base = load_spec(case)
    else:
        name, _, runtime = case.partition("-")
        model = "stubborn:resnet8_stubborn" if name == "stubborn" else "zoo:resnet8"
        base = load_spec({
            "name": name, "model": f"trimtab.experiments.{model}", "data": "trimtab.experiments.datasets:digits",
            "target": {"runtime": runtime or "onnxruntime"}, "workers": {"address": "inline"},
            "space": [{"layers": "*", "quantize": ["none", "int8", *(["float32"] if runtime else [])]}],
        })  # fmt: skip
    return base.model_copy(
        update={
            "budget": base.budget.model_copy(update={"latency": None, "accuracy_drop": _MAX_DROP}),
            "search": base.search.model_copy(update={"trials": n_trials, "algorithm": "auto"}),
        }
    )


def search_by_trimtab(preparation: Preparation, spec: Spec) -> Found:
    """Searches with `auto`; everything is counted, the original's own evaluation too."""
    started_s = time.perf_counter()
    dataset = preparation.dataset
    short = replace(dataset, test=dataset.test.take(slice(0, _N_TEST)))
    with tempfile.TemporaryDirectory() as folder:
        result: SearchResult = search(spec.model_copy(update={"data": short}), runs=folder)
    wall_s = time.perf_counter() - started_s
    if result.policy is None:
        raise RuntimeError("nothing keeps the budget, not even the original")
    n_samples = len(preparation.dataset.validation)
    scored = [r.measurement.accuracy.n for r in result.records if r.measurement.accuracy is not None]
    artifact = preparation.build(result.policy.policy)
    note = describe_policy(preparation, result.policy.policy, run="bench").policy
    n_int8 = sum(treatment.weight_dtype == "int8" for _, treatment in note.groups)
    return Found(
        preparation.device.load(artifact),
        wall_s,
        1.0 + sum(scored) / n_samples,
        f"{n_int8} of {len(preparation.space.groups)} int8, {note.graph.precision}, fusion {note.graph.fusion}",
    )


def quantize_by_nncf(preparation: Preparation) -> Found:
    """Quantises with accuracy control."""
    started_s = time.perf_counter()
    runner = _OpenVino(preparation) if preparation.device.target.runtime == "openvino" else _OnnxRuntime(preparation)
    quantized, n_evaluations = _control(preparation, runner)
    executable = runner.executable(quantized)
    return Found(executable, time.perf_counter() - started_s, n_evaluations, "quantize_with_accuracy_control")


def _control(preparation: Preparation, runner: "_OnnxRuntime | _OpenVino") -> tuple[Any, float]:
    import nncf

    calibration, validation = preparation.dataset.calibration, preparation.dataset.validation
    n_seen = 0

    def validate(model: Any, samples: Iterable[tuple[Mapping[str, np.ndarray], Any]]) -> tuple[float, list[float]]:
        nonlocal n_seen
        run, scores = runner.runner(model), []
        for inputs, label in samples:
            n_seen += 1
            scores.append(float(np.argmax(run(inputs)[0][0]) == label))
        return float(np.mean(scores)), scores

    def samples_of(split: Split) -> list[tuple[dict[str, np.ndarray], Any]]:
        singles = [{name: array[i : i + 1] for name, array in split.inputs.items()} for i in range(len(split))]
        return [(single, None if split.labels is None else split.labels[i]) for i, single in enumerate(singles)]

    quantized = nncf.quantize_with_accuracy_control(
        runner.model,
        calibration_dataset=nncf.Dataset(samples_of(calibration), lambda sample: sample[0]),
        validation_dataset=nncf.Dataset(samples_of(validation), lambda sample: sample[0]),
        validation_fn=validate,
        max_drop=_MAX_DROP,
        subset_size=len(calibration),
        model_type=nncf.ModelType.TRANSFORMER if "minilm" in preparation.spec.name else None,
    )
    return quantized, n_seen / len(validation)


class _OnnxRuntime:
    """NNCF's ONNX backend."""

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation
        self.model = onnx.load_from_string(preparation.original.model)

    def runner(self, model: Any) -> Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]:
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, dict(inputs))

    def executable(self, quantized: Any) -> Any:
        return self._preparation.device.load(Artifact(quantized.SerializeToString()))


class _OpenVino:
    """NNCF's OpenVINO backend."""

    def __init__(self, preparation: Preparation) -> None:
        import openvino

        self._core = openvino.Core()
        self.model = self._core.read_model(preparation.original.model)

    def runner(self, model: Any) -> Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]:
        compiled = model if hasattr(model, "create_infer_request") else self._core.compile_model(model, "CPU")
        request = compiled.create_infer_request()
        return lambda inputs: [request.infer(dict(inputs))[0]]

    def executable(self, quantized: Any) -> Any:
        compiled = self._core.compile_model(
            quantized, "CPU", {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        )
        return _Compiled(compiled)


class _Compiled:
    """A compiled model as an executable."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._n_outputs = len(compiled.outputs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs one batch."""
        results = self._request.infer(dict(inputs))
        return [results[i] for i in range(self._n_outputs)]


def _test_drop(test: AccuracyEvaluator, executable: Any) -> Estimate:
    outputs = run_split(executable, test.split, batch_size=1)
    return paired_drop(test.reference_scores, test.metric(outputs, test.split.labels, test.reference))


if __name__ == "__main__":
    main()
