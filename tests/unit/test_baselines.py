"""In which order the bar to beat is measured."""

from dataclasses import replace

import numpy as np
import pytest
from trimtab.search.baselines import list_baselines, promising_first
from trimtab.search.knowledge import Knowledge
from trimtab.search.solver.additive_cost import AdditiveCost
from trimtab.search.testing import informed_problem, small_problem
from trimtab.spaces.policy import Policy

BLIND = small_problem(n_groups=2)
#: (options of both groups) → what is known: the third option is the fastest, the second the smallest
KNOWN = Knowledge(
    latency={(0,) * (len(BLIND.space.dimensions) - 2): AdditiveCost(1.0, (np.array([0.0, -0.1, -0.4, -0.2]),) * 2)},
    size_bytes=AdditiveCost(1e6, (np.array([0.0, -4e5, -1e5, -2e5]),) * 2),
)


def options_in_order(problem):
    """Which option each uniform policy takes everywhere, in the order in which they are tried."""
    found = promising_first(list_baselines(problem.space), problem)
    return [int(problem.space.encode(policy)[0]) for _, policy in found]


def test_what_is_known_to_be_fast_comes_first_after_the_original():
    assert options_in_order(replace(BLIND, knowledge=KNOWN)) == [0, 2, 3, 1]


def test_what_is_known_to_be_small_comes_first_where_that_is_wanted():
    assert options_in_order(replace(BLIND, knowledge=KNOWN, objective="size")) == [0, 1, 3, 2]


def test_where_nothing_is_known_what_computes_in_integers_comes_first():
    ordered = [policy for _, policy in promising_first(list_baselines(BLIND.space), BLIND)]
    in_integers = [any(t.activation_dtype == "int8" for _, t in policy.groups) for policy in ordered]
    assert ordered[0] == Policy({})
    assert in_integers[1:] == sorted(in_integers[1:], reverse=True)
    assert set(in_integers) == {True, False}


def test_nothing_moves_where_accuracy_is_wanted():
    listed = list_baselines(BLIND.space)
    assert promising_first(listed, replace(BLIND, knowledge=KNOWN, objective="accuracy")) == listed


@pytest.mark.parametrize("problem", [BLIND, informed_problem()], ids=["blind", "informed"])
def test_no_baseline_is_lost(problem):
    listed = list_baselines(problem.space)
    assert sorted(label for label, _ in promising_first(listed, problem)) == sorted(label for label, _ in listed)


def test_a_policy_that_the_space_does_not_hold_comes_last():
    stranger = ("stranger", Policy({"elsewhere": list(BLIND.space.options[0])[1]}))
    listed = list_baselines(BLIND.space)
    assert promising_first((listed[0], stranger, *listed[1:]), BLIND)[-1] == stranger
