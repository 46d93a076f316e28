"""What is known of a spec's space before any trial: prices of the kernel table, influences on the output, bytes."""

import logging
import time
from collections.abc import Collection, Sequence
from itertools import product

import numpy as np

from ..compressors.edges import find_edges
from ..core.errors import MeasurementError, PolicyError, SpecError
from ..search.budget import Budget
from ..search.knowledge import GraphEntries, Knowledge
from ..search.solver.additive_cost import AdditiveCost, scaled
from ..search.solver.program import Program
from ..search.solver.solve import solve
from ..spaces.policy import Policy
from ..spaces.space import Space
from ..spaces.treatment import Treatment
from .activations import known_activations
from .preparation import Preparation, want_resources
from .profiling.surrogate import Combination, Effort, SpaceSurrogate
from .profiling.table_prices import TablePrices, open_prices, open_related_prices
from .sensitivity import measure_sensitivity

_log = logging.getLogger(__name__)

#: prices of the kernel table for the first setting of the graph-wide choices, and for each further one; a price is a
#: policy that is built and lowered, so what a search spends before its first trial stays in the order of a few trials
_FIRST, _FURTHER = Effort(tolerance=0.04, n_first=16, n_most=64), Effort(tolerance=0.04, n_first=12, n_most=12)
#: seconds after which no further setting is begun, but for the first one of each precision: prices of float32 in place
#: of those of bfloat16, or the other way round, are so wrong that nothing else that is known is believed any more
_ENOUGH_S = 20.0
#: where the precision stands among the graph-wide choices of a vector
_PRECISION = 3
#: a table that can look up less of the original than this is no knowledge
_MOST_UNSEEN = 0.5


def gather_knowledge(preparation: Preparation) -> tuple[Preparation, Knowledge]:
    """Finds out what can be known of the space without running a policy on the device.

    Returns:
        The preparation without the options whose influence is not finite, or that cannot be built; and what is known of
        what is left.

    Raises:
        SpecError: a group loses all of its options.
    """
    sensitivity = measure_sensitivity(preparation)
    for drop in sensitivity.dropped:
        _log.warning("dropped: %s on %s: %s", drop.option, drop.layer, drop.reason)
    preparation = preparation.with_space(sensitivity.space, sensitivity.dropped)
    # moments are many rows of a program: they are worth it only where a peak is bounded or minimised
    moments = known_activations(preparation) if want_resources(preparation.spec).peak_activation else ()
    return preparation, Knowledge(_latencies(preparation), sensitivity.scores, known_sizes(preparation), moments)


def _latencies(preparation: Preparation) -> dict[GraphEntries, AdditiveCost]:
    """Fits a surrogate to the kernel table, for as many settings of the graph-wide choices as time allows."""
    prices = _find_prices(preparation)
    if prices is None:
        return {}
    space, started_s = preparation.space, time.perf_counter()
    original = prices.original.seconds
    edges = find_edges(preparation.model, space.groups)
    surrogate = SpaceSurrogate(space, edges, lambda policies: [_price(prices, p) for p in policies], 0, _FIRST)
    found: dict[GraphEntries, AdditiveCost] = {}
    combinations = list_settings(space)
    for combination in combinations:
        if not is_worth_pricing(combination, found, spent_s=time.perf_counter() - started_s):
            continue
        try:
            tables = surrogate.surrogate(combination)
        except (PolicyError, MeasurementError) as error:
            _log.info("a setting of the graph-wide choices has no price: %s", error)
            continue
        rest = (0,) * (len(space.dimensions) - len(space.groups) - len(combination))
        cost = AdditiveCost(tables.constant, tables.unary, tables.boundary)
        found[(*combination, *rest)] = scaled(cost, 1.0 / original)
        surrogate.effort = _FURTHER
    _log.info(
        "%d of %d settings priced from the kernel table in %.1f s",
        len(found), len(combinations), time.perf_counter() - started_s,
    )  # fmt: skip
    return found


def _find_prices(preparation: Preparation) -> TablePrices | None:
    """Returns the prices of this device's table, else of the most similar device's, where they know the model."""
    for prices, whose in ((open_prices, "this device"), (open_related_prices, "a similar device")):
        found = prices(preparation)
        if found is not None and _knows(found):
            _log.info("prices are those of %s", whose)
            return found
    return None


def _knows(prices: TablePrices) -> bool:
    try:
        kernels = prices.device.lower(prices.preparation.original).counts
        if not any(kernel in prices.table for kernel in kernels):
            return False  # without a predictor, whose fit to a large table takes seconds
        return prices.original.unseen_share <= _MOST_UNSEEN
    except (PolicyError, MeasurementError) as error:
        _log.info("the kernel table has no price of the original: %s", error)
        return False


def _price(prices: TablePrices, policy: Policy) -> tuple[float, float]:
    price = prices.price(policy)
    return price.seconds, price.standard_error_s


def is_worth_pricing(setting: Combination, priced: Collection[GraphEntries], *, spent_s: float) -> bool:
    """Whether a setting of the graph-wide choices is to be priced beforehand, after so many seconds of pricing others.

    >>> [is_worth_pricing(setting, [(0, 0, 0, 1)], spent_s=60.0) for setting in ((0, 0, 0, 0), (1, 0, 0, 1))]
    [True, False]
    """
    return spent_s <= _ENOUGH_S or all(entries[_PRECISION] != setting[_PRECISION] for entries in priced)


def list_settings(space: Space) -> list[Combination]:
    """Returns the settings of the choices that change kernels: the default one, then those that differ in one choice.

    Of the precisions the last on offer comes first, the runtime's fastest: the fastest policies are made in it.
    """
    graph = space.graph
    precisions = reversed(range(len(graph.precision)))
    every = product(precisions, range(len(graph.fusion)), range(len(graph.quantized_ops)))
    fastest = len(graph.precision) - 1
    ordered = sorted(every, key=lambda entries: sum(map(bool, (fastest - entries[0], *entries[1:]))))
    return [(fusion, 0, ops, precision) for precision, fusion, ops in ordered]


def known_sizes(preparation: Preparation) -> AdditiveCost | None:
    """Returns the artifact's bytes as a sum over groups: exact for weights, one structure at a time for pruning."""
    pipeline, space = preparation.pipeline, preparation.space
    try:
        weights = pipeline.account({})
        unary = [_sizes_of(preparation, position, weights) for position in range(len(space.groups))]
    except PolicyError as error:
        _log.info("the sizes of treated weights are not known beforehand: %s", error)
        return None
    return AdditiveCost(float(preparation.original.size_bytes), tuple(unary))


def _sizes_of(preparation: Preparation, position: int, weights: int) -> np.ndarray:
    space = preparation.space
    group, options = space.groups[position], space.options[position]
    return np.array([_bytes_more(preparation, group.name, option, weights) for option in options], float)


def _bytes_more(preparation: Preparation, group: str, option: Treatment, weights: int) -> float:
    if option == Treatment():
        return 0.0
    treatments = preparation.space.layer_treatments(Policy({group: option}))
    return float(preparation.pipeline.account(treatments) - weights)


def used_by(algorithm: str) -> bool:
    """Whether a search algorithm makes use of knowledge; one of another package is taken to."""
    return algorithm not in _BLIND


#: algorithms that look at nothing but verdicts
_BLIND: Sequence[str] = ("random", "tpe", "nsga2", "nsga3", "gp")


def check_size(budget: Budget, preparation: Preparation) -> None:
    """Solves for the smallest policy that the space holds, builds it, and refuses a size that even it does not reach.

    Raises:
        SpecError: no policy can be so small.
    """
    sizes = None if budget.size_bytes is None else known_sizes(preparation)
    if sizes is None or budget.size_bytes is None:
        return
    solution, space = solve(Program((sizes,))), preparation.space
    rest = (0,) * (len(space.dimensions) - len(space.groups) - 1)
    vectors = [(*(solution.vector or ()), fusion, *rest) for fusion in range(len(space.graph.fusion))]
    try:
        built = [preparation.build(space.decode(vector).untrained).size_bytes for vector in vectors]
    except PolicyError:  # the smallest treatments do not go together; the search finds out what does
        return
    # what quantises activations is in the file, too, but not in the sizes that were added up
    smallest = min(*built, preparation.original.size_bytes, solution.value or 0.0)
    if budget.size_bytes < smallest:
        raise SpecError(
            f"budget.size_mb: {budget.size_bytes / 1e6:.4g} MB is below the smallest policy in this space "
            f"({smallest / 1e6:.4g} MB); raise the budget or widen the space"
        )
