"""Prices of graphs: sums, corrections, error bars, and which graph to measure next."""

import numpy as np
import pytest
from trimtab.hw_profiles.kernels.kernel import Kernel, Tensor
from trimtab.hw_profiles.kernels.kernel_table import KernelTable
from trimtab.hw_profiles.prices.price_list import PriceList, build_pricer
from trimtab.hw_profiles.prices.pricing import GraphPricer, KernelPrice, MeasuredGraph
from trimtab.hw_profiles.testing import synthetic_identity

RNG = np.random.default_rng(0)


def _kernel(op, side):
    return Kernel(op, (Tensor("float32", (1, side)),), (Tensor("float32", (1, side)),))


KERNELS = [_kernel(op, side) for op in ("Conv", "Add", "QuantizeLinear") for side in (8, 16, 32, 64)]


class Prices:
    """Knows what each kernel takes; those that it was not told are guessed with a wide error."""

    def __init__(self, seconds):
        self.seconds = seconds

    def price(self, kernels):
        known = [self.seconds.get(kernel) for kernel in kernels]
        return [KernelPrice(1e-5, 1.0, "model") if s is None else KernelPrice(s, 0.01, "table") for s in known]


SECONDS = {kernel: 1e-5 * (i + 1) for i, kernel in enumerate(KERNELS)}


def _draw_counts():
    chosen = RNG.choice(len(KERNELS), 6, replace=False)
    return {KERNELS[i]: int(RNG.integers(1, 4)) for i in chosen}


def _sum(counts):
    return sum(n * SECONDS[kernel] for kernel, n in counts.items())


def test_without_measurements_a_price_is_the_sum():
    counts = _draw_counts()
    assert GraphPricer(Prices(SECONDS)).price(counts).seconds == pytest.approx(_sum(counts))


def test_a_common_factor_and_a_cost_per_kernel_are_learnt():
    # the truth that the model of the residual is made for: 12 % slower in place, 0.8 µs between kernels, 15 µs a call
    def true_s(counts):
        return 1.12 * _sum(counts) + 0.8e-6 * sum(counts.values()) + 15e-6

    measured = [MeasuredGraph(counts, true_s(counts), "m") for counts in (_draw_counts() for _ in range(30))]
    pricer = GraphPricer(Prices(SECONDS), measured)
    errors = [pricer.price(c, model="m").seconds / true_s(c) - 1 for c in (_draw_counts() for _ in range(50))]
    assert np.abs(errors).max() < 0.02


def test_prices_are_those_of_the_textbook_regression():
    """Bishop 2006, equations 3.53, 3.54 and 3.59, solved in the primal form with the prior of the module."""
    graphs = [{KERNELS[0]: 1, KERNELS[4]: 2}, {KERNELS[1]: 1}, {KERNELS[0]: 2, KERNELS[1]: 1}]
    seen_s = np.array([7e-5, 3e-5, 5e-5])
    asked = {KERNELS[0]: 1, KERNELS[1]: 3}
    pricer = GraphPricer(Prices(SECONDS), [MeasuredGraph(g, s, "m") for g, s in zip(graphs, seen_s, strict=True)])

    def features(counts):
        # one column per term: device, 2 classes, 3 kernels, model, 2 classes in the model, overhead, call
        t = np.array([counts.get(KERNELS[i], 0) * SECONDS[KERNELS[i]] for i in (0, 1, 4)])
        classes = np.array([t[0] + t[1], t[2]])
        kernel_share = np.hypot(0.05, 0.01)
        return np.concatenate([
            [0.2 * t.sum()], 0.1 * classes, kernel_share * t, [0.04 * t.sum()], 0.04 * classes,
            [1e-6 * sum(counts.values()), 20e-6],
        ])  # fmt: skip

    design = np.array([features(g) for g in graphs])
    noise = np.diag(1.0 / (0.015 * seen_s) ** 2)
    precision = np.eye(design.shape[1]) + design.T @ noise @ design
    gap = seen_s - np.array([_sum(g) for g in graphs])
    weights = np.linalg.solve(precision, design.T @ noise @ gap)
    expected_s = _sum(asked) + features(asked) @ weights
    variance = features(asked) @ np.linalg.solve(precision, features(asked)) + (0.015 * expected_s) ** 2
    price = pricer.price(asked, model="m")
    assert price.seconds == pytest.approx(expected_s, rel=1e-6)
    assert price.standard_error_s == pytest.approx(np.sqrt(variance), rel=1e-5)


def test_measuring_narrows_the_error_of_graphs_alike():
    counts = _draw_counts()
    before = GraphPricer(Prices(SECONDS)).price(counts, model="m")
    after = GraphPricer(Prices(SECONDS), [MeasuredGraph(counts, 1.1 * _sum(counts), "m")]).price(counts, model="m")
    assert after.standard_error_s < 0.2 * before.standard_error_s


def test_error_bars_hold_for_noise_of_any_size():
    """With noise of 6 % the bars are widened until about 95 % of new measurements lie within 1.96 of them."""
    rng = np.random.default_rng(1)

    def measure(counts):
        return 1.1 * _sum(counts) * float(np.exp(rng.normal(0, 0.06)))

    measured = [MeasuredGraph(counts, measure(counts), "m") for counts in (_draw_counts() for _ in range(60))]
    pricer = GraphPricer(Prices(SECONDS), measured)
    inside = []
    for counts in (_draw_counts() for _ in range(200)):
        price = pricer.price(counts, model="m")
        inside.append(abs(measure(counts) - price.seconds) <= 1.96 * price.standard_error_s)
    assert 0.88 <= np.mean(inside) <= 1.0


def test_unseen_kernels_widen_the_error_and_are_counted():
    known = {kernel: s for kernel, s in SECONDS.items() if kernel is not KERNELS[0]}
    price = GraphPricer(Prices(known)).price({KERNELS[0]: 1, KERNELS[1]: 1})
    assert price.unseen_share == pytest.approx(1e-5 / (1e-5 + SECONDS[KERNELS[1]]))
    assert price.standard_error_s > GraphPricer(Prices(SECONDS)).price({KERNELS[1]: 1}).standard_error_s


def test_the_graph_to_measure_next_is_the_one_that_holds_what_nobody_saw():
    known = {kernel: s for kernel, s in SECONDS.items() if kernel is not KERNELS[3]}
    ordinary = [{KERNELS[0]: 1, KERNELS[1]: 1}, {KERNELS[4]: 2}]
    unseen = {KERNELS[0]: 1, KERNELS[3]: 4}
    pricer = GraphPricer(Prices(known), [MeasuredGraph(g, _sum(g), "m") for g in ordinary])
    assert pricer.choose([*ordinary, unseen], 1, model="m") == [2]


def test_chosen_graphs_leave_less_uncertainty_than_the_same_number_of_random_ones():
    candidates = [_draw_counts() for _ in range(40)]

    def doubt(positions):
        measured = [MeasuredGraph(candidates[i], _sum(candidates[i]), "m") for i in positions]
        # without leave-one-out scaling, which depends on the numbers measured
        pricer = GraphPricer(Prices(SECONDS), measured[:4])
        return sum(pricer.price(c, model="m").standard_error_s / _sum(c) for c in candidates)

    chosen = GraphPricer(Prices(SECONDS)).choose(candidates, 4, model="m")
    random = [doubt(RNG.choice(40, 4, replace=False)) for _ in range(20)]
    assert doubt(chosen) < np.median(random)


def test_a_table_prices_what_it_holds_and_guesses_the_rest():
    table = KernelTable(synthetic_identity())
    from trimtab.hw_profiles.kernels.kernel import KernelTiming

    table.add([KernelTiming(KERNELS[0], 2e-5, 1e-6, 30)], "here")
    held, guessed = PriceList(table, predicts=False).price([KERNELS[0], KERNELS[1]])
    assert (held.seconds, held.source) == (2e-5, "table")
    assert (guessed.source, guessed.relative_error) == ("model", 1.0)


def test_a_pricer_learns_from_the_graphs_of_its_table():
    from collections import Counter

    from trimtab.hw_profiles.kernels.kernel import KernelTiming
    from trimtab.hw_profiles.kernels.kernel_table import GraphObservation
    from trimtab.hw_profiles.latency import Latency

    table = KernelTable(synthetic_identity())
    table.add([KernelTiming(kernel, s, 0.0, 30) for kernel, s in SECONDS.items()], "here")
    for i in range(12):
        counts = _draw_counts()
        latency = Latency(1.25 * _sum(counts), 0.0, 30)
        table.add_graph(GraphObservation.of(Counter(counts), latency, model="m", source=f"here {i}"), counts)
    counts = _draw_counts()
    assert build_pricer(table, model="m").price(counts, model="m").seconds == pytest.approx(
        1.25 * _sum(counts), rel=0.02
    )
