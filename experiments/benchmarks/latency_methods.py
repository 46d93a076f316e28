"""The methods that ``make bench-latency`` compares: prices for test policies, from what others measured."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...hw_profiles.kernels.kernel import Kernel, KernelTiming
from ...hw_profiles.kernels.kernel_features import describe_kind, find_family, stack_features
from ...hw_profiles.kernels.kernel_table import KernelTable
from ...hw_profiles.kernels.table_identity import TableIdentity
from ...hw_profiles.prices.price_list import build_pricer
from ...spaces.layer import Layer
from ..profiling.learn import add_run
from .latency_runs import Lesson, ModelRuns

#: (prices, standard errors) in seconds, each (n test policies,); errors are None where a method has none
Prices = tuple[np.ndarray, np.ndarray | None]


def price_macs(subject: ModelRuns, learned_from: Sequence[ModelRuns], _: Sequence[Lesson]) -> Prices:
    """MACs-linear: seconds = a + Σ b_dtype · multiply-accumulates in that dtype, fitted on designed policies."""
    rows = [(_count_macs(runs, run.policy), run.latency.median_s) for runs in learned_from for run in runs.designed]
    design, seconds = np.array([row for row, _ in rows]), np.array([s for _, s in rows])
    # relative errors count, as in the comparison
    weights, *_ = np.linalg.lstsq(design / seconds[:, None], np.ones(len(seconds)), rcond=None)
    prices = np.array([_count_macs(subject, run.policy) for run in subject.tested]) @ weights
    return prices, None


def _count_macs(runs: ModelRuns, policy: Any) -> list[float]:
    treated = {layer: t.label for group, t in policy.groups for layer in runs.groups[group]}
    macs = {"none": 0.0, "int8": 0.0, "int8_dynamic": 0.0}
    for layer in runs.layers:
        macs[treated.get(layer.name, "none")] += layer.macs / 1e9
    has_half = policy.graph.precision != "float32"
    plain = [0.0, macs["none"]] if has_half else [macs["none"], 0.0]
    return [1.0, *plain, macs["int8"], macs["int8_dynamic"]]


def price_layers(subject: ModelRuns, learned_from: Sequence[ModelRuns], _: Sequence[Lesson]) -> Prices | None:
    """Additive table: per layer and treatment what it took in the uniform policy, with a fitted scale and offset.

    Every kernel's time belongs to the last layer whose weight was read, as in the tables that peers make from a
    runtime's profile. None for a network that was not measured.
    """
    if subject not in learned_from:
        return None
    table = _layer_table(subject)
    seconds = np.array([run.latency.median_s for run in subject.designed])
    sums = np.array([_sum_layers(subject, table, run.policy) for run in subject.designed])
    design = np.stack([sums, np.ones(len(sums))], axis=1) / seconds[:, None]
    scale, offset = np.linalg.lstsq(design, np.ones(len(seconds)), rcond=None)[0]
    prices = np.array([_sum_layers(subject, table, run.policy) for run in subject.tested])
    return scale * prices + offset, None


def _layer_table(runs: ModelRuns) -> dict[tuple[str, str, str], float]:
    """Returns (precision, treatment, layer) → seconds, from the uniform policies among the designed ones."""
    table: dict[tuple[str, str, str], float] = {}
    for run in runs.designed:
        labels = {treatment.label for _, treatment in run.policy.groups} or {"none"}
        if len(labels) > 1 or not run.timings:
            continue
        label, precision = labels.pop(), run.policy.graph.precision
        for layer, seconds in _attribute(runs.layers, run.timings).items():
            table.setdefault((precision, label, layer), seconds)
    return table


def _attribute(layers: Sequence[Layer], timings: Sequence[KernelTiming]) -> dict[str, float]:
    waiting = list(layers)
    seconds = {layer.name: 0.0 for layer in layers}
    current = layers[0].name
    for timing in timings:
        sizes = [tensor.n_elements for tensor in timing.kernel.inputs if tensor.is_constant]
        largest = max(sizes, default=0)
        if find_family(timing.kernel) in ("conv", "matmul") and largest:
            owner = next((one for one in waiting if _fits(one, largest)), None)
            if owner is not None:
                waiting.remove(owner)
                current = owner.name
        seconds[current] += timing.median_s
    return seconds


def _fits(layer: Layer, n_elements: int) -> bool:
    """Whether a constant can be the layer's weight; ONNX Runtime pads channels to whole blocks of 16."""
    n_weight = int(np.prod(layer.weight_shape))
    return n_weight <= n_elements <= max(1.4 * n_weight, n_weight + 16 * 16 * 9 * (n_weight < 16 * 16 * 9))


def _sum_layers(runs: ModelRuns, table: dict[tuple[str, str, str], float], policy: Any) -> float:
    treated = {layer: t.label for group, t in policy.groups for layer in runs.groups[group]}
    precision = policy.graph.precision
    total_s = 0.0
    for layer in runs.layers:
        label = treated.get(layer.name, "none")
        keys = [(precision, label, layer.name), ("float32", label, layer.name), ("float32", "none", layer.name)]
        total_s += next((table[key] for key in keys if key in table), 0.0)
    return total_s


def price_forest(subject: ModelRuns, learned_from: Sequence[ModelRuns], lessons: Sequence[Lesson]) -> Prices:
    """Random forest per kernel family, prices summed: nn-Meter (Zhang et al., MobiSys 2021) on our kernels."""
    from sklearn.ensemble import RandomForestRegressor

    medians = _median_times(learned_from, lessons)
    kernels, seconds = list(medians), np.array(list(medians.values()))
    families = np.array([find_family(kernel) for kernel in kernels])
    codes = {part: i for i, part in enumerate(sorted({p for kernel in kernels for p in describe_kind(kernel)[:4]}))}
    models = {}
    for family in sorted(set(families)):
        mine = families == family
        forest = RandomForestRegressor(n_estimators=100, random_state=0, n_jobs=1)
        models[family] = forest.fit(_encode([k for k, m in zip(kernels, mine, strict=True) if m], codes), seconds[mine])
    wanted = list(dict.fromkeys(kernel for run in subject.tested for kernel in run.counts))
    priced: dict[Kernel, float] = {}
    for family in sorted({find_family(kernel) for kernel in wanted}):
        mine_too = [kernel for kernel in wanted if find_family(kernel) == family]
        if family in models:
            priced.update(zip(mine_too, models[family].predict(_encode(mine_too, codes)), strict=True))
    sums = [sum(n * priced.get(kernel, 0.0) for kernel, n in run.counts.items()) for run in subject.tested]
    return np.array(sums), None


def _encode(kernels: Sequence[Kernel], codes: dict[str, int]) -> np.ndarray:
    kinds = [[codes.get(part, -1) for part in describe_kind(kernel)[:4]] for kernel in kernels]
    return np.hstack([stack_features(kernels), np.array(kinds, float).reshape(len(kernels), -1)])


def _median_times(learned_from: Sequence[ModelRuns], lessons: Sequence[Lesson]) -> dict[Kernel, float]:
    times: dict[Kernel, list[float]] = {}
    measured = [run.timings for runs in learned_from for run in runs.designed]
    for timings in (*measured, *(lesson.timings for lesson in lessons)):
        for timing in timings:
            times.setdefault(timing.kernel, []).append(timing.median_s)
    return {kernel: float(np.median(seen)) for kernel, seen in times.items()}


def make_ours(identity: TableIdentity) -> Callable[..., Prices]:
    """Returns Trimtab's method: kernel table, predictor behind it, whole-graph correction."""

    def price_ours(subject: ModelRuns, learned_from: Sequence[ModelRuns], lessons: Sequence[Lesson]) -> Prices:
        table = KernelTable(identity)
        for lesson in lessons:
            table.add(lesson.timings, lesson.name)
        for runs in learned_from:
            for i, run in enumerate(runs.designed):
                add_run(table, run, model=runs.model, source=f"{runs.model} {i}")
        pricer = build_pricer(table, model=subject.model)
        prices = [pricer.price(run.counts, model=subject.model) for run in subject.tested]
        return np.array([p.seconds for p in prices]), np.array([p.standard_error_s for p in prices])

    return price_ours
