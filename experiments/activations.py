"""The bytes of activations at each moment of an inference as sums over groups: what bounds the peak before any trial.

A moment is a step of the float graph, or the conversion of one of its inputs between float and codes. What a tensor
takes depends on the groups that write and read it, and on the channels that pruning leaves of it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import onnx_ir as ir

from ..compressors.graph import run_with_outputs
from ..compressors.prepared import attach_constants, one_by_one
from ..core.errors import DataError, ModelError
from ..search.solver.additive_cost import AdditiveCost
from ..spaces.policy import GraphTreatment
from ..spaces.space import Space
from .activation_flow import Flow, HeldValue, IsStatic, Rules
from .activation_steps import read_flow
from .preparation import Preparation

_log = logging.getLogger(__name__)

#: moments that are kept at most: each is a row of the solver's program
_MOST_MOMENTS = 64
#: groups whose choices one tensor may depend on; further ones count as if they took the fewest bytes
_MOST_GROUPS = 8
#: a cost has tables over so many groups
_TABLE_GROUPS = 3
#: ways in which the tensors of one moment may be split into tables; beyond, the smaller ones are counted by one table
_MOST_SPLITS = 8
#: choices that are compared one by one where a moment may be below another; beyond, term by term
_MOST_CHOICES = 4096
#: policies that are drawn to see which moments can be the peak
_N_DRAWN = 1024

#: groups in ascending order, and the bytes of a tensor for their options: an axis for each group
_Table = tuple[tuple[int, ...], np.ndarray]


def known_activations(preparation: Preparation, graph: GraphTreatment | None = None) -> tuple[AdditiveCost, ...]:
    """Returns the bytes of activations at the moments of an inference that can be its peak; the largest is the peak.

    Follows what `evaluators/resources.py` measures: inputs, outputs and what lies between, in multiples of 64 bytes, no
    weights and no workspace of kernels. Blocks that are left out, factors of low rank and dynamic or binary
    activations count as if the layers were in float.

    Args:
        preparation: the model, its device and its space.
        graph: the graph-wide choices, which decide where codes end; None: the first of each.
    """
    chosen = graph or preparation.space.default_graph
    try:
        arrays, model = _observe(preparation, chosen.fusion)
    except (DataError, ModelError, KeyError) as error:
        _log.info("the activations are not known beforehand: %s", error)
        return ()
    space, runtime = preparation.space, preparation.device.target.runtime
    layers = {layer: i for i, group in enumerate(space.groups) if group.kind == "layers" for layer in group.layers}
    scheme = preparation.device.capabilities
    rules = Rules(
        float_bytes=4 if chosen.precision == "float32" else 2,
        codes_leave_convolutions=scheme.quantize_conv_outputs,
        has_own_layout=runtime == "onnxruntime",
        quantized_ops=chosen.quantized_ops,
    )
    flow = read_flow(model.graph, layers, arrays, rules, depth_first=runtime == "onnxruntime")
    moments = find_moments(flow, space, _find_shares(preparation))
    _log.info("the peak of activations is that of %d moments of %d steps", len(moments), len(flow.steps))
    return moments


def _observe(preparation: Preparation, fusion: str) -> tuple[dict[str, np.ndarray], ir.Model]:
    """Returns value name → array for all that depends on the inputs, in a batch as the target has it, and the graph."""
    prepared, n_wanted = preparation.model, preparation.device.target.batch_size
    model = attach_constants(prepared.variants[fusion], prepared.constants)
    samples = one_by_one(prepared.calibration)
    batch = [samples[i % len(samples)] for i in range(n_wanted)]
    inputs = {name: np.concatenate([sample[name] for sample in batch]) for name in batch[0]}
    found = dict(inputs)
    computed = set(model.graph.inputs) - set(model.graph.initializers.values())
    for node in model.graph:
        if computed.intersection(node.inputs):
            computed.update(value for value in node.outputs if value.name)
    names = [str(value.name) for node in model.graph for value in node.outputs if value in computed]
    found.update(zip(names, run_with_outputs(model, names, [inputs])[0], strict=True))
    return found, model


def _find_shares(preparation: Preparation) -> dict[str, tuple[int, np.ndarray]]:
    """Returns layer whose outputs are pruned → (group of its structure, (n_options,) shares that stay)."""
    space, found = preparation.space, {}
    structures = {structure.name: structure for structure in preparation.model.structures}
    for position, group in enumerate(space.groups):
        structure = structures.get(group.name)
        if group.kind == "layers" or structure is None:
            continue
        if structure.kind == "block":
            _log.info("activations count the block %s as if it always stayed", structure.name)
            continue
        shares = np.array([option.keep_channels for option in space.options[position]])
        found.update(dict.fromkeys(structure.layers[: structure.n_producers], (position, shares)))
    return found


def find_moments(
    flow: Flow, space: Space, shares: Mapping[str, tuple[int, np.ndarray]] | None = None
) -> tuple[AdditiveCost, ...]:
    """Returns the moments of which none is below another for every choice.

    Args:
        flow: steps and values; its groups are positions in the space.
        space: the options of each group.
        shares: layer → (group, (n_options,) share of its output channels that stay); for missing layers all stay.
    """
    tables, moments = _Tables(flow, space, shares or {}), []
    for step in range(len(flow.steps)):
        fresh = flow.steps[step - 1].writes if step else ()
        moments += tables.moments(step, "")
        for name in dict.fromkeys((*flow.steps[step].reads, *fresh)):
            moments += tables.moments(step, name)
    return _drop_dominated(moments, space)


@dataclass(frozen=True)
class _Tables:
    """Writes what tensors take as tables over groups."""

    flow: Flow
    space: Space
    shares: Mapping[str, tuple[int, np.ndarray]]

    def moments(self, step: int, converted: str) -> list[AdditiveCost]:
        """Returns the costs whose largest is what is held while a step runs, or while a value is converted for it."""
        splits = [self._split(value, step, converted) for value in self.flow.values.values()]
        splits = [split for split in splits if any(table.any() for _, table in split)]
        splits.sort(key=lambda split: -max(float(table.max()) for _, table in split))
        n_ways = 1
        for i, split in enumerate(splits):
            splits[i] = split if n_ways * len(split) <= _MOST_SPLITS else split[:1]
            n_ways *= len(splits[i])
        return [self._sum(chosen) for chosen in product(*splits)]

    def _split(self, value: HeldValue, step: int, converted: str) -> list[_Table]:
        """Returns tables whose largest entry is what a value takes; several where it depends on too many groups."""

        def measure(static: IsStatic) -> float:
            if not converted:
                return self.flow.held(value, step, static)
            if value.name == converted:
                return self.flow.converted(value, step, static)
            return self.flow.held_before(value, step, static)

        groups, table = _tabulate(measure)
        share = self._share_of(value)
        found = _split_table(groups, table, _TABLE_GROUPS - (share is not None))
        found = [self._by_option(part) for part in found]
        return found if share is None or not table.any() else [_scale(part, *share) for part in found]

    def _share_of(self, value: HeldValue) -> tuple[int, np.ndarray] | None:
        """Returns the structure whose channels a value has: that of all layers that it comes from."""
        found = {self.shares[layer][0] if layer in self.shares else -1 for layer in value.origins}
        if len(found) != 1 or -1 in found:
            return None
        return next(self.shares[layer] for layer in value.origins)

    def _by_option(self, part: _Table) -> _Table:
        groups, table = part
        static = [np.array([int(option.is_static) for option in self.space.options[group]]) for group in groups]
        return groups, table[np.ix_(*static)] if groups else table

    def _sum(self, chosen: Sequence[_Table]) -> AdditiveCost:
        constant = float(self.flow.input_bytes)
        unary = [np.zeros(len(options)) for options in self.space.options]
        edges: dict[tuple[int, ...], np.ndarray] = {}
        for groups, table in chosen:
            if not groups:
                constant += float(table)
            elif len(groups) == 1:
                unary[groups[0]] += table
            else:
                edges[groups] = edges.get(groups, 0.0) + table
        return AdditiveCost(constant, tuple(unary), edges)


def _tabulate(measure: Callable[[IsStatic], float]) -> _Table:
    """Finds out on which groups' being static a number depends, and tabulates it: an axis of 2 for each group."""
    known: list[int] = []
    while True:
        asked: set[int] = set()
        found = [_ask(measure, dict(zip(known, flags, strict=True)), asked)
                 for flags in product((False, True), repeat=len(known))]  # fmt: skip
        new = sorted(asked - set(known))[: _MOST_GROUPS - len(known)]
        if not new:
            break
        known += new
    table = np.array(found, float).reshape((2,) * len(known))
    table = table.transpose(np.argsort(known)) if known else table
    groups = sorted(known)
    for axis in reversed(range(len(groups))):
        if np.array_equal(table.take(0, axis), table.take(1, axis)):
            table = table.take(0, axis)
            del groups[axis]
    return tuple(groups), table


def _ask(measure: Callable[[IsStatic], float], flags: Mapping[int, bool], asked: set[int]) -> float:
    def static(group: int) -> bool:
        asked.add(group)
        return flags.get(group, True)

    return measure(static)


def _split_table(groups: tuple[int, ...], table: np.ndarray, n_most: int) -> list[_Table]:
    """Returns tables over few groups whose largest entry comes close to a table over many: the rest at its best."""
    if len(groups) <= n_most:
        return [(groups, table)]
    parts = []
    for kept in combinations(range(len(groups)), n_most):
        rest = tuple(axis for axis in range(len(groups)) if axis not in kept)
        parts.append((tuple(groups[axis] for axis in kept), table.min(axis=rest)))
    parts.sort(key=lambda part: -float(part[1].mean()))
    return parts


def _scale(part: _Table, group: int, shares: np.ndarray) -> _Table:
    groups, table = part
    position = sum(other < group for other in groups)
    wider = np.expand_dims(table, position)
    return (*groups[:position], group, *groups[position:]), np.moveaxis(
        np.moveaxis(wider, position, -1) * shares, -1, position
    )


def _drop_dominated(moments: Sequence[AdditiveCost], space: Space) -> tuple[AdditiveCost, ...]:
    """Drops every moment that another one is never below; keeps those that are most often the peak if many are left."""
    sizes = [len(options) for options in space.options]
    drawn = np.random.default_rng(0).integers(0, sizes, (_N_DRAWN, len(sizes)))
    values = np.array([moment.value(drawn) for moment in moments]).reshape(len(moments), len(drawn))
    order = np.argsort(-values.sum(1), kind="stable")
    kept: list[int] = []
    for i in order:
        rivals = [j for j in kept if (values[j] >= values[i]).all()]
        if not any(_is_above(moments[j], moments[i]) for j in rivals):
            kept.append(int(i))
    if len(kept) > _MOST_MOMENTS:
        peaks = np.bincount(values[kept].argmax(0), minlength=len(kept))
        chosen = np.argsort(-peaks, kind="stable")[:_MOST_MOMENTS]
        missed = float((values[kept].max(0) / values[[kept[k] for k in chosen]].max(0)).max()) - 1.0
        _log.info("of %d moments %d are kept: peaks of drawn policies are up to %.1f %% higher",
                  len(kept), len(chosen), 100 * missed)  # fmt: skip
        kept = [kept[k] for k in chosen]
    return tuple(moments[i] for i in sorted(kept))


def _is_above(upper: AdditiveCost, lower: AdditiveCost) -> bool:
    """Whether a cost is never below another: tried where few groups decide, else proven term by term."""
    unary = tuple(a - b for a, b in zip(upper.unary, lower.unary, strict=True))
    both = {**upper.edges, **lower.edges}
    tables = {edge: np.asarray(upper.edges.get(edge, 0.0) - lower.edges.get(edge, 0.0)) for edge in both}
    edges = {edge: table for edge, table in tables.items() if table.any()}
    difference = AdditiveCost(upper.constant - lower.constant, unary, edges)
    involved = sorted({group for edge in edges for group in edge} | {g for g, costs in enumerate(unary) if costs.any()})
    if np.prod([len(unary[group]) for group in involved]) <= _MOST_CHOICES:
        choices = list(product(*(range(len(unary[group])) for group in involved)))
        vectors = np.zeros((len(choices), len(unary)), np.int64)
        vectors[:, involved] = choices
        return bool((difference.value(vectors) >= 0).all())
    lowest = difference.constant + sum(float(part.min()) for part in (*unary, *edges.values()))
    return lowest >= 0
