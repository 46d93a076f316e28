import numpy as np
import pytest
from trimtab.hw_profiles.surrogate.surrogate_design import (
    balanced_design,
    choose_by_information,
    identify,
    uniform_vectors,
)
from trimtab.hw_profiles.surrogate.surrogate_fit import Belief, Rows, fit_surrogate
from trimtab.hw_profiles.surrogate.surrogate_terms import Edges, Structure
from trimtab.spaces.design_policies import design_measurements, design_policies, structures_of
from trimtab.spaces.layer import Group
from trimtab.spaces.space import GraphOptions, Space
from trimtab.spaces.treatment import QUANTIZE_OPTIONS


def random_structure(seed, n_groups=16):
    rng = np.random.default_rng(seed)
    sizes = tuple(int(size) for size in rng.integers(2, 5, n_groups))
    far = {tuple(sorted(rng.choice(n_groups, 2, replace=False).tolist())) for _ in range(n_groups)}
    return Structure(sizes, tuple(sorted(far | {(g, g + 1) for g in range(n_groups - 1)})))


def space_of(structure, graph=None):
    treatments = list(QUANTIZE_OPTIONS.values())
    groups = tuple(Group(f"g{i}", (f"g{i}",)) for i in range(len(structure.sizes)))
    return Space(groups, tuple(tuple(treatments[:size]) for size in structure.sizes), graph or GraphOptions())


def random_vectors(structure, n, seed):
    return np.random.default_rng(seed).integers(0, structure.sizes, (n, len(structure.sizes)))


@pytest.mark.parametrize("seed", range(6))
def test_a_design_identifies_every_term_of_a_random_graph(seed):
    structure = random_structure(seed)
    design = design_policies(space_of(structure), structure, seed=0)
    assert design.identification.is_complete
    assert len(design.policies) <= 3 * structure.n_terms


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rows_per_term", [1.5, 2.5])
def test_a_design_is_better_than_random_policies(seed, rows_per_term):
    structure = random_structure(seed)
    n = int(rows_per_term * structure.n_terms)
    asked = random_vectors(structure, 256, 99)
    design = design_policies(space_of(structure), structure, seed=seed, n_policies=n)
    ours = identify(structure, design.vectors, asked)
    others = [identify(structure, random_vectors(structure, n, other), asked) for other in range(5)]
    assert ours.log_det > max(other.log_det for other in others)
    assert ours.max_variance < np.median([other.max_variance for other in others])


def test_prices_of_a_design_predict_others_better_than_prices_of_random_policies():
    # judged over ten graphs with 1.3 rows a term: the root mean square error falls by about 15 % on average
    ratios = []
    for seed in range(10):
        structure = random_structure(seed, n_groups=10)
        rng = np.random.default_rng(seed)
        terms = np.r_[10.0, rng.normal(size=structure.n_terms - 1)]
        n = int(1.3 * structure.n_terms)
        held_out = random_vectors(structure, 500, 77)
        errors = []
        for vectors in (
            design_policies(space_of(structure), structure, seed=seed, n_policies=n).vectors,
            random_vectors(structure, n, seed),
        ):
            seconds = structure.features(vectors) @ terms + rng.normal(0, 0.1, n)
            surrogate = fit_surrogate(structure, Rows(vectors, seconds, np.full(n, 0.1)))
            errors.append(np.sqrt(((surrogate.price(held_out) - structure.features(held_out) @ terms) ** 2).mean()))
        ratios.append(errors[0] / errors[1])
    assert np.exp(np.log(ratios).mean()) < 0.95


def test_neighbouring_options_meet_equally_often():
    structure = Structure((2, 3, 4), ((0, 1), (1, 2)))
    design = balanced_design(structure, 240, np.random.default_rng(0))
    for first, second in structure.edges:
        counts = np.zeros((structure.sizes[first], structure.sizes[second]))
        np.add.at(counts, (design[:, first], design[:, second]), 1)
        assert np.ptp(counts) <= 4


def test_the_same_seed_gives_the_same_design_and_another_one_another():
    structure = random_structure(0)
    first, again, other = (design_policies(space_of(structure), structure, seed=seed).vectors for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_uniform_policies_come_first_and_graph_choices_are_kept():
    structure = Structure((2, 3), ((0, 1),))
    space = space_of(structure, GraphOptions(precision=("float32", "bfloat16")))
    design = design_policies(space, structure, seed=0, graph=(0, 0, 0, 1))
    assert design.vectors[:3, :6].tolist() == [[0, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 1], [1, 2, 0, 0, 0, 1]]
    assert not design.vectors[:, 6:].any()
    assert {policy.graph.precision for policy in design.policies} == {"bfloat16"}
    assert uniform_vectors((2, 3)).tolist() == [[0, 0], [1, 1], [1, 2]]


def test_a_space_has_one_structure_and_another_with_chains():
    space = space_of(Structure((2, 3, 2), ()))
    assert [s.n_terms for s in structures_of(space, Edges(((0, 1), (1, 2))))] == [9]
    assert [s.n_terms for s in structures_of(space, Edges(((0, 1), (1, 2)), ((0, 1, 2),)))] == [9, 9 + 1 + 2]


def test_policies_to_measure_leave_less_uncertain_than_random_ones():
    structure = random_structure(3)
    rng = np.random.default_rng(0)
    precision = np.diag(1 / rng.uniform(0.1, 1.0, structure.n_terms) ** 2)
    belief = Belief(structure, np.zeros(structure.n_terms), precision, 0.0)
    pool = random_vectors(structure, 400, 5)

    def left(vectors):
        after = belief.updated(Rows(vectors, np.zeros(len(vectors)), np.full(len(vectors), 0.1)))
        return np.linalg.slogdet(after.covariance)[1]

    space = space_of(structure)
    candidates = np.concatenate([pool, np.zeros((400, 4), int)], axis=1)
    design = design_measurements(space, belief, n_policies=20, candidates=candidates, noise_s=0.1)
    assert len({tuple(vector) for vector in design.vectors}) == 20
    assert left(design.vectors) < min(left(pool[start : start + 20]) for start in range(0, 400, 20))


def test_the_greedy_choice_is_the_best_first_policy():
    structure = Structure((2, 2), ())
    belief = Belief(structure, np.zeros(3), np.diag([1.0, 1.0, 0.01]), 0.0)  # the second group is hardly known
    chosen = choose_by_information(belief, np.array([[0, 0], [1, 0], [0, 1], [1, 1]]), 2, 0.1)
    assert chosen == [3, 1]  # then: x Σ xᵀ given the first is largest without the second group
