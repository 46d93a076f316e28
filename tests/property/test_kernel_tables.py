"""Laws of kernel tables: what they hold depends on the set of observations, and a file holds all of it."""

import math
import random

from hypothesis import given
from hypothesis import strategies as st
from trimtab.hw_profiles.kernels.kernel import KernelTiming
from trimtab.hw_profiles.kernels.kernel_table import MAX_OBSERVATIONS, GraphObservation, KernelTable
from trimtab.hw_profiles.kernels.table_file import read_table, write_table
from trimtab.hw_profiles.latency import Latency
from trimtab.hw_profiles.testing import synthetic_identity, synthetic_kernel

KERNELS = [synthetic_kernel(n_channels) for n_channels in (1, 2, 3)]

# few values: collisions and full kernels must occur
seconds = st.one_of(st.sampled_from([0.0, 1e-6, 2e-6]), st.floats(0, 1, allow_nan=False))
timings = st.builds(KernelTiming, st.sampled_from(KERNELS), seconds, seconds, st.integers(1, 3))
sources = st.one_of(st.sampled_from("abc"), st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=8))
graphs = st.builds(
    lambda counts, median_s, runs, model, source: GraphObservation.of(
        counts, Latency(median_s, 0, runs), model=model, source=source
    ),
    st.dictionaries(st.sampled_from(KERNELS), st.integers(1, 4), min_size=1),
    seconds,
    st.integers(1, 3),
    st.sampled_from("mn"),
    sources,
)


@st.composite
def tables(draw):
    table = KernelTable(synthetic_identity())
    for source, batch in draw(st.lists(st.tuples(sources, st.lists(timings, max_size=4)), max_size=25)):
        table.add(batch, source)
    for graph in draw(st.lists(graphs, max_size=4)):
        table.add_graph(graph, draw(st.sampled_from([(), tuple(KERNELS)])))
    return table


def union(*parts):
    whole = KernelTable(synthetic_identity())
    for part in parts:
        whole.merge(part)
    return whole


@given(tables(), tables())
def test_merging_is_commutative(a, b):
    assert union(a, b) == union(b, a)


@given(tables(), tables(), tables())
def test_merging_is_associative(a, b, c):
    assert union(union(a, b), c) == union(a, union(b, c))


@given(tables(), tables())
def test_merging_is_idempotent(a, b):
    assert union(a, a) == a
    assert union(a, b, a, b) == union(a, b)


@given(st.lists(st.tuples(sources, timings), min_size=MAX_OBSERVATIONS, max_size=60), st.randoms(use_true_random=False))
def test_the_order_of_measurements_does_not_matter(measurements, rng: random.Random):
    shuffled = rng.sample(measurements, len(measurements))
    first, second = KernelTable(synthetic_identity()), KernelTable(synthetic_identity())
    for table, order in ((first, measurements), (second, shuffled)):
        for source, timing in order:
            table.add([timing], source)
    assert first == second
    assert [first.latency(kernel) for kernel in KERNELS] == [second.latency(kernel) for kernel in KERNELS]


@given(tables())
def test_a_latency_lies_within_its_observations(table):
    for kernel in table.kernels():
        medians = [each.median_s for each in table.observations(kernel)]
        latency = table.latency(kernel)
        assert min(medians) <= latency.median_s <= max(medians)
        assert math.isfinite(latency.iqr_s)
        # squares of less than 1e-162 s are 0
        assert latency.iqr_s >= min(each.iqr_s for each in table.observations(kernel)) * (1 - 1e-12) - 1e-150
        assert len(medians) <= MAX_OBSERVATIONS


@given(tables())
def test_a_file_holds_the_whole_table_and_equal_tables_give_equal_bytes(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("tables")
    write_table(folder / "a.jsonl", table)
    again = read_table(folder / "a.jsonl", expect=table.identity)
    write_table(folder / "b.jsonl", again)
    assert again == table
    assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes()
