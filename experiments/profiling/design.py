"""Which policies to measure for a profile, and which to test it on."""

from dataclasses import replace
from itertools import product

import numpy as np

from ...hw_profiles.surrogate.surrogate_terms import Edges
from ...search.baselines import list_baselines
from ...spaces.design_policies import design_policies, structures_of
from ...spaces.policy import Policy
from ...spaces.space import Space


def draw_mixed(space: Space, rng: np.random.Generator) -> Policy:
    """Draws a policy with a random share of treated groups: drawing every group by itself would give halves only.

    Calibration changes numbers, never kernels, so it stays the first on offer.
    """
    sizes = np.array(list(space.dimensions.values()))
    vector = rng.integers(0, sizes)
    vector[list(space.dimensions).index("graph:calibration")] = 0
    share = rng.random()
    for position, options in enumerate(space.options):
        labels = [option.label for option in options]
        plain = labels.index("none") if "none" in labels else 0
        others = [entry for entry in range(len(labels)) if entry != plain]
        vector[position] = rng.choice(others) if others and rng.random() < share else plain
    return space.decode(vector)


def list_candidates(space: Space, edges: Edges, *, n_policies: int, seed: int) -> tuple[Policy, ...]:
    """Returns policies to choose from: the uniform ones, then half designed along the edges and half mixed.

    The designed ones go through the combinations of fusion, quantised operators and precision in turn.

    Args:
        space: what is on offer.
        edges: groups that share kernels.
        n_policies: how many beside the uniform ones.
        seed: the same seed gives the same policies.
    """
    first = space.graph.calibration[0]
    uniform = (policy for _, policy in list_baselines(space))
    found = dict.fromkeys(Policy(dict(policy.groups), replace(policy.graph, calibration=first)) for policy in uniform)
    structure = structures_of(space, edges)[0]
    vectors = design_policies(space, structure, seed=seed, n_policies=max(1, n_policies // 2)).vectors.copy()
    graph = space.graph
    combinations = list(
        product(range(len(graph.fusion)), [0], range(len(graph.quantized_ops)), range(len(graph.precision)))
    )
    for position, vector in enumerate(vectors):
        vector[len(space.groups) :][:4] = combinations[position % len(combinations)]
    found.update(dict.fromkeys(space.decode(vector).untrained for vector in vectors))
    rng = np.random.default_rng(seed)
    found.update(dict.fromkeys(draw_mixed(space, rng).untrained for _ in range(n_policies // 2)))
    return tuple(found)
