import itertools

import numpy as np
import pytest
from trimtab.core.errors import SpecError
from trimtab.hw_profiles.surrogate.joint_tables import cover_edges
from trimtab.hw_profiles.surrogate.surrogate import PairwiseSurrogate
from trimtab.hw_profiles.surrogate.surrogate_fit import (
    Belief,
    Rows,
    TableError,
    belief_of,
    fit_best,
    fit_surrogate,
    measured_prior,
    refit,
)
from trimtab.hw_profiles.surrogate.surrogate_terms import Edges, Structure


def random_tables(rng, sizes, edges):
    """A constant and tables without a reference: any sum over groups and edges."""
    unary = tuple(rng.normal(size=size) for size in sizes)
    return 5.0, unary, {edge: rng.normal(size=[sizes[group] for group in edge]) for edge in edges}


def brute_force(tables, vectors):
    constant, unary, boundary = tables
    return np.array(
        [
            constant
            + sum(costs[v[g]] for g, costs in enumerate(unary))
            + sum(table[tuple(v[g] for g in edge)] for edge, table in boundary.items())
            for v in vectors
        ]
    )


def every_vector(sizes):
    return np.array(list(itertools.product(*map(range, sizes))))


def rows_of(vectors, seconds, error=0.0):
    return Rows(vectors, np.asarray(seconds), np.full(len(vectors), error))


SIZES = (2, 3, 1, 4, 2)
EDGES = ((0, 1), (1, 3), (0, 4), (3, 4), (1, 3, 4))


# -- pricing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("edges", [(), EDGES], ids=["no edges", "pairs and a triple"])
def test_prices_are_the_sum_of_the_tables(dtype, edges):
    tables = random_tables(np.random.default_rng(0), SIZES, edges)
    vectors = every_vector(SIZES)
    prices = PairwiseSurrogate(*tables).price(vectors.astype(dtype))
    np.testing.assert_allclose(prices, brute_force(tables, vectors), rtol=1e-12)


def test_large_spaces_are_priced_in_several_tables_and_chunks():
    rng = np.random.default_rng(1)
    sizes = (4,) * 30
    edges = tuple((g, g + step) for step in (1, 2, 7) for g in range(30 - step))
    tables = random_tables(rng, sizes, edges)
    vectors = rng.integers(0, 4, (5000, 34), dtype=np.uint8)
    surrogate = PairwiseSurrogate(*tables)
    assert len(surrogate.tables.offsets) > 5
    np.testing.assert_allclose(surrogate.price(vectors), brute_force(tables, vectors), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_cover_holds_every_edge_and_group(seed):
    rng = np.random.default_rng(seed)
    sizes = [int(size) for size in rng.integers(1, 6, 20)]
    edges = [tuple(sorted(rng.choice(20, 2 + i % 2, replace=False).tolist())) for i in range(30)]
    blocks = cover_edges(sizes, edges, max_entries=500)
    assert all(any(set(edge) <= set(block) for block in blocks) for edge in edges)
    assert set().union(*blocks) == set(range(20))
    # a block may exceed the limit only to hold one edge
    assert all(np.prod([sizes[g] for g in block]) <= 500 or len(block) <= 3 for block in blocks)


def test_neighbours_are_priced_as_their_vectors():
    tables = random_tables(np.random.default_rng(2), SIZES, EDGES)
    surrogate, vector = PairwiseSurrogate(*tables), np.array([1, 2, 0, 3, 0])
    prices = surrogate.price_neighbours(vector)
    for group, size in enumerate(SIZES):
        for option in range(size):
            neighbour = vector.copy()
            neighbour[group] = option
            assert prices[group, option] == pytest.approx(surrogate.price(neighbour[None])[0])
        assert np.isinf(prices[group, size:]).all()


def test_no_policies_cost_an_empty_array():
    surrogate = PairwiseSurrogate(*random_tables(np.random.default_rng(0), SIZES, EDGES))
    assert (len(surrogate.price(np.zeros((0, 5), int))), len(surrogate.standard_error(np.zeros((0, 5), int)))) == (0, 0)


@pytest.mark.parametrize("edge", [(1, 0), (0, 0)])
def test_a_boundary_names_ascending_groups(edge):
    with pytest.raises(SpecError, match="ascending"):
        PairwiseSurrogate(0.0, (np.zeros(2), np.zeros(2)), {edge: np.zeros((2, 2))})


# -- terms ----------------------------------------------------------------------------------------


def test_the_terms_reach_every_sum_of_tables_and_nothing_twice():
    # all pairs inside the triple are edges, so the terms span exactly the sums of tables
    structure = Structure((2, 3, 4), ((0, 1), (0, 2), (1, 2), (0, 1, 2)))
    features = structure.features(every_vector(structure.sizes))
    assert structure.n_terms == 2 * 3 * 4 == np.linalg.matrix_rank(features)


def test_tables_price_as_the_terms_do():
    structure = Structure(SIZES, EDGES)
    terms = np.random.default_rng(3).normal(size=structure.n_terms)
    vectors = every_vector(SIZES)
    surrogate = PairwiseSurrogate(*structure.tables(terms))
    np.testing.assert_allclose(surrogate.price(vectors), structure.features(vectors) @ terms, rtol=1e-10, atol=1e-10)


def test_chains_bring_the_pairs_inside_them():
    edges = Edges(((0, 1), (1, 2)), ((0, 1, 2),))
    assert edges.with_chains == ((0, 1), (1, 2), (0, 2), (0, 1, 2))


def test_terms_are_alike_where_labels_and_distances_are():
    structure = Structure((2, 2, 2, 2), ((0, 1), (2, 3), (0, 3)), ("a", "b", "a", "b"))
    constant, a, b, a2, b2, near, near2, far = structure.kinds
    assert (a == a2, b == b2, near == near2) == (True, True, True)
    assert len({constant, a, b, near, far}) == 5


@pytest.mark.parametrize("edges", [((1, 0),), ((0, 9),), ((0,),), ((0, 1), (0, 1))])
def test_edges_that_are_no_pairs_of_groups_are_refused(edges):
    with pytest.raises(SpecError, match="edge"):
        Structure((2, 2), edges)


# -- fitting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("edges", [EDGES[:4], ((0, 1), (0, 4), (1, 3), (1, 4), (3, 4), (1, 3, 4))])
def test_a_fit_to_exact_prices_is_exact_on_policies_it_did_not_see(edges):
    rng = np.random.default_rng(4)
    tables = random_tables(rng, SIZES, edges)
    everything = rng.permutation(every_vector(SIZES))
    structure, seen = Structure(SIZES, edges), everything[:42]
    assert np.linalg.matrix_rank(structure.features(seen)) == structure.n_terms
    surrogate = fit_surrogate(structure, rows_of(seen, brute_force(tables, seen)))
    np.testing.assert_allclose(surrogate.price(everything), brute_force(tables, everything), rtol=1e-5)


def test_collinear_rows_leave_their_sum_known_and_their_parts_uncertain():
    structure = Structure((2, 2), ())
    vectors = np.array([[0, 0], [1, 1]] * 4)
    rows = rows_of(vectors, [5.0, 7.0] * 4, error=0.01)
    surrogate = fit_surrogate(structure, rows)
    errors = surrogate.standard_error(np.array([[1, 1], [0, 1]]))
    assert surrogate.price(np.array([[1, 1]]))[0] == pytest.approx(7.0, abs=0.05)
    assert errors[1] > 10 * errors[0]


def test_refitting_equals_fitting_to_everything_at_once():
    rng = np.random.default_rng(5)
    structure = Structure((3,) * 6, tuple((g, g + 1) for g in range(5)))
    vectors = rng.integers(0, 3, (90, 6))
    seconds = brute_force(random_tables(rng, structure.sizes, structure.edges), vectors) + rng.normal(0, 0.05, 90)
    prior = Belief(structure, np.zeros(structure.n_terms), np.eye(structure.n_terms), 0.05)
    at_once = prior.updated(rows_of(vectors, seconds, 0.05))
    in_turn = prior
    for part in np.array_split(np.arange(90), 7):
        in_turn = in_turn.updated(rows_of(vectors[part], seconds[part], 0.05))
    np.testing.assert_allclose(in_turn.mean, at_once.mean, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(in_turn.variance(vectors), at_once.variance(vectors), rtol=1e-8)


def test_standard_errors_cover_the_errors_made():
    rng = np.random.default_rng(6)
    structure = Structure((3,) * 10, tuple((g, g + 1) for g in range(9)))
    tables = random_tables(rng, structure.sizes, structure.edges)
    vectors = rng.integers(0, 3, (400, 10))
    noisy = brute_force(tables, vectors) + rng.normal(0, 0.3, 400)
    surrogate = fit_surrogate(structure, rows_of(vectors[:200], noisy[:200]))
    scores = (noisy[200:] - surrogate.price(vectors[200:])) / surrogate.standard_error(vectors[200:])
    # of 200 draws from a normal distribution, the root mean square lies within 1 ± 0.15 in 99.7 % of cases
    assert 0.8 < np.sqrt((scores**2).mean()) < 1.2


def test_groups_that_are_alike_need_fewer_prices():
    rng = np.random.default_rng(7)
    edges = tuple((g, g + 1) for g in range(23))
    one, pair = rng.normal(size=4), rng.normal(size=(4, 4))
    tables = (5.0, (one,) * 24, dict.fromkeys(edges, pair))
    vectors = rng.integers(0, 4, (300, 24))
    truth = brute_force(tables, vectors)
    rows = rows_of(vectors[:60], truth[:60])

    def error(labels):
        surrogate = fit_surrogate(Structure((4,) * 24, edges, labels), rows)
        return np.abs(surrogate.price(vectors[60:]) - truth[60:]).mean()

    # 1,100 terms and 60 prices; a quarter of the error is left on this draw
    assert error(("same",) * 24) < 0.35 * error(())


def test_the_structure_that_explains_the_prices_is_chosen():
    rng = np.random.default_rng(8)
    pairs = Structure((2,) * 8, tuple((g, g + 1) for g in range(7)))
    triples = tuple((g, g + 1, g + 2) for g in range(6))
    full = Structure(pairs.sizes, Edges(pairs.edges, triples).with_chains)
    vectors = rng.integers(0, 2, (150, 8))
    for truth in (pairs, full):
        seconds = brute_force(random_tables(rng, truth.sizes, truth.edges), vectors) + rng.normal(0, 0.02, 150)
        assert belief_of(fit_best((pairs, full), rows_of(vectors, seconds))).structure == truth


def test_what_is_known_of_one_combination_helps_with_another():
    rng = np.random.default_rng(9)
    structure = Structure((3,) * 12, tuple((g, g + 1) for g in range(11)))
    constant, unary, boundary = random_tables(rng, structure.sizes, structure.edges)
    other = (2 * constant, tuple(2.2 * costs for costs in unary), {edge: 1.9 * t for edge, t in boundary.items()})
    vectors = rng.integers(0, 3, (400, 12))
    first = fit_surrogate(structure, rows_of(vectors, brute_force((constant, unary, boundary), vectors)))
    few, truth = vectors[:25], brute_force(other, vectors)
    alone, helped = (
        np.abs(fit_surrogate(structure, rows_of(few, truth[:25]), like=like).price(vectors) - truth).mean()
        for like in (None, belief_of(first))
    )
    assert helped < 0.5 * alone


def test_no_rows_and_tables_that_were_not_fitted_are_refused():
    structure = Structure((2,), ())
    with pytest.raises(SpecError, match="at least one price"):
        fit_surrogate(structure, rows_of(np.zeros((0, 1), int), []))
    with pytest.raises(SpecError, match="was fitted"):
        refit(PairwiseSurrogate(0.0, (np.zeros(2),), {}), rows_of(np.zeros((1, 1), int), [1.0]))
    with pytest.raises(SpecError, match="finite"):
        rows_of(np.zeros((1, 1), int), [np.nan])


# -- from level 2 to measurements -----------------------------------------------------------------


def fitted_to_level2(rng):
    structure = Structure((3,) * 10, tuple((g, g + 1) for g in range(9)))
    vectors = rng.integers(0, 3, (300, 10))
    terms = np.r_[5.0, rng.normal(0, 0.2, structure.n_terms - 1)]
    level2 = structure.features(vectors) @ terms
    return fit_surrogate(structure, rows_of(vectors, level2)), vectors, level2


def test_a_few_measurements_correct_the_scale_of_every_price():
    surrogate, vectors, level2 = fitted_to_level2(np.random.default_rng(10))
    prior = measured_prior(belief_of(surrogate))
    after = prior.updated(rows_of(vectors[:8], 1.25 * level2[:8], 0.02))
    prices = after.structure.features(vectors) @ after.mean
    assert np.abs(prices / (1.25 * level2) - 1).max() < 0.03
    assert np.sqrt(after.variance(vectors)).mean() < 0.5 * np.sqrt(prior.variance(vectors)).mean()


def test_many_measurements_correct_single_terms():
    rng = np.random.default_rng(11)
    surrogate, vectors, level2 = fitted_to_level2(rng)
    wrong = level2 + 0.3 * (vectors[:, 4] == 1)
    after = measured_prior(belief_of(surrogate), TableError(term=0.5)).updated(rows_of(vectors, wrong, 0.01))
    prices = after.structure.features(vectors) @ after.mean
    assert np.abs(prices - wrong).max() < 0.03


def test_measurements_outweigh_prices_of_level_2():
    surrogate, vectors, level2 = fitted_to_level2(np.random.default_rng(12))
    # 300 rows of level 2 against one measurement, of a policy that they priced exactly
    after = measured_prior(belief_of(surrogate)).updated(rows_of(vectors[:1], 1.1 * level2[:1], 0.01))
    price = (after.structure.features(vectors[:1]) @ after.mean)[0]
    assert price == pytest.approx(1.1 * level2[0], rel=0.005)
