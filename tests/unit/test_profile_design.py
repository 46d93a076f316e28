"""Which policies a profile measures, and which it is tested on."""

import numpy as np
import pytest
from trimtab.experiments.profiling.design import draw_mixed, list_candidates
from trimtab.hw_profiles.surrogate.surrogate_terms import Edges
from trimtab.spaces.layer import Group
from trimtab.spaces.space import GraphOptions, Space
from trimtab.spaces.treatment import QUANTIZE_OPTIONS

NONE, INT8, WEIGHT = (QUANTIZE_OPTIONS[name] for name in ("none", "int8", "int8_weight"))


@pytest.fixture
def space():
    groups = tuple(Group(f"g{i}", (f"g{i}",)) for i in range(8))
    graph = GraphOptions(calibration=("minmax", "mse"), quantized_ops=((), ("add",)), precision=("float32", "bfloat16"))
    return Space(groups, ((NONE, INT8, WEIGHT),) * 7 + ((NONE,),), graph)


@pytest.fixture
def edges():
    return Edges(tuple((i, i + 1) for i in range(7)))


def test_mixed_policies_are_in_the_space_and_of_every_density(space):
    rng = np.random.default_rng(0)
    policies = [draw_mixed(space, rng) for _ in range(200)]
    assert all(space.contains(policy) for policy in policies)
    # drawing each of 7 groups by itself would leave none or all of them treated once in 729 or in 18 policies
    counts = [len(policy.groups) for policy in policies]
    assert min(counts.count(n) for n in range(8)) >= 5


def test_candidates_differ_and_hold_every_uniform_policy(space, edges):
    candidates = list_candidates(space, edges, n_policies=24, seed=0)
    assert len(set(candidates)) == len(candidates) >= 24
    assert all(space.contains(policy) for policy in candidates)
    for treatment in (INT8, WEIGHT):
        assert space.uniform(treatment) in candidates


def test_candidates_leave_calibration_alone(space, edges):
    assert {policy.graph.calibration for policy in list_candidates(space, edges, n_policies=24, seed=0)} == {"minmax"}


def test_candidates_see_every_other_choice_for_the_graph(space, edges):
    seen = {
        (policy.graph.quantized_ops, policy.graph.precision)
        for policy in list_candidates(space, edges, n_policies=24, seed=0)
    }
    assert seen == {(ops, precision) for ops in space.graph.quantized_ops for precision in space.graph.precision}


def test_the_same_seed_gives_the_same_candidates(space, edges):
    first, again, other = (list_candidates(space, edges, n_policies=24, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
