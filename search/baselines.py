"""The bar to beat: the untouched model in every precision, every uniform policy, and a few uniform hybrids."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from ..spaces.policy import GraphTreatment, Policy
from ..spaces.recovery import Recovery
from ..spaces.space import Space
from ..spaces.treatment import Treatment
from .problem import Problem

Item = TypeVar("Item")

#: uniform policies of two techniques that are tried; a space of all techniques holds hundreds
_MAX_HYBRIDS = 12


def list_baselines(space: Space) -> tuple[tuple[str, Policy], ...]:
    """Returns (label, policy), the original in float32 first, each policy once.

    Uniform policies use one technique. Quantised ones are tried in every quantiser setting: each treatment with each
    fusion and precision, and statically quantised ones with each calibration and each set of quantised operators (one
    setting varied at a time, the others at their default). Every uniform policy is tried with every recovery, in the
    default setting. Then come up to `_MAX_HYBRIDS` uniform policies of two techniques (``hybrid …``): a second one
    beside each quantisation to integers.
    """
    first: dict[Policy, str] = {}
    for label, policy in _candidates(space):
        first.setdefault(policy, label)
    return tuple((label, policy) for policy, label in first.items())


def promising_first(baselines: Sequence[tuple[str, Policy]], problem: Problem) -> tuple[tuple[str, Policy], ...]:
    """Orders baselines so that what probably wins comes early: what is worse than that need not be scored in full.

    The first one, the original, stays where it is, and so do all where the objective is the accuracy. Sizes are sorted
    by what is known of them, all else by what is known of the latency; where that is nothing, policies that compute
    with integers come first.
    """
    if problem.objective == "accuracy":
        return tuple(baselines)
    return (*baselines[:1], *sorted(baselines[1:], key=lambda pair: _expected_cost(problem, pair[1])))


def _expected_cost(problem: Problem, policy: Policy) -> float:
    space, knowledge = problem.space, problem.knowledge
    if not space.contains(policy):
        return math.inf
    vector = space.encode(policy)
    setting = tuple(map(int, vector[len(space.groups) :]))
    cost = knowledge.size_bytes if problem.objective == "size" else knowledge.price(setting)
    if cost is not None:
        return float(f"{float(cost.value(np.array([vector]))[0]):.9g}")  # what differs by rounding alone is equal
    return 0.0 if any(treatment.activation_dtype == "int8" for _, treatment in policy.groups) else 1.0


def _candidates(space: Space) -> Iterator[tuple[str, Policy]]:
    yield "original", Policy({})
    graphs = list(_graphs(space))
    for label, graph in graphs:
        yield f"untouched{label}", Policy({}, graph)
    recovery = space.graph.recovery
    treatments = dict.fromkeys(option for options in space.options for option in options if option != Treatment())
    # "float32" only holds a layer back: all of them held back are the untouched model
    single = [t for t in treatments if len(t.techniques) == 1 and t.compute_dtype == "any"]
    for treatment in single:
        is_quantized = treatment.techniques == ("quantize",)
        for label, graph in graphs if is_quantized else graphs[:1]:
            yield f"uniform {treatment.label}{label}", space.uniform(treatment, graph, recovery[0])
        if treatment.is_static:
            for label, graph in _static_graphs(space):
                yield f"uniform {treatment.label}{label}", space.uniform(treatment, graph, recovery[0])
        for trained in recovery[1:]:
            yield f"uniform {treatment.label} {trained.label}", space.uniform(treatment, _default(space), trained)
    yield from spread(list(_hybrids(space, single, list(treatments))), _MAX_HYBRIDS)


def _hybrids(space: Space, single: Sequence[Treatment], every: Sequence[Treatment]) -> Iterator[tuple[str, Policy]]:
    """Yields a second technique beside each integer quantisation, with the last recovery on offer."""
    recovery, graph = space.graph.recovery[-1], _default(space)
    suffix = f" {recovery.label}" if recovery.trains else ""
    integer = [t for t in single if t.is_quantized]
    for pruned in [treatment for treatment in single if treatment.techniques == ("prune",)]:
        for quantized in integer:
            yield (
                f"hybrid {pruned.label} + {quantized.label}{suffix}",
                _both(space, (pruned, quantized), graph, recovery),
            )
    for treatment in every:
        if len(treatment.techniques) == 2 and treatment.is_quantized:
            yield f"hybrid {treatment.label}{suffix}", space.uniform(treatment, graph, recovery)


def _both(space: Space, treatments: Sequence[Treatment], graph: GraphTreatment, recovery: Recovery) -> Policy:
    """Gives each treatment to every group that offers it; structures and layers do not share any."""
    chosen: dict[str, Treatment] = {}
    for treatment in treatments:
        chosen.update(dict(space.uniform(treatment).groups))
    return Policy(chosen, graph, recovery)


def spread(found: Sequence[Item], n: int) -> Sequence[Item]:
    """Returns up to n of them, at least two, evenly from the whole list."""
    if len(found) <= n:
        return found
    return [found[round(i * (len(found) - 1) / (n - 1))] for i in range(n)]


def _default(space: Space) -> GraphTreatment:
    """The default setting in the runtime's fastest precision, which is the last on offer."""
    return replace(space.default_graph, precision=space.graph.precision[-1])


def _graphs(space: Space) -> Iterator[tuple[str, GraphTreatment]]:
    default = space.default_graph
    for fusion in space.graph.fusion:
        for precision in space.graph.precision:
            parts = [fusion] * (fusion != "none") + [precision] * (precision != "float32")
            yield "".join(f" {part}" for part in parts), replace(default, fusion=fusion, precision=precision)


def _static_graphs(space: Space) -> Iterator[tuple[str, GraphTreatment]]:
    # where the runtime has a faster precision for what is not quantised, the settings are tried in that one
    default = _default(space)
    for calibration in space.graph.calibration:
        yield f" {calibration} {default.precision}", replace(default, calibration=calibration)
    for ops in space.graph.quantized_ops:
        yield f" +{'+'.join(ops) or 'none'} {default.precision}", replace(default, quantized_ops=ops)
