"""The bar to beat: the untouched model in every precision, and every uniform policy."""

from collections.abc import Iterator
from dataclasses import replace

from ..spaces.policy import GraphTreatment, Policy
from ..spaces.space import Space
from ..spaces.treatment import Treatment


def list_baselines(space: Space) -> tuple[tuple[str, Policy], ...]:
    """Returns (label, policy), the original in float32 first, each policy once.

    Uniform policies are tried in every quantiser setting: each treatment with each fusion and precision, and
    statically quantised ones with each calibration and each set of quantised operators (one setting varied at a
    time, the others at their default).
    """
    first: dict[Policy, str] = {}
    for label, policy in _candidates(space):
        first.setdefault(policy, label)
    return tuple((label, policy) for policy, label in first.items())


def _candidates(space: Space) -> Iterator[tuple[str, Policy]]:
    yield "original", Policy({})
    graphs = list(_graphs(space))
    for label, graph in graphs:
        yield f"untouched{label}", Policy({}, graph)
    treatments = dict.fromkeys(option for options in space.options for option in options if option != Treatment())
    for treatment in treatments:
        for label, graph in graphs:
            yield f"uniform {treatment.label}{label}", space.uniform(treatment, graph)
        if treatment.is_static:
            for label, graph in _static_graphs(space):
                yield f"uniform {treatment.label}{label}", space.uniform(treatment, graph)


def _graphs(space: Space) -> Iterator[tuple[str, GraphTreatment]]:
    default = space.default_graph
    for fusion in space.graph.fusion:
        for precision in space.graph.precision:
            parts = [fusion] * (fusion != "none") + [precision] * (precision != "float32")
            yield "".join(f" {part}" for part in parts), replace(default, fusion=fusion, precision=precision)


def _static_graphs(space: Space) -> Iterator[tuple[str, GraphTreatment]]:
    # where the runtime has a faster precision for what is not quantised, the settings are tried in that one
    default = replace(space.default_graph, precision=space.graph.precision[-1])
    for calibration in space.graph.calibration:
        yield f" {calibration} {default.precision}", replace(default, calibration=calibration)
    for ops in space.graph.quantized_ops:
        yield f" +{'+'.join(ops) or 'none'} {default.precision}", replace(default, quantized_ops=ops)
