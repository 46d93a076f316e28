"""``make bench-surrogate``: how fast level 1 prices policies of MiniLM, and how long it takes to build.

The space is MiniLM's own, with its edges found in its graph and random costs: the time does not depend on them. Both
runtimes' spaces are priced, by joint tables and, for comparison, by one numpy look-up per group and edge.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ...compressors.edges import find_edges
from ...compressors.prepared import PreparedModel, prepare_model
from ...compressors.source import load_source
from ...hw_profiles.surrogate.joint_tables import build_joint_tables
from ...hw_profiles.surrogate.surrogate import PairwiseSurrogate
from ...hw_profiles.surrogate.surrogate_fit import Rows, fit_surrogate
from ...hw_profiles.surrogate.surrogate_terms import Edges, Structure
from ...spaces.design_policies import design_policies, structures_of
from ...spaces.layer import Group
from ...spaces.rules import tie_layers
from ...spaces.space import GraphOptions, Space
from ...spaces.treatment import QUANTIZE_OPTIONS
from ..minilm import MiniLmClassifier

#: options of a linear layer and of an embedding, as in the recipes `minilm-spam` and `minilm-spam-openvino`
_LINEAR = {
    "onnxruntime": ("none", "int8", "int8_dynamic", "int8_weight"),
    "openvino": ("none", "int8", "int8_weight"),
}
_EMBEDDING = ("none", "int8_weight", "float16")
_N_POLICIES = 1_000_000
_N_GATHERED = 100_000
_N_REPEATS = 7
_N_ROWS = 512


def main() -> None:
    """Prints the table."""
    prepared = _prepare()
    table = Table(title=f"surrogate of MiniLM, one thread, median of {_N_REPEATS} (min–max)", title_justify="left")
    headings = ("space", "terms", "10⁶ policies/s", "one look-up a cost", "tables built", "fitted", "target")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "space" else "right")
    for runtime in _LINEAR:
        groups = tie_layers(prepared.layers)
        edges = find_edges(prepared, groups)
        space = _space(prepared, groups, runtime)
        for structure in structures_of(space, edges):
            table.add_row(*_measure(runtime, space, structure, edges))
    Console(width=120).print(table)


def _measure(runtime: str, space: Space, structure: Structure, edges: Edges) -> list[str]:
    rng = np.random.default_rng(0)
    surrogate = PairwiseSurrogate(*structure.tables(rng.normal(size=structure.n_terms)))
    sizes = list(space.dimensions.values())
    vectors = rng.integers(0, sizes, (_N_POLICIES, len(sizes)), dtype=np.uint8)
    few = vectors[:_N_GATHERED]
    if not np.allclose(surrogate.price(few), _gather(surrogate, few)):
        raise RuntimeError("joint tables must price as look-ups do")
    fast = _rates(lambda: surrogate.price(vectors), _N_POLICIES)
    plain = _rates(lambda: _gather(surrogate, few), _N_GATHERED)
    start_s = time.perf_counter()
    build_joint_tables(surrogate.unary, surrogate.boundary, surrogate.constant)
    built_s = time.perf_counter() - start_s
    design = design_policies(space, structure, seed=0, n_policies=_N_ROWS)
    seconds = surrogate.price(design.vectors)
    start_s = time.perf_counter()
    fit_surrogate(structure, Rows(design.vectors, seconds, np.zeros(_N_ROWS)))
    fitted_s = time.perf_counter() - start_s
    kind = "pairs" if len(structure.edges) == len(edges.pairs) else "pairs and chains"
    return [
        f"{runtime}, {len(space.groups)} groups, {len(structure.edges)} edges ({kind})",
        str(structure.n_terms),
        fast,
        plain,
        f"{built_s * 1e3:.0f} ms",
        f"{fitted_s:.1f} s",
        "≥ 1",
    ]


def _rates(run: Callable[[], object], n_policies: int) -> str:
    run()
    rates = []
    for _ in range(_N_REPEATS):
        start_s = time.perf_counter()
        run()
        rates.append(n_policies / (time.perf_counter() - start_s) / 1e6)
    return f"{statistics.median(rates):.2f} ({min(rates):.2f}–{max(rates):.2f})"


def _gather(surrogate: PairwiseSurrogate, vectors: np.ndarray) -> np.ndarray:
    """Prices as the definition says: one look-up for each group and each edge."""
    prices = np.full(len(vectors), surrogate.constant)
    for group, costs in enumerate(surrogate.unary):
        prices += costs[vectors[:, group]]
    for edge, table in surrogate.boundary.items():
        prices += table[tuple(vectors[:, group] for group in edge)]
    return prices


def _space(prepared: PreparedModel, groups: tuple[Group, ...], runtime: str) -> Space:
    kinds = {layer.name: layer.kind for layer in prepared.layers}
    options = []
    for group in groups:
        names = _EMBEDDING if kinds[group.layers[0]] == "embedding" else _LINEAR[runtime]
        names = ("none",) if group.name == "probe" else names
        options.append(tuple(QUANTIZE_OPTIONS[name] for name in names))
    calibration = ("minmax", "percentile", "entropy", "mse")
    return Space(groups, tuple(options), GraphOptions(calibration=calibration))


def _prepare() -> PreparedModel:
    torch.manual_seed(0)
    tokens = {"input_ids": np.ones((1, 128), np.int64), "attention_mask": np.ones((1, 128), np.int64)}
    example = {name: torch.from_numpy(array) for name, array in tokens.items()}
    return prepare_model(load_source((MiniLmClassifier().eval(), example)), tokens)


if __name__ == "__main__":
    main()
