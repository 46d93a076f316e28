"""Which policies to measure for a profile, and which to test it on."""

from collections.abc import Sequence

import numpy as np

from ...spaces.policy import GraphTreatment, Policy
from ...spaces.space import Space


def draw_mixed(space: Space, rng: np.random.Generator) -> Policy:
    """Draws a policy with a random share of treated groups: drawing every group by itself would give halves only."""
    sizes = np.array(list(space.dimensions.values()))
    n_groups = len(space.groups)
    vector = rng.integers(0, sizes)
    is_treated = rng.random(n_groups) < rng.random()
    for position in range(n_groups):
        plain = _untouched(space, position)
        others = [entry for entry in range(sizes[position]) if entry != plain]
        vector[position] = rng.choice(others) if is_treated[position] and others else plain
    return space.decode(vector)


def _untouched(space: Space, position: int) -> int:
    """Returns the entry that leaves the group as it is, or the first where that is not on offer."""
    labels = [option.label for option in space.options[position]]
    return labels.index("none") if "none" in labels else 0


def list_uniform(space: Space) -> tuple[Policy, ...]:
    """Returns every treatment given to all groups that offer it, under every graph-wide choice that costs time."""
    treatments = dict.fromkeys(option for options in space.options for option in options)
    found: dict[Policy, None] = {}
    for graph in list_graph_treatments(space):
        for treatment in treatments:
            found.setdefault(space.uniform(treatment, graph))
    return tuple(found)


def list_graph_treatments(space: Space) -> tuple[GraphTreatment, ...]:
    """Returns the graph-wide choices on offer; calibration changes numbers, never kernels, so it stays the first."""
    offered = space.graph
    return tuple(
        GraphTreatment(fusion, offered.calibration[0], ops, precision)
        for precision in offered.precision
        for fusion in offered.fusion
        for ops in offered.quantized_ops
    )


def list_candidates(
    space: Space, edges: Sequence[tuple[int, int]], n_mixed: int, rng: np.random.Generator
) -> tuple[Policy, ...]:
    """Returns policies to choose from: uniform ones, those that put a border on every edge, and mixed ones.

    Args:
        space: what is on offer.
        edges: pairs of positions of groups that share kernels.
        n_mixed: how many mixed policies to draw.
        rng: randomness.
    """
    found = dict.fromkeys(list_uniform(space))
    found.update(dict.fromkeys(_cut_edges(space, edges, rng)))
    found.update(dict.fromkeys(draw_mixed(space, rng) for _ in range(n_mixed)))
    return tuple(found)


def _cut_edges(space: Space, edges: Sequence[tuple[int, int]], rng: np.random.Generator) -> list[Policy]:
    """Returns policies in which the groups alternate, so that many edges carry a border at once.

    Groups are two-coloured along the edges where that is possible; each colour in turn keeps its treatment.
    """
    colours: dict[int, int] = {}
    for first, second in edges:
        colours.setdefault(first, 0)
        colours.setdefault(second, 1 - colours[first])
    policies = []
    for graph in list_graph_treatments(space):
        for treated in (0, 1):
            chosen = {}
            for position, (group, options) in enumerate(zip(space.groups, space.options, strict=True)):
                others = [option for option in options if option.label != "none"]
                if others and colours.get(position, 0) == treated:
                    chosen[group.name] = others[int(rng.integers(len(others)))]
            policies.append(Policy(chosen, graph))
    return policies
